/* SPDX-License-Identifier: Apache-2.0 */
/* samples.h - what a recipe is judged on: prefixes, and the tokens that follow each.
 * Owns:    the tokens of all samples.
 * Threads: read by any after open.
 *
 * A text sample is EVAL_PREFIX_TOKENS of held-out text, then the EVAL_NEXT_TOKENS that follow. The
 * first of those runs in the model like any prompt's last token, whatever the recipe: that is the
 * short tail that is computed raw.
 * A question sample ends its prefix with made-up facts and is followed by questions about them,
 * each run alone; what counts is how the bytes of the answer are predicted.
 */
#ifndef LARDER_TOOLS_EVAL_SAMPLES_H
#define LARDER_TOOLS_EVAL_SAMPLES_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/model_config.h"

#define EVAL_PREFIX_TOKENS 1024u
#define EVAL_BLOCK_TOKENS  256u
#define EVAL_BLOCKS        (EVAL_PREFIX_TOKENS / EVAL_BLOCK_TOKENS)
#define EVAL_NEXT_TOKENS   256u
/* After some fifty bytes computed raw a byte model hardly reads its prefix any more. */
#define EVAL_FIRST_TOKENS 32u
#define EVAL_SAMPLES_MAX  4096u
#define EVAL_RUNS_MAX     4u

/* Tokens behind a prefix. */
struct eval_run {
    const uint32_t *tokens; /* one more than `count`: the last is predicted only */
    uint32_t count;         /* <= EVAL_NEXT_TOKENS */
    uint32_t scored;        /* predictions `scored` .. `count` - 1 count */
    uint32_t place;         /* of their figures among all of text, or of questions */
};

struct eval_prefix {
    const uint32_t *tokens; /* EVAL_PREFIX_TOKENS */
    bool is_question;
    uint32_t run_count;
    struct eval_run runs[EVAL_RUNS_MAX];
};

struct eval_samples {
    struct eval_prefix *prefixes; /* text first */
    uint32_t count;
    uint32_t text_count;
    uint32_t text_scored; /* predictions that count */
    uint32_t answer_scored;
    uint32_t *tokens;
};

/* Up to `wanted` samples of each kind; both files are bytes as tokens. `questions_path` NULL: text
 * alone. */
int eval_samples_open(struct eval_samples *out, const struct larder_model_config *config,
                      const char *text_path, const char *questions_path, uint32_t wanted);
void eval_samples_close(struct eval_samples *samples);

#endif
