/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/blend.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/blend/method.h"
#include "kernels/blend/select.h"

static int alloc_parts(struct larder_blend *blend, uint32_t layers)
{
    size_t tokens = blend->token_count;
    blend->tokens = larder_alloc(tokens * sizeof(*blend->tokens));
    blend->spans = larder_alloc(blend->span_count * sizeof(*blend->spans));
    blend->source = larder_alloc_zero(tokens, 1);
    blend->forced = larder_alloc_zero(tokens, 1);
    blend->active = larder_alloc_zero(tokens, 1);
    blend->scores = larder_alloc_zero(tokens, sizeof(*blend->scores));
    blend->row_scores = larder_alloc_zero(tokens, sizeof(*blend->row_scores));
    blend->rows = larder_alloc_zero(2 * (tokens + 1), sizeof(*blend->rows));
    blend->layers_run = larder_alloc_zero(tokens, sizeof(*blend->layers_run));
    blend->layer_rows = larder_alloc_zero(layers, sizeof(*blend->layer_rows));
    if (!blend->tokens || !blend->spans || !blend->source || !blend->forced || !blend->active ||
        !blend->scores || !blend->row_scores || !blend->rows || !blend->layers_run ||
        !blend->layer_rows)
        return larder_fail(-ENOMEM, "no memory for a blend of %zu tokens", tokens);
    return 0;
}

/* What each token is, and which are computed whatever the method says. */
static void mark_tokens(struct larder_blend *blend)
{
    for (uint32_t i = 0; i < blend->span_count; i++) {
        const struct larder_blend_span *span = &blend->spans[i];
        memset(blend->source + span->first, (int)span->source, span->count);
        if (span->source >= LARDER_BLEND_MISSING)
            memset(blend->forced + span->first, 1, span->count);
        blend->result.sources[span->source] += (uint32_t)span->count;
    }
    if (blend->options.logits)
        blend->forced[blend->token_count - 1] = 1;
    memcpy(blend->active, blend->forced, blend->token_count);
}

/* Positions that keys come from need rows of the table, too. */
static int grow_table(struct larder_blend *blend)
{
    uint64_t positions = blend->token_count;
    for (uint32_t i = 0; i < blend->span_count; i++)
        if (blend->spans[i].source == LARDER_BLEND_MOVED)
            positions =
                larder_max_u64(positions, blend->spans[i].stored_first + blend->spans[i].count);
    const struct larder_rope_table *table;
    return larder_llama_rope(blend->model, &table, (uint32_t)positions);
}

/* PREFIX tokens at the front; the cache's rows of others are not valid until the end. */
static uint32_t prefix_tokens(const struct larder_blend *blend)
{
    return blend->result.sources[LARDER_BLEND_PREFIX];
}

int larder_blend_open(struct larder_blend **out, struct larder_llama *model,
                      struct larder_kv_cache *cache, const struct larder_blend_prompt *prompt,
                      const struct larder_blend_options *options)
{
    *out = NULL;
    const struct larder_model_config *config = larder_llama_config(model);
    struct blend_setting setting;
    LARDER_TRY(blend_setting_read(
        &setting, options->method ? options->method : LARDER_BLEND_METHOD_DEFAULT, config->layers));
    LARDER_TRY(larder_blend_check_spans(prompt->spans, prompt->span_count, prompt->token_count,
                                        config->positions_max));
    if (prompt->token_count > cache->capacity)
        return larder_fail(
            LARDER_ELIMIT,
            "a blend of %u tokens does not fit the KV cache of %u; open a larger one",
            prompt->token_count, cache->capacity);
    struct larder_blend *blend = larder_alloc_zero(1, sizeof(*blend));
    if (!blend)
        return larder_fail(-ENOMEM, "no memory for a blend");
    *blend = (struct larder_blend){.model = model,
                                   .cache = cache,
                                   .setting = setting,
                                   .options = *options,
                                   .token_count = prompt->token_count,
                                   .span_count = prompt->span_count,
                                   .settled_layer = BLEND_SETTLED};
    int err = alloc_parts(blend, config->layers);
    if (err == 0) {
        memcpy(blend->tokens, prompt->tokens, prompt->token_count * sizeof(*blend->tokens));
        memcpy(blend->spans, prompt->spans, prompt->span_count * sizeof(*blend->spans));
        mark_tokens(blend);
        err = grow_table(blend);
    }
    if (err == 0)
        err = setting.method->choose(blend);
    if (err < 0) {
        larder_blend_close(blend);
        return err;
    }
    *out = blend;
    return 0;
}

void larder_blend_close(struct larder_blend *blend)
{
    if (!blend)
        return;
    blend_offsets_close(blend->offsets);
    blend_queries_close(blend->queries);
    larder_llama_pass_close(blend->pass);
    larder_free(blend->layer_rows);
    larder_free(blend->layers_run);
    larder_free(blend->rows);
    larder_free(blend->row_scores);
    larder_free(blend->scores);
    larder_free(blend->active);
    larder_free(blend->forced);
    larder_free(blend->source);
    larder_free(blend->spans);
    larder_free(blend->tokens);
    larder_free(blend);
}

uint32_t blend_moved_count(const struct larder_blend *blend)
{
    return blend->result.sources[LARDER_BLEND_MOVED];
}

bool larder_blend_reads(const struct larder_blend *blend, uint32_t layer, uint32_t token)
{
    assert(token < blend->token_count);
    if (blend->source[token] >= LARDER_BLEND_MISSING)
        return false;
    /* A row that surely runs is computed before anybody reads it. */
    bool surely = blend->active[token] && (blend->forced[token] || layer < blend->settled_layer);
    return !surely;
}

/* Tokens that run from the first layer on, into a pass. */
static int open_pass(struct larder_blend *blend)
{
    uint32_t *positions = blend->rows;
    uint32_t *tokens = blend->rows + blend->token_count;
    uint32_t count = 0;
    for (uint32_t i = 0; i < blend->token_count; i++) {
        if (!blend->active[i])
            continue;
        positions[count] = i;
        tokens[count++] = blend->tokens[i];
    }
    if (count == 0)
        return 0;
    return larder_llama_pass_open(
        &blend->pass, blend->model, blend->cache,
        &(struct larder_llama_rows){.tokens = tokens, .positions = positions, .count = count});
}

/* Moves the keys of a layer that are read, one run of tokens after another. */
static int move_layer(struct larder_blend *blend, uint32_t layer)
{
    const struct larder_rope_table *table;
    LARDER_TRY(larder_llama_rope(blend->model, &table, blend->token_count));
    for (uint32_t i = 0; i < blend->span_count; i++) {
        const struct larder_blend_span *span = &blend->spans[i];
        if (span->source != LARDER_BLEND_MOVED || span->stored_first == span->first)
            continue;
        uint32_t end = (uint32_t)(span->first + span->count);
        for (uint32_t token = (uint32_t)span->first; token < end;) {
            uint32_t run = 0;
            while (token + run < end && larder_blend_reads(blend, layer, token + run))
                run++;
            struct larder_tensor keys =
                larder_kv_cache_tensor(blend->cache, layer, LARDER_K, token, run);
            uint32_t from = (uint32_t)(span->stored_first + (token - span->first));
            larder_blend_move_keys(table, &keys, from, token);
            token += run + 1;
        }
    }
    return 0;
}

int blend_keep(struct larder_blend *blend)
{
    uint32_t rows = larder_llama_pass_rows(blend->pass);
    const uint32_t *positions = larder_llama_pass_positions(blend->pass);
    uint32_t *indices = blend->rows;
    uint32_t kept = 0;
    uint32_t context_lost = 0;
    for (uint32_t i = 0; i < rows; i++) {
        if (blend->active[positions[i]])
            indices[kept++] = i;
        else
            context_lost += blend->source[positions[i]] != LARDER_BLEND_SUFFIX;
    }
    /* Their K and V were computed, to be looked at: two of a layer's seven products. */
    const struct larder_model_config *c = larder_llama_config(blend->model);
    double kv = 2.0 * c->kv_heads * c->head_dims;
    double all = kv + 2.0 * c->heads * c->head_dims + 3.0 * c->feedforward;
    blend->projected_share += context_lost * kv / all;
    return larder_llama_pass_keep(blend->pass, indices, kept);
}

static void count_layer(struct larder_blend *blend, uint32_t layer)
{
    uint32_t rows = larder_llama_pass_rows(blend->pass);
    const uint32_t *positions = larder_llama_pass_positions(blend->pass);
    for (uint32_t i = 0; i < rows; i++)
        blend->layers_run[positions[i]]++;
    blend->layer_rows[layer] = rows;
}

static void sum_up(struct larder_blend *blend)
{
    struct larder_blend_result *result = &blend->result;
    result->layers_run = blend->layers_run;
    result->layer_rows = blend->layer_rows;
    result->tokens = blend->token_count;
    result->layers = larder_llama_config(blend->model)->layers;
    result->whole = true;
    double rows = blend->projected_share;
    for (uint32_t i = 0; i < blend->token_count; i++) {
        if (blend->source[i] != LARDER_BLEND_SUFFIX)
            rows += blend->layers_run[i];
        if (blend->source[i] == LARDER_BLEND_MOVED && blend->layers_run[i] < result->layers)
            result->whole = false;
    }
    uint32_t context = blend->token_count - result->sources[LARDER_BLEND_SUFFIX];
    if (context > 0)
        result->recomputed_share = rows / ((double)result->layers * context);
}

static int run_layer(struct larder_blend *blend, larder_blend_fetch fetch, void *context,
                     uint32_t layer)
{
    const struct blend_method *method = blend->setting.method;
    LARDER_TRY(fetch(context, layer));
    LARDER_TRY(move_layer(blend, layer));
    if (method->before_layer)
        LARDER_TRY(method->before_layer(blend, layer));
    if (!blend->pass)
        return 0;
    count_layer(blend, layer);
    return larder_llama_pass_layer(blend->pass);
}

static int run_layers(struct larder_blend *blend, larder_blend_fetch fetch, void *context)
{
    if (blend->queries)
        blend_queries_watch(blend->queries, blend->token_count - 1);
    int err = 0;
    for (uint32_t layer = 0; err == 0 && layer < blend->cache->layers; layer++)
        err = run_layer(blend, fetch, context, layer);
    if (blend->queries)
        blend_queries_unwatch(blend->queries);
    return err;
}

int larder_blend_run(struct larder_blend *blend, larder_blend_fetch fetch, void *context,
                     float *logits)
{
    assert(!blend->ran);
    assert((logits != NULL) == (blend->options.logits != 0));
    blend->ran = true;
    struct larder_kv_cache *cache = blend->cache;
    cache->count = (uint32_t)larder_min_u64(cache->count, prefix_tokens(blend));
    LARDER_TRY(open_pass(blend));
    LARDER_TRY(run_layers(blend, fetch, context));
    if (logits)
        LARDER_TRY(larder_llama_pass_logits(blend->pass, logits,
                                            larder_llama_pass_rows(blend->pass) - 1, 1));
    sum_up(blend);
    cache->count = blend->token_count;
    return 0;
}

int larder_blend_next(struct larder_blend *blend, float *logits, uint32_t token)
{
    const struct blend_method *method = blend->setting.method;
    assert(blend->ran);
    int err = method->next ? method->next(blend, logits, token)
                           : larder_llama_forward(blend->model, blend->cache, logits,
                                                  LARDER_LOGITS_LAST, &token, 1);
    if (err == 0)
        blend->steps++;
    return err;
}

const struct larder_blend_result *larder_blend_result(const struct larder_blend *blend)
{
    assert(blend->ran);
    return &blend->result;
}
