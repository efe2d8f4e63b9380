/* SPDX-License-Identifier: Apache-2.0 */
/* blend_report.h - rows of blending as a table for people, JSON for programs, CSV and a picture for
 * the repository.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_BLEND_REPORT_H
#define LARDER_TOOLS_EVAL_BLEND_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "tools/eval/blend_rows.h"
#include "tools/eval/claim.h"

struct eval_blend_report {
    const struct eval_blend_rows *rows;
    const struct eval_blend_work *works; /* one for each number of people */
    uint32_t work_count;
    const struct eval_claim_list *claims; /* NULL: of named methods nothing is claimed */
    const char *model;
};

void eval_blend_print(const struct eval_blend_report *report, FILE *out);
/* A new reference; NULL without memory. */
json_t *eval_blend_json(const struct eval_blend_report *report);
/* A line a row, a head first; without times, which differ from run to run. */
void eval_blend_csv(const struct eval_blend_report *report, FILE *out);

/* Recomputed share against cross accuracy and KL, of raw chunks and the largest number of people,
 * by gnuplot: a PNG. LARDER_EUNSUPPORTED without gnuplot. */
int eval_blend_plot(const struct eval_blend_report *report, const char *path);

#endif
