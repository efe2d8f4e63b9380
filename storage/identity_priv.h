/* SPDX-License-Identifier: Apache-2.0 */
/* identity_priv.h - inside of identity.h: identity.c (directory, lock, format) and tenants.c (the
 * tenants' files).
 */
#ifndef LARDER_STORAGE_IDENTITY_PRIV_H
#define LARDER_STORAGE_IDENTITY_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/crypt.h"
#include "storage/identity.h"

struct keys {
    uint8_t wrap[CRYPT_KEY_BYTES];
    uint8_t store[CRYPT_KEY_BYTES];
    uint8_t tenants[LARDER_TENANTS_MAX][CRYPT_KEY_BYTES]; /* under `adding` */
};

struct larder_identity {
    char *directory; /* for messages */
    int directory_fd;
    int lock_fd;
    bool looks_only;     /* nothing is written */
    unsigned bad_copies; /* of the tenants, that were left as they are */
    uint8_t store_id[16];
    pthread_mutex_t adding; /* held while a tenant is made, which waits for the disk */
    uint64_t sequence;
    uint32_t count;            /* in the files; under `adding` */
    _Atomic uint32_t complete; /* of them, to be seen by all */
    /* Around changes of a tenant's id and data key, for larder_identity_data_key(). */
    pthread_mutex_t secrets_lock;
    struct larder_tenant_info *tenants; /* LARDER_TENANTS_MAX: never moved; secret memory */
    struct keys *keys;                  /* the same; NULL: a plain store */
    struct crypt *crypt;                /* under `adding` */
};

/* At most `capacity` bytes; *out_bytes is capacity + 1 for a longer file. */
int identity_read_file(const struct larder_identity *identity, const char *name, void *out,
                       size_t capacity, size_t *out_bytes);
enum identity_old {
    IDENTITY_FREE_OLD,
    IDENTITY_WIPE_OLD, /* the file system's blocks; what a disk keeps besides is out of reach */
};

/* After any crash the name holds the old bytes or the new ones, whole. */
int identity_replace_file(const struct larder_identity *identity, const char *name,
                          const void *bytes, size_t count, enum identity_old old);
bool identity_name_is_valid(const char *name);

/* tenants.c */
/* Reads both copies, adopts the newer good one, and repairs the other. */
int tenants_load(struct larder_identity *identity);
/* Writes both copies, one after the other. */
int tenants_write(struct larder_identity *identity, enum identity_old old);
/* Without `format` there must be no tenant: else somebody lost the file. */
int tenants_check_none(const struct larder_identity *identity);

#endif
