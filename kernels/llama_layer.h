/* SPDX-License-Identifier: Apache-2.0 */
/* llama_layer.h - a model in memory, and a decoder layer over some rows of a prompt. Inside
 * kernels/ only: the forward (llama.c) and the pass over scattered rows (llama_pass.c) share it.
 * Owns:    nothing but what a model owns.
 * Threads: the model's.
 * I1  A row's bits do not depend on which rows stand beside it: whoever calls sees to it that all
 *     keys up to the row's position are in the cache when it attends.
 */
#ifndef LARDER_KERNELS_LLAMA_LAYER_H
#define LARDER_KERNELS_LLAMA_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kv_cache.h"
#include "kernels/llama.h"
#include "kernels/llama_weights.h"
#include "kernels/model_config.h"
#include "kernels/rope.h"
#include "kernels/safetensors.h"

/* Rows that pass a layer together: bounds the workspace, and fills the CPU's tiles. */
#define LLAMA_ROWS_MAX 384u
/* Rows of logits computed together: a row of a large vocabulary is 600 KB. */
#define LLAMA_LOGIT_ROWS 64u

/* Where the rows of one call live; all f32 [LLAMA_ROWS_MAX, ...] in one block. */
struct llama_workspace {
    float *block;
    float *x;    /* the residual stream */
    float *h;    /* normalized, or a layer part's output */
    float *q;    /* [heads, head_dims] */
    float *k;    /* [kv_heads, head_dims] */
    float *v;    /* [kv_heads, head_dims] */
    float *a;    /* attention's output, like q */
    float *gate; /* [feedforward] */
    float *up;
    float *logits; /* [LLAMA_LOGIT_ROWS, vocab] */
    uint32_t positions[LLAMA_ROWS_MAX];
};

struct larder_llama {
    /* fixed after open */
    struct larder_device *device;
    struct larder_model_config config;
    struct larder_weights *files;
    struct llama_weights weights;
    char name[64];

    /* the owner's thread */
    struct larder_rope_table *rope; /* grows with the largest cache */
    struct llama_workspace work;
    uint64_t forwarded;
    larder_llama_queries watch; /* NULL: nobody */
    void *watch_context;
    uint8_t digest[32];
    bool digested;
};

/* Rows on their way through the layers: 1..LLAMA_ROWS_MAX, positions rising. */
struct llama_rows {
    struct larder_llama *model;
    struct larder_kv_cache *cache;
    const uint32_t *positions;
    uint32_t count;
    float *x; /* [count, hidden] */
    float *k; /* [count, kv_heads, head_dims], once projected */
    float *v;
};

/* Asserts that a cache was opened for this model. */
void llama_check_cache(const struct larder_llama *model, const struct larder_kv_cache *cache);

/* -EINVAL for a token outside the vocabulary. */
int llama_check_tokens(const struct larder_llama *model, const uint32_t *tokens, size_t count);

/* x of these tokens, each below the vocabulary. */
int llama_rows_embed(const struct llama_rows *rows, const uint32_t *tokens);
/* K, rotated, and V of a layer from x. */
int llama_rows_project(const struct llama_rows *rows, uint32_t layer);
/* Rounds K and V into the cache, each row at its position. */
int llama_rows_write(const struct llama_rows *rows, uint32_t layer);
/* Attention over the cache, keys at or before the row's position, and the feed-forward: x after
 * the layer. The rows' own K and V are in the cache. */
int llama_rows_finish(const struct llama_rows *rows, uint32_t layer);
/* Logits of the rows from `row` on: (count - row) * vocab floats, to the host. */
int llama_rows_logits(const struct llama_rows *rows, float *out, uint32_t row);

#endif
