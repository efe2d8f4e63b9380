/* SPDX-License-Identifier: Apache-2.0 */
/* kvshare.c - KVShare's two stages of high deviation, in our reading: its paper was not to be had,
 * only its abstract, which says that tokens of high deviation are picked in prefill and again in
 * decode.
 *
 * In the prefill: as "cacheblend" does (kernels/blend/deviation.h). Then, with each of the first m
 * tokens generated, the n tokens that are still as stored and have the largest attention x
 * deviation are computed beside it, in all layers: attention is what the last token gave them, in
 * the mean over layers and heads, deviation what the check layer found. What a generated token
 * looks at is so mended from the next token on. n = 0, or m = 0: the first stage alone.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/blend/deviation.h"
#include "kernels/blend/select.h"

enum { PARAM_M = DEVIATION_PARAMS, PARAM_N };

static const struct blend_param params[] = {
    BLEND_DEVIATION_PARAMS,
    [PARAM_M] = {.name = "m", .high = LARDER_PROMPT_TOKENS_MAX, .missing = 8, .whole = true},
    [PARAM_N] = {.name = "n", .high = LARDER_PROMPT_TOKENS_MAX, .missing = 8, .whole = true},
};

static int choose(struct larder_blend *blend)
{
    LARDER_TRY(blend_deviation_choose(blend));
    /* Its attention decides what the first step computes. */
    blend->forced[blend->token_count - 1] = 1;
    blend->active[blend->token_count - 1] = 1;
    return blend_queries_open(&blend->queries, blend->model);
}

/* Marks the n tokens to compute, of those that are still as stored. */
static int pick(struct larder_blend *blend, uint8_t *picked)
{
    uint32_t count = blend->cache->count;
    float *mass = larder_alloc(count * sizeof(*mass));
    if (!mass)
        return larder_fail(-ENOMEM, "no memory for attention over %u tokens", count);
    int err = blend_queries_attention(blend->queries, mass, blend->cache, count);
    for (uint32_t i = 0; i < blend->token_count; i++) {
        picked[i] = blend->source[i] == LARDER_BLEND_MOVED && !blend->active[i];
        mass[i] *= picked[i] ? blend->scores[i] : 0;
    }
    if (err == 0)
        err = larder_blend_keep_highest(picked, mass, blend->token_count,
                                        (uint32_t)blend_number(&blend->setting, PARAM_N));
    larder_free(mass);
    return err;
}

/* The picked tokens and, behind them, the new one. */
static int run_beside(struct larder_blend *blend, float *logits, uint32_t token,
                      const uint8_t *picked)
{
    struct larder_kv_cache *cache = blend->cache;
    uint32_t *positions = blend->rows;
    uint32_t *tokens = blend->rows + blend->token_count + 1;
    uint32_t count = 0;
    for (uint32_t i = 0; i < blend->token_count; i++)
        if (picked[i]) {
            positions[count] = i;
            tokens[count++] = blend->tokens[i];
        }
    positions[count] = cache->count;
    tokens[count++] = token;
    struct larder_llama_pass *pass;
    LARDER_TRY(larder_llama_pass_open(
        &pass, blend->model, cache,
        &(struct larder_llama_rows){.tokens = tokens, .positions = positions, .count = count}));
    int err = 0;
    blend_queries_watch(blend->queries, cache->count);
    while (err == 0 && larder_llama_pass_next(pass) < cache->layers)
        err = larder_llama_pass_layer(pass);
    blend_queries_unwatch(blend->queries);
    if (err == 0)
        err = larder_llama_pass_logits(pass, logits, count - 1, 1);
    larder_llama_pass_close(pass);
    if (err < 0)
        return err;
    cache->count++;
    for (uint32_t i = 0; i < blend->token_count; i++)
        blend->active[i] |= picked[i];
    blend->result.refreshed += count - 1;
    return 0;
}

static int next(struct larder_blend *blend, float *logits, uint32_t token)
{
    if (blend->steps >= blend_number(&blend->setting, PARAM_M) ||
        blend_number(&blend->setting, PARAM_N) == 0)
        return larder_llama_forward(blend->model, blend->cache, logits, LARDER_LOGITS_LAST, &token,
                                    1);
    uint8_t *picked = larder_alloc_zero(blend->token_count, 1);
    if (!picked)
        return larder_fail(-ENOMEM, "no memory to choose among %u tokens", blend->token_count);
    int err = pick(blend, picked);
    if (err == 0)
        err = run_beside(blend, logits, token, picked);
    larder_free(picked);
    return err;
}

const struct blend_method blend_kvshare = {
    .known = {.name = "kvshare",
              .form = "kvshare r=.15 layer=1 score=v check=strict m=8 n=8",
              .summary = "cacheblend, then n more tokens with each of the first m generated (after "
                         "KVShare)"},
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .check = blend_deviation_check,
    .choose = choose,
    .before_layer = blend_deviation_filter,
    .next = next,
};
