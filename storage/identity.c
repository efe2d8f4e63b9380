/* SPDX-License-Identifier: Apache-2.0 */
/* identity.c - the small files at the top of a store's directory.
 *
 * Order of making a store: directory, lock, tenants, tenants.copy, format. So a directory with
 * `format` has had two good copies of the tenants, and one without it has no tenant yet.
 */
#include "storage/identity_priv.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/crypt.h"

#define FORMAT_BYTES_MAX   256u
#define FORMAT_FIRST_WORDS "larder store "

#define TENANT_INFO_BYTES (LARDER_TENANTS_MAX * sizeof(struct larder_tenant_info))

/* --- files ------------------------------------------------------------------------------------ */

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

int identity_read_file(const struct larder_identity *identity, const char *name, void *out,
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

/* Of a file without a name: best done, not promised. */
static void wipe_file(int fd)
{
    static const uint8_t zeros[LARDER_PAGE_BYTES];
    struct stat st;
    if (fstat(fd, &st) != 0)
        return;
    for (off_t at = 0; at < st.st_size; at += (off_t)sizeof(zeros)) {
        size_t bytes = larder_min_u64(sizeof(zeros), (uint64_t)(st.st_size - at));
        if (pwrite(fd, zeros, bytes, at) < 0)
            return;
    }
    fsync(fd);
}

int identity_replace_file(const struct larder_identity *identity, const char *name,
                          const void *bytes, size_t count, enum identity_old old)
{
    char fresh[32];
    snprintf(fresh, sizeof(fresh), "%s.new", name);
    int old_fd = -1;
    if (old == IDENTITY_WIPE_OLD)
        old_fd = openat(identity->directory_fd, name, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
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
    if (err == 0 && old_fd >= 0)
        wipe_file(old_fd);
    if (old_fd >= 0)
        close(old_fd);
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
    int err = identity_read_file(identity, "format", text, FORMAT_BYTES_MAX, &bytes);
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
    return identity_replace_file(identity, "format", text, (size_t)bytes, IDENTITY_FREE_OLD);
}

/* --- making a store --------------------------------------------------------------------------- */

bool identity_name_is_valid(const char *name)
{
    static const char letters[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t length = strnlen(name, LARDER_TENANT_NAME_MAX);
    return length > 0 && length < LARDER_TENANT_NAME_MAX && strspn(name, letters) == length;
}

static int make_store(struct larder_identity *identity)
{
    LARDER_TRY(tenants_check_none(identity));
    LARDER_TRY(crypt_random(identity->store_id, sizeof(identity->store_id)));
    if (identity->keys)
        LARDER_TRY(crypt_random(identity->keys->store, sizeof(identity->keys->store)));
    identity->sequence = 1;
    identity->count = 0;
    LARDER_TRY(tenants_write(identity, IDENTITY_FREE_OLD));
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
    return known ? tenants_load(identity) : make_store(identity);
}

static int alloc_parts(struct larder_identity *identity, const char *directory,
                       const uint8_t *wrap_key)
{
    identity->directory = larder_strdup(directory);
    identity->tenants = crypt_secret_alloc(TENANT_INFO_BYTES);
    if (!identity->directory || !identity->tenants)
        return larder_fail(-ENOMEM, "no memory to open %s", directory);
    if (!wrap_key)
        return 0;
    identity->keys = crypt_secret_alloc(sizeof(*identity->keys));
    if (!identity->keys)
        return larder_fail(-ENOMEM, "no memory to open %s", directory);
    memcpy(identity->keys->wrap, wrap_key, sizeof(identity->keys->wrap));
    return crypt_open(&identity->crypt);
}

static int open_identity(struct larder_identity **out, const char *directory, bool must_exist,
                         const uint8_t *wrap_key, bool looks_only)
{
    *out = NULL;
    struct larder_identity *identity = larder_alloc_zero(1, sizeof(*identity));
    if (!identity)
        return larder_fail(-ENOMEM, "no memory to open %s", directory);
    pthread_mutex_init(&identity->adding, NULL);
    pthread_mutex_init(&identity->secrets_lock, NULL);
    identity->directory_fd = -1;
    identity->lock_fd = -1;
    identity->looks_only = looks_only;
    int err = alloc_parts(identity, directory, wrap_key);
    if (err < 0)
        goto fail;
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

int larder_identity_open(struct larder_identity **out, const char *directory, bool must_exist,
                         const uint8_t *wrap_key)
{
    return open_identity(out, directory, must_exist, wrap_key, false);
}

int larder_identity_inspect(struct larder_identity **out, const char *directory,
                            const uint8_t *wrap_key, unsigned *bad_copies)
{
    LARDER_TRY(open_identity(out, directory, true, wrap_key, true));
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
    crypt_close(identity->crypt);
    crypt_secret_free(identity->keys, sizeof(*identity->keys));
    crypt_secret_free(identity->tenants, TENANT_INFO_BYTES);
    larder_free(identity->directory);
    pthread_mutex_destroy(&identity->secrets_lock);
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
    LARDER_TRY(crypt_random(tenant->id, sizeof(tenant->id)));
    LARDER_TRY(crypt_random(tenant->key, sizeof(tenant->key)));
    if (identity->keys)
        LARDER_TRY(crypt_random(identity->keys->tenants[identity->count], CRYPT_KEY_BYTES));
    identity->count++;
    identity->sequence++;
    int err = tenants_write(identity, IDENTITY_FREE_OLD);
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
    if (!identity_name_is_valid(name))
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

/* --- encryption ------------------------------------------------------------------------------- */

bool larder_identity_encrypted(const struct larder_identity *identity)
{
    return identity->keys != NULL;
}

bool larder_identity_data_key(struct larder_identity *identity, uint8_t out[32],
                              const uint8_t id[16])
{
    assert(identity->keys);
    if (larder_all_zero(id, sizeof(identity->tenants[0].id))) {
        memcpy(out, identity->keys->store, CRYPT_KEY_BYTES);
        return true;
    }
    uint32_t count = larder_identity_tenant_count(identity);
    bool found = false;
    pthread_mutex_lock(&identity->secrets_lock);
    for (uint32_t i = 0; i < count && !found; i++) {
        found = memcmp(identity->tenants[i].id, id, sizeof(identity->tenants[i].id)) == 0;
        if (found)
            memcpy(out, identity->keys->tenants[i], CRYPT_KEY_BYTES);
    }
    pthread_mutex_unlock(&identity->secrets_lock);
    return found;
}

int larder_identity_rewrap(struct larder_identity *identity, const uint8_t *wrap_key)
{
    assert(identity->keys);
    uint8_t before[CRYPT_KEY_BYTES];
    pthread_mutex_lock(&identity->adding);
    memcpy(before, identity->keys->wrap, sizeof(before));
    memcpy(identity->keys->wrap, wrap_key, sizeof(before));
    identity->sequence++;
    int err = tenants_write(identity, IDENTITY_WIPE_OLD);
    if (err < 0)
        memcpy(identity->keys->wrap, before, sizeof(before));
    pthread_mutex_unlock(&identity->adding);
    crypt_wipe(before, sizeof(before));
    return err;
}

/* --- purge ------------------------------------------------------------------------------------ */

struct secrets {
    struct larder_tenant_info info;
    uint8_t data_key[CRYPT_KEY_BYTES];
};

static void take_secrets(struct larder_identity *identity, const struct secrets *secrets,
                         pthread_mutex_t *lock)
{
    uint32_t index = secrets->info.index;
    pthread_mutex_lock(lock);
    pthread_mutex_lock(&identity->secrets_lock);
    identity->tenants[index] = secrets->info;
    if (identity->keys)
        memcpy(identity->keys->tenants[index], secrets->data_key, CRYPT_KEY_BYTES);
    pthread_mutex_unlock(&identity->secrets_lock);
    pthread_mutex_unlock(lock);
}

static int draw_secrets(const struct larder_identity *identity, struct secrets *secrets)
{
    LARDER_TRY(crypt_random(secrets->info.id, sizeof(secrets->info.id)));
    LARDER_TRY(crypt_random(secrets->info.key, sizeof(secrets->info.key)));
    return identity->keys ? crypt_random(secrets->data_key, sizeof(secrets->data_key)) : 0;
}

static int renew(struct larder_identity *identity, uint32_t index, pthread_mutex_t *lock,
                 bool *unsure)
{
    struct secrets before = {.info = identity->tenants[index]};
    if (identity->keys)
        memcpy(before.data_key, identity->keys->tenants[index], CRYPT_KEY_BYTES);
    struct secrets fresh = before;
    int err = draw_secrets(identity, &fresh);
    if (err == 0) {
        take_secrets(identity, &fresh, lock);
        identity->sequence++;
        err = tenants_write(identity, IDENTITY_WIPE_OLD);
        if (err < 0) {
            /* One copy may have the new ones: the old ones must outrank it. */
            char why[LARDER_MESSAGE_BYTES_MAX];
            snprintf(why, sizeof(why), "%s", larder_error_message());
            take_secrets(identity, &before, lock);
            identity->sequence++;
            *unsure = tenants_write(identity, IDENTITY_FREE_OLD) < 0;
            larder_fail(err, "%s", why);
        }
    }
    crypt_wipe(&before, sizeof(before));
    crypt_wipe(&fresh, sizeof(fresh));
    return err;
}

int larder_identity_renew(struct larder_identity *identity, uint32_t index, pthread_mutex_t *lock,
                          bool *unsure)
{
    assert(index < larder_identity_tenant_count(identity));
    *unsure = false;
    pthread_mutex_lock(&identity->adding);
    int err = renew(identity, index, lock, unsure);
    pthread_mutex_unlock(&identity->adding);
    return err;
}
