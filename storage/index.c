/* SPDX-License-Identifier: Apache-2.0 */
/* index.c - LMDB, opened only after index_check.c found its file sound.
 *
 * One process (the store's lock), one thread: so LMDB's own lock file is not used. Neither
 * MDB_WRITEMAP nor MDB_NOSYNC: a commit returns when it is durable.
 */
#include "storage/index.h"

#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/index_check.h"
#include "storage/planted.h"

/* Address space only; nothing is reserved on disk. Refused under small limits of address space. */
#define MAP_BYTES_MAX (1ull << 40)
#define MAP_BYTES_MIN (16ull << 20)
/* What a transaction may take of the map or the disk is made sure of before it begins. */
#define AHEAD_BYTES     (16ull << 20)
#define AHEAD_BYTES_MIN (8ull << 20)
/* Of those, what one change takes, and what any transaction does. */
#define CHANGE_BYTES      (16ull << 10)
#define TRANSACTION_BYTES (512ull << 10)

#define INDEX_FORMAT 1u

struct larder_index {
    MDB_env *env;
    MDB_dbi dbis[INDEX_DATABASES];
    bool without_marks; /* only looked at, and made before there were any */
    MDB_txn *txn;
    uint64_t map_bytes;
    uint64_t reserved_bytes; /* of the file, on disk */
    uint32_t page_bytes;
    bool grow;     /* the last transaction found the map full */
    bool poisoned; /* a commit failed: nobody knows what is on disk */
    int (*gate)(void *context);
    void *gate_context;
};

struct meta_value {
    uint64_t number;
    uint64_t check;
};
static_assert(sizeof(struct meta_value) == 16, "on-disk size");

struct model_value {
    struct larder_model_desc desc;
    uint64_t check;
};
static_assert(sizeof(struct model_value) == sizeof(struct larder_model_desc) + 8, "no padding");

static uint64_t map_bytes_limit = MAP_BYTES_MAX;

void larder_index_set_map_limit(uint64_t bytes)
{
    map_bytes_limit = bytes ? bytes : MAP_BYTES_MAX;
}

static int fail_lmdb(int rc, const char *what)
{
    int err = rc > 0               ? -rc
              : rc == MDB_MAP_FULL ? -EAGAIN
              : rc == MDB_TXN_FULL ? LARDER_ELIMIT
                                   : LARDER_ECORRUPT;
    return larder_fail(err, "index: %s: %s", what, mdb_strerror(rc));
}

static int refuse_poisoned(void)
{
    return larder_fail(-EIO, "index: a commit failed before; restart when the disk is healthy");
}

/* --- files ------------------------------------------------------------------------------------ */

static int sync_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = fd < 0 || fsync(fd) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return err < 0 ? larder_fail(err, "cannot sync %s: %s", path, larder_error_text(err)) : 0;
}

/* `path` with `tail` behind it; larder_free() it. */
static char *join(const char *path, const char *tail)
{
    size_t bytes = strlen(path) + strlen(tail) + 1;
    char *both = larder_alloc(bytes);
    if (both)
        snprintf(both, bytes, "%s%s", path, tail);
    else
        larder_fail(-ENOMEM, "no memory for a path");
    return both;
}

static int sync_parent(const char *path)
{
    char *parent = join(path, "/..");
    int err = parent ? sync_directory(parent) : -ENOMEM;
    larder_free(parent);
    return err;
}

static int remove_one(const char *directory, const char *tail)
{
    char *path = join(directory, tail);
    if (!path)
        return -ENOMEM;
    int err = 0;
    if (unlink(path) != 0 && errno != ENOENT)
        err = larder_fail(-errno, "cannot remove %s: %s", path, larder_error_text(-errno));
    larder_free(path);
    return err;
}

int larder_index_destroy(const char *path)
{
    char *aside = join(path, ".bad");
    if (!aside)
        return -ENOMEM;
    int err = remove_one(aside, "/data.mdb");
    if (err == 0)
        err = remove_one(aside, "/lock.mdb");
    if (err == 0 && rmdir(aside) != 0 && errno != ENOENT)
        err = larder_fail(-errno, "cannot remove %s: %s", aside, larder_error_text(-errno));
    if (err == 0 && rename(path, aside) != 0 && errno != ENOENT)
        err = larder_fail(-errno, "cannot rename %s to %s: %s", path, aside,
                          larder_error_text(-errno));
    if (err == 0)
        err = sync_parent(aside);
    larder_free(aside);
    return err == -ENOENT ? 0 : err; /* there was neither */
}

/* --- open ------------------------------------------------------------------------------------- */

static int open_env(struct larder_index *index, const char *path, unsigned flags)
{
    index->map_bytes = map_bytes_limit;
    for (;;) {
        int rc = mdb_env_create(&index->env);
        if (rc == 0)
            rc = mdb_env_set_maxdbs(index->env, INDEX_DATABASES);
        if (rc == 0)
            rc = mdb_env_set_mapsize(index->env, index->map_bytes);
        if (rc == 0)
            rc = mdb_env_open(index->env, path, MDB_NOLOCK | flags, 0600);
        if (rc == 0)
            return 0;
        mdb_env_close(index->env);
        index->env = NULL;
        if (rc != ENOMEM || index->map_bytes <= MAP_BYTES_MIN)
            return fail_lmdb(rc, "open");
        index->map_bytes /= 4;
    }
}

static int put(struct larder_index *index, enum index_database database, const void *key,
               size_t key_bytes, const void *value)
{
    MDB_val k = {key_bytes, (void *)(uintptr_t)key};
    MDB_val v = {index_databases[database].value_bytes, (void *)(uintptr_t)value};
    int rc = mdb_put(index->txn, index->dbis[database], &k, &v, 0);
    if (rc == MDB_MAP_FULL)
        index->grow = true;
    return rc ? fail_lmdb(rc, "put") : 0;
}

static int put_meta(struct larder_index *index, const char *name, uint64_t number)
{
    struct meta_value value = {.number = number};
    value.check = index_value_check(name, strlen(name), &value, sizeof(value));
    return put(index, INDEX_META, name, strlen(name), &value);
}

static int check_stored(const MDB_val *key, const MDB_val *value, enum index_database database)
{
    uint64_t check;
    size_t bytes = index_databases[database].value_bytes;
    if (value->mv_size != bytes || key->mv_size > 64)
        return larder_fail(LARDER_ECORRUPT, "index: an entry has the wrong length");
    memcpy(&check, (const uint8_t *)value->mv_data + bytes - sizeof(check), sizeof(check));
    if (check != index_value_check(key->mv_data, key->mv_size, value->mv_data, bytes) &&
        !LARDER_PLANT(CHECK_IGNORED))
        return larder_fail(LARDER_ECORRUPT, "index: the check of a value does not match");
    return 0;
}

/* LARDER_ENOTFOUND when it is not there. */
static int get_meta(struct larder_index *index, MDB_txn *txn, const char *name, uint64_t *out)
{
    MDB_val key = {strlen(name), (void *)(uintptr_t)name};
    MDB_val value;
    int rc = mdb_get(txn, index->dbis[INDEX_META], &key, &value);
    if (rc == MDB_NOTFOUND)
        return larder_fail(LARDER_ENOTFOUND, "index: no %s", name);
    if (rc)
        return fail_lmdb(rc, "get");
    LARDER_TRY(check_stored(&key, &value, INDEX_META));
    memcpy(out, value.mv_data, sizeof(*out));
    return 0;
}

/* Opens the databases; makes them, durably, when `created`. */
static int open_databases(struct larder_index *index, bool *created)
{
    LARDER_TRY(larder_index_begin(index));
    for (int i = 0; i < INDEX_DATABASES; i++) {
        int rc = mdb_dbi_open(index->txn, index_databases[i].name, MDB_CREATE, &index->dbis[i]);
        if (rc)
            return fail_lmdb(rc, "open of a database");
    }
    uint64_t format, generation;
    int err = get_meta(index, index->txn, "format", &format);
    if (err == LARDER_ENOTFOUND) {
        format = INDEX_FORMAT;
        err = put_meta(index, "format", format);
    }
    if (err < 0)
        return err;
    if (format != INDEX_FORMAT)
        return larder_fail(LARDER_EVERSION,
                           "index: format %llu, expected %u: remove the directory "
                           "index, it is made again from the segments",
                           (unsigned long long)format, INDEX_FORMAT);
    err = get_meta(index, index->txn, "generation", &generation);
    if (err < 0 && err != LARDER_ENOTFOUND)
        return err;
    *created = err == LARDER_ENOTFOUND;
    int rc = mdb_txn_commit(index->txn);
    index->txn = NULL;
    return rc ? fail_lmdb(rc, "commit") : 0;
}

static int check_before_open(const char *path)
{
    char *file = join(path, "/data.mdb");
    if (!file)
        return -ENOMEM;
    int err = index_check_file(file);
    larder_free(file);
    return err == -ENOENT ? 0 : err;
}

int larder_index_open(struct larder_index **out, const char *path, bool *created)
{
    *out = NULL;
    *created = false;
    bool made = mkdir(path, 0700) == 0;
    if (!made && errno != EEXIST)
        return larder_fail(-errno, "cannot create %s: %s", path, larder_error_text(-errno));
    if (!made)
        LARDER_TRY(check_before_open(path));
    struct larder_index *index = larder_alloc_zero(1, sizeof(*index));
    if (!index)
        return larder_fail(-ENOMEM, "no memory for the index");
    int err = open_env(index, path, 0);
    if (err < 0)
        goto fail;
    MDB_stat stat;
    mdb_env_stat(index->env, &stat);
    index->page_bytes = stat.ms_psize;
    err = open_databases(index, created);
    if (err == 0 && *created) {
        /* LMDB syncs its file, not the names that lead to it. */
        err = sync_directory(path);
        if (err == 0)
            err = sync_parent(path);
    }
    if (err < 0)
        goto fail;
    *out = index;
    return 0;

fail:
    larder_index_close(index);
    return err;
}

static int find_databases(struct larder_index *index)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    for (int i = 0; i < INDEX_DATABASES && rc == 0; i++) {
        rc = mdb_dbi_open(txn, index_databases[i].name, 0, &index->dbis[i]);
        if (rc == MDB_NOTFOUND && i == INDEX_MARKS) {
            index->without_marks = true;
            rc = 0;
        }
        if (rc)
            mdb_txn_abort(txn);
    }
    if (rc == 0)
        rc = mdb_txn_commit(txn); /* keeps the handles */
    return rc == MDB_NOTFOUND ? -ENOENT : rc ? fail_lmdb(rc, "open of a database") : 0;
}

int larder_index_open_to_read(struct larder_index **out, const char *path)
{
    *out = NULL;
    char *file = join(path, "/data.mdb");
    if (!file)
        return -ENOMEM;
    int err = index_check_file(file);
    larder_free(file);
    LARDER_TRY(err);
    struct larder_index *index = larder_alloc_zero(1, sizeof(*index));
    if (!index)
        return larder_fail(-ENOMEM, "no memory for the index");
    err = open_env(index, path, MDB_RDONLY);
    if (err == 0)
        err = find_databases(index);
    if (err < 0) {
        larder_index_close(index);
        return err;
    }
    *out = index;
    return 0;
}

void larder_index_close(struct larder_index *index)
{
    if (!index)
        return;
    larder_index_abort(index);
    if (index->env)
        mdb_env_close(index->env);
    larder_free(index);
}

void larder_index_set_gate(struct larder_index *index, int (*gate)(void *context), void *context)
{
    index->gate = gate;
    index->gate_context = context;
}

/* --- load ------------------------------------------------------------------------------------- */

/* Values lie at even addresses only: each is copied before it is looked at. */
static int visit(const struct index_visitor *visitor, enum index_database database,
                 const MDB_val *key, const MDB_val *value)
{
    LARDER_TRY(check_stored(key, value, database));
    struct larder_key name;
    uint32_t number;
    switch (database) {
    case INDEX_ENTRIES: {
        struct index_entry entry;
        memcpy(&name, key->mv_data, sizeof(name));
        memcpy(&number, (const uint8_t *)key->mv_data + sizeof(name), sizeof(number));
        memcpy(&entry, value->mv_data, sizeof(entry));
        return visitor->entry(visitor->context, &name, number, &entry);
    }
    case INDEX_MARKS: {
        struct index_mark mark;
        memcpy(&name, key->mv_data, sizeof(name));
        memcpy(&mark, value->mv_data, sizeof(mark));
        return visitor->mark(visitor->context, &name, &mark);
    }
    case INDEX_SEGMENTS: {
        struct index_segment segment;
        memcpy(&number, key->mv_data, sizeof(number));
        memcpy(&segment, value->mv_data, sizeof(segment));
        return visitor->segment(visitor->context, number, &segment);
    }
    case INDEX_MODELS: {
        struct larder_model_desc desc;
        memcpy(&name, key->mv_data, sizeof(name));
        memcpy(&desc, value->mv_data, sizeof(desc));
        return visitor->model(visitor->context, &name, &desc);
    }
    default:
        return 0;
    }
}

/* Memory is slow: what comes next is fetched while this one is taken in. */
static void announce(const struct index_visitor *visitor, enum index_database database,
                     const MDB_val *key, const MDB_val *value)
{
    enum { LINE_BYTES = 64 };
    struct larder_key name;
    if (database != INDEX_ENTRIES || !visitor->soon || key->mv_size < sizeof(name))
        return;
    for (size_t at = 0; at < sizeof(struct index_entry); at += LINE_BYTES)
        __builtin_prefetch((const uint8_t *)value->mv_data + at);
    memcpy(&name, key->mv_data, sizeof(name));
    visitor->soon(visitor->context, &name);
}

static int load_database(struct larder_index *index, MDB_txn *txn, enum index_database database,
                         const struct index_visitor *visitor)
{
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(txn, index->dbis[database], &cursor);
    if (rc)
        return fail_lmdb(rc, "cursor");
    int err = 0;
    MDB_val key, value;
    MDB_val next_key = {0}, next_value = {0};
    rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    while (err == 0 && rc == 0) {
        rc = mdb_cursor_get(cursor, &next_key, &next_value, MDB_NEXT);
        if (rc == 0)
            announce(visitor, database, &next_key, &next_value);
        if (key.mv_size != index_databases[database].key_bytes)
            err = larder_fail(LARDER_ECORRUPT, "index: a key has the wrong length");
        else
            err = visit(visitor, database, &key, &value);
        if (err > 0)
            err = 0;
        key = next_key;
        value = next_value;
    }
    if (err == 0 && rc != MDB_NOTFOUND)
        err = fail_lmdb(rc, "walk");
    mdb_cursor_close(cursor);
    return err;
}

uint64_t larder_index_entry_count(struct larder_index *index)
{
    MDB_txn *txn;
    MDB_stat stat = {0};
    if (mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn) == 0) {
        mdb_stat(txn, index->dbis[INDEX_ENTRIES], &stat);
        mdb_txn_abort(txn);
    }
    return stat.ms_entries;
}

int larder_index_load(struct larder_index *index, const struct index_visitor *visitor,
                      uint64_t *next_generation)
{
    *next_generation = 0;
    MDB_txn *txn;
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    if (rc)
        return fail_lmdb(rc, "begin");
    /* Models and segments first: entries refer to them. */
    static const enum index_database order[] = {INDEX_MODELS, INDEX_SEGMENTS, INDEX_ENTRIES,
                                                INDEX_MARKS};
    int err = get_meta(index, txn, "generation", next_generation);
    if (err == LARDER_ENOTFOUND)
        err = 0; /* *created */
    for (unsigned i = 0; i < LARDER_COUNT_OF(order) && err == 0; i++) {
        if (order[i] == INDEX_MARKS && index->without_marks)
            continue;
        err = load_database(index, txn, order[i], visitor);
    }
    mdb_txn_abort(txn);
    return err;
}

/* --- transactions ----------------------------------------------------------------------------- */

static uint64_t used_bytes(struct larder_index *index)
{
    MDB_envinfo info;
    mdb_env_info(index->env, &info);
    return (info.me_last_pgno + 1) * (index->page_bytes ? index->page_bytes : LARDER_PAGE_BYTES);
}

/* LMDB wants no transaction to be live while the map changes. */
static int grow_map(struct larder_index *index, uint64_t used)
{
    if (!index->grow && used + larder_min_u64(used / 3, AHEAD_BYTES) < index->map_bytes)
        return 0;
    uint64_t bytes = index->map_bytes * 2;
    int rc = mdb_env_set_mapsize(index->env, bytes);
    if (rc) {
        /* The old map is gone already. */
        index->poisoned = true;
        return fail_lmdb(rc, "larger map");
    }
    larder_log(LARDER_LOG_INFO, "storage: index: map enlarged to %llu MiB",
               (unsigned long long)(bytes >> 20));
    index->map_bytes = bytes;
    index->grow = false;
    return 0;
}

/* A commit that meets a full disk poisons the index; so the disk's room is asked for here, where
 * refusing costs nothing. */
static int reserve_disk(struct larder_index *index, uint64_t used, uint64_t need)
{
    if (used + AHEAD_BYTES_MIN <= index->reserved_bytes)
        return 0;
    mdb_filehandle_t fd;
    int rc = mdb_env_get_fd(index->env, &fd);
    if (rc)
        return fail_lmdb(rc, "file");
    uint64_t bytes = used + AHEAD_BYTES;
    if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) != 0) {
        bool is_full = errno == ENOSPC || errno == EDQUOT;
        if (is_full && used + need <= index->reserved_bytes)
            return 0;
        if (is_full)
            return larder_fail(-ENOSPC, "index: no room on disk for %llu MiB more",
                               (unsigned long long)(AHEAD_BYTES >> 20));
        if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR)
            return larder_fail(-errno, "index: fallocate: %s", larder_error_text(-errno));
    }
    index->reserved_bytes = bytes;
    return 0;
}

static int reserve(struct larder_index *index, uint64_t need)
{
    assert(!index->txn);
    if (index->poisoned)
        return refuse_poisoned();
    uint64_t used = used_bytes(index);
    LARDER_TRY(grow_map(index, used));
    return reserve_disk(index, used, need);
}

int larder_index_reserve(struct larder_index *index)
{
    return reserve(index, AHEAD_BYTES_MIN);
}

static int begin(struct larder_index *index, uint64_t need)
{
    LARDER_TRY(reserve(index, need));
    int rc = mdb_txn_begin(index->env, NULL, 0, &index->txn);
    if (rc)
        index->txn = NULL;
    return rc ? fail_lmdb(rc, "begin") : 0;
}

int larder_index_begin(struct larder_index *index)
{
    return begin(index, AHEAD_BYTES_MIN);
}

int larder_index_begin_few(struct larder_index *index, uint32_t changes)
{
    return begin(index,
                 larder_min_u64(TRANSACTION_BYTES + changes * CHANGE_BYTES, AHEAD_BYTES_MIN));
}

static void entry_key(uint8_t out[36], const struct larder_key *key, uint32_t variant)
{
    memcpy(out, key->bytes, 32);
    memcpy(out + 32, &variant, 4);
}

static int del(struct larder_index *index, enum index_database database, const void *key,
               size_t key_bytes)
{
    assert(index->txn);
    MDB_val k = {key_bytes, (void *)(uintptr_t)key};
    int rc = mdb_del(index->txn, index->dbis[database], &k, NULL);
    if (rc == MDB_MAP_FULL)
        index->grow = true;
    return rc && rc != MDB_NOTFOUND ? fail_lmdb(rc, "delete") : 0;
}

int larder_index_put_entry(struct larder_index *index, const struct larder_key *key,
                           uint32_t variant, struct index_entry *entry)
{
    assert(index->txn);
    uint8_t name[36];
    entry_key(name, key, variant);
    entry->check = index_value_check(name, sizeof(name), entry, sizeof(*entry));
    return put(index, INDEX_ENTRIES, name, sizeof(name), entry);
}

int larder_index_delete_entry(struct larder_index *index, const struct larder_key *key,
                              uint32_t variant)
{
    uint8_t name[36];
    entry_key(name, key, variant);
    return del(index, INDEX_ENTRIES, name, sizeof(name));
}

int larder_index_put_mark(struct larder_index *index, const struct larder_key *key,
                          struct index_mark *mark)
{
    assert(index->txn);
    mark->check = index_value_check(key, sizeof(*key), mark, sizeof(*mark));
    return put(index, INDEX_MARKS, key, sizeof(*key), mark);
}

int larder_index_delete_mark(struct larder_index *index, const struct larder_key *key)
{
    return del(index, INDEX_MARKS, key, sizeof(*key));
}

int larder_index_put_segment(struct larder_index *index, uint32_t segment_id,
                             struct index_segment *segment)
{
    assert(index->txn);
    segment->check = index_value_check(&segment_id, sizeof(segment_id), segment, sizeof(*segment));
    return put(index, INDEX_SEGMENTS, &segment_id, sizeof(segment_id), segment);
}

int larder_index_delete_segment(struct larder_index *index, uint32_t segment_id)
{
    return del(index, INDEX_SEGMENTS, &segment_id, sizeof(segment_id));
}

int larder_index_put_model(struct larder_index *index, const struct larder_key *fingerprint,
                           const struct larder_model_desc *desc)
{
    assert(index->txn);
    struct model_value value = {.desc = *desc};
    value.check = index_value_check(fingerprint, sizeof(*fingerprint), &value, sizeof(value));
    return put(index, INDEX_MODELS, fingerprint, sizeof(*fingerprint), &value);
}

int larder_index_commit(struct larder_index *index, uint64_t next_generation)
{
    assert(index->txn);
    int err = put_meta(index, "generation", next_generation);
    if (err < 0) {
        larder_index_abort(index);
        return err;
    }
    if (index->gate) {
        err = index->gate(index->gate_context);
        if (err) {
            larder_index_abort(index);
            index->poisoned = true;
            return larder_fail(err, "index: commit stopped at the gate");
        }
    }
    int rc = mdb_txn_commit(index->txn);
    index->txn = NULL;
    if (rc) {
        /* LMDB would let the next commit succeed, over pages that may never have reached disk. */
        index->poisoned = true;
        return fail_lmdb(rc, "commit");
    }
    return 0;
}

void larder_index_abort(struct larder_index *index)
{
    if (index->txn)
        mdb_txn_abort(index->txn);
    index->txn = NULL;
}
