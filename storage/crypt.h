/* SPDX-License-Identifier: Apache-2.0 */
/* crypt.h - the ciphers of an encrypted store, and memory for their keys (docs/FORMAT.md,
 * "Encryption"). libcrypto does the work: AES-256-GCM and HKDF-SHA256.
 *
 * Threads: plain functions; a struct crypt belongs to one thread at a time.
 */
#ifndef LARDER_STORAGE_CRYPT_H
#define LARDER_STORAGE_CRYPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRYPT_KEY_BYTES   32u
#define CRYPT_SALT_BYTES  32u
#define CRYPT_NONCE_BYTES 12u
#define CRYPT_TAG_BYTES   16u

/* Zeroed memory in pages of its own: locked where the system allows it, and never in a core dump.
 * NULL without memory. Free overwrites it first, and takes NULL. */
void *crypt_secret_alloc(size_t bytes);
void crypt_secret_free(void *secret, size_t bytes);
/* Overwrites, in a way that no compiler takes out. */
void crypt_wipe(void *bytes, size_t count);

int crypt_random(void *out, size_t bytes);

/* HKDF-SHA256 (RFC 5869) of one key: 32 bytes for one use, which `info` names. */
int crypt_derive(uint8_t out[CRYPT_KEY_BYTES], const uint8_t key[CRYPT_KEY_BYTES],
                 const uint8_t *salt, size_t salt_bytes, const char *info);

/* The key of a file: 32 bytes as they are, or 64 hexadecimal digits with or without an end of line.
 * A file that others than its owner may read or write is refused. LARDER_ECONFIG with what to do
 * about it. */
int crypt_read_key_file(uint8_t out[CRYPT_KEY_BYTES], const char *path);

/* AES-256-GCM under one key at a time. */
struct crypt;

int crypt_open(struct crypt **out);
void crypt_close(struct crypt *crypt);

/* The key for what follows; false when libcrypto fails, which it does without memory only. */
bool crypt_set_key(struct crypt *crypt, const uint8_t key[CRYPT_KEY_BYTES]);

/* One invocation: begin, any number of adds (authenticated, not encrypted), any number of updates,
 * end. `in` and `out` of an update may be the same. A nonce is never used twice to seal under one
 * key. */
bool crypt_seal_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES]);
bool crypt_open_begin(struct crypt *crypt, const uint8_t nonce[CRYPT_NONCE_BYTES]);
bool crypt_add(struct crypt *crypt, const void *bytes, size_t count);
bool crypt_update(struct crypt *crypt, void *out, const void *in, size_t count);
bool crypt_seal_end(struct crypt *crypt, uint8_t tag[CRYPT_TAG_BYTES]);
/* False: the bytes are not what was sealed. Nothing that was put out may be used. */
bool crypt_open_end(struct crypt *crypt, const uint8_t tag[CRYPT_TAG_BYTES]);

#endif
