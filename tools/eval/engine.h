/* SPDX-License-Identifier: Apache-2.0 */
/* engine.h - a model that runs what follows a prefix: first over the prefix's own KV (the
 * reference), then over KV that a recipe gave back, and says how far the two are apart.
 * Owns:    its device, the model, a cache, and what is known of the prefix in hand.
 * Threads: an engine belongs to one thread; engines share nothing.
 * I1  Reference and comparison are the same calls over the same cache; KV given back bit by bit
 *     has a divergence of exactly 0.
 *
 * Planes of a prefix: [block][layer][K, V], each [KV head][token][dim] of the block's tokens, as
 * recipes take and give them.
 */
#ifndef LARDER_TOOLS_EVAL_ENGINE_H
#define LARDER_TOOLS_EVAL_ENGINE_H

#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/model_config.h"
#include "tools/eval/inputs.h"
#include "tools/eval/samples.h"

/* Rows of queries behind the prefix by which the error of attention is judged. */
#define EVAL_QUERY_ROWS 32u

struct eval_engine;

/* What is compared, per layer. */
enum eval_part {
    EVAL_K,
    EVAL_V,
    EVAL_ATTENTION, /* its output over the prefix, for the first queries behind it */
    EVAL_PARTS,
};

/* Where a comparison puts its figures. */
struct eval_figures {
    /* Per prediction that counts, from the place of its run. */
    float *kl;      /* nats, of the reference to this */
    float *nats;    /* cost of the byte that came, minus the reference's */
    uint8_t *agree; /* 1: the likeliest byte is the same */
    double *error;  /* [layer][EVAL_PARTS]: sum of squares of the difference */
};

/* `threads` of the device. */
int eval_engine_open(struct eval_engine **out, const char *model_directory, uint32_t threads);
/* From the next load on the inputs of encoding are there, too. */
int eval_engine_want_inputs(struct eval_engine *engine);
void eval_engine_close(struct eval_engine *engine);

const struct larder_model_config *eval_engine_config(const struct eval_engine *engine);
const struct larder_model_desc *eval_engine_desc(const struct eval_engine *engine);
uint64_t eval_engine_planes_bytes(const struct eval_engine *engine);

/* Prefills the prefix and runs what follows it. */
int eval_engine_load(struct eval_engine *engine, const struct eval_prefix *prefix);
/* Of the loaded prefix; they hold until the next load. */
const uint8_t *eval_engine_planes(const struct eval_engine *engine);
/* NULL: they were not wanted. */
const struct eval_inputs *eval_engine_inputs(const struct eval_engine *engine);
/* [layer][EVAL_PARTS]: sum of squares. */
const double *eval_engine_energy(const struct eval_engine *engine);

/* Runs what follows the loaded prefix over these planes in place of its own. */
int eval_engine_compare(struct eval_engine *engine, const uint8_t *planes,
                        const struct eval_figures *figures);

#endif
