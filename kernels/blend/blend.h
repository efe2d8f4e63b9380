/* SPDX-License-Identifier: Apache-2.0 */
/* blend.h - KV of a whole prompt from KV of parts that were computed apart: K is moved to its new
 * place, and some tokens are computed again where the whole prompt would have made them another.
 * Owns:    the choice of tokens and what is known of each. The model and the cache must outlive
 *          it; tokens and spans are copied.
 * Threads: the model's. While a layer runs, another thread may write the stored rows of later
 *          layers into the cache: the core touches rows of a layer only after fetch() returned.
 * I1  K moves once, from the stored original, in f32, by R(to) R(from)^-1 (kernels/rope.h).
 * I2  A row that is computed attends to keys at or before its position and to no other, in its
 *     layer's final state: stored and moved, or computed.
 * I3  Missing and suffix tokens are always computed, PREFIX tokens never. When every MOVED token is
 *     computed in all layers, KV and logits are the bits of a forward behind the same PREFIX.
 *
 * Methods, by text: a name and values, as in "cacheblend r=.15 score=k". larder_blend_method()
 * lists them; the meaning of each is in the head of its file. `r` is a share of the MOVED tokens.
 *
 *     struct larder_blend *blend;
 *     larder_llama_cache_open(model, &cache, count + answer, 0);
 *     larder_blend_open(&blend, model, cache, &prompt, &(struct larder_blend_options){
 *                       .method = "cacheblend r=.15", .logits = 1});
 *     larder_blend_run(blend, fetch, context, logits);     cache->count == count
 *     ... larder_blend_result(blend) says what became of each token
 *     larder_blend_next(blend, logits, token); and so on
 *     larder_blend_close(blend);
 *
 * Engines that run their own layers use kernels/blend/select.h.
 */
#ifndef LARDER_KERNELS_BLEND_BLEND_H
#define LARDER_KERNELS_BLEND_BLEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/blend/anchors.h"
#include "kernels/kv_cache.h"
#include "kernels/llama.h"

#define LARDER_BLEND_METHOD_DEFAULT "cacheblend r=.15"

struct larder_blend;

struct larder_blend_prompt {
    const uint32_t *tokens;
    const struct larder_blend_span *spans; /* PREFIX before all others; they cover the tokens */
    uint32_t token_count;
    uint32_t span_count;
};

struct larder_blend_options {
    const char *method; /* NULL: LARDER_BLEND_METHOD_DEFAULT */
    /* For "probe": of each token of the prompt that is MOVED the score of kernels/blend/probe.h;
     * those of others are not looked at. Read by larder_blend_open() alone. */
    const float *scores;
    /* For "kvcomm": its segments, in order; they and what they name hold until the blend ran. */
    const struct larder_blend_reuse *reuses;
    uint32_t reuse_count;
    uint64_t seed;   /* of what is chosen at random */
    uint32_t logits; /* 1: the prompt's last token is computed whatever it is, for its logits */
};

/* Checks all that can be checked before any work, and chooses tokens as far as the method does so
 * beforehand. -EINVAL for spans that do not cover the tokens in order, or a method or a value that
 * is not known; LARDER_ELIMIT for positions beyond the cache or the model. */
int larder_blend_open(struct larder_blend **out, struct larder_llama *model,
                      struct larder_kv_cache *cache, const struct larder_blend_prompt *prompt,
                      const struct larder_blend_options *options);
void larder_blend_close(struct larder_blend *blend);

/* Whether the stored row of a PREFIX or MOVED token must be in the cache when `layer` runs. What it
 * says of a layer may change from false to true until the layer before has run, unless the method
 * chose beforehand: then it never changes. */
bool larder_blend_reads(const struct larder_blend *blend, uint32_t layer, uint32_t token);

/* Makes stored rows of a layer, K and V, present in the cache at their new places, K still rotated
 * for the position where it was computed: for a token of a span the cache's row is its number in
 * the prompt, and the rotation that of stored_first + (token - first). Called once for each layer,
 * in order. A negative code ends the run. */
typedef int (*larder_blend_fetch)(void *context, uint32_t layer);

/* Once. `logits`: vocab floats, of the last token; NULL unless options.logits. Afterwards
 * cache->count is the number of the prompt's tokens; after an error at most that of its PREFIX. */
int larder_blend_run(struct larder_blend *blend, larder_blend_fetch fetch, void *context,
                     float *logits);

struct larder_blend_result {
    const uint32_t *layers_run; /* per token: layers it was computed in; 0: all its KV is stored */
    const uint32_t *layer_rows; /* per layer: tokens of the whole prompt that were computed */
    uint32_t tokens;
    uint32_t layers;
    uint32_t sources[4]; /* tokens, by enum larder_blend_source */
    bool whole;          /* every MOVED token was computed in every layer */
    uint32_t refreshed;  /* MOVED tokens that larder_blend_next() computed */
    /* Rows computed, summed over layers, of the tokens before the suffix, over layers x those
     * tokens. Where only K and V of a row were computed, to be looked at, it counts by their share
     * of a layer's weights. */
    double recomputed_share;
};
/* Of a blend that ran; holds until it is closed. `refreshed` grows with larder_blend_next(). */
const struct larder_blend_result *larder_blend_result(const struct larder_blend *blend);

/* One token behind the prompt, and then behind the last: its logits. Some methods (kvshare) go on
 * with their repair while tokens are generated; with the others it is larder_llama_forward(). On an
 * error cache->count is as before. */
int larder_blend_next(struct larder_blend *blend, float *logits, uint32_t token);

struct larder_blend_method {
    const char *name;
    const char *form;    /* how it is written, with its defaults: "link k=16" */
    const char *summary; /* one line, for help */
};
/* By index; NULL at the end. */
const struct larder_blend_method *larder_blend_method(uint32_t index);
/* Would this text do for a model of so many layers? -EINVAL with a message if not. */
int larder_blend_check_method(const char *text, uint32_t layers);

#endif
