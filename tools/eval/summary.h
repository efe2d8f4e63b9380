/* SPDX-License-Identifier: Apache-2.0 */
/* summary.h - what the figures of all trials come to: a row for each recipe, and what the project
 * promises of them.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_SUMMARY_H
#define LARDER_TOOLS_EVAL_SUMMARY_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/eval/measure.h"
#include "tools/eval/stats.h"

/* A recipe's row. */
struct eval_row {
    const struct eval_trial *trial;
    double bits_per_element;  /* of true records */
    double section_bits;      /* of sections alone */
    struct eval_spread first; /* KL */
    struct eval_spread answers;
    struct eval_spread all;
    double top1_first; /* share of predictions whose likeliest byte stayed */
    double top1_answers;
    double top1_all;
    /* What limits and `max_kl` use: the worse of first bytes and answers. */
    double kl;
    double kl_p99;
    double top1;
    double bits_per_byte; /* change of the text's cost */
    double *error;        /* [layer][EVAL_PARTS], relative */
    double error_of[EVAL_PARTS];
    double encode_gb_s; /* of planes, medians over prefixes */
    double decode_gb_s;
    double copy_gb_s;
    uint64_t fell_back;
    bool is_exact;
};

struct eval_rows {
    struct eval_row *rows;
    uint32_t count; /* trials that could be measured */
    uint32_t layers;
    double *errors;
};

int eval_rows_open(struct eval_rows *out, const struct eval_work *work,
                   const struct larder_model_desc *model);
void eval_rows_close(struct eval_rows *rows);

#endif
