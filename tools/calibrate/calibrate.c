/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/calibrate/calibrate.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/node.h"
#include "kernels/rope.h"
#include "tools/calibrate/blocks.h"

static const struct calibration_part *const parts[] = {
    &calibration_moments,
    &calibration_codebooks,
    &calibration_sinks,
};

/* --- open ------------------------------------------------------------------------------------- */

static int check_tokens(struct calibration *c)
{
    const struct calibration_options *options = c->options;
    struct larder_key digest;
    LARDER_TRY(
        larder_sha256(&digest, options->tokens, options->token_count * sizeof(*options->tokens)));
    memcpy(c->digest, digest.bytes, sizeof(c->digest));
    c->window_count = (uint32_t)(options->token_count / (options->window_tokens - 1));
    if (c->window_count == 0)
        return larder_fail(-EINVAL, "a text of %llu tokens; a window needs %u, say --window",
                           (unsigned long long)options->token_count, options->window_tokens);
    for (uint64_t i = 0; i < options->token_count; i++) {
        if (options->tokens[i] >= c->config->vocab)
            return larder_fail(
                -EINVAL,
                "token %llu is %u, not below the vocabulary of %u; give token ids of "
                "this model with --tokens",
                (unsigned long long)i, options->tokens[i], c->config->vocab);
    }
    return 0;
}

int calibration_open(struct calibration **out, const struct calibration_options *options)
{
    *out = NULL;
    struct calibration *c = larder_alloc_zero(1, sizeof(*c));
    if (!c)
        return larder_fail(-ENOMEM, "no memory to calibrate");
    c->options = options;
    int err = larder_device_open(&c->device, "cpu",
                                 &(struct larder_device_options){.threads = options->threads});
    if (err == 0)
        err = larder_llama_open(&c->llama, c->device, options->model);
    if (err == 0) {
        c->config = larder_llama_config(c->llama);
        err = larder_llama_describe(c->llama, &c->model, 0);
    }
    if (err == 0)
        err = larder_llama_cache_open(c->llama, &c->cache, options->window_tokens, 0);
    if (err == 0)
        err = larder_rope_table_open(&c->rope, &c->model.rope, c->model.k_dims);
    if (err == 0)
        err = larder_rope_table_grow(c->rope, options->window_tokens);
    if (err == 0)
        err = check_tokens(c);
    if (err < 0) {
        calibration_close(c);
        return err;
    }
    *out = c;
    return 0;
}

void calibration_close(struct calibration *c)
{
    if (!c)
        return;
    larder_rope_table_close(c->rope);
    larder_kv_cache_close(c->cache);
    larder_llama_close(c->llama);
    larder_device_close(c->device);
    larder_free(c);
}

uint32_t calibration_window(const struct calibration *c, uint32_t window, const uint32_t **tokens)
{
    uint32_t count = c->options->window_tokens - 1;
    *tokens = c->options->tokens + (uint64_t)window * count;
    return count;
}

void calibration_progress(const struct calibration *c, const char *what, uint64_t done,
                          uint64_t all)
{
    if (c->options->progress)
        c->options->progress(c->options->context, what, done, all);
}

int calibration_put(struct larder_profile_writer *writer, const char *name, const float *data,
                    uint64_t layers, uint64_t a, uint64_t b, uint64_t c)
{
    const uint64_t shape[LARDER_PROFILE_RANK_MAX] = {layers, a, b, c};
    uint32_t rank = (uint32_t)(1 + (a > 0) + (b > 0) + (c > 0));
    return larder_profile_put(writer, name, LARDER_PROFILE_F32, shape, rank, data);
}

/* --- the pass over the text ------------------------------------------------------------------- */

struct reading {
    struct calibration *calibration;
    void *states[LARDER_COUNT_OF(parts)];
    float *k;
    float *v;
    float *q;
    uint32_t window;
};

static void unrotate(float *x, const struct larder_rope_table *rope, uint32_t position)
{
    const float *cos = rope->cos + (uint64_t)position * rope->pairs;
    const float *sin = rope->sin + (uint64_t)position * rope->pairs;
    uint32_t step = rope->rope.interleaved ? 2u : 1u;
    uint32_t beside = rope->rope.interleaved ? 1u : rope->pairs;
    for (uint32_t i = 0; i < rope->pairs; i++) {
        float length = cos[i] * cos[i] + sin[i] * sin[i];
        float low = x[i * step];
        float high = x[i * step + beside];
        x[i * step] = (low * cos[i] + high * sin[i]) / length;
        x[i * step + beside] = (high * cos[i] - low * sin[i]) / length;
    }
}

void calibration_take_rows(const struct calibration *c, float *out, uint32_t layer,
                           enum larder_kv kv, uint32_t first, uint32_t tokens)
{
    uint32_t dims = kv == LARDER_K ? c->model.k_dims : c->model.v_dims;
    uint64_t head_bytes = dims * larder_dtype_bytes(c->cache->dtype);
    const uint8_t *rows = larder_kv_cache_rows(c->cache, layer, kv);
    for (uint32_t token = 0; token < tokens; token++) {
        const uint8_t *row = rows + (uint64_t)(first + token) * c->model.kv_heads * head_bytes;
        for (uint32_t head = 0; head < c->model.kv_heads; head++) {
            float *x = out + ((uint64_t)head * tokens + token) * dims;
            codec_load_elems(x, row + head * head_bytes, dims, c->cache->dtype);
            if (kv == LARDER_K)
                unrotate(x, c->rope, first + token);
        }
    }
}

static void watch(void *context, uint32_t layer, uint32_t first, const struct larder_tensor *q)
{
    struct reading *reading = context;
    const struct calibration *c = reading->calibration;
    uint32_t tokens = (uint32_t)q->shape[0];
    uint32_t heads = (uint32_t)q->shape[1];
    uint32_t dims = (uint32_t)q->shape[2];
    calibration_take_rows(c, reading->k, layer, LARDER_K, first, tokens);
    calibration_take_rows(c, reading->v, layer, LARDER_V, first, tokens);
    const float *rows = q->data;
    for (uint32_t token = 0; token < tokens; token++) {
        for (uint32_t head = 0; head < heads; head++) {
            float *x = reading->q + ((uint64_t)head * tokens + token) * dims;
            memcpy(x, rows + ((uint64_t)token * heads + head) * dims, dims * sizeof(*x));
            unrotate(x, c->rope, first + token);
        }
    }
    const struct calibration_rows seen = {.window = reading->window,
                                          .layer = layer,
                                          .first = first,
                                          .tokens = tokens,
                                          .k = reading->k,
                                          .v = reading->v,
                                          .q = reading->q};
    for (size_t i = 0; i < LARDER_COUNT_OF(parts); i++)
        parts[i]->see(reading->states[i], &seen);
}

static int read_windows(struct reading *reading)
{
    struct calibration *c = reading->calibration;
    int err = 0;
    for (uint32_t window = 0; window < c->window_count && err == 0; window++) {
        calibration_progress(c, "reading", window, c->window_count);
        reading->window = window;
        const uint32_t *tokens;
        uint32_t count = calibration_window(c, window, &tokens);
        c->cache->count = 0;
        if (c->config->bos >= 0)
            err = larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE,
                                       &(uint32_t){(uint32_t)c->config->bos}, 1);
        if (err == 0)
            err = larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE, tokens, count);
    }
    return err;
}

int calibration_read(struct calibration *c, struct larder_profile_writer *writer)
{
    struct reading reading = {.calibration = c};
    uint64_t window = c->options->window_tokens;
    reading.k = larder_alloc(window * c->model.kv_heads * c->model.k_dims * sizeof(float));
    reading.v = larder_alloc(window * c->model.kv_heads * c->model.v_dims * sizeof(float));
    reading.q = larder_alloc(window * c->config->heads * c->model.k_dims * sizeof(float));
    int err = reading.k && reading.v && reading.q
                  ? 0
                  : larder_fail(-ENOMEM, "no memory for a window of %llu tokens",
                                (unsigned long long)window);
    for (size_t i = 0; i < LARDER_COUNT_OF(parts) && err == 0; i++)
        err = parts[i]->open(&reading.states[i], c);
    if (err == 0) {
        larder_llama_watch(c->llama, watch, &reading);
        err = read_windows(&reading);
        larder_llama_watch(c->llama, NULL, NULL);
    }
    for (size_t i = 0; i < LARDER_COUNT_OF(parts) && err == 0; i++) {
        calibration_progress(c, parts[i]->name, i, LARDER_COUNT_OF(parts));
        err = parts[i]->finish(reading.states[i], writer);
    }
    for (size_t i = 0; i < LARDER_COUNT_OF(parts); i++)
        parts[i]->close(reading.states[i]);
    larder_free(reading.q);
    larder_free(reading.v);
    larder_free(reading.k);
    return err;
}

int calibration_fill_cache(struct calibration *c, uint32_t window, uint32_t *block_count)
{
    const uint32_t *tokens;
    uint32_t count = calibration_window(c, window, &tokens);
    bool starts = c->config->bos >= 0;
    *block_count = (count + starts) / BLOCK_TOKENS;
    if (*block_count == 0)
        return larder_fail(-EINVAL, "a window of %u tokens holds no block of %u; say --window",
                           c->options->window_tokens, BLOCK_TOKENS);
    c->cache->count = 0;
    if (starts)
        LARDER_TRY(larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE,
                                        &(uint32_t){(uint32_t)c->config->bos}, 1));
    return larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE, tokens,
                                *block_count * BLOCK_TOKENS - starts);
}
