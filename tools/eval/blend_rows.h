/* SPDX-License-Identifier: Apache-2.0 */
/* blend_rows.h - what the answers of all samples come to: a row for each method, and the
 * difference of two of them sample by sample.
 * Owns:    rows own their list.
 * Threads: one.
 * I1  Questions about one sample are not independent: every error here is that of a mean over
 *     samples.
 */
#ifndef LARDER_TOOLS_EVAL_BLEND_ROWS_H
#define LARDER_TOOLS_EVAL_BLEND_ROWS_H

#include <stdint.h>

#include "tools/eval/blend_measure.h"

/* A mean over samples and its standard error. */
struct eval_mean {
    double value;
    double error;
};

struct eval_blend_row {
    const struct eval_blend_trial *trial; /* NULL: dense prefill */
    const struct eval_answers *answers;   /* per sample */
    uint32_t people;
    uint32_t samples;
    uint32_t asked[EVAL_KINDS];
    struct eval_mean right[EVAL_KINDS]; /* share of the questions, each asked alone */
    struct eval_mean kl;                /* nats a byte of the answers, both kinds */
    struct eval_mean kl_of[EVAL_KINDS];
    double turn_right[EVAL_KINDS]; /* asked one after another; 0 when none was */
    uint32_t turn_asked[EVAL_KINDS];
    struct {
        double right;
        uint32_t asked;
    } turns[EVAL_TURNS_MAX]; /* cross questions, by their place */
    double share;
    double time; /* until the facts' KV is there, over that of dense prefill */
};

struct eval_blend_rows {
    struct eval_blend_row *list;
    uint32_t count;
};

/* Appends dense prefill and all trials of `work` that could be measured; answers stay theirs. */
int eval_blend_rows_add(struct eval_blend_rows *rows, const struct eval_blend_work *work);
void eval_blend_rows_close(struct eval_blend_rows *rows);

const char *eval_blend_row_method(const struct eval_blend_row *row);
const char *eval_blend_row_family(const struct eval_blend_row *row);
const char *eval_blend_row_chunks(const struct eval_blend_row *row);
/* What a guess among the people scores. */
double eval_blend_row_chance(const struct eval_blend_row *row);

/* a - b of the same samples. */
struct eval_mean eval_blend_kl_difference(const struct eval_blend_row *a,
                                          const struct eval_blend_row *b);
struct eval_mean eval_blend_right_difference(const struct eval_blend_row *a,
                                             const struct eval_blend_row *b, enum eval_kind kind);

#endif
