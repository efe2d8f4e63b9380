/* SPDX-License-Identifier: Apache-2.0 */
/* layout.h - moves K and V between an engine's layout (larder.h) and canonical planes
 * (codec/codec.h): [kv_head][token][dim] of a layer, without padding.
 * Owns:    nothing: a view refers to the caller's bases and block table.
 * Threads: a view is immutable after layout_open(); moves of disjoint tokens or layers may run side
 *          by side.
 * I1  Every address that a move touches was checked by layout_open(): offsets cannot overflow, and
 *     tokens stay below view->token_capacity.
 */
#ifndef LARDER_CLIENT_LAYOUT_H
#define LARDER_CLIENT_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "client/larder.h"
#include "codec/codec.h"

/* Strides of K or of V, in bytes. */
struct layout_side {
    void *const *bases; /* one per layer; NULL: base */
    char *base;
    int64_t layer_stride;
    int64_t shift; /* from the base to this side */
    int64_t token_stride;
    int64_t head_stride;
    int64_t dim_stride;
    uint32_t dims;
};

struct layout_view {
    struct layout_side sides[2]; /* index: enum larder_section_kind */
    const uint32_t *block_table; /* NULL: contiguous */
    int64_t block_stride;
    uint32_t block_tokens;
    uint32_t element_bytes;
    uint64_t token_capacity; /* tokens with room */
};

/* Checks every field against the model; -EINVAL, LARDER_EMODEL or LARDER_EUNSUPPORTED with a
 * message. */
int layout_open(struct layout_view *out, const struct larder_layout *layout,
                const struct larder_model_desc *desc);

/* A rectangle to move: rows of a slice's planes, and where they lie in the engine's memory. */
struct layout_move {
    struct larder_slice slice;
    uint32_t plane_tokens; /* rows of each plane */
    uint32_t row_first;    /* of the planes */
    uint32_t row_count;
    uint64_t token_first; /* engine's token of row_first */
    bool past_cache;      /* scatter: so much is written that it would only wash out the caches */
};

/* Engine memory to planes (and back); planes hold the slice's layers one after the other. */
void layout_gather(const struct layout_view *view, void *planes, const struct layout_move *move);
void layout_scatter(const struct layout_view *view, const void *planes,
                    const struct layout_move *move);

#endif
