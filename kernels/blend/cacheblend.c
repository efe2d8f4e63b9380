/* SPDX-License-Identifier: Apache-2.0 */
/* cacheblend.c - CacheBlend: tokens whose K or V deviates most at a check layer go on.
 *
 * All MOVED tokens run through the layers before the check layer and keep what they get there. At
 * the check layer their K and V are computed and compared with the stored ones: sum over heads and
 * dims of the squared difference, of V (score=v, as the authors' code does) or of K at its new
 * place (score=k). The share r with the highest scores goes on through all layers; of the others
 *     check=strict   everything from the check layer on stays as stored;
 *     check=paper    K and V of the check layer are still the computed ones, as the authors' code
 *                    does; from the next layer on they stay as stored.
 * r=a,b,c filters gradually, as the paper describes: a goes on at the check layer, b of all MOVED
 * tokens at the next one, and so on; the last holds for the rest. Shares never rise.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/blend/method.h"
#include "kernels/blend/select.h"

enum { PARAM_R, PARAM_LAYER, PARAM_SCORE, PARAM_CHECK };
enum { SCORE_V, SCORE_K };
enum { CHECK_STRICT, CHECK_PAPER };

static const struct blend_param params[] = {
    [PARAM_R] = {.name = "r", .high = 1, .missing = 0.15, .count_max = BLEND_VALUES_MAX},
    [PARAM_LAYER] = {.name = "layer", .high = UINT32_MAX - 1, .missing = 1, .whole = true},
    [PARAM_SCORE] = {.name = "score", .words = "v k", .missing = SCORE_V},
    [PARAM_CHECK] = {.name = "check", .words = "strict paper", .missing = CHECK_STRICT},
};

static int check(const struct blend_setting *setting, uint32_t layers)
{
    const struct blend_values *r = &setting->value[PARAM_R];
    double layer = blend_number(setting, PARAM_LAYER);
    if (layer + r->count > layers)
        return larder_fail(-EINVAL,
                           "blend method 'cacheblend': check layer %.0f with %u share%s, but the "
                           "model has layers 0..%u",
                           layer, r->count, r->count == 1 ? "" : "s", layers - 1);
    for (uint32_t i = 1; i < r->count; i++)
        if (r->at[i] > r->at[i - 1])
            return larder_fail(
                -EINVAL,
                "blend method 'cacheblend': r=%g follows %g; a token that was let go "
                "does not come back, so shares never rise",
                r->at[i], r->at[i - 1]);
    return 0;
}

static int choose(struct larder_blend *blend)
{
    for (uint32_t i = 0; i < blend->token_count; i++)
        if (blend->source[i] == LARDER_BLEND_MOVED)
            blend->active[i] = 1;
    blend->settled_layer = (uint32_t)blend_number(&blend->setting, PARAM_LAYER);
    return 0;
}

/* Scores, per token, of the rows in the pass. */
static int score(struct larder_blend *blend, uint32_t layer)
{
    enum larder_kv kv = blend_number(&blend->setting, PARAM_SCORE) == SCORE_K ? LARDER_K : LARDER_V;
    uint32_t rows = larder_llama_pass_rows(blend->pass);
    const uint32_t *positions = larder_llama_pass_positions(blend->pass);
    struct larder_tensor fresh = larder_llama_pass_projected(blend->pass, kv);
    struct larder_tensor stored =
        larder_kv_cache_tensor(blend->cache, layer, kv, 0, blend->token_count);
    /* From the last on, for row i is at or before its position. */
    larder_blend_deviation(blend->scores, &fresh, &stored, positions);
    for (uint32_t i = rows; i-- > 0;)
        blend->scores[positions[i]] = blend->scores[i];
    return 0;
}

static int filter(struct larder_blend *blend, uint32_t layer)
{
    uint32_t first = (uint32_t)blend_number(&blend->setting, PARAM_LAYER);
    const struct blend_values *r = &blend->setting.value[PARAM_R];
    if (!blend->pass || layer < first || layer - first >= r->count)
        return 0;
    LARDER_TRY(larder_llama_pass_project(blend->pass));
    LARDER_TRY(score(blend, layer));
    if (layer == first && blend_number(&blend->setting, PARAM_CHECK) == CHECK_PAPER)
        LARDER_TRY(larder_llama_pass_write(blend->pass));

    /* Forced rows go on beside those of the highest scores. */
    for (uint32_t i = 0; i < blend->token_count; i++)
        blend->active[i] = blend->active[i] && !blend->forced[i];
    LARDER_TRY(larder_blend_keep_highest(
        blend->active, blend->scores, blend->token_count,
        larder_blend_share_of(r->at[layer - first], blend_moved_count(blend))));
    for (uint32_t i = 0; i < blend->token_count; i++)
        blend->active[i] |= blend->forced[i];
    blend->settled_layer = layer - first + 1 < r->count ? layer + 1 : BLEND_SETTLED;
    return blend_keep(blend);
}

const struct blend_method blend_cacheblend = {
    .known = {.name = "cacheblend",
              .form = "cacheblend r=.15 layer=1 score=v check=strict",
              .summary = "the share r whose K or V deviates most at a layer goes on (CacheBlend)"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .check = check,
    .choose = choose,
    .before_layer = filter,
};
