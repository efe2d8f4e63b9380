/* SPDX-License-Identifier: Apache-2.0 */
/* measure.h - recipes run over samples: encoded block by block as a PUT does, decoded as a GET, and
 * what follows each prefix run with what came back.
 * Owns:    a trial owns its recipe and its figures.
 * Threads: eval_measure() spreads prefixes over threads of its own; the rest belongs to the caller.
 * I1  Figures do not depend on the number of threads; only times do.
 * I2  All recipes see one prefix's reference. Recipes that give the same planes share one run. A
 *     twin codes every fourth prefix, where it must give what its trial gave, and has its figures.
 */
#ifndef LARDER_TOOLS_EVAL_MEASURE_H
#define LARDER_TOOLS_EVAL_MEASURE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "codec/codec.h"
#include "tools/eval/crew.h"
#include "tools/eval/engine.h"
#include "tools/eval/stats.h"

/* What came of one prefix. */
struct eval_outcome {
    uint64_t record_bytes;  /* of all blocks: head, directory, sections, padding */
    uint64_t section_bytes; /* of sections alone */
    uint32_t fell_back;     /* sections stored exact */
    bool is_exact;          /* every bit came back */
    bool is_coded;          /* sizes and times are there: twins take every fourth prefix */
    double encode_s;
    double decode_s;
    double copy_s; /* memcpy of the planes, beside them */
};

/* One recipe and its figures. */
struct eval_trial {
    char name[64];
    char family[32];
    bool is_coded; /* the entropy-coded twin of the trial before it */
    struct larder_recipe *recipe;
    atomic_bool failed;
    char error[256]; /* why it could not be measured; empty: it was */

    /* per prefix */
    struct eval_outcome *outcomes;
    double *errors; /* [prefix][layer][EVAL_PARTS] */
    /* per prediction that counts: text, then answers */
    float *kl;
    float *nats;
    uint8_t *agree;
};

/* What all trials are for. */
struct eval_subject {
    const struct larder_model_desc *model;
    const struct larder_profile *profile; /* NULL: none */
    const struct eval_samples *samples;
};

/* Opens the recipe; a recipe that this model or release cannot have is a trial with an error. */
int eval_trial_open(struct eval_trial *out, const struct eval_subject *subject, const char *family,
                    const char *name, const char *text);
void eval_trial_close(struct eval_trial *trial);

struct eval_work {
    const char *model_directory;
    const struct eval_samples *samples;
    struct eval_trial *trials;
    uint32_t trial_count;
    uint32_t jobs;
    double *energies; /* [prefix][layer][EVAL_PARTS] of the references, filled */
    struct eval_progress progress;
};
int eval_measure(struct eval_work *work);

#endif
