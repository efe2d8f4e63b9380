/* SPDX-License-Identifier: Apache-2.0 */
/* link.c - EPIC's LegoLink: the first k tokens of each chunk are computed in all layers. When its
 * KV was computed alone a chunk's first tokens drew the attention that has nowhere else to go;
 * behind other text they are no start any more, and computing them again ends that.
 */
#include "kernels/blend/method.h"

#include "base/bytes.h"
#include "base/limits.h"

enum { PARAM_K };

static const struct blend_param params[] = {
    [PARAM_K] = {.name = "k", .high = LARDER_PROMPT_TOKENS_MAX, .missing = 16, .whole = true},
};

static int choose_first(struct larder_blend *blend)
{
    uint32_t k = (uint32_t)blend_number(&blend->setting, PARAM_K);
    for (uint32_t i = 0; i < blend->span_count; i++) {
        const struct larder_blend_span *span = &blend->spans[i];
        if (span->source != LARDER_BLEND_MOVED)
            continue;
        for (uint64_t j = 0; j < larder_min_u64(k, span->count); j++)
            blend->active[span->first + j] = 1;
    }
    return 0;
}

const struct blend_method blend_link = {
    .known = {.name = "link",
              .form = "link k=16",
              .summary = "the first k tokens of each chunk are computed again (EPIC)"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .choose = choose_first,
};
