/* SPDX-License-Identifier: Apache-2.0 */
/* tenants.c - DIR/tenants and its copy: who may own entries, with their secret keys
 * (docs/FORMAT.md, "format and tenants").
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "storage/identity_priv.h"

#define TENANTS_MAGIC     0x31544e4e5444524cull /* "LRDTNNT1" */
#define TENANTS_PLAIN     1u
#define TENANTS_ENCRYPTED 2u

/* tenants, tenants.copy: the head, then `count` tenants, nothing else. In an encrypted store the
 * head is followed by struct wrapping, and the rest is encrypted: the store's data key (32), then
 * `count` tenants, each with its own data key behind it. */
struct tenants_head {
    uint64_t magic;    /* 00-07 */
    uint32_t version;  /* 08-11  TENANTS_PLAIN or _ENCRYPTED */
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

/* AES-256-GCM with HKDF-SHA256(key of key_file, salt, "larder tenants 2"), nonce 0; bytes 0 to 47
 * of the head are authenticated too. A salt of its own for every file: no key is used twice. */
struct wrapping {
    uint8_t salt[CRYPT_SALT_BYTES]; /* 00-31  random */
    uint8_t tag[CRYPT_TAG_BYTES];   /* 32-47 */
};
static_assert(sizeof(struct wrapping) == 48, "on-disk size");

struct sealed_item {
    struct tenants_item item;          /* 000-111 */
    uint8_t data_key[CRYPT_KEY_BYTES]; /* 112-143 */
};
static_assert(sizeof(struct sealed_item) == 144, "on-disk size");

#define TENANTS_BYTES_MAX                                                                          \
    (sizeof(struct tenants_head) + sizeof(struct wrapping) + CRYPT_KEY_BYTES +                     \
     LARDER_TENANTS_MAX * sizeof(struct sealed_item))

static const char *const copy_names[2] = {"tenants", "tenants.copy"};

static XXH128_canonical_t tenants_check(struct tenants_head *file, size_t bytes)
{
    XXH128_canonical_t was = file->check;
    XXH128_canonical_t check;
    memset(&file->check, 0, sizeof(file->check));
    XXH128_canonicalFromHash(&check, XXH3_128bits(file, bytes));
    file->check = was;
    return check;
}

static size_t item_bytes(uint32_t version)
{
    return version == TENANTS_PLAIN ? sizeof(struct tenants_item) : sizeof(struct sealed_item);
}

static uint8_t *items_of(struct tenants_head *file)
{
    uint8_t *behind = (uint8_t *)(file + 1);
    return file->version == TENANTS_PLAIN ? behind
                                          : behind + sizeof(struct wrapping) + CRYPT_KEY_BYTES;
}

/* A tenant alone comes first in either form. */
static struct tenants_item *item_at(struct tenants_head *file, uint32_t index)
{
    return (struct tenants_item *)(void *)(items_of(file) + index * item_bytes(file->version));
}

static size_t file_bytes(struct tenants_head *file)
{
    return (size_t)(items_of(file) - (uint8_t *)file) + file->count * item_bytes(file->version);
}

/* A name twice would give one tenant's keys to another. */
static bool names_are_valid(struct tenants_head *file)
{
    for (uint32_t i = 0; i < file->count; i++) {
        if (!identity_name_is_valid(item_at(file, i)->name))
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (strcmp(item_at(file, i)->name, item_at(file, j)->name) == 0)
                return false;
    }
    return true;
}

static bool wrap_begin(struct larder_identity *identity, const struct tenants_head *file,
                       bool (*begin)(struct crypt *, const uint8_t *))
{
    static const uint8_t nonce[CRYPT_NONCE_BYTES];
    const struct wrapping *wrapping = (const struct wrapping *)(file + 1);
    uint8_t key[CRYPT_KEY_BYTES];
    bool good = crypt_derive(key, identity->keys->wrap, wrapping->salt, sizeof(wrapping->salt),
                             "larder tenants 2") == 0 &&
                crypt_set_key(identity->crypt, key) && begin(identity->crypt, nonce) &&
                crypt_add(identity->crypt, file, offsetof(struct tenants_head, check));
    crypt_wipe(key, sizeof(key));
    return good;
}

/* The part that is encrypted, between plain and encrypted form. */
static bool unwrap(struct larder_identity *identity, struct tenants_head *file)
{
    struct wrapping *wrapping = (struct wrapping *)(file + 1);
    uint8_t *rest = (uint8_t *)(wrapping + 1);
    size_t bytes = file_bytes(file) - sizeof(*file) - sizeof(*wrapping);
    return wrap_begin(identity, file, crypt_open_begin) &&
           crypt_update(identity->crypt, rest, rest, bytes) &&
           crypt_open_end(identity->crypt, wrapping->tag);
}

static int wrap(struct larder_identity *identity, struct tenants_head *file)
{
    struct wrapping *wrapping = (struct wrapping *)(file + 1);
    uint8_t *rest = (uint8_t *)(wrapping + 1);
    size_t bytes = file_bytes(file) - sizeof(*file) - sizeof(*wrapping);
    LARDER_TRY(crypt_random(wrapping->salt, sizeof(wrapping->salt)));
    bool good = wrap_begin(identity, file, crypt_seal_begin) &&
                crypt_update(identity->crypt, rest, rest, bytes) &&
                crypt_seal_end(identity->crypt, wrapping->tag);
    return good ? 0 : larder_fail(-EIO, "AES-256-GCM of libcrypto failed");
}

static int check_kind(const struct larder_identity *identity, const char *name, uint32_t version)
{
    if (version != TENANTS_PLAIN && version != TENANTS_ENCRYPTED)
        return larder_fail(LARDER_EVERSION, "%s/%s has version %u, expected %u or %u",
                           identity->directory, name, version, TENANTS_PLAIN, TENANTS_ENCRYPTED);
    if (version == TENANTS_ENCRYPTED && !identity->keys)
        return larder_fail(LARDER_ECONFIG,
                           "%s is encrypted: set key_file to the key it was made with, or use "
                           "another directory",
                           identity->directory);
    if (version == TENANTS_PLAIN && identity->keys)
        return larder_fail(LARDER_ECONFIG,
                           "%s was made without key_file and is not encrypted: remove key_file, or "
                           "use an empty directory",
                           identity->directory);
    return 0;
}

/* -ENOENT, LARDER_EVERSION, LARDER_ECORRUPT, LARDER_ECONFIG (the key), other -errno; `file` has
 * TENANTS_BYTES_MAX bytes. */
static int read_copy(struct larder_identity *identity, const char *name, struct tenants_head *file)
{
    size_t bytes;
    LARDER_TRY(identity_read_file(identity, name, file, TENANTS_BYTES_MAX, &bytes));
    const char *wrong = NULL;
    if (bytes < sizeof(*file) || file->magic != TENANTS_MAGIC) {
        wrong = "is not a list of tenants";
    } else if (bytes > TENANTS_BYTES_MAX) {
        wrong = "has the wrong length";
    } else {
        XXH128_canonical_t check = tenants_check(file, bytes);
        if (memcmp(&check, &file->check, sizeof(check)) != 0)
            wrong = "is damaged";
        else if (file->reserved != 0)
            return larder_fail(LARDER_EVERSION, "%s/%s has a reserved field that is not zero",
                               identity->directory, name);
        else
            LARDER_TRY(check_kind(identity, name, file->version));
    }
    if (!wrong && (file->count > LARDER_TENANTS_MAX || bytes != file_bytes(file)))
        wrong = "has the wrong length";
    if (!wrong && memcmp(file->store, identity->store_id, sizeof(file->store)) != 0)
        wrong = "belongs to another store";
    if (!wrong && file->version == TENANTS_ENCRYPTED && !unwrap(identity, file))
        return larder_fail(LARDER_ECONFIG,
                           "the key in key_file is not the one that %s/%s was encrypted with",
                           identity->directory, name);
    if (!wrong && !names_are_valid(file))
        wrong = "has a malformed name";
    return wrong ? larder_fail(LARDER_ECORRUPT, "%s/%s %s", identity->directory, name, wrong) : 0;
}

static void adopt(struct larder_identity *identity, struct tenants_head *file)
{
    identity->sequence = file->sequence;
    identity->count = file->count;
    if (identity->keys)
        memcpy(identity->keys->store, items_of(file) - CRYPT_KEY_BYTES, CRYPT_KEY_BYTES);
    for (uint32_t i = 0; i < file->count; i++) {
        struct larder_tenant_info *tenant = &identity->tenants[i];
        const struct tenants_item *item = item_at(file, i);
        *tenant = (struct larder_tenant_info){.index = i};
        memcpy(tenant->name, item->name, sizeof(tenant->name));
        memcpy(tenant->id, item->id, sizeof(tenant->id));
        memcpy(tenant->key, item->key, sizeof(tenant->key));
        if (identity->keys)
            memcpy(identity->keys->tenants[i], item + 1, CRYPT_KEY_BYTES);
    }
}

/* The file's bytes for the tenants as they are now; its length through *bytes. */
static int build_file(struct larder_identity *identity, struct tenants_head *file, size_t *bytes)
{
    memset(file, 0, TENANTS_BYTES_MAX);
    file->magic = TENANTS_MAGIC;
    file->version = identity->keys ? TENANTS_ENCRYPTED : TENANTS_PLAIN;
    file->count = identity->count;
    file->sequence = identity->sequence;
    memcpy(file->store, identity->store_id, sizeof(file->store));
    *bytes = file_bytes(file);
    if (identity->keys)
        memcpy(items_of(file) - CRYPT_KEY_BYTES, identity->keys->store, CRYPT_KEY_BYTES);
    for (uint32_t i = 0; i < identity->count; i++) {
        const struct larder_tenant_info *tenant = &identity->tenants[i];
        struct tenants_item *item = item_at(file, i);
        memcpy(item->name, tenant->name, sizeof(item->name));
        memcpy(item->id, tenant->id, sizeof(item->id));
        memcpy(item->key, tenant->key, sizeof(item->key));
        if (identity->keys)
            memcpy(item + 1, identity->keys->tenants[i], CRYPT_KEY_BYTES);
    }
    if (identity->keys)
        LARDER_TRY(wrap(identity, file));
    file->check = tenants_check(file, *bytes);
    return 0;
}

/* Writes the copies named by the bits of `which`, the first one first. */
static int write_copies(struct larder_identity *identity, unsigned which, enum identity_old old)
{
    struct tenants_head *file = crypt_secret_alloc(TENANTS_BYTES_MAX);
    if (!file)
        return larder_fail(-ENOMEM, "no memory for the list of tenants");
    size_t bytes;
    int err = build_file(identity, file, &bytes);
    for (unsigned i = 0; i < 2 && err == 0; i++)
        if (which & (1u << i))
            err = identity_replace_file(identity, copy_names[i], file, bytes, old);
    crypt_secret_free(file, TENANTS_BYTES_MAX);
    return err;
}

int tenants_load(struct larder_identity *identity)
{
    struct tenants_head *files[2] = {crypt_secret_alloc(TENANTS_BYTES_MAX),
                                     crypt_secret_alloc(TENANTS_BYTES_MAX)};
    int result = 0;
    if (!files[0] || !files[1]) {
        result = larder_fail(-ENOMEM, "no memory for the list of tenants");
        goto out;
    }
    int err[2];
    for (unsigned i = 0; i < 2; i++) {
        err[i] = read_copy(identity, copy_names[i], files[i]);
        /* A rewrapping that was cut short leaves one copy under each key: either opens. */
        bool other_key = err[i] == LARDER_ECONFIG && (i == 0 || err[0] == 0);
        if (err[i] < 0 && err[i] != LARDER_ECORRUPT && err[i] != -ENOENT && !other_key) {
            /* A newer release's file, or a disk that cannot be read: not ours to overwrite. */
            result = err[i];
            goto out;
        }
        if (err[i] < 0)
            larder_log(LARDER_LOG_WARN, "storage: %s", larder_error_message());
    }
    if (err[0] == LARDER_ECONFIG && err[1] < 0) {
        result = read_copy(identity, copy_names[0], files[0]); /* for its message */
        goto out;
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
        result = write_copies(identity, 1u << (1 - good), IDENTITY_WIPE_OLD);
        if (result == 0)
            larder_log(LARDER_LOG_INFO, "storage: repaired %s/%s from %s", identity->directory,
                       copy_names[1 - good], copy_names[good]);
    }
out:
    crypt_secret_free(files[1], TENANTS_BYTES_MAX);
    crypt_secret_free(files[0], TENANTS_BYTES_MAX);
    return result;
}

int tenants_write(struct larder_identity *identity, enum identity_old old)
{
    return write_copies(identity, 3, old);
}

int tenants_check_none(const struct larder_identity *identity)
{
    struct stat st;
    for (unsigned i = 0; i < 2; i++) {
        if (fstatat(identity->directory_fd, copy_names[i], &st, AT_SYMLINK_NOFOLLOW) != 0)
            continue;
        if ((size_t)st.st_size >
            sizeof(struct tenants_head) + sizeof(struct wrapping) + CRYPT_KEY_BYTES)
            return larder_fail(LARDER_ECORRUPT,
                               "%s has tenants but no file \"format\": restore it (two lines, "
                               "docs/FORMAT.md), or use another directory",
                               identity->directory);
    }
    return 0;
}
