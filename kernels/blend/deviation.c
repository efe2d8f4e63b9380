/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/deviation.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/blend/select.h"

enum { SCORE_V, SCORE_K };
enum { CHECK_STRICT, CHECK_PAPER };

int blend_deviation_check(const struct blend_setting *setting, uint32_t layers)
{
    const struct blend_values *r = &setting->value[DEVIATION_R];
    double layer = blend_number(setting, DEVIATION_LAYER);
    if (layer + r->count > layers)
        return larder_fail(-EINVAL,
                           "blend method '%s': check layer %.0f with %u share%s, but the "
                           "model has layers 0..%u",
                           setting->method->known.name, layer, r->count, r->count == 1 ? "" : "s",
                           layers - 1);
    for (uint32_t i = 1; i < r->count; i++)
        if (r->at[i] > r->at[i - 1])
            return larder_fail(-EINVAL,
                               "blend method '%s': r=%g follows %g; a token that was let go "
                               "does not come back, so shares never rise",
                               setting->method->known.name, r->at[i], r->at[i - 1]);
    return 0;
}

int blend_deviation_choose(struct larder_blend *blend)
{
    for (uint32_t i = 0; i < blend->token_count; i++)
        if (blend->source[i] == LARDER_BLEND_MOVED)
            blend->active[i] = 1;
    blend->settled_layer = (uint32_t)blend_number(&blend->setting, DEVIATION_LAYER);
    return 0;
}

/* Scores, per token, of the rows in the pass. */
static void score(struct larder_blend *blend, uint32_t layer)
{
    enum larder_kv kv =
        blend_number(&blend->setting, DEVIATION_SCORE) == SCORE_K ? LARDER_K : LARDER_V;
    uint32_t rows = larder_llama_pass_rows(blend->pass);
    const uint32_t *positions = larder_llama_pass_positions(blend->pass);
    struct larder_tensor fresh = larder_llama_pass_projected(blend->pass, kv);
    struct larder_tensor stored =
        larder_kv_cache_tensor(blend->cache, layer, kv, 0, blend->token_count);
    larder_blend_deviation(blend->row_scores, &fresh, &stored, positions);
    for (uint32_t i = 0; i < rows; i++)
        blend->scores[positions[i]] = blend->row_scores[i];
}

int blend_deviation_filter(struct larder_blend *blend, uint32_t layer)
{
    uint32_t first = (uint32_t)blend_number(&blend->setting, DEVIATION_LAYER);
    const struct blend_values *r = &blend->setting.value[DEVIATION_R];
    if (!blend->pass || layer < first || layer - first >= r->count)
        return 0;
    LARDER_TRY(larder_llama_pass_project(blend->pass));
    score(blend, layer);
    if (layer == first && blend_number(&blend->setting, DEVIATION_CHECK) == CHECK_PAPER)
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
