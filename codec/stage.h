/* SPDX-License-Identifier: Apache-2.0 */
/* stage.h - what a recipe is made of. A stage is a const table in a file of its own; recipe.c lists
 * the tables and is the only file that knows all of them.
 *
 * Contract of every stage: deterministic, total and memory-safe on hostile bytes, allocates
 * nothing; its scalar version is the specification of any other.
 */
#ifndef LARDER_CODEC_STAGE_H
#define LARDER_CODEC_STAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "codec/codec.h"

/* One section's canonical planes: [group][token][dim], a group being one head of one layer. All
 * products of these fit 64 bits: each is within limits.h. */
struct codec_shape {
    uint32_t group_count;
    uint32_t token_count;
    uint32_t dims;
    uint32_t elem_bytes; /* 2 or 4 */
};

static inline uint64_t codec_shape_elems(const struct codec_shape *shape)
{
    return (uint64_t)shape->group_count * shape->token_count * shape->dims;
}

static inline uint64_t codec_shape_bytes(const struct codec_shape *shape)
{
    return codec_shape_elems(shape) * shape->elem_bytes;
}

struct codec_stage_ops {
    const char *name;
    const char *summary;
    enum larder_quality quality;
    bool is_identity; /* encoded bytes are the planes */

    uint64_t (*bound)(const struct codec_shape *shape);
    uint64_t (*workspace_bytes)(const struct codec_shape *shape);
    /* recipe.c has checked: out_capacity >= bound, workspace aligned to 64 and large enough. */
    int (*encode)(void *out, uint64_t out_capacity, uint64_t *out_bytes,
                  struct larder_section_error *error, const struct codec_shape *shape,
                  const void *planes, void *workspace);
    /* `planes` has room for exactly codec_shape_bytes(); `encoded` are bytes from anywhere. */
    int (*decode)(void *planes, const struct codec_shape *shape, const void *encoded,
                  uint64_t encoded_bytes, void *workspace);
};

extern const struct codec_stage_ops codec_stage_plain;
extern const struct codec_stage_ops codec_stage_byteplanes;

#endif
