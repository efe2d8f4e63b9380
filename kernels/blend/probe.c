/* SPDX-License-Identifier: Apache-2.0 */
/* probe.c - ours: the share r of the tokens that depend most on what stands before their chunk, by
 * scores that were made when it was stored (probe.h), is computed in all layers.
 */
#include "kernels/blend/probe.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/blend/method.h"
#include "kernels/blend/select.h"
#include "kernels/cpu/cpu_math.h"

enum { PARAM_R };

static const struct blend_param params[] = {
    [PARAM_R] = {.name = "r", .high = 1, .missing = 0.15},
};

static int choose_scored(struct larder_blend *blend)
{
    if (!blend->options.scores)
        return larder_fail(-EINVAL, "blend method 'probe' needs the scores that were made when "
                                    "chunks were stored (kernels/blend/probe.h)");
    uint8_t *chosen = larder_alloc(blend->token_count);
    if (!chosen)
        return larder_fail(-ENOMEM, "no memory to choose among %u tokens", blend->token_count);
    for (uint32_t i = 0; i < blend->token_count; i++)
        chosen[i] = blend->source[i] == LARDER_BLEND_MOVED;
    int err = larder_blend_keep_highest(
        chosen, blend->options.scores, blend->token_count,
        larder_blend_share_of(blend_number(&blend->setting, PARAM_R), blend_moved_count(blend)));
    for (uint32_t i = 0; err == 0 && i < blend->token_count; i++)
        blend->active[i] |= chosen[i];
    larder_free(chosen);
    return err;
}

const struct blend_method blend_probe = {
    .known = {.name = "probe",
              .form = "probe r=.15",
              .summary = "the share r that depends most on what stands before its chunk, by scores "
                         "made when it was stored"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .choose = choose_scored,
};

/* --- scores ----------------------------------------------------------------------------------- */

/* The chunk behind the other text. */
static int run_behind(struct larder_llama *model, struct larder_kv_cache *cache,
                      const struct larder_blend_probe *probe)
{
    int64_t bos = larder_llama_config(model)->bos;
    uint32_t first = (uint32_t)bos;
    cache->count = 0;
    if (bos >= 0)
        LARDER_TRY(larder_llama_forward(model, cache, NULL, LARDER_LOGITS_NONE, &first, 1));
    LARDER_TRY(larder_llama_forward(model, cache, NULL, LARDER_LOGITS_NONE, probe->before,
                                    probe->before_count));
    return larder_llama_forward(model, cache, NULL, LARDER_LOGITS_NONE, probe->tokens,
                                probe->count);
}

/* Adds, per token, the squared difference of two rows of V over the mean square of the first. */
static void add_layer(float *scores, const struct larder_tensor *alone,
                      const struct larder_tensor *behind)
{
    uint64_t rows = alone->shape[0];
    uint64_t dims = alone->shape[1] * alone->shape[2];
    double energy = 0;
    for (uint64_t i = 0; i < rows * dims; i++) {
        double v = (double)load_element(alone->data, alone->dtype, i);
        energy += v * v;
    }
    energy /= (double)rows;
    for (uint64_t row = 0; row < rows; row++) {
        double sum = 0;
        for (uint64_t i = row * dims; i < (row + 1) * dims; i++) {
            double off = (double)load_element(alone->data, alone->dtype, i) -
                         (double)load_element(behind->data, behind->dtype, i);
            sum += off * off;
        }
        scores[row] += energy > 0 ? (float)(sum / energy) : 0;
    }
}

int larder_blend_probe(float *scores, struct larder_llama *model,
                       const struct larder_blend_probe *probe)
{
    if (probe->count == 0 || probe->before_count == 0)
        return larder_fail(-EINVAL, "a probe of %u tokens behind %u; each must be at least 1",
                           probe->count, probe->before_count);
    uint32_t bos = larder_llama_config(model)->bos >= 0;
    uint64_t total = (uint64_t)bos + probe->before_count + probe->count;
    if (total > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "a probe of %llu tokens is above %u",
                           (unsigned long long)total, LARDER_PROMPT_TOKENS_MAX);
    struct larder_kv_cache *cache;
    LARDER_TRY(larder_llama_cache_open(model, &cache, (uint32_t)total, probe->alone->dtype));
    int err = run_behind(model, cache, probe);
    if (err == 0) {
        for (uint32_t i = 0; i < probe->count; i++)
            scores[i] = 0;
        for (uint32_t layer = 0; layer < cache->layers; layer++) {
            struct larder_tensor alone = larder_kv_cache_tensor(probe->alone, layer, LARDER_V,
                                                                probe->alone_first, probe->count);
            struct larder_tensor behind = larder_kv_cache_tensor(
                cache, layer, LARDER_V, bos + probe->before_count, probe->count);
            add_layer(scores, &alone, &behind);
        }
    }
    larder_kv_cache_close(cache);
    return err;
}
