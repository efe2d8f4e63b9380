/* SPDX-License-Identifier: Apache-2.0 */
/* method.h - what a method of repair is, and the blend that it decides about. Inside kernels/blend/
 * only. A method is one file that ends in a const table; blend.c runs it, setting.c reads its text.
 */
#ifndef LARDER_KERNELS_BLEND_METHOD_H
#define LARDER_KERNELS_BLEND_METHOD_H

#include "kernels/blend/blend.h"
#include "kernels/blend/queries.h"
#include "kernels/blend/setting.h"
#include "kernels/llama_pass.h"

struct blend_offsets;

/* For `settled_layer`: no row is let go any more. */
#define BLEND_SETTLED UINT32_MAX

struct blend_method {
    struct larder_blend_method known; /* first: what larder_blend_method() gives */
    const struct blend_param *params;
    uint32_t param_count;
    /* Do the values go together, for so many layers? May be NULL. -EINVAL with a message. */
    int (*check)(const struct blend_setting *setting, uint32_t layers);
    /* Marks in `active` the MOVED tokens that run from layer 0 on. */
    int (*choose)(struct larder_blend *blend);
    /* With the stored rows of `layer` in the cache and in place, before it runs: may let rows go by
     * blend_keep(). NULL: all that began go on. */
    int (*before_layer)(struct larder_blend *blend, uint32_t layer);
    /* One token behind the prompt; NULL: a plain forward. */
    int (*next)(struct larder_blend *blend, float *logits, uint32_t token);
};

struct larder_blend {
    struct larder_llama *model;
    struct larder_kv_cache *cache;
    struct blend_setting setting;
    struct larder_blend_options options;
    struct larder_blend_span *spans;
    uint32_t *tokens;
    uint8_t *source;   /* per token: enum larder_blend_source */
    uint8_t *forced;   /* per token: computed whatever the method says */
    uint8_t *active;   /* per token: runs in the next layer; all forced ones, too */
    float *scores;     /* per token: for the method's use */
    float *row_scores; /* per row of the pass, the same */
    uint32_t *rows;    /* scratch: two numbers per token and one more */
    uint32_t token_count;
    uint32_t span_count;
    /* The first layer, from the next on, before which rows may yet be let go. */
    uint32_t settled_layer;

    /* while it runs */
    struct larder_llama_pass *pass; /* NULL: no row is computed */
    double projected_share;         /* of rows that were only projected, in rows of whole layers */

    struct blend_queries *queries; /* NULL: the method does not want them */
    uint32_t steps;                /* tokens that came behind the prompt */
    struct blend_offsets *offsets; /* kvcomm's; NULL: nothing is added */

    uint32_t *layers_run;
    uint32_t *layer_rows;
    struct larder_blend_result result;
    bool ran;
};

/* MOVED tokens in the prompt. */
uint32_t blend_moved_count(const struct larder_blend *blend);
/* Lets go the rows of the pass that are not `active` any more. Their tokens keep, from here on,
 * what the cache holds. */
int blend_keep(struct larder_blend *blend);

/* NULL does nothing. */
void blend_offsets_close(struct blend_offsets *offsets);

/* Each in the file of its name. */
extern const struct blend_method blend_none;
extern const struct blend_method blend_full;
extern const struct blend_method blend_link;
extern const struct blend_method blend_cacheblend;
extern const struct blend_method blend_kvshare;
extern const struct blend_method blend_kvcomm;
extern const struct blend_method blend_random;
extern const struct blend_method blend_probe;

#endif
