/* SPDX-License-Identifier: Apache-2.0 */
/* llama_pass.h - a forward over some rows of a prompt, layer by layer: what blending recomputes.
 * Owns:    the residuals of its rows and, between project() and layer(), their K and V, in the
 *          device's memory. The model, the cache and nothing else must outlive it.
 * Threads: the model's and the cache's; a forward of the model may run between two calls.
 * I1  A row's bits are larder_llama_forward()'s when the keys before it are: the same operations in
 *     the same order (I1, I2 of kernels.h), whichever rows stand beside it.
 * I2  A row attends to the keys at or before its position and to no other, all of them as the
 *     cache holds them when the layer runs: those of rows that run are written first.
 * I3  The pass leaves cache->count alone: which rows are valid is the caller's to say.
 *
 * Row j of the cache is position j. Before a layer runs, every row of it at or before the last
 * position that runs holds KV, or is itself a row that runs. A pass:
 *     larder_llama_pass_open(&pass, model, cache, &(struct larder_llama_rows){...});
 *     for each layer
 *         ... the other rows of this layer come into the cache
 *         ... to look before running: larder_llama_pass_project(), then _keep() of some rows
 *         larder_llama_pass_layer(pass);
 *     larder_llama_pass_logits(pass, logits, larder_llama_pass_rows(pass) - 1, 1);
 */
#ifndef LARDER_KERNELS_LLAMA_PASS_H
#define LARDER_KERNELS_LLAMA_PASS_H

#include <stdint.h>

#include "kernels/kv_cache.h"
#include "kernels/llama.h"

struct larder_llama_pass;

struct larder_llama_rows {
    const uint32_t *tokens;    /* of each row */
    const uint32_t *positions; /* rising, below the cache's capacity */
    uint32_t count;            /* at least 1 */
};

/* Embeds the rows. -EINVAL for a token outside the vocabulary or positions that do not rise,
 * LARDER_ELIMIT for one beyond the cache. The arrays are copied. */
int larder_llama_pass_open(struct larder_llama_pass **out, struct larder_llama *model,
                           struct larder_kv_cache *cache, const struct larder_llama_rows *rows);
void larder_llama_pass_close(struct larder_llama_pass *pass);

/* Rows that go on, and their positions; they change with keep(). */
uint32_t larder_llama_pass_rows(const struct larder_llama_pass *pass);
const uint32_t *larder_llama_pass_positions(const struct larder_llama_pass *pass);
/* The layer that runs next; the model's number of layers when all ran. */
uint32_t larder_llama_pass_next(const struct larder_llama_pass *pass);

/* Computes K, rotated, and V of the next layer into the pass's memory; the cache stays as it is. */
int larder_llama_pass_project(struct larder_llama_pass *pass);
/* What project() computed: f32 [rows, kv_heads, head_dims], until the next other call. */
struct larder_tensor larder_llama_pass_projected(const struct larder_llama_pass *pass,
                                                 enum larder_kv kv);
/* Puts what project() computed into the cache, for rows that will not go on too. */
int larder_llama_pass_write(struct larder_llama_pass *pass);
/* Only these rows go on; indices rising, each below rows(). None may be left only when no row is to
 * run any more. */
int larder_llama_pass_keep(struct larder_llama_pass *pass, const uint32_t *indices, uint32_t count);
/* Runs the next layer over the rows that go on and puts their K and V into the cache. */
int larder_llama_pass_layer(struct larder_llama_pass *pass);

/* Logits of rows [first, first + count) behind the last layer: count * vocab floats. */
int larder_llama_pass_logits(struct larder_llama_pass *pass, float *logits, uint32_t first,
                             uint32_t count);

#endif
