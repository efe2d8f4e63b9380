/* SPDX-License-Identifier: Apache-2.0 */
/* costs.c - what each layer's K and V cost when they alone are quantized, as KVTuner asks (Li et
 * al., 2025) and MiKV's tiers do.
 *
 *   sensitivity.kl, sensitivity.mse [layer, 2, 3]   K, V; 2, 4, 8 bits
 *
 * Measured, not estimated: the first blocks of a window go through KIVI's quantizer (groups of 32)
 * in that layer alone, and the model reads on; kl is KL(p_full || p_quantized) in nats a token over
 * the next NEXT_TOKENS, mse the mean squared error of an element.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"

#define NEXT_TOKENS 32u

const uint32_t calibration_widths[CALIBRATION_WIDTHS] = {2, 4, 8};

struct costs {
    struct calibration *calibration;
    struct blocks blocks[CALIBRATION_WIDTHS];
    uint32_t block_count;
    float *full; /* logarithms of probabilities, [NEXT_TOKENS][vocab] */
    float *logits;
    uint8_t *kept; /* K or V of a layer, as the cache holds them */
    double *kl;    /* [layer][K, V][width], summed over windows */
    double *error;
};

static void log_probabilities(float *x, uint32_t vocab)
{
    for (uint32_t token = 0; token < NEXT_TOKENS; token++, x += vocab) {
        float top = x[0];
        for (uint32_t i = 1; i < vocab; i++)
            top = x[i] > top ? x[i] : top;
        double sum = 0;
        for (uint32_t i = 0; i < vocab; i++)
            sum += exp((double)(x[i] - top));
        double all = (double)top + log(sum);
        for (uint32_t i = 0; i < vocab; i++)
            x[i] = (float)((double)x[i] - all);
    }
}

static double divergence(const float *p, const float *q, uint32_t vocab)
{
    double sum = 0;
    for (uint64_t i = 0; i < (uint64_t)NEXT_TOKENS * vocab; i++)
        sum += exp((double)p[i]) * ((double)p[i] - (double)q[i]);
    return sum / NEXT_TOKENS;
}

static int read_on(struct costs *s, float *out, const uint32_t *tokens)
{
    struct calibration *c = s->calibration;
    c->cache->count = s->block_count * BLOCK_TOKENS;
    LARDER_TRY(
        larder_llama_forward(c->llama, c->cache, out, LARDER_LOGITS_ALL, tokens, NEXT_TOKENS));
    log_probabilities(out, c->config->vocab);
    return 0;
}

/* One layer's K or V at one width, and back. */
static int measure(struct costs *s, uint32_t layer, enum larder_kv kv, uint32_t width,
                   const uint32_t *next)
{
    struct calibration *c = s->calibration;
    uint64_t token_bytes = kv == LARDER_K ? c->cache->k_token_bytes : c->cache->v_token_bytes;
    uint64_t bytes = (uint64_t)s->block_count * BLOCK_TOKENS * token_bytes;
    uint8_t *rows = larder_kv_cache_rows(c->cache, layer, kv);
    uint64_t at = ((uint64_t)layer * 2 + kv) * CALIBRATION_WIDTHS + width;
    memcpy(s->kept, rows, bytes);
    int err = 0;
    for (uint32_t block = 0; block < s->block_count && err == 0; block++) {
        struct larder_section_error error;
        uint64_t encoded;
        err = blocks_encode(&s->blocks[width], layer, kv, block, &encoded, &error);
        if (err == 0)
            err = blocks_decode(&s->blocks[width], layer, kv, block, encoded);
        s->error[at] += error.error_energy;
    }
    if (err == 0)
        err = read_on(s, s->logits, next);
    if (err == 0)
        s->kl[at] += divergence(s->full, s->logits, c->config->vocab);
    memcpy(rows, s->kept, bytes);
    return err;
}

static int measure_window(struct costs *s, uint32_t window)
{
    struct calibration *c = s->calibration;
    const uint32_t *tokens;
    calibration_window(c, window, &tokens);
    c->cache->count = 0;
    uint32_t prefix = s->block_count * BLOCK_TOKENS;
    bool starts = c->config->bos >= 0;
    if (starts)
        LARDER_TRY(larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE,
                                        &(uint32_t){(uint32_t)c->config->bos}, 1));
    LARDER_TRY(larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE, tokens,
                                    prefix - starts));
    const uint32_t *next = tokens + prefix - starts;
    LARDER_TRY(read_on(s, s->full, next));
    for (uint32_t layer = 0; layer < c->model.layers; layer++) {
        for (uint32_t kv = 0; kv < 2; kv++) {
            for (uint32_t width = 0; width < CALIBRATION_WIDTHS; width++)
                LARDER_TRY(measure(s, layer, (enum larder_kv)kv, width, next));
        }
    }
    return 0;
}

static int open_costs(struct costs *s, struct calibration *c)
{
    *s = (struct costs){.calibration = c};
    uint32_t room = c->options->window_tokens;
    if (room < BLOCK_TOKENS + NEXT_TOKENS + 1)
        return larder_fail(-EINVAL, "a window of %u tokens; sensitivities need %u, say --window",
                           room, BLOCK_TOKENS + NEXT_TOKENS + 1);
    s->block_count = (room - 1 - NEXT_TOKENS) / BLOCK_TOKENS;
    uint64_t logits = (uint64_t)NEXT_TOKENS * c->config->vocab;
    uint64_t all = (uint64_t)c->model.layers * 2 * CALIBRATION_WIDTHS;
    s->full = larder_alloc(logits * sizeof(*s->full));
    s->logits = larder_alloc(logits * sizeof(*s->logits));
    s->kept = larder_alloc((uint64_t)s->block_count * BLOCK_TOKENS *
                           larder_max_u64(c->cache->k_token_bytes, c->cache->v_token_bytes));
    s->kl = larder_alloc_zero(all, sizeof(*s->kl));
    s->error = larder_alloc_zero(all, sizeof(*s->error));
    if (!s->full || !s->logits || !s->kept || !s->kl || !s->error)
        return larder_fail(-ENOMEM, "no memory for sensitivities");
    for (uint32_t i = 0; i < CALIBRATION_WIDTHS; i++) {
        char recipe[128];
        snprintf(recipe, sizeof(recipe),
                 "k{quant bits=%u axis=channel group=32} v{quant bits=%u axis=token group=32}",
                 calibration_widths[i], calibration_widths[i]);
        LARDER_TRY(blocks_open(&s->blocks[i], c, recipe, NULL, s->block_count));
    }
    return 0;
}

static void close_costs(struct costs *s)
{
    for (uint32_t i = 0; i < CALIBRATION_WIDTHS; i++)
        blocks_close(&s->blocks[i]);
    larder_free(s->error);
    larder_free(s->kl);
    larder_free(s->kept);
    larder_free(s->logits);
    larder_free(s->full);
}

static int put_costs(const struct costs *s, struct calibration_cost **out, uint32_t windows,
                     struct larder_profile_writer *writer)
{
    const struct larder_model_desc *model = &s->calibration->model;
    uint64_t count = (uint64_t)model->layers * 2 * CALIBRATION_WIDTHS;
    struct calibration_cost *costs = larder_alloc(count * sizeof(*costs));
    float *numbers = larder_alloc(2 * count * sizeof(*numbers));
    int err = costs && numbers ? 0 : larder_fail(-ENOMEM, "no memory for sensitivities");
    for (uint64_t i = 0; i < count && err == 0; i++) {
        uint32_t dims = i / CALIBRATION_WIDTHS % 2 ? model->v_dims : model->k_dims;
        double elems = (double)windows * s->block_count * BLOCK_TOKENS * model->kv_heads * dims;
        costs[i].kl = numbers[i] = (float)(s->kl[i] / windows);
        costs[i].mse = numbers[count + i] = (float)(s->error[i] / elems);
    }
    if (err == 0)
        err = calibration_put(writer, "sensitivity.kl", numbers, model->layers, 2,
                              CALIBRATION_WIDTHS, 0);
    if (err == 0)
        err = calibration_put(writer, "sensitivity.mse", numbers + count, model->layers, 2,
                              CALIBRATION_WIDTHS, 0);
    larder_free(numbers);
    if (err < 0) {
        larder_free(costs);
        return err;
    }
    *out = costs;
    return 0;
}

int calibration_measure_costs(struct calibration *c, struct calibration_cost **out,
                              struct larder_profile_writer *writer)
{
    *out = NULL;
    uint32_t windows =
        c->options->kl_windows < c->window_count ? c->options->kl_windows : c->window_count;
    struct costs s;
    int err = open_costs(&s, c);
    for (uint32_t i = 0; i < windows && err == 0; i++) {
        calibration_progress(c, "sensitivities", i, windows);
        /* Spread over the text. */
        err = measure_window(&s, (uint32_t)((uint64_t)i * c->window_count / windows));
    }
    if (err == 0)
        err = put_costs(&s, out, windows, writer);
    close_costs(&s);
    return err;
}
