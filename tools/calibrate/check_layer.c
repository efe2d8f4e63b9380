/* SPDX-License-Identifier: Apache-2.0 */
/* check_layer.c - the layer at which CacheBlend should look which tokens to compute again
 * (kernels/blend/cacheblend.c, corrections and figures in docs/BLENDING.md).
 *
 *   blend.check_layer [1]      i32
 *   blend.kl [candidates, 3]   the layer, and KL without and with the choice
 *
 * The start of a window is cut into chunks whose KV is computed alone and put together again, with
 * the check layer at each candidate: once with no token chosen there (r=0), once with the usual
 * share. Both compute the layers before it, so that what KL falls from one to the other is what the
 * choice is worth. The layer where it falls most is taken; the first of those that are as good, for
 * layers before it are computed for all tokens.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/blend/blend.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"
#include "tools/calibrate/effect.h"

#define CHUNK_TOKENS   64u
#define CANDIDATES_MAX 8u
#define SHARE          ".15" /* what blending is mostly asked for */
/* As many as sensitivities are measured on, so many times: little text depends on far chunks. */
#define WINDOWS 4u
/* Gains this near to the largest are as good: they are measured on little text. */
#define AS_GOOD .95

struct search {
    struct calibration *calibration;
    struct effect effect;
    struct larder_kv_cache *alone;  /* of one chunk */
    struct larder_kv_cache *stored; /* row j is the prefix's token j, K as its chunk has it */
    uint32_t *tokens;               /* of the prefix */
    uint32_t token_count;
    struct larder_blend_span *spans;
    uint32_t span_count;
    uint32_t candidates[CANDIDATES_MAX];
    uint32_t candidate_count;
    double kl[CANDIDATES_MAX][2]; /* without and with the choice, summed over windows */
};

/* Layers 1 and later, spread over the model: K and V of layer 0 are right when moved. */
static void choose_candidates(struct search *s)
{
    uint32_t layers = s->calibration->model.layers;
    s->candidate_count = (uint32_t)larder_min_u64(layers - 1, CANDIDATES_MAX);
    for (uint32_t i = 0; i < s->candidate_count; i++)
        s->candidates[i] = 1 + (uint32_t)((uint64_t)i * (layers - 1) / s->candidate_count);
}

static int open_search(struct search *s, struct calibration *c)
{
    *s = (struct search){.calibration = c};
    choose_candidates(s);
    LARDER_TRY(effect_open(&s->effect, c, c->options->kl_windows * WINDOWS));
    s->token_count = s->effect.block_count * BLOCK_TOKENS;
    s->span_count = (s->token_count + CHUNK_TOKENS - 1) / CHUNK_TOKENS;
    s->tokens = larder_alloc(s->token_count * sizeof(*s->tokens));
    s->spans = larder_alloc_zero(s->span_count, sizeof(*s->spans));
    if (!s->tokens || !s->spans)
        return larder_fail(-ENOMEM, "no memory to look for a check layer");
    LARDER_TRY(larder_llama_cache_open(c->llama, &s->alone, CHUNK_TOKENS + 1, 0));
    return larder_llama_cache_open(c->llama, &s->stored, s->token_count, 0);
}

static void close_search(struct search *s)
{
    larder_kv_cache_close(s->stored);
    larder_kv_cache_close(s->alone);
    larder_free(s->spans);
    larder_free(s->tokens);
    effect_close(&s->effect);
}

static void copy_rows(struct larder_kv_cache *to, uint64_t to_first,
                      const struct larder_kv_cache *from, uint64_t from_first, uint64_t count,
                      uint32_t layer)
{
    for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
        uint64_t bytes = kv == LARDER_K ? to->k_token_bytes : to->v_token_bytes;
        memcpy((char *)larder_kv_cache_rows(to, layer, kv) + to_first * bytes,
               (char *)larder_kv_cache_rows(from, layer, kv) + from_first * bytes, count * bytes);
    }
}

/* KV of each chunk behind the start token alone; the first one has it already. */
static int store_chunks(struct search *s)
{
    const struct calibration *c = s->calibration;
    bool has_bos = c->config->bos >= 0;
    for (uint32_t i = 0; i < s->span_count; i++) {
        struct larder_blend_span *span = &s->spans[i];
        uint32_t first = i * CHUNK_TOKENS;
        *span = (struct larder_blend_span){
            .first = first,
            .count = larder_min_u64(CHUNK_TOKENS, s->token_count - first),
            .stored_first = i > 0 && has_bos,
            .source = i == 0 ? LARDER_BLEND_PREFIX : LARDER_BLEND_MOVED,
            .piece = i,
        };
        s->alone->count = 0;
        if (span->stored_first > 0)
            LARDER_TRY(larder_llama_forward(c->llama, s->alone, NULL, LARDER_LOGITS_NONE,
                                            &(uint32_t){(uint32_t)c->config->bos}, 1));
        LARDER_TRY(larder_llama_forward(c->llama, s->alone, NULL, LARDER_LOGITS_NONE,
                                        s->tokens + first, span->count));
        for (uint32_t layer = 0; layer < c->model.layers; layer++)
            copy_rows(s->stored, first, s->alone, span->stored_first, span->count, layer);
    }
    return 0;
}

static int fetch_layer(void *context, uint32_t layer)
{
    struct search *s = context;
    copy_rows(s->calibration->cache, 0, s->stored, 0, s->token_count, layer);
    return 0;
}

/* KL behind what this method makes of the chunks. */
static int measure(struct search *s, const char *method, double *sum)
{
    const struct calibration *c = s->calibration;
    const struct larder_blend_prompt prompt = {.tokens = s->tokens,
                                               .spans = s->spans,
                                               .token_count = s->token_count,
                                               .span_count = s->span_count};
    struct larder_blend *blend;
    LARDER_TRY(larder_blend_open(&blend, c->llama, c->cache, &prompt,
                                 &(struct larder_blend_options){.method = method}));
    int err = larder_blend_run(blend, fetch_layer, s, NULL);
    larder_blend_close(blend);
    double kl = 0;
    if (err == 0)
        err = effect_measure(&s->effect, &kl);
    *sum += kl;
    return err;
}

static int measure_window(struct search *s, uint32_t window)
{
    const struct calibration *c = s->calibration;
    static const char *const shares[2] = {"0", SHARE};
    LARDER_TRY(effect_load(&s->effect, window));
    bool has_bos = c->config->bos >= 0;
    if (has_bos)
        s->tokens[0] = (uint32_t)c->config->bos;
    const uint32_t *text = s->effect.next - (s->token_count - has_bos);
    memcpy(s->tokens + has_bos, text, (s->token_count - has_bos) * sizeof(*text));
    LARDER_TRY(store_chunks(s));
    for (uint32_t i = 0; i < s->candidate_count; i++) {
        for (uint32_t k = 0; k < LARDER_COUNT_OF(shares); k++) {
            char method[64];
            snprintf(method, sizeof(method), "cacheblend r=%s layer=%u", shares[k],
                     s->candidates[i]);
            LARDER_TRY(measure(s, method, &s->kl[i][k]));
        }
    }
    return 0;
}

static int put_choice(const struct search *s, struct larder_profile_writer *writer)
{
    float kl[CANDIDATES_MAX][3];
    double most = 0;
    int32_t chosen = 1;
    for (uint32_t i = 0; i < s->candidate_count; i++)
        most = fmax(most, s->kl[i][0] - s->kl[i][1]);
    for (uint32_t i = s->candidate_count; i-- > 0;) {
        kl[i][0] = (float)s->candidates[i];
        kl[i][1] = (float)(s->kl[i][0] / s->effect.window_count);
        kl[i][2] = (float)(s->kl[i][1] / s->effect.window_count);
        if (s->kl[i][0] - s->kl[i][1] >= AS_GOOD * most)
            chosen = (int32_t)s->candidates[i];
    }
    LARDER_TRY(calibration_put(writer, "blend.kl", kl[0], s->candidate_count, 3, 0, 0));
    return larder_profile_put(writer, LARDER_PROFILE_CHECK_LAYER, LARDER_PROFILE_I32,
                              (uint64_t[]){1}, 1, &chosen);
}

int calibration_choose_check_layer(struct calibration *c, struct larder_profile_writer *writer)
{
    if (c->model.layers < 2)
        return 0;
    struct search s;
    int err = open_search(&s, c);
    for (uint32_t i = 0; i < s.effect.window_count && err == 0; i++) {
        calibration_progress(c, "check layer", i, s.effect.window_count);
        err = measure_window(&s, i);
    }
    if (err == 0)
        err = put_choice(&s, writer);
    close_search(&s);
    return err;
}
