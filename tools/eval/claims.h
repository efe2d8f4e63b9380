/* SPDX-License-Identifier: Apache-2.0 */
/* claims.h - what the project promises of its recipes, computed from the measured rows.
 * Owns:    the list.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_CLAIMS_H
#define LARDER_TOOLS_EVAL_CLAIMS_H

#include <jansson.h>
#include <stdio.h>

#include "tools/eval/claim.h"
#include "tools/eval/summary.h"

#define EVAL_FAMILIES_MAX 64u

/* What limits ask for. */
#define EVAL_KL_STRICT .01
#define EVAL_KL_LOOSE  .05

/* Where the hull of a family's lossy recipes reaches these, in bits an element; infinite: it does
 * not. */
struct eval_reach {
    const char *family;
    double strict;
    double loose;
};

struct eval_claims {
    struct eval_claim_list list;
    struct eval_reach reaches[EVAL_FAMILIES_MAX];
    uint32_t reach_count;
};

int eval_claims_make(struct eval_claims *out, const struct eval_rows *rows);
void eval_claims_print(const struct eval_claims *claims, FILE *out);
/* New references. */
json_t *eval_reaches_json(const struct eval_claims *claims);
json_t *eval_claims_json(const struct eval_claims *claims);

#endif
