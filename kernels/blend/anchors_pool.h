/* SPDX-License-Identifier: Apache-2.0 */
/* anchors_pool.h - a pool of anchors from within: for those who make, read and use it. Inside
 * kernels/blend/ only.
 */
#ifndef LARDER_KERNELS_BLEND_ANCHORS_POOL_H
#define LARDER_KERNELS_BLEND_ANCHORS_POOL_H

#include "base/limits.h"
#include "kernels/blend/anchors.h"

/* The parts of an anchor's numbers, one behind the other; each is [layer][K, V][token][width]. */
enum anchors_part {
    ANCHORS_BASE,  /* the segment alone */
    ANCHORS_WHOLE, /* the segment in its prompt, K as at ANCHORS_BASE's places */
    ANCHORS_AFTER, /* the following text in its prompt, K as at its places alone */
};

struct anchor {
    uint32_t tokens;
    uint64_t activations;
    uint8_t *numbers; /* of the pool's dtype */
};

struct larder_blend_anchors {
    struct larder_blend_anchors_options options;
    struct larder_key model; /* its fingerprint */
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t dims[2]; /* of K and V */
    uint32_t dtype;
    struct anchor list[LARDER_ANCHORS_MAX];
    uint32_t count;
};

/* Numbers of a row of K or V. */
static inline uint64_t anchors_width(const struct larder_blend_anchors *pool, enum larder_kv kv)
{
    return (uint64_t)pool->kv_heads * pool->dims[kv];
}

/* Bytes of an anchor of so many tokens; at most LARDER_PROMPT_TOKENS_MAX, so that no product
 * overflows. */
uint64_t anchors_numbers_bytes(const struct larder_blend_anchors *pool, uint64_t tokens);
/* A part's rows of one layer. */
void *anchors_rows(const struct larder_blend_anchors *pool, const struct anchor *anchor,
                   enum anchors_part part, uint32_t layer, enum larder_kv kv);
/* Is each of an anchor's numbers one? */
bool anchors_are_finite(const struct larder_blend_anchors *pool, const struct anchor *anchor);

/* Are these rows of the pool's shape, computed alone where the pool wants them? -EINVAL. */
int anchors_check_base(const struct larder_blend_anchors *pool,
                       const struct larder_blend_rows *own);
/* The same of the following text, where there is one. */
int anchors_check_after(const struct larder_blend_anchors *pool,
                        const struct larder_blend_rows *after);

/* weights[i] = exp(-distances[i]) over their sum; `weights` may be `distances`. No distance is
 * below 0; all are 0 where one is no number. */
void anchors_softmax(double *weights, const double *distances, uint32_t count);

#endif
