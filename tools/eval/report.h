/* SPDX-License-Identifier: Apache-2.0 */
/* report.h - rows and claims as a table for people, JSON for programs, CSV for the repository.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_REPORT_H
#define LARDER_TOOLS_EVAL_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "tools/eval/claims.h"
#include "tools/eval/summary.h"

struct eval_report {
    const struct eval_work *work;
    const struct eval_rows *rows;
    const struct eval_claims *claims; /* NULL: of named recipes nothing is claimed */
    const struct larder_model_desc *model;
};

void eval_print_table(const struct eval_report *report, FILE *out);
/* A new reference; NULL without memory. */
json_t *eval_json(const struct eval_report *report);
/* A line a recipe, a head first. */
void eval_print_csv(const struct eval_report *report, FILE *out);

#endif
