/* SPDX-License-Identifier: Apache-2.0 */
/* anchors.h - what contexts did to the KV of a segment, kept as anchors (KVCOMM): the method
 * "kvcomm" adds what they say to KV that was computed alone, and computes nothing again.
 * Owns:    a pool owns its anchors; caches are the caller's.
 * Threads: a pool belongs to one thread at a time.
 * I1  Anchors stand in the order in which they came; at most anchors_max of them.
 * I2  All numbers in a pool are finite, whatever file it was read from.
 *
 * A pool is of one place in one agent's prompt: a segment whose text changes from request to
 * request (a question, another agent's answer), and the fixed text that follows it, if any. An
 * anchor is one text of the segment: its KV computed alone, behind BOS, and the KV that the
 * agent's prompt gave it and the following text, K turned back to the places of the KV alone. What
 * the method adds is the difference, so it moves with the keys.
 *
 *     larder_blend_anchors_ask(pool, &base.own, &sharing);
 *     sharing.shares: the segment and the following text are MOVED spans of the prompt, and
 *         options.reuses has {pool, base, their places} for the method "kvcomm"
 *     else: they are MISSING, and when the blend ran
 *         larder_blend_anchors_add(pool, table, &base, &whole);   whole: their rows in its cache
 */
#ifndef LARDER_KERNELS_BLEND_ANCHORS_H
#define LARDER_KERNELS_BLEND_ANCHORS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "base/limits.h"
#include "kernels/kv_cache.h"
#include "kernels/rope.h"

/* The authors' threshold of entropy. */
#define LARDER_BLEND_GAMMA_DEFAULT .3

struct larder_blend_anchors;

struct larder_blend_anchors_options {
    uint32_t first;       /* row of a segment's first token where it was computed alone: 1 */
    uint32_t after_first; /* the same of the following text */
    uint32_t after_count; /* its tokens; 0: none follows, or it is not to be changed */
    uint32_t anchors_max; /* 2..LARDER_ANCHORS_MAX */
    double gamma;         /* 0..1: shares while entropy <= gamma log2(anchors) */
};

/* Rows [first, first + count) of a cache, K rotated for these places. */
struct larder_blend_rows {
    const struct larder_kv_cache *cache;
    uint32_t first;
    uint32_t count;
};

struct larder_blend_segment {
    struct larder_blend_rows own;
    struct larder_blend_rows after; /* not looked at where after_count is 0 */
};

/* KV of `model`, in its dtype. -EINVAL for options outside their ranges; LARDER_EMODEL and the like
 * for a description that is none. */
int larder_blend_anchors_open(struct larder_blend_anchors **out,
                              const struct larder_model_desc *model,
                              const struct larder_blend_anchors_options *options);
void larder_blend_anchors_close(struct larder_blend_anchors *pool);

struct larder_blend_sharing {
    bool shares;
    uint32_t anchors; /* that are as long as the segment, or longer */
    double entropy;   /* bits, of softmax(-|V - V of an anchor|) over these */
    double limit;     /* gamma log2(anchors) */
};

/* Do the anchors know enough of a text like this one? Two are needed, whose entropy is at most the
 * limit. If they share, those that make up .9 of the softmax count one activation more. -EINVAL for
 * rows that are not the pool's. */
int larder_blend_anchors_ask(struct larder_blend_anchors *pool,
                             const struct larder_blend_rows *base,
                             struct larder_blend_sharing *out);

/* One anchor more: a segment's KV alone and in the prompt. It takes the place of an anchor of just
 * the same KV alone, for two that say the same would raise the entropy. Else, when there are
 * anchors_max, the least activated of the five oldest goes, of equals the oldest. `table` is the
 * model's, with rows for all places. On an error (-EINVAL for rows that are not the pool's or hold
 * what is no number, LARDER_ELIMIT, -ENOMEM) the pool is as before. */
int larder_blend_anchors_add(struct larder_blend_anchors *pool,
                             const struct larder_rope_table *table,
                             const struct larder_blend_segment *base,
                             const struct larder_blend_segment *whole);

struct larder_blend_anchor_info {
    uint32_t tokens; /* of the segment */
    uint64_t activations;
};
uint32_t larder_blend_anchors_count(const struct larder_blend_anchors *pool);
/* By index, the oldest first. */
struct larder_blend_anchor_info larder_blend_anchors_info(const struct larder_blend_anchors *pool,
                                                          uint32_t index);

/* A pool as bytes (docs/FORMAT.md, "Anchors"). `out` has room for larder_blend_anchors_bytes(). */
uint64_t larder_blend_anchors_bytes(const struct larder_blend_anchors *pool);
int larder_blend_anchors_write(const struct larder_blend_anchors *pool, void *out);
/* LARDER_EFORMAT for other bytes, LARDER_EVERSION, LARDER_ECORRUPT for bytes that changed or do not
 * add up, LARDER_EMODEL for a pool of another model; -ENOMEM. */
int larder_blend_anchors_read(struct larder_blend_anchors **out,
                              const struct larder_model_desc *model, const void *bytes,
                              uint64_t count);

/* A segment of a prompt whose KV is to be that of its anchors (options.reuses of a blend). */
struct larder_blend_reuse {
    const struct larder_blend_anchors *anchors;
    struct larder_blend_segment base; /* its KV alone: what fetch() gives too */
    uint32_t first;                   /* its place in the prompt */
    uint32_t after_first;             /* that of the following text */
};

#endif
