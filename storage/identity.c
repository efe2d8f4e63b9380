/* SPDX-License-Identifier: Apache-2.0 */
/* identity.c - the small files at the top of a store's directory.
 *
 * Order of making a store: directory, lock, tenants, tenants.copy, format. So a directory with
 * `format` has had two good copies of the tenants, and one without it has no tenant yet.
 */
#include "storage/identity.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"

#define TENANTS_MAGIC      0x31544e4e5444524cull /* "LRDTNNT1" */
#define TENANTS_VERSION    1u
#define FORMAT_BYTES_MAX   256u
#define FORMAT_FIRST_WORDS "larder store "

/* tenants, tenants.copy: the head, then `count` tenants, nothing else. */
struct tenants_head {
    uint64_t magic;    /* 00-07 */
    uint32_t version;  /* 08-11 */
    uint32_t count;    /* 12-15  <= LARDER_TENANTS_MAX */
    uint64_t sequence; /* 16-23  rises with every change: of two good copies the higher one holds */
    uint64_t reserved; /* 24-31  0 */
    uint8_t store[16]; /* 32-47  the store's id: guards against a copy from elsewhere */
    XXH128_canonical_t check; /* 48-63  XXH3-128 over the file, this field as zeros */
};
static_assert(sizeof(struct tenants_head) == 64, "on-disk size");

struct tenants_item {
    char name[LARDER_TENANT_NAME_MAX]; /* 000-063  NUL-terminated, zeros behind */
    uint8_t id[16];                    /* 064-079 */
    uint8_t key[32];                   /* 080-111 */
};
static_assert(sizeof(struct tenants_item) == 112, "on-disk size");

#define TENANTS_BYTES_MAX                                                                          \
    (sizeof(struct tenants_head) + LARDER_TENANTS_MAX * sizeof(struct tenants_item))

static const char *const copy_names[2] = {"tenants", "tenants.copy"};

struct larder_identity {
    char *directory; /* for messages */
    int directory_fd;
    int lock_fd;
    bool looks_only;     /* nothing is written */
    unsigned bad_copies; /* of the tenants, that were left as they are */
    uint8_t store_id[16];
    pthread_mutex_t adding; /* held while a tenant is made, which waits for the disk */
    uint64_t sequence;
    uint32_t count;                     /* in the files; under `adding` */
    _Atomic uint32_t complete;          /* of them, to be seen by all */
    struct larder_tenant_info *tenants; /* LARDER_TENANTS_MAX: never moved */
};

/* --- files ------------------------------------------------------------------------------------ */

static int random_bytes(void *out, size_t bytes)
{
    uint8_t *at = out;
    while (bytes > 0) {
        ssize_t got = getrandom(at, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return larder_fail(-errno, "getrandom: %s", larder_error_text(-errno));
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

static int write_all(int fd, const void *bytes, size_t count)
{
    const uint8_t *at = bytes;
    while (count > 0) {
        ssize_t put = write(fd, at, count);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put < 0 ? -errno : -EIO;
        at += put;
        count -= (size_t)put;
    }
    return 0;
}

/* At most `capacity` bytes; *out_bytes is capacity + 1 for a longer file. */
static int read_file(const struct larder_identity *identity, const char *name, void *out,
                     size_t capacity, size_t *out_bytes)
{
    *out_bytes = 0;
    int fd = openat(identity->directory_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return larder_fail(-errno, "cannot open %s/%s: %s", identity->directory, name,
                           larder_error_text(-errno));
    int err = 0;
    uint8_t *at = out;
    char beyond;
    while (err == 0 && *out_bytes <= capacity) {
        size_t room = capacity - *out_bytes;
        ssize_t got = read(fd, room ? (void *)(at + *out_bytes) : &beyond, room ? room : 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            err = larder_fail(-errno, "cannot read %s/%s: %s", identity->directory, name,
                              larder_error_text(-errno));
        if (got <= 0)
            break;
        *out_bytes += (size_t)got;
    }
    close(fd);
    return err;
}

/* After any crash the name holds the old bytes or the new ones, whole. */
static int replace_file(const struct larder_identity *identity, const char *name, const void *bytes,
                        size_t count)
{
    char fresh[32];
    snprintf(fresh, sizeof(fresh), "%s.new", name);
    int fd = openat(identity->directory_fd, fresh,
                    O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    int err = fd < 0 ? -errno : write_all(fd, bytes, count);
    if (err == 0 && fsync(fd) != 0)
        err = -errno;
    if (fd >= 0)
        close(fd);
    if (err == 0 && renameat(identity->directory_fd, fresh, identity->directory_fd, name) != 0)
        err = -errno;
    if (err == 0 && fsync(identity->directory_fd) != 0)
        err = -errno;
    if (err < 0)
        return larder_fail(err, "cannot write %s/%s: %s", identity->directory, name,
                           larder_error_text(err));
    return 0;
}

/* --- format ----------------------------------------------------------------------------------- */

/* 1: there and known; 0: not there. */
static int read_format(struct larder_identity *identity)
{
    char text[FORMAT_BYTES_MAX + 1];
    size_t bytes;
    int err = read_file(identity, "format", text, FORMAT_BYTES_MAX, &bytes);
    if (err == -ENOENT)
        return 0;
    if (err < 0)
        return err;
    text[bytes <= FORMAT_BYTES_MAX ? bytes : 0] = '\0';

    char known[sizeof(FORMAT_FIRST_WORDS) + 16];
    int head_bytes =
        snprintf(known, sizeof(known), FORMAT_FIRST_WORDS "%u\nid ", LARDER_STORE_FORMAT);
    char id[33] = "";
    if (strncmp(text, known, (size_t)head_bytes) == 0 && strlen(text) == (size_t)head_bytes + 33 &&
        text[head_bytes + 32] == '\n') {
        memcpy(id, text + head_bytes, 32);
        if (larder_unhex(identity->store_id, sizeof(identity->store_id), id) == 0)
            return 1;
    }
    text[strcspn(text, "\n")] = '\0';
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    return larder_fail(LARDER_EVERSION,
                       "%s/format says \"%.40s\", expected \"" FORMAT_FIRST_WORDS
                       "%u\" and an id: use the release that made it, or another directory",
                       identity->directory, text, LARDER_STORE_FORMAT);
}

static int write_format(const struct larder_identity *identity)
{
    char id[33], text[FORMAT_BYTES_MAX];
    larder_hex(id, identity->store_id, sizeof(identity->store_id));
    int bytes =
        snprintf(text, sizeof(text), FORMAT_FIRST_WORDS "%u\nid %s\n", LARDER_STORE_FORMAT, id);
    return replace_file(identity, "format", text, (size_t)bytes);
}

/* --- tenants ---------------------------------------------------------------------------------- */

static bool name_is_valid(const char *name)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strnlen(name, LARDER_TENANT_NAME_MAX);
    return length > 0 && length < LARDER_TENANT_NAME_MAX && strspn(name, letters) == length;
}

static XXH128_canonical_t tenants_check(struct tenants_head *file, size_t bytes)
{
    XXH128_canonical_t was = file->check;
    XXH128_canonical_t check;
    memset(&file->check, 0, sizeof(file->check));
    XXH128_canonicalFromHash(&check, XXH3_128bits(file, bytes));
    file->check = was;
    return check;
}

/* A name twice would give one tenant's keys to another. */
static bool names_are_valid(const struct tenants_item *items, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (!name_is_valid(items[i].name))
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (strcmp(items[i].name, items[j].name) == 0)
                return false;
    }
    return true;
}

/* -ENOENT, LARDER_EVERSION, LARDER_ECORRUPT, other -errno; `file` has TENANTS_BYTES_MAX bytes. */
static int read_copy(const struct larder_identity *identity, const char *name,
                     struct tenants_head *file)
{
    size_t bytes;
    LARDER_TRY(read_file(identity, name, file, TENANTS_BYTES_MAX, &bytes));
    const char *wrong = NULL;
    if (bytes < sizeof(*file) || file->magic != TENANTS_MAGIC)
        wrong = "is not a list of tenants";
    else if (file->count > LARDER_TENANTS_MAX ||
             bytes != sizeof(*file) + file->count * sizeof(struct tenants_item))
        wrong = "has the wrong length";
    if (!wrong) {
        XXH128_canonical_t check = tenants_check(file, bytes);
        if (memcmp(&check, &file->check, sizeof(check)) != 0)
            wrong = "is damaged";
        else if (file->version != TENANTS_VERSION || file->reserved != 0)
            return larder_fail(LARDER_EVERSION, "%s/%s has version %u, expected %u",
                               identity->directory, name, file->version, TENANTS_VERSION);
        else if (memcmp(file->store, identity->store_id, sizeof(file->store)) != 0)
            wrong = "belongs to another store";
        else if (!names_are_valid((const struct tenants_item *)(file + 1), file->count))
            wrong = "has a malformed name";
    }
    return wrong ? larder_fail(LARDER_ECORRUPT, "%s/%s %s", identity->directory, name, wrong) : 0;
}

static void adopt(struct larder_identity *identity, const struct tenants_head *file)
{
    const struct tenants_item *items = (const struct tenants_item *)(file + 1);
    identity->sequence = file->sequence;
    identity->count = file->count;
    for (uint32_t i = 0; i < file->count; i++) {
        struct larder_tenant_info *tenant = &identity->tenants[i];
        *tenant = (struct larder_tenant_info){.index = i};
        memcpy(tenant->name, items[i].name, sizeof(tenant->name));
        memcpy(tenant->id, items[i].id, sizeof(tenant->id));
        memcpy(tenant->key, items[i].key, sizeof(tenant->key));
    }
}

/* The file's bytes for the tenants as they are now; its length through *bytes. */
static void build_file(const struct larder_identity *identity, struct tenants_head *file,
                       size_t *bytes)
{
    struct tenants_item *items = (struct tenants_item *)(file + 1);
    *bytes = sizeof(*file) + identity->count * sizeof(*items);
    memset(file, 0, *bytes);
    file->magic = TENANTS_MAGIC;
    file->version = TENANTS_VERSION;
    file->count = identity->count;
    file->sequence = identity->sequence;
    memcpy(file->store, identity->store_id, sizeof(file->store));
    for (uint32_t i = 0; i < identity->count; i++) {
        const struct larder_tenant_info *tenant = &identity->tenants[i];
        memcpy(items[i].name, tenant->name, sizeof(items[i].name));
        memcpy(items[i].id, tenant->id, sizeof(items[i].id));
        memcpy(items[i].key, tenant->key, sizeof(items[i].key));
    }
    file->check = tenants_check(file, *bytes);
}

/* Writes the copies named by the bits of `which`, the first one first. */
static int write_copies(const struct larder_identity *identity, unsigned which)
{
    struct tenants_head *file = larder_alloc(TENANTS_BYTES_MAX);
    if (!file)
        return larder_fail(-ENOMEM, "no memory for the list of tenants");
    size_t bytes;
    build_file(identity, file, &bytes);
    int err = 0;
    for (unsigned i = 0; i < 2 && err == 0; i++)
        if (which & (1u << i))
            err = replace_file(identity, copy_names[i], file, bytes);
    larder_free(file);
    return err;
}

/* Reads both copies, adopts the newer good one, and repairs the other. */
static int load_tenants(struct larder_identity *identity)
{
    struct tenants_head *files[2] = {larder_alloc(TENANTS_BYTES_MAX),
                                     larder_alloc(TENANTS_BYTES_MAX)};
    int result = 0;
    if (!files[0] || !files[1]) {
        result = larder_fail(-ENOMEM, "no memory for the list of tenants");
        goto out;
    }
    int err[2];
    for (unsigned i = 0; i < 2; i++) {
        err[i] = read_copy(identity, copy_names[i], files[i]);
        if (err[i] < 0 && err[i] != LARDER_ECORRUPT && err[i] != -ENOENT) {
            /* A newer release's file, or a disk that cannot be read: not ours to overwrite. */
            result = err[i];
            goto out;
        }
        if (err[i] < 0)
            larder_log(LARDER_LOG_WARN, "storage: %s", larder_error_message());
    }
    if (err[0] < 0 && err[1] < 0) {
        result = larder_fail(LARDER_ECORRUPT,
                             "%s/tenants and its copy are both unusable: restore one of them, "
                             "or start with an empty directory",
                             identity->directory);
        goto out;
    }
    unsigned good = err[0] < 0 || (err[1] == 0 && files[1]->sequence > files[0]->sequence);
    adopt(identity, files[good]);
    bool both = err[1 - good] == 0 && files[1 - good]->sequence == files[good]->sequence;
    identity->bad_copies = !both;
    if (!both && !identity->looks_only) {
        result = write_copies(identity, 1u << (1 - good));
        if (result == 0)
            larder_log(LARDER_LOG_INFO, "storage: repaired %s/%s from %s", identity->directory,
                       copy_names[1 - good], copy_names[good]);
    }
out:
    larder_free(files[1]);
    larder_free(files[0]);
    return result;
}

/* Without `format` there must be no tenant: else somebody lost the file. */
static int check_empty(const struct larder_identity *identity)
{
    struct stat st;
    for (unsigned i = 0; i < 2; i++) {
        if (fstatat(identity->directory_fd, copy_names[i], &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if ((size_t)st.st_size > sizeof(struct tenants_head))
            return larder_fail(LARDER_ECORRUPT,
                               "%s has tenants but no file \"format\": restore it (two lines, "
                               "docs/FORMAT.md), or use another directory",
                               identity->directory);
    }
    return 0;
}

static int make_store(struct larder_identity *identity)
{
    LARDER_TRY(check_empty(identity));
    LARDER_TRY(random_bytes(identity->store_id, sizeof(identity->store_id)));
    identity->sequence = 1;
    identity->count = 0;
    LARDER_TRY(write_copies(identity, 3));
    return write_format(identity);
}

/* --- the lock --------------------------------------------------------------------------------- */

static int take_lock(struct larder_identity *identity)
{
    int create = identity->looks_only ? 0 : O_CREAT;
    identity->lock_fd =
        openat(identity->directory_fd, "lock", O_RDWR | create | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (identity->lock_fd < 0 && errno == ENOENT && identity->looks_only)
        return 0; /* nobody has ever used it */
    if (identity->lock_fd < 0)
        return larder_fail(-errno, "cannot open %s/lock: %s", identity->directory,
                           larder_error_text(-errno));
    /* Of the open file, not of the process: a second open in the same process conflicts too. */
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(identity->lock_fd, F_OFD_SETLK, &whole) != 0) {
        int err = errno;
        if (err != EAGAIN && err != EACCES)
            return larder_fail(-err, "cannot lock %s/lock: %s", identity->directory,
                               larder_error_text(-err));
        char holder[16] = "";
        ssize_t got = pread(identity->lock_fd, holder, sizeof(holder) - 1, 0);
        holder[got > 0 ? strspn(holder, "0123456789") : 0] = '\0';
        return larder_fail(LARDER_ELOCKED, "%s is in use by process %s: stop it first",
                           identity->directory, holder[0] ? holder : "?");
    }
    if (identity->looks_only)
        return 0;
    char pid[16];
    int bytes = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    if (ftruncate(identity->lock_fd, 0) != 0 ||
        pwrite(identity->lock_fd, pid, (size_t)bytes, 0) != bytes)
        return larder_fail(-errno, "cannot write %s/lock: %s", identity->directory,
                           larder_error_text(-errno));
    return 0;
}

/* Makes the name of a fresh DIR survive: nothing in it does otherwise. */
static int sync_parent(const struct larder_identity *identity)
{
    int fd = openat(identity->directory_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int err = fd < 0 || fsync(fd) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return err < 0 ? larder_fail(err, "cannot sync the parent of %s: %s", identity->directory,
                                 larder_error_text(err))
                   : 0;
}

static int open_directory(struct larder_identity *identity, bool must_exist)
{
    bool created = false;
    if (!must_exist) {
        created = mkdir(identity->directory, 0700) == 0;
        if (!created && errno != EEXIST)
            return larder_fail(-errno, "cannot create %s: %s", identity->directory,
                               larder_error_text(-errno));
    }
    identity->directory_fd = open(identity->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (identity->directory_fd < 0) {
        int err = must_exist && errno == ENOENT ? (int)LARDER_ENOTFOUND : -errno;
        return larder_fail(err, "cannot open store %s: %s", identity->directory,
                           larder_error_text(-errno));
    }
    return created ? sync_parent(identity) : 0;
}

static int open_locked(struct larder_identity *identity, bool must_exist)
{
    /* Before the lock, which writes into the directory: another release's store stays untouched. */
    int known = read_format(identity);
    LARDER_TRY(known);
    if (known == 0 && must_exist)
        return larder_fail(LARDER_ENOTFOUND, "%s is not a larder store: it has no file \"format\"",
                           identity->directory);
    LARDER_TRY(take_lock(identity));
    known = read_format(identity); /* another process may have made it meanwhile */
    LARDER_TRY(known);
    return known ? load_tenants(identity) : make_store(identity);
}

static int open_identity(struct larder_identity **out, const char *directory, bool must_exist,
                         bool looks_only)
{
    *out = NULL;
    struct larder_identity *identity = larder_alloc_zero(1, sizeof(*identity));
    if (!identity)
        return larder_fail(-ENOMEM, "no memory to open %s", directory);
    pthread_mutex_init(&identity->adding, NULL);
    identity->directory_fd = -1;
    identity->lock_fd = -1;
    identity->looks_only = looks_only;
    int err = -ENOMEM;
    identity->directory = larder_strdup(directory);
    identity->tenants = larder_alloc_zero(LARDER_TENANTS_MAX, sizeof(*identity->tenants));
    if (!identity->directory || !identity->tenants) {
        larder_fail(err, "no memory to open %s", directory);
        goto fail;
    }
    err = open_directory(identity, must_exist);
    if (err < 0)
        goto fail;
    err = open_locked(identity, must_exist);
    if (err < 0)
        goto fail;
    atomic_store(&identity->complete, identity->count);
    *out = identity;
    return 0;

fail:
    larder_identity_close(identity);
    return err;
}

int larder_identity_open(struct larder_identity **out, const char *directory, bool must_exist)
{
    return open_identity(out, directory, must_exist, false);
}

int larder_identity_inspect(struct larder_identity **out, const char *directory,
                            unsigned *bad_copies)
{
    LARDER_TRY(open_identity(out, directory, true, true));
    *bad_copies = (*out)->bad_copies;
    return 0;
}

void larder_identity_close(struct larder_identity *identity)
{
    if (!identity)
        return;
    if (identity->lock_fd >= 0)
        close(identity->lock_fd);
    if (identity->directory_fd >= 0)
        close(identity->directory_fd);
    larder_free(identity->tenants);
    larder_free(identity->directory);
    pthread_mutex_destroy(&identity->adding);
    larder_free(identity);
}

const uint8_t *larder_identity_store_id(const struct larder_identity *identity)
{
    return identity->store_id;
}

uint32_t larder_identity_tenant_count(const struct larder_identity *identity)
{
    return atomic_load_explicit(&identity->complete, memory_order_acquire);
}

const struct larder_tenant_info *larder_identity_tenant(const struct larder_identity *identity,
                                                        uint32_t index)
{
    assert(index < larder_identity_tenant_count(identity));
    return &identity->tenants[index];
}

/* LARDER_TENANTS_MAX: there is none. */
static uint32_t find_tenant(const struct larder_identity *identity, const char *name)
{
    uint32_t count = larder_identity_tenant_count(identity);
    for (uint32_t i = 0; i < count; i++) {
        if (strcmp(identity->tenants[i].name, name) == 0)
            return i;
    }
    return LARDER_TENANTS_MAX;
}

static int add_tenant(struct larder_identity *identity, const char *name)
{
    if (identity->count == LARDER_TENANTS_MAX)
        return larder_fail(LARDER_ELIMIT, "tenant \"%s\" would be number %u, the limit is %u", name,
                           identity->count + 1, LARDER_TENANTS_MAX);
    struct larder_tenant_info *tenant = &identity->tenants[identity->count];
    *tenant = (struct larder_tenant_info){.index = identity->count};
    memcpy(tenant->name, name, strlen(name));
    LARDER_TRY(random_bytes(tenant->id, sizeof(tenant->id)));
    LARDER_TRY(random_bytes(tenant->key, sizeof(tenant->key)));
    identity->count++;
    identity->sequence++;
    int err = write_copies(identity, 3);
    if (err < 0) {
        /* One copy may have it: then it is found at the next start, unused. The sequence is not
         * taken back, so that a later change outranks that copy. */
        identity->count--;
        return err;
    }
    atomic_store_explicit(&identity->complete, identity->count, memory_order_release);
    return 0;
}

int larder_identity_add_tenant(struct larder_identity *identity, uint32_t *out_index,
                               const char *name)
{
    *out_index = 0;
    if (!name_is_valid(name))
        return larder_fail(-EINVAL,
                           "tenant name \"%.80s\" is not 1 to %u letters, digits, '.', '_' or '-'",
                           name, LARDER_TENANT_NAME_MAX - 1);
    uint32_t index = find_tenant(identity, name);
    if (index == LARDER_TENANTS_MAX) {
        pthread_mutex_lock(&identity->adding);
        index = find_tenant(identity, name);
        int err = 0;
        if (index == LARDER_TENANTS_MAX) {
            index = identity->count;
            err = add_tenant(identity, name);
        }
        pthread_mutex_unlock(&identity->adding);
        LARDER_TRY(err);
    }
    *out_index = index;
    return 0;
}
