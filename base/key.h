/* SPDX-License-Identifier: Apache-2.0 */
/* key.h - identity: fingerprints of models and keys of blocks (docs/FORMAT.md, "Keys").
 * Threads: a hasher belongs to one thread; larder_model_fingerprint() from any.
 */
#ifndef LARDER_BASE_KEY_H
#define LARDER_BASE_KEY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/larder_base.h"

/* The parent of a chain's first block: all zeros. */
extern const struct larder_key larder_key_root;

static inline bool larder_key_equal(const struct larder_key *a, const struct larder_key *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

/* Checks every field of a description against limits.h and for consistency; LARDER_EMODEL,
 * LARDER_ELIMIT or LARDER_EUNSUPPORTED (unknown RoPE kind) with a message. */
int larder_model_check(const struct larder_model_desc *model);

/* SHA-256 over the description's fields, `name` left out, each length-prefixed. */
int larder_model_fingerprint(struct larder_key *out, const struct larder_model_desc *model);

/* Bytes of K and V of `tokens` tokens over all layers, as stored by the recipe `raw`. */
uint64_t larder_model_kv_bytes(const struct larder_model_desc *model, uint64_t tokens);

/* Hashes blocks of one tenant and model: the prefix common to all is hashed once. */
struct larder_hasher;
int larder_hasher_open(struct larder_hasher **out, const uint8_t tenant_key[32],
                       const struct larder_key *fingerprint);
void larder_hasher_close(struct larder_hasher *hasher);

/* Key of the block of `count` tokens behind `parent`. `extra` is whatever else changes KV (LoRA,
 * salt, image hashes); NULL with 0 bytes for none. */
int larder_hasher_block(struct larder_hasher *hasher, struct larder_key *out,
                        const struct larder_key *parent, const void *extra, size_t extra_bytes,
                        const uint32_t *tokens, size_t count);

/* SHA-256 in one call. */
int larder_sha256(struct larder_key *out, const void *bytes, size_t count);

#endif
