/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/claim.h"

#include <assert.h>
#include <math.h>
#include <stdarg.h>

struct eval_claim *eval_claim_add(struct eval_claim_list *claims, const char *name,
                                  const char *format, ...)
{
    assert(claims->count < EVAL_CLAIMS_MAX);
    struct eval_claim *claim = &claims->list[claims->count++];
    *claim = (struct eval_claim){.name = name, .verdict = EVAL_UNKNOWN, .value = NAN};
    va_list args;
    va_start(args, format);
    vsnprintf(claim->text, sizeof(claim->text), format, args);
    va_end(args);
    return claim;
}

static const char *verdict_name(enum eval_verdict verdict)
{
    switch (verdict) {
    case EVAL_HOLDS:
        return "holds";
    case EVAL_FAILS:
        return "fails";
    case EVAL_UNKNOWN:
        break;
    }
    return "not measured";
}

void eval_claim_list_print(const struct eval_claim_list *claims, FILE *out)
{
    for (uint32_t i = 0; i < claims->count; i++) {
        const struct eval_claim *claim = &claims->list[i];
        fprintf(out, "%-12s  %s", verdict_name(claim->verdict), claim->text);
        if (isfinite(claim->value))
            fprintf(out, ": %.4g", claim->value);
        fprintf(out, "%s%s\n", claim->note[0] ? " - " : "", claim->note);
    }
}

json_t *eval_claim_list_json(const struct eval_claim_list *claims)
{
    json_t *out = json_array();
    for (uint32_t i = 0; i < claims->count; i++) {
        const struct eval_claim *claim = &claims->list[i];
        json_t *one = json_pack("{s:s, s:s, s:s, s:f, s:s}", "name", claim->name, "claim",
                                claim->text, "verdict", verdict_name(claim->verdict), "limit",
                                claim->limit, "note", claim->note);
        if (isfinite(claim->value))
            json_object_set_new(one, "value", json_real(claim->value));
        json_array_append_new(out, one);
    }
    return out;
}
