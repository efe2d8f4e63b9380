/* SPDX-License-Identifier: Apache-2.0 */
/* blender.h - a model that answers questions behind facts whose chunks were computed apart, first
 * after a prefill of all of it (the reference), then after each way to put the chunks together.
 * Owns:    its device, the model, caches, and what is known of the facts in hand.
 * Threads: belongs to one thread; blenders share nothing.
 * I1  Each question is asked alone: behind the same KV of the facts, of which nothing changes. Only
 *     turns see the questions before them, with the right answers.
 * I2  A method's answers and the reference's come from the same calls over the same kind of cache.
 *
 * The prompt is the model's start token and all chunks. A chunk's own KV is that of the start token
 * and the chunk, computed alone and taken through a recipe, as a store would give it back; the
 * first one stands where it was computed, so its KV is right as it is.
 */
#ifndef LARDER_TOOLS_EVAL_BLENDER_H
#define LARDER_TOOLS_EVAL_BLENDER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "codec/codec.h"
#include "kernels/model_config.h"
#include "tools/eval/facts.h"

#define EVAL_TURNS_MAX 8u

struct eval_blender;

/* What came of the questions of one sample. */
struct eval_answers {
    uint32_t right[EVAL_KINDS]; /* greedy, the whole line */
    uint32_t asked[EVAL_KINDS];
    uint32_t bytes[EVAL_KINDS]; /* of answers */
    double kl[EVAL_KINDS];      /* nats to the reference, summed over them */
    /* The first questions one after another. */
    uint8_t turn_kind[EVAL_TURNS_MAX];
    uint8_t turn_right[EVAL_TURNS_MAX];
    double share;   /* of context tokens and layers that was computed again */
    double blend_s; /* of the processor, until the context's KV is ready */
};

struct eval_blender_options {
    const char *model; /* a directory */
    uint32_t people_max;
    uint32_t turns; /* 0..EVAL_TURNS_MAX */
};

int eval_blender_open(struct eval_blender **out, const struct eval_blender_options *options);
void eval_blender_close(struct eval_blender *blender);

const struct larder_model_config *eval_blender_config(const struct eval_blender *blender);
const struct larder_model_desc *eval_blender_desc(const struct eval_blender *blender);
/* Tokens of the longest chunk with its start token. */
uint32_t eval_blender_chunk_tokens(const struct eval_blender *blender);

/* Computes the facts as one text and asks the questions: `reference` is what dense prefill gets.
 * Then each chunk alone. */
int eval_blender_load(struct eval_blender *blender, const struct eval_facts *facts,
                      struct eval_answers *reference);
struct eval_coder;
/* From here on chunks are what comes back from this recipe; NULL: as they were computed. */
int eval_blender_store(struct eval_blender *blender, struct eval_coder *coder);
/* Puts the chunks together by a method of kernels/blend/blend.h and asks. `seed` of what it does at
 * random. */
int eval_blender_run(struct eval_blender *blender, const char *method, uint64_t seed,
                     struct eval_answers *out);

#endif
