/* SPDX-License-Identifier: Apache-2.0 */
/* blocks.h - a window's KV through a recipe, block by block, as a PUT and a GET would take it.
 * Owns:    the memory that encoding and decoding need.
 * Threads: belongs to one thread.
 */
#ifndef LARDER_TOOLS_CALIBRATE_BLOCKS_H
#define LARDER_TOOLS_CALIBRATE_BLOCKS_H

#include "codec/codec.h"
#include "tools/calibrate/calibrate.h"

#define BLOCK_TOKENS 256u

struct blocks {
    const struct calibration *calibration;
    struct larder_recipe *recipe;
    uint64_t plane_bytes[2]; /* of a block's K and V of a layer */
    uint8_t *planes;         /* of one layer's K or V */
    uint8_t *encoded;
    uint64_t encoded_room;
    void *workspace;
    uint64_t workspace_bytes;
    void *tables; /* of each block's positions; NULL: the recipe needs none */
    uint64_t tables_bytes;
    uint32_t block_count;
    const struct larder_symbol_watch *watch; /* the caller's; NULL: none */
};

/* For the first tokens of a window, whole blocks of them. */
int blocks_open(struct blocks *out, const struct calibration *calibration, const char *recipe,
                const struct larder_profile *profile, uint32_t block_count);
void blocks_close(struct blocks *blocks);

/* Encodes one layer's K or V of one block of what the cache holds; its bytes are in
 * blocks->encoded until the next call. */
int blocks_encode(struct blocks *blocks, uint32_t layer, enum larder_kv kv, uint32_t block,
                  uint64_t *bytes, struct larder_section_error *error);
/* Decodes them again into the cache. */
int blocks_decode(struct blocks *blocks, uint32_t layer, enum larder_kv kv, uint32_t block,
                  uint64_t bytes);

#endif
