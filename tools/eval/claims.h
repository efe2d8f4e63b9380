/* SPDX-License-Identifier: Apache-2.0 */
/* claims.h - what the project promises of its recipes, computed from the measured rows.
 * Owns:    the list.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_CLAIMS_H
#define LARDER_TOOLS_EVAL_CLAIMS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "tools/eval/summary.h"

enum eval_verdict {
    EVAL_HOLDS,
    EVAL_FAILS,
    EVAL_UNKNOWN, /* a recipe that it speaks of was not measured */
};

/* `value` stands beside `limit`; which is to be the larger one the text says. */
struct eval_claim {
    const char *name; /* for programs */
    char text[160];
    enum eval_verdict verdict;
    double value;
    double limit;
    char note[300];
};

#define EVAL_CLAIMS_MAX 64u

struct eval_claims {
    struct eval_claim list[EVAL_CLAIMS_MAX];
    uint32_t count;
};

int eval_claims_make(struct eval_claims *out, const struct eval_rows *rows);
void eval_claims_print(const struct eval_claims *claims, FILE *out);
/* A new reference. */
json_t *eval_claims_json(const struct eval_claims *claims);

#endif
