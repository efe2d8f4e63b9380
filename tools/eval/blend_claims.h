/* SPDX-License-Identifier: Apache-2.0 */
/* blend_claims.h - what the project promises of blending, computed from the measured rows: with six
 * people, each question asked alone.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_EVAL_BLEND_CLAIMS_H
#define LARDER_TOOLS_EVAL_BLEND_CLAIMS_H

#include "tools/eval/blend_rows.h"
#include "tools/eval/claim.h"

void eval_blend_claims_make(struct eval_claim_list *out, const struct eval_blend_rows *rows,
                            int64_t check_layer);

#endif
