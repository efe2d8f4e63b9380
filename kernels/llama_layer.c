/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/llama_layer.h"

#include <assert.h>
#include <errno.h>
#include <math.h>

#include "base/bytes.h"
#include "base/error.h"

void llama_check_cache(const struct larder_llama *model, const struct larder_kv_cache *cache)
{
    assert(cache->device == model->device);
    assert(cache->layers == model->config.layers);
    assert(cache->kv_heads == model->config.kv_heads);
    assert(cache->k_dims == model->config.head_dims);
    assert(cache->v_dims == model->config.head_dims);
    assert(cache->count <= cache->capacity);
    assert(cache->capacity <= model->rope->positions);
}

int llama_check_tokens(const struct larder_llama *model, const uint32_t *tokens, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (tokens[i] >= model->config.vocab)
            return larder_fail(-EINVAL, "token %zu is %u, not below the vocabulary of %u", i,
                               tokens[i], model->config.vocab);
    return 0;
}

static int apply(const struct llama_rows *rows, const struct larder_tensor *out,
                 const struct larder_tensor *x, const struct llama_linear *linear)
{
    struct larder_device *device = rows->model->device;
    return device->ops->matmul(device, out, x, &linear->weight,
                               linear->bias.data ? &linear->bias : NULL);
}

int llama_rows_embed(const struct llama_rows *rows, const uint32_t *tokens)
{
    struct larder_llama *model = rows->model;
    struct larder_tensor x = larder_matrix(rows->x, LARDER_F32, rows->count, model->config.hidden);
    return model->device->ops->embed(model->device, &x, &model->weights.embedding, tokens);
}

/* x normalized, into the workspace. */
static int normalize(const struct llama_rows *rows, const struct larder_tensor *norm)
{
    struct larder_llama *model = rows->model;
    uint64_t hidden = model->config.hidden;
    struct larder_tensor x = larder_matrix(rows->x, LARDER_F32, rows->count, hidden);
    struct larder_tensor h = larder_matrix(model->work.h, LARDER_F32, rows->count, hidden);
    return model->device->ops->rmsnorm(model->device, &h, &x, norm, model->config.norm_eps);
}

/* Q or K of all heads: normalized where the model does so, then rotated. */
static int turn_heads(const struct llama_rows *rows, float *data, uint32_t heads,
                      const struct larder_tensor *norm)
{
    struct larder_llama *model = rows->model;
    struct larder_device *device = model->device;
    uint32_t dims = model->config.head_dims;
    if (norm->data) {
        struct larder_tensor flat =
            larder_matrix(data, LARDER_F32, (uint64_t)rows->count * heads, dims);
        LARDER_TRY(device->ops->rmsnorm(device, &flat, &flat, norm, model->config.norm_eps));
    }
    const struct larder_rope_table *rope = model->rope;
    struct larder_tensor x = larder_cube(data, LARDER_F32, rows->count, heads, dims);
    struct larder_rotation rotation = {
        .cos = larder_matrix(rope->cos, LARDER_F32, rope->positions, rope->pairs),
        .sin = larder_matrix(rope->sin, LARDER_F32, rope->positions, rope->pairs),
        .positions = rows->positions,
        .interleaved = rope->rope.interleaved,
    };
    return device->ops->rope(device, &x, &rotation);
}

int llama_rows_project(const struct llama_rows *rows, uint32_t number)
{
    const struct larder_model_config *c = &rows->model->config;
    const struct llama_layer *layer = &rows->model->weights.layers[number];
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    struct larder_tensor h = larder_matrix(rows->model->work.h, LARDER_F32, rows->count, c->hidden);
    struct larder_tensor k = larder_matrix(rows->k, LARDER_F32, rows->count, kv_dims);
    struct larder_tensor v = larder_matrix(rows->v, LARDER_F32, rows->count, kv_dims);
    LARDER_TRY(normalize(rows, &layer->input_norm));
    LARDER_TRY(apply(rows, &k, &h, &layer->k));
    LARDER_TRY(apply(rows, &v, &h, &layer->v));
    return turn_heads(rows, rows->k, c->kv_heads, &layer->k_norm);
}

/* Rows from `first` on whose positions follow each other. */
static uint32_t run_of(const struct llama_rows *rows, uint32_t first)
{
    uint32_t end = first + 1;
    while (end < rows->count && rows->positions[end] == rows->positions[end - 1] + 1)
        end++;
    return end - first;
}

static int write_run(const struct llama_rows *rows, uint32_t layer, enum larder_kv kv,
                     uint32_t first, uint32_t count)
{
    struct larder_device *device = rows->model->device;
    struct larder_tensor to =
        larder_kv_cache_tensor(rows->cache, layer, kv, rows->positions[first], count);
    uint64_t dims = to.shape[1] * to.shape[2];
    float *data = (kv == LARDER_K ? rows->k : rows->v) + first * dims;
    struct larder_tensor from = larder_cube(data, LARDER_F32, count, to.shape[1], to.shape[2]);
    return device->ops->convert(device, &to, &from);
}

int llama_rows_write(const struct llama_rows *rows, uint32_t layer)
{
    for (uint32_t first = 0; first < rows->count;) {
        uint32_t count = run_of(rows, first);
        LARDER_TRY(write_run(rows, layer, LARDER_K, first, count));
        LARDER_TRY(write_run(rows, layer, LARDER_V, first, count));
        first += count;
    }
    return 0;
}

static void show_queries(const struct llama_rows *rows, uint32_t layer)
{
    const struct larder_llama *model = rows->model;
    const struct larder_model_config *c = &model->config;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    for (uint32_t first = 0; model->watch && first < rows->count;) {
        uint32_t count = run_of(rows, first);
        struct larder_tensor queries =
            larder_cube(model->work.q + first * q_dims, LARDER_F32, count, c->heads, c->head_dims);
        model->watch(model->watch_context, layer, rows->positions[first], &queries);
        first += count;
    }
}

static int run_attention(const struct llama_rows *rows, uint32_t number)
{
    struct larder_llama *model = rows->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    const struct llama_layer *layer = &model->weights.layers[number];
    struct llama_workspace *w = &model->work;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    struct larder_tensor x = larder_matrix(rows->x, LARDER_F32, rows->count, c->hidden);
    struct larder_tensor h = larder_matrix(w->h, LARDER_F32, rows->count, c->hidden);
    struct larder_tensor q = larder_matrix(w->q, LARDER_F32, rows->count, q_dims);
    struct larder_tensor a = larder_matrix(w->a, LARDER_F32, rows->count, q_dims);

    LARDER_TRY(normalize(rows, &layer->input_norm));
    LARDER_TRY(apply(rows, &q, &h, &layer->q));
    LARDER_TRY(turn_heads(rows, w->q, c->heads, &layer->q_norm));
    show_queries(rows, number);

    uint32_t keys = rows->positions[rows->count - 1] + 1;
    struct larder_tensor heads = larder_cube(w->a, LARDER_F32, rows->count, c->heads, c->head_dims);
    struct larder_attention attention = {
        .q = larder_cube(w->q, LARDER_F32, rows->count, c->heads, c->head_dims),
        .k = larder_kv_cache_tensor(rows->cache, number, LARDER_K, 0, keys),
        .v = larder_kv_cache_tensor(rows->cache, number, LARDER_V, 0, keys),
        .query_positions = rows->positions,
        .scale = 1.0f / sqrtf((float)c->head_dims),
    };
    LARDER_TRY(device->ops->attention(device, &heads, &attention));
    LARDER_TRY(apply(rows, &h, &a, &layer->out));
    return device->ops->add(device, &x, &h);
}

static int run_feedforward(const struct llama_rows *rows, uint32_t number)
{
    struct larder_llama *model = rows->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    const struct llama_layer *layer = &model->weights.layers[number];
    struct llama_workspace *w = &model->work;
    struct larder_tensor x = larder_matrix(rows->x, LARDER_F32, rows->count, c->hidden);
    struct larder_tensor h = larder_matrix(w->h, LARDER_F32, rows->count, c->hidden);
    struct larder_tensor gate = larder_matrix(w->gate, LARDER_F32, rows->count, c->feedforward);
    struct larder_tensor up = larder_matrix(w->up, LARDER_F32, rows->count, c->feedforward);

    LARDER_TRY(normalize(rows, &layer->post_norm));
    LARDER_TRY(apply(rows, &gate, &h, &layer->gate));
    LARDER_TRY(apply(rows, &up, &h, &layer->up));
    LARDER_TRY(device->ops->swiglu(device, &gate, &gate, &up));
    LARDER_TRY(apply(rows, &h, &gate, &layer->down));
    return device->ops->add(device, &x, &h);
}

int llama_rows_finish(const struct llama_rows *rows, uint32_t layer)
{
    LARDER_TRY(run_attention(rows, layer));
    return run_feedforward(rows, layer);
}

int llama_rows_logits(const struct llama_rows *rows, float *out, uint32_t row)
{
    struct larder_llama *model = rows->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    struct llama_workspace *w = &model->work;
    while (row < rows->count) {
        uint64_t count = larder_min_u64(LLAMA_LOGIT_ROWS, rows->count - row);
        struct larder_tensor x =
            larder_matrix(rows->x + (uint64_t)row * c->hidden, LARDER_F32, count, c->hidden);
        struct larder_tensor h = larder_matrix(w->h, LARDER_F32, count, c->hidden);
        struct larder_tensor logits = larder_matrix(w->logits, LARDER_F32, count, c->vocab);
        LARDER_TRY(device->ops->rmsnorm(device, &h, &x, &model->weights.norm, c->norm_eps));
        LARDER_TRY(apply(rows, &logits, &h, &model->weights.head));
        LARDER_TRY(device->ops->download(device, out, w->logits, count * c->vocab * sizeof(*out)));
        out += count * c->vocab;
        row += (uint32_t)count;
    }
    return 0;
}
