/* SPDX-License-Identifier: Apache-2.0 */
/* blend_measure.h - methods of blending run over fresh facts: all of them over the same samples, so
 * that they can be compared sample by sample.
 * Owns:    a trial owns its answers.
 * Threads: eval_blend_measure() spreads samples over threads of its own; the rest belongs to the
 *          caller.
 * I1  Figures do not depend on the number of threads; only times do.
 * I2  The same seed and number of people give the same samples, however many are asked for.
 */
#ifndef LARDER_TOOLS_EVAL_BLEND_MEASURE_H
#define LARDER_TOOLS_EVAL_BLEND_MEASURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tools/eval/blend_methods.h"
#include "tools/eval/blender.h"
#include "tools/eval/crew.h"

/* A recipe that chunks go through. */
struct eval_blend_recipe {
    const char *text;
    struct larder_recipe *recipe; /* NULL: they stay as they were computed */
};

/* A method over chunks of a recipe. */
struct eval_blend_trial {
    const char *family;
    char method[EVAL_BLEND_TEXT_MAX];
    const struct eval_blend_recipe *chunks;
    atomic_bool failed;
    char error[256];              /* why it could not be measured; empty: it was */
    struct eval_answers *answers; /* per sample */
};

struct eval_blend_work {
    const char *model; /* a directory */
    uint32_t people;
    uint32_t samples;
    uint32_t turns;
    uint32_t jobs;
    uint64_t seed;
    int64_t check_layer;             /* of the model, by its profile; below 0: not known */
    struct eval_blend_trial *trials; /* those of one recipe one after another */
    uint32_t trial_count;
    struct eval_answers *references; /* per sample, filled: dense prefill */
    struct eval_progress progress;
};

/* `method` with the check layer filled in (tools/eval/blend_methods.h). */
int eval_blend_trial_open(struct eval_blend_trial *out, const struct eval_blend_work *work,
                          const char *family, const char *method,
                          const struct eval_blend_recipe *chunks);
void eval_blend_trial_close(struct eval_blend_trial *trial);

/* A method that cannot be measured is a trial with an error. */
int eval_blend_measure(struct eval_blend_work *work);

#endif
