/* SPDX-License-Identifier: Apache-2.0 */
/* blending.c - one blend: planned, loaded and computed side by side, written out. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/cache_layout.h"
#include "daemon/worker/loading.h"
#include "daemon/worker/worker.h"
#include "kernels/blend/blend.h"

/* Runs that end because something planned is gone; then all that is left is computed. */
#define TRIES_MAX 3u
/* What a new measurement counts beside those before, and how far off it may be believed to be: on a
 * machine that others use, one that is ten times off says nothing of the next. */
#define RATE_WEIGHT .25
#define RATE_OFF    2.

struct run {
    struct worker *worker;
    const struct wire_blend *wire;
    struct worker_request request;
    struct larder_blend_plan plan;
    struct larder_blend *blend;
    struct loading *loading;
    struct loading_result loaded;
    float *logits;
    uint64_t compute_us;
    bool cut; /* something planned was gone */
};

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000;
}

/* --- rates ----------------------------------------------------------------------------------- */

int worker_measure(struct worker *worker)
{
    /* Few tokens, so that starting stays quick; two counts, to tell rows from pairs. */
    static const uint32_t counts[] = {16, 96};
    double ns[LARDER_COUNT_OF(counts)];
    const uint32_t first = worker->config->bos >= 0 ? (uint32_t)worker->config->bos : 0;
    uint32_t tokens[96] = {first};
    if (worker->config->positions_max < counts[1])
        return 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(counts); i++) {
        struct larder_kv_cache *cache;
        LARDER_TRY(
            larder_llama_cache_open(worker->llama, &cache, counts[i], worker->options->kv_dtype));
        const uint64_t start_us = now_us();
        int err =
            larder_llama_forward(worker->llama, cache, NULL, LARDER_LOGITS_NONE, tokens, counts[i]);
        ns[i] = (double)(now_us() - start_us) * 1000;
        larder_kv_cache_close(cache);
        LARDER_TRY(err);
    }
    /* n tokens take n rows and n (n + 1) / 2 pairs. */
    const double pairs[] = {counts[0] * (counts[0] + 1) / 2., counts[1] * (counts[1] + 1) / 2.};
    const double slope = ns[1] / counts[1] - ns[0] / counts[0];
    worker->rates.pair_ns = slope > 0 ? slope / (pairs[1] / counts[1] - pairs[0] / counts[0]) : 0;
    worker->rates.row_ns = (ns[1] - worker->rates.pair_ns * pairs[1]) / counts[1];
    /* Somebody else had the processor meanwhile. */
    if (worker->rates.row_ns <= 0)
        worker->rates = (struct work_rates){.row_ns = ns[1] / counts[1]};
    return 0;
}

/* What this blend took beside what the rates promised of it. */
static void learn_rates(struct run *run, const struct larder_blend_result *result)
{
    struct work_rates *rates = &run->worker->rates;
    double expected_ns = 0;
    for (uint32_t i = 0; i < result->tokens; i++)
        expected_ns += (double)result->layers_run[i] / result->layers *
                       (rates->row_ns + rates->pair_ns * (i + 1));
    if (expected_ns <= 0)
        return;
    double off = (double)run->compute_us * 1000 / expected_ns;
    off = fmax(1 / RATE_OFF, fmin(off, RATE_OFF));
    const double factor = pow(off, RATE_WEIGHT);
    rates->row_ns *= factor;
    rates->pair_ns *= factor;
}

/* --- computing ------------------------------------------------------------------------------- */

static int fetch(void *context, uint32_t layer)
{
    struct run *run = context;
    if (worker_is_cancelled(run->worker))
        return larder_fail(-ECANCELED, "the blend is not wanted any more");
    return loading_wait(run->loading, layer);
}

static int open_blend(struct run *run)
{
    const struct larder_blend_prompt prompt = {
        .tokens = run->request.tokens,
        .spans = run->plan.spans,
        .token_count = run->request.token_count,
        .span_count = run->plan.span_count,
    };
    const struct larder_blend_options options = {
        .method = run->request.blend.method, .seed = run->request.blend.seed, .logits = 1};
    larder_blend_close(run->blend);
    run->blend = NULL;
    return larder_blend_open(&run->blend, run->worker->llama, run->worker->cache, &prompt,
                             &options);
}

/* LARDER_ESTALE when something planned was gone: the plan is cut then. */
static int run_once(struct run *run)
{
    LARDER_TRY(loading_begin(&run->loading, run->worker, &run->request, &run->plan, &run->cut));
    int err = open_blend(run);
    const uint64_t start_us = now_us();
    if (err == 0)
        err = larder_blend_run(run->blend, fetch, run, run->logits);
    run->compute_us = now_us() - start_us;
    char why[LARDER_MESSAGE_BYTES_MAX];
    snprintf(why, sizeof(why), "%s", err < 0 ? larder_error_message() : "");
    loading_end(run->loading, &run->loaded, &run->cut);
    run->loading = NULL;
    run->compute_us -= larder_min_u64(run->compute_us, run->loaded.wait_us);
    return err < 0 ? larder_fail(err, "%s", why) : 0;
}

/* Nothing stored is used any more, so nothing can be gone. */
static void plan_nothing_stored(struct larder_blend_plan *plan)
{
    for (uint32_t i = 0; i < plan->span_count; i++) {
        struct larder_blend_span *span = &plan->spans[i];
        if (span->source == LARDER_BLEND_SUFFIX)
            continue;
        span->source = LARDER_BLEND_MISSING;
        span->stored_first = span->first;
    }
}

static int compute(struct run *run)
{
    for (uint32_t tries = 0;; tries++) {
        int err = run_once(run);
        if (err != LARDER_ESTALE)
            return err;
        run->cut = true;
        if (tries + 1 == TRIES_MAX)
            plan_nothing_stored(&run->plan);
        assert(tries < TRIES_MAX);
    }
}

/* --- the result ------------------------------------------------------------------------------ */

/* Exact is what was computed wholly behind an exact prefix. */
static void set_quality(const struct run *run, struct wire_blend_ok *ok)
{
    const bool whole = larder_blend_result(run->blend)->whole;
    ok->quality = whole ? run->loaded.prefix_quality : (uint32_t)LARDER_QUALITY_BLENDED;
    ok->kl = whole ? run->loaded.prefix_kl : run->loaded.kl;
}

static void keep(struct run *run, struct wire_blend_ok *ok)
{
    const struct worker *worker = run->worker;
    if (!(run->wire->flags & (WIRE_BLEND_KEEP | WIRE_BLEND_DURABLE)))
        return;
    const struct larder_prompt prompt = {.tokens = run->request.tokens,
                                         .token_count = run->request.token_count,
                                         .extra = run->request.blend.suffix.extra,
                                         .extra_bytes = run->request.blend.suffix.extra_bytes};
    const struct larder_layout layout = larder_cache_layout(worker->cache);
    const struct larder_put_options options = {
        .wait = run->wire->flags & WIRE_BLEND_DURABLE ? LARDER_DURABLE : LARDER_CACHED,
        .computed_on = (enum larder_quality)ok->quality,
        .computed_on_kl = ok->kl,
    };
    struct larder_put_result stored;
    const uint64_t start_us = now_us();
    int err = larder_put(worker->model, &stored, &prompt, &layout, &options);
    ok->keep_us = now_us() - start_us;
    ok->kept_tokens = stored.tokens;
    ok->keep_error = err;
}

static void write_region(const struct run *run)
{
    const struct larder_blend_result *result = larder_blend_result(run->blend);
    const uint32_t vocab = run->worker->desc.vocab;
    const uint64_t recomputed = larder_round_up(4ull * vocab, 64);
    const uint64_t spans = recomputed + larder_round_up(result->tokens, 64);
    uint8_t *region = run->worker->staging + run->wire->staging_offset;
    /* Within the region: larderd has checked its length. */
    memcpy(region, run->logits, 4ull * vocab);
    for (uint32_t i = 0; i < result->tokens; i++)
        region[recomputed + i] =
            (uint8_t)(result->layers_run[i] == 0               ? LARDER_BLEND_STORED
                      : result->layers_run[i] < result->layers ? LARDER_BLEND_PARTLY
                                                               : LARDER_BLEND_COMPUTED);
    memcpy(region + spans, run->plan.spans, run->plan.span_count * sizeof(*run->plan.spans));
}

static void report(struct run *run, struct wire_blend_ok *ok)
{
    const struct larder_blend_result *result = larder_blend_result(run->blend);
    assert(run->plan.span_count <= LARDER_BLEND_SPANS_MAX(run->wire->piece_count));
    *ok = (struct wire_blend_ok){
        .span_count = run->plan.span_count,
        .replanned = run->cut,
        .share = result->recomputed_share,
        .bytes = run->loaded.bytes,
        .bytes_ssd = run->loaded.bytes_ssd,
        .load_us = run->loaded.wait_us,
        .compute_us = run->compute_us,
    };
    for (uint32_t i = 0; i < result->layers; i++)
        ok->rows += result->layer_rows[i];
    set_quality(run, ok);
    learn_rates(run, result);
}

static int blend(struct run *run, struct wire_blend_ok *ok)
{
    struct worker *worker = run->worker;
    LARDER_TRY(worker_request_read(&run->request, worker, run->wire));
    if (run->request.token_count > worker->config->positions_max)
        return larder_fail(LARDER_ELIMIT,
                           "blend: a prompt of %u tokens is longer than the model's %u positions",
                           run->request.token_count, worker->config->positions_max);
    LARDER_TRY(larder_blend_check_method(run->request.blend.method, worker->config->layers));
    LARDER_TRY(larder_blend_plan(worker->model, &run->plan, &run->request.blend));
    run->logits = larder_alloc(worker->desc.vocab * sizeof(*run->logits));
    if (!run->logits)
        return larder_fail(-ENOMEM, "no memory for logits");
    LARDER_TRY(larder_llama_cache_open(worker->llama, &worker->cache, run->request.token_count,
                                       worker->options->kv_dtype));
    LARDER_TRY(compute(run));
    report(run, ok);
    keep(run, ok);
    write_region(run);
    return 0;
}

int worker_blend(struct worker *worker, struct wire_blend_ok *ok, const struct wire_blend *wire)
{
    struct run run = {.worker = worker, .wire = wire};
    int err = blend(&run, ok);
    larder_blend_close(run.blend);
    larder_blend_plan_free(&run.plan);
    larder_free(run.logits);
    worker_request_free(&run.request);
    return err;
}

/* --- reading --------------------------------------------------------------------------------- */

/* Rows [token][head] of the cache become planes [head][token]. */
static uint8_t *copy_planes(const struct worker *worker, uint8_t *to, uint32_t layer,
                            enum larder_kv kv, const struct wire_blend_read *read)
{
    const struct larder_kv_cache *cache = worker->cache;
    const uint64_t token_bytes = kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes;
    const uint64_t head_bytes = token_bytes / cache->kv_heads;
    const uint8_t *rows = larder_kv_cache_rows(cache, layer, kv);
    rows += read->token_first * token_bytes;
    for (uint32_t head = 0; head < cache->kv_heads; head++) {
        for (uint64_t i = 0; i < read->token_count; i++, to += head_bytes)
            memcpy(to, rows + i * token_bytes + head * head_bytes, head_bytes);
    }
    return to;
}

int worker_read(const struct worker *worker, const struct wire_blend_read *read)
{
    const struct larder_kv_cache *cache = worker->cache;
    const uint64_t needed =
        read->layer_count * read->token_count * (cache->k_token_bytes + cache->v_token_bytes);
    if (read->layer_first >= cache->layers ||
        read->layer_count > cache->layers - read->layer_first ||
        read->token_first >= cache->count || read->token_count > cache->count - read->token_first)
        return larder_fail(-EINVAL,
                           "blend: %u layers from %u and %llu tokens from %llu leave the %u layers "
                           "and %u tokens that there are",
                           read->layer_count, read->layer_first,
                           (unsigned long long)read->token_count,
                           (unsigned long long)read->token_first, cache->layers, cache->count);
    if (read->staging_bytes != needed || needed > worker->staging_bytes ||
        read->staging_offset > worker->staging_bytes - needed)
        return larder_fail(-EINVAL, "blend: staging_bytes=%llu, but this part takes %llu",
                           (unsigned long long)read->staging_bytes, (unsigned long long)needed);
    uint8_t *to = worker->staging + read->staging_offset;
    for (uint32_t i = 0; i < read->layer_count; i++) {
        to = copy_planes(worker, to, read->layer_first + i, LARDER_K, read);
        to = copy_planes(worker, to, read->layer_first + i, LARDER_V, read);
    }
    return 0;
}
