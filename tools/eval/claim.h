/* SPDX-License-Identifier: Apache-2.0 */
/* claim.h - what the project promises, and whether what was measured bears it out.
 * Owns:    a list owns its claims' texts.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_CLAIM_H
#define LARDER_TOOLS_EVAL_CLAIM_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

enum eval_verdict {
    EVAL_HOLDS,
    EVAL_FAILS,
    EVAL_UNKNOWN, /* something that it speaks of was not measured */
};

/* `value` stands beside `limit`; which is to be the larger one the text says. */
struct eval_claim {
    const char *name; /* for programs */
    char text[160];
    enum eval_verdict verdict;
    double value; /* NaN: none */
    double limit;
    char note[300];
};

#define EVAL_CLAIMS_MAX 64u

struct eval_claim_list {
    struct eval_claim list[EVAL_CLAIMS_MAX];
    uint32_t count;
};

/* A claim of which nothing is known yet; the list has room for it. */
struct eval_claim *eval_claim_add(struct eval_claim_list *claims, const char *name,
                                  const char *format, ...) __attribute__((format(printf, 3, 4)));
/* A line each. */
void eval_claim_list_print(const struct eval_claim_list *claims, FILE *out);
/* A new reference. */
json_t *eval_claim_list_json(const struct eval_claim_list *claims);

#endif
