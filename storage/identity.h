/* SPDX-License-Identifier: Apache-2.0 */
/* identity.h - what a store's directory says of itself: its lock, its format, its tenants.
 *
 *   DIR/lock     OFD-locked while a daemon runs; holds its process id, for people
 *   DIR/format   "larder store 1\n" and the store's random id; written once, after all else
 *   DIR/tenants  the tenants' ids, names and keys; two checksummed copies (tenants, tenants.copy),
 *                replaced by write, fsync, rename, fsync of the directory, one after the other;
 *                in an encrypted store they are encrypted themselves, by the key of key_file
 *
 * A store is encrypted from its first day or never: the version of its tenants' file says which.
 *
 * A directory without `format` and without tenants is a store whose making was cut short (or never
 * began): it is made anew.
 *
 * Threads: the opener, then any. Its locks are taken last. Making a tenant waits for the disk: not
 *          under the store's lock.
 */
#ifndef LARDER_STORAGE_IDENTITY_H
#define LARDER_STORAGE_IDENTITY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "storage/store.h"

#define LARDER_STORE_FORMAT 1u

struct larder_identity;

/* Creates DIR (0700) and its files when missing, unless `must_exist` (LARDER_ENOTFOUND then), as an
 * encrypted store when there is a `wrap_key` (32 bytes; copied). LARDER_ELOCKED;
 * LARDER_EVERSION for another format (nothing is touched); LARDER_ECONFIG when the store is
 * encrypted and the key is missing or another, or is not and there is one (nothing but the lock is
 * touched);
 * LARDER_ECORRUPT when both copies of the tenants are bad, or `format` is gone from a store with
 * tenants: without the tenants' keys no entry can be found again, so this is for the operator. */
int larder_identity_open(struct larder_identity **out, const char *directory, bool must_exist,
                         const uint8_t *wrap_key);
/* To look only: takes the lock, changes not a byte, creates nothing. *bad_copies: how many of the
 * two files of tenants are damaged, old or missing (0, 1), which the function above would mend. */
int larder_identity_inspect(struct larder_identity **out, const char *directory,
                            const uint8_t *wrap_key, unsigned *bad_copies);
void larder_identity_close(struct larder_identity *identity);

/* 16 random bytes, made with the store; in every segment's header. Valid while open. */
const uint8_t *larder_identity_store_id(const struct larder_identity *identity);

uint32_t larder_identity_tenant_count(const struct larder_identity *identity);
/* Valid while open: tenants are never moved or forgotten. What it holds changes with
 * larder_identity_renew(), under the lock named there. */
const struct larder_tenant_info *larder_identity_tenant(const struct larder_identity *identity,
                                                        uint32_t index);
/* Index of the tenant of that name, made (random id and key, durably) when it is new. A name is
 * 1 to LARDER_TENANT_NAME_MAX - 1 of [A-Za-z0-9._-]. */
int larder_identity_add_tenant(struct larder_identity *identity, uint32_t *out_index,
                               const char *name);

bool larder_identity_encrypted(const struct larder_identity *identity);
/* The data key of the tenant of that id, or of the store itself (model records) for an id of zeros.
 * False: there is no such tenant. An encrypted store's. */
bool larder_identity_data_key(struct larder_identity *identity, uint8_t out[32],
                              const uint8_t id[16]);
/* Replaces the tenant's id and keys, durably, and overwrites the files that held the old ones. The
 * new ones are taken in under `lock`, whose owners may be reading the old ones. After an error the
 * old ones hold; but with *unsure the files may have the new ones. */
int larder_identity_renew(struct larder_identity *identity, uint32_t index, pthread_mutex_t *lock,
                          bool *unsure);
/* Wraps the tenants' keys with another key from now on, durably. */
int larder_identity_rewrap(struct larder_identity *identity, const uint8_t *wrap_key);

#endif
