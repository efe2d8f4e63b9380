/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/worker/loading.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/cache_layout.h"

/* A span that is loaded. */
struct part {
    struct larder_get_op *op;
    uint32_t *tokens; /* of its chain: lead and piece, or the whole prompt */
    uint64_t first;   /* token of the whole prompt: the span may move in the plan */
    uint64_t stored_first;
};

struct loading {
    const struct worker *worker;
    struct larder_blend_plan *plan;
    struct part *parts;
    uint32_t part_count;
    uint64_t wait_us;
    pthread_t thread;
    bool has_thread;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t layers_done;
    bool failed; /* some part will not be whole */
    bool stop;
};

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000;
}

/* --- the plan -------------------------------------------------------------------------------- */

/* Only `valid` tokens of the span that begins at `first` are there: the rest is missing. */
static void cut_span(struct larder_blend_plan *plan, uint64_t first, uint64_t valid)
{
    uint32_t i = 0;
    while (plan->spans[i].first != first)
        i++;
    struct larder_blend_span *span = &plan->spans[i];
    const uint64_t lost = span->count - valid;
    plan->source_tokens[span->source] -= lost;
    plan->source_tokens[LARDER_BLEND_MISSING] += lost;
    if (valid == 0) {
        span->source = LARDER_BLEND_MISSING;
        span->stored_first = first;
        return;
    }
    span->count = valid;
    struct larder_blend_span *next = span + 1;
    if (next->source == LARDER_BLEND_MISSING && next->piece == span->piece) {
        next->first -= lost;
        next->count += lost;
        next->stored_first = next->first;
        return;
    }
    /* A last span follows always, the suffix, and the plan has room: larder_blend_plan(). */
    memmove(next + 1, next, (plan->span_count - i - 1) * sizeof(*next));
    *next = (struct larder_blend_span){.first = first + valid,
                                       .count = lost,
                                       .stored_first = first + valid,
                                       .source = LARDER_BLEND_MISSING,
                                       .piece = span->piece};
    plan->span_count++;
}

/* --- one part -------------------------------------------------------------------------------- */

/* Row i of the chain goes to the row of its token in the whole prompt. */
static struct larder_layout part_layout(const struct larder_kv_cache *cache,
                                        const struct larder_blend_span *span)
{
    struct larder_layout layout = larder_cache_layout(cache);
    const int64_t shift = (int64_t)span->first - (int64_t)span->stored_first;
    layout.base = (void *)((intptr_t)layout.base + shift * layout.token_stride);
    layout.kv_stride += shift * (layout.v_token_stride - layout.token_stride);
    layout.token_first = span->stored_first;
    layout.token_capacity = span->stored_first + span->count;
    return layout;
}

static struct larder_prompt part_prompt(struct part *part, const struct worker_request *request,
                                        const struct larder_blend_span *span)
{
    const struct larder_blend_request *blend = &request->blend;
    if (span->source == LARDER_BLEND_PREFIX)
        return (struct larder_prompt){.tokens = request->tokens,
                                      .token_count = request->token_count,
                                      .extra = blend->suffix.extra,
                                      .extra_bytes = blend->suffix.extra_bytes};
    const struct larder_prompt *piece = &request->pieces[span->piece];
    const size_t lead =
        blend->start == LARDER_START_TOKEN && piece->tokens[0] != blend->start_token;
    part->tokens = larder_alloc((piece->token_count + lead) * sizeof(*part->tokens));
    if (!part->tokens)
        return (struct larder_prompt){.token_count = 0};
    part->tokens[0] = blend->start_token;
    memcpy(part->tokens + lead, piece->tokens, piece->token_count * sizeof(*part->tokens));
    return (struct larder_prompt){.tokens = part->tokens,
                                  .token_count = piece->token_count + lead,
                                  .extra = piece->extra,
                                  .extra_bytes = piece->extra_bytes};
}

/* *valid: tokens of the span that will be there if nothing fails. */
static int begin_part(struct loading *loading, const struct worker_request *request,
                      const struct larder_blend_span *span, uint64_t *valid)
{
    struct part *part = &loading->parts[loading->part_count];
    *part = (struct part){.first = span->first, .stored_first = span->stored_first};
    const struct larder_prompt prompt = part_prompt(part, request, span);
    if (prompt.token_count == 0)
        return larder_fail(-ENOMEM, "no memory for a piece's tokens");
    const struct larder_layout layout = part_layout(loading->worker->cache, span);
    const struct larder_get_options options = {
        .worst = request->blend.worst,
        .max_kl = request->blend.max_kl,
        .tokens_max = span->stored_first + span->count,
    };
    uint64_t tokens;
    int err =
        larder_get_begin(loading->worker->model, &part->op, &tokens, &prompt, &layout, &options);
    *valid = err < 0 || tokens < span->stored_first ? 0 : tokens - span->stored_first;
    if (err == 0) {
        loading->part_count++;
        return 0;
    }
    larder_free(part->tokens);
    /* Without room, or a daemon, it is computed. */
    return err == -ENOMEM ? larder_fail(err, "loading: %s", larder_last_error()) : 0;
}

/* --- all of them ----------------------------------------------------------------------------- */

static void *load(void *argument)
{
    struct loading *loading = argument;
    const uint32_t layers = loading->worker->desc.layers;
    for (uint32_t layer = 0; layer < layers; layer++) {
        bool failed = false;
        for (uint32_t i = 0; i < loading->part_count && !failed; i++)
            failed = larder_get_wait_layer(loading->parts[i].op, layer) < 0;
        pthread_mutex_lock(&loading->lock);
        loading->failed = failed;
        loading->layers_done += !failed;
        const bool stop = loading->stop || failed;
        pthread_cond_broadcast(&loading->changed);
        pthread_mutex_unlock(&loading->lock);
        if (stop)
            break;
    }
    return NULL;
}

static int begin_all(struct loading *loading, const struct worker_request *request, bool *cut)
{
    struct larder_blend_plan *plan = loading->plan;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct larder_blend_span span = plan->spans[i];
        uint64_t valid;
        if (span.source != LARDER_BLEND_PREFIX && span.source != LARDER_BLEND_MOVED)
            continue;
        LARDER_TRY(begin_part(loading, request, &span, &valid));
        if (valid < span.count) {
            cut_span(plan, span.first, valid);
            *cut = true;
        }
    }
    int err = pthread_create(&loading->thread, NULL, load, loading);
    if (err)
        return larder_fail(-err, "no thread to load with: %s", strerror(err));
    loading->has_thread = true;
    return 0;
}

int loading_begin(struct loading **out, const struct worker *worker,
                  const struct worker_request *request, struct larder_blend_plan *plan, bool *cut)
{
    *out = NULL;
    struct loading *loading = larder_alloc_zero(1, sizeof(*loading));
    if (!loading)
        return larder_fail(-ENOMEM, "no memory to load with");
    loading->worker = worker;
    loading->plan = plan;
    loading->parts = larder_alloc(plan->span_count * sizeof(*loading->parts));
    pthread_mutex_init(&loading->lock, NULL);
    pthread_cond_init(&loading->changed, NULL);
    int err = loading->parts ? begin_all(loading, request, cut)
                             : larder_fail(-ENOMEM, "no memory to load with");
    if (err < 0) {
        struct loading_result result;
        loading_end(loading, &result, cut);
        return err;
    }
    *out = loading;
    return 0;
}

int loading_wait(struct loading *loading, uint32_t layer)
{
    const uint64_t start_us = now_us();
    pthread_mutex_lock(&loading->lock);
    while (loading->layers_done <= layer && !loading->failed)
        pthread_cond_wait(&loading->changed, &loading->lock);
    const bool there = loading->layers_done > layer;
    pthread_mutex_unlock(&loading->lock);
    loading->wait_us += now_us() - start_us;
    return there ? 0 : larder_fail(LARDER_ESTALE, "stored KV was gone before it was loaded");
}

static void end_part(struct loading *loading, struct part *part, struct loading_result *result,
                     bool *cut)
{
    struct larder_blend_plan *plan = loading->plan;
    struct larder_get_result got = {0};
    (void)larder_get_end(part->op, &got);
    larder_free(part->tokens);
    result->bytes += got.bytes;
    result->bytes_ssd += got.bytes_ssd;
    result->quality = got.quality > result->quality ? got.quality : result->quality;
    result->kl = got.kl > result->kl ? got.kl : result->kl;
    uint32_t i = 0;
    while (plan->spans[i].first != part->first)
        i++;
    if (plan->spans[i].source == LARDER_BLEND_PREFIX) {
        result->prefix_quality = got.quality;
        result->prefix_kl = got.kl;
    }
    const uint64_t valid = got.tokens < part->stored_first ? 0 : got.tokens - part->stored_first;
    /* One that was given up before its last layer says nothing of what is stored. */
    if (got.stop_error != -ECANCELED && plan->spans[i].source != LARDER_BLEND_MISSING &&
        valid < plan->spans[i].count) {
        cut_span(plan, part->first, valid);
        *cut = true;
    }
}

void loading_end(struct loading *loading, struct loading_result *result, bool *cut)
{
    memset(result, 0, sizeof(*result));
    if (!loading)
        return;
    if (loading->has_thread) {
        pthread_mutex_lock(&loading->lock);
        loading->stop = true;
        pthread_mutex_unlock(&loading->lock);
        pthread_join(loading->thread, NULL);
    }
    for (uint32_t i = 0; i < loading->part_count; i++)
        end_part(loading, &loading->parts[i], result, cut);
    result->wait_us = loading->wait_us;
    pthread_cond_destroy(&loading->changed);
    pthread_mutex_destroy(&loading->lock);
    larder_free(loading->parts);
    larder_free(loading);
}
