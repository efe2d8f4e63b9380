/* SPDX-License-Identifier: Apache-2.0 */
/* cacheblend.c - CacheBlend: the tokens whose K or V deviates most at a check layer are computed in
 * the layers behind it, too (kernels/blend/deviation.h).
 */
#include "base/bytes.h"
#include "kernels/blend/deviation.h"

static const struct blend_param params[] = {BLEND_DEVIATION_PARAMS};

const struct blend_method blend_cacheblend = {
    .known = {.name = "cacheblend",
              .form = "cacheblend r=.15 layer=1 score=v check=strict",
              .summary = "the share r whose K or V deviates most at a layer goes on (CacheBlend)"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .check = blend_deviation_check,
    .choose = blend_deviation_choose,
    .before_layer = blend_deviation_filter,
};
