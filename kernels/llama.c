/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/llama.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/llama_weights.h"
#include "kernels/rope.h"
#include "kernels/safetensors.h"

/* Tokens that pass the layers together: bounds the workspace, and fills the CPU's tiles. */
#define CHUNK_ROWS 384u
/* Rows of logits computed together: a row of a large vocabulary is 600 KB. */
#define LOGIT_ROWS 64u

/* Where a chunk's rows live; all f32 [CHUNK_ROWS, ...] in one block. */
struct workspace {
    float *block;
    float *x;    /* the residual stream */
    float *h;    /* normalized, or a layer part's output */
    float *q;    /* [heads, head_dims] */
    float *k;    /* [kv_heads, head_dims] */
    float *v;    /* [kv_heads, head_dims] */
    float *a;    /* attention's output, like q */
    float *gate; /* [feedforward] */
    float *up;
    float *logits; /* [LOGIT_ROWS, vocab] */
    uint32_t positions[CHUNK_ROWS];
};

struct larder_llama {
    /* fixed after open */
    struct larder_device *device;
    struct larder_model_config config;
    struct larder_weights *files;
    struct llama_weights weights;
    char name[64];

    /* the owner's thread */
    struct larder_rope_table *rope; /* grows with the largest cache */
    struct workspace work;
    uint64_t forwarded;
    larder_llama_queries watch; /* NULL: nobody */
    void *watch_context;
    uint8_t digest[32];
    bool digested;
};

/* One chunk on its way through the layers. */
struct chunk {
    struct larder_llama *model;
    struct larder_kv_cache *cache;
    const uint32_t *tokens;
    uint32_t rows;
    uint32_t first; /* position of the first row */
};

static int make_workspace(struct larder_llama *model)
{
    const struct larder_model_config *c = &model->config;
    struct workspace *w = &model->work;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    struct {
        float **part;
        uint64_t floats;
    } parts[] = {
        {&w->x, (uint64_t)CHUNK_ROWS * c->hidden},
        {&w->h, (uint64_t)CHUNK_ROWS * c->hidden},
        {&w->q, CHUNK_ROWS * q_dims},
        {&w->k, CHUNK_ROWS * kv_dims},
        {&w->v, CHUNK_ROWS * kv_dims},
        {&w->a, CHUNK_ROWS * q_dims},
        {&w->gate, (uint64_t)CHUNK_ROWS * c->feedforward},
        {&w->up, (uint64_t)CHUNK_ROWS * c->feedforward},
        {&w->logits, (uint64_t)LOGIT_ROWS * c->vocab},
    };
    uint64_t floats = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(parts); i++)
        floats += larder_round_up(parts[i].floats, 16);
    void *block;
    LARDER_TRY(model->device->ops->alloc(model->device, &block, floats * sizeof(float)));
    w->block = block;
    float *next = w->block;
    for (size_t i = 0; i < LARDER_COUNT_OF(parts); i++) {
        *parts[i].part = next;
        next += larder_round_up(parts[i].floats, 16);
    }
    return 0;
}

static void name_model(struct larder_llama *model, const char *directory)
{
    size_t end = strlen(directory);
    while (end > 1 && directory[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && directory[begin - 1] != '/')
        begin--;
    snprintf(model->name, sizeof(model->name), "%.*s", (int)larder_min_u64(end - begin, 63),
             directory + begin);
}

int larder_llama_open(struct larder_llama **out, struct larder_device *device,
                      const char *directory)
{
    *out = NULL;
    struct larder_llama *model = larder_alloc_zero(1, sizeof(*model));
    if (!model)
        return larder_fail(-ENOMEM, "no memory for a model");
    model->device = device;
    name_model(model, directory);
    int err = larder_model_config_load(&model->config, directory);
    if (err == 0)
        err = larder_weights_open(&model->files, directory);
    if (err == 0)
        err = llama_weights_open(&model->weights, device, model->files, &model->config);
    if (err == 0)
        err = larder_rope_table_open(&model->rope, &model->config.rope, model->config.head_dims);
    if (err == 0)
        err = make_workspace(model);
    if (err < 0) {
        larder_llama_close(model);
        return err;
    }
    *out = model;
    return 0;
}

void larder_llama_close(struct larder_llama *model)
{
    if (!model)
        return;
    if (model->work.block)
        model->device->ops->release(model->device, model->work.block);
    larder_rope_table_close(model->rope);
    if (model->weights.device)
        llama_weights_close(&model->weights);
    larder_weights_close(model->files);
    larder_free(model);
}

const struct larder_model_config *larder_llama_config(const struct larder_llama *model)
{
    return &model->config;
}

void larder_llama_watch(struct larder_llama *model, larder_llama_queries watch, void *context)
{
    model->watch = watch;
    model->watch_context = context;
}

uint64_t larder_llama_forwarded(const struct larder_llama *model)
{
    return model->forwarded;
}

/* Everything of the identity but the weights' digest. */
static void describe_shape(const struct larder_llama *model, struct larder_model_desc *out,
                           uint32_t kv_dtype)
{
    const struct larder_model_config *c = &model->config;
    *out = (struct larder_model_desc){
        .layers = c->layers,
        .kv_heads = c->kv_heads,
        .k_dims = c->head_dims,
        .v_dims = c->head_dims,
        .dtype = kv_dtype ? kv_dtype : model->weights.embedding.dtype,
        .vocab = c->vocab,
        .rope = c->rope,
    };
    memcpy(out->name, model->name, sizeof(out->name));
}

int larder_llama_describe(struct larder_llama *model, struct larder_model_desc *out,
                          uint32_t kv_dtype)
{
    if (!model->digested) {
        LARDER_TRY(larder_weights_digest(model->digest, model->files));
        model->digested = true;
    }
    describe_shape(model, out, kv_dtype);
    memcpy(out->weights, model->digest, sizeof(out->weights));
    return larder_model_check(out);
}

int larder_llama_cache_open(struct larder_llama *model, struct larder_kv_cache **out,
                            uint32_t capacity, uint32_t kv_dtype)
{
    *out = NULL;
    if (capacity > model->config.positions_max)
        return larder_fail(LARDER_ELIMIT,
                           "a KV cache of %u tokens is above the model's context of %u", capacity,
                           model->config.positions_max);
    struct larder_model_desc desc;
    describe_shape(model, &desc, kv_dtype);
    LARDER_TRY(larder_model_check(&desc));
    LARDER_TRY(larder_rope_table_grow(model->rope, capacity));
    return larder_kv_cache_open(out, model->device, &desc, capacity);
}

static int apply(const struct chunk *chunk, const struct larder_tensor *out,
                 const struct larder_tensor *x, const struct llama_linear *linear)
{
    struct larder_device *device = chunk->model->device;
    return device->ops->matmul(device, out, x, &linear->weight,
                               linear->bias.data ? &linear->bias : NULL);
}

/* Q or K of all heads: normalized where the model does so, then rotated. */
static int turn_heads(const struct chunk *chunk, float *data, uint32_t heads,
                      const struct larder_tensor *norm)
{
    struct larder_llama *model = chunk->model;
    struct larder_device *device = model->device;
    uint32_t dims = model->config.head_dims;
    if (norm->data) {
        struct larder_tensor flat =
            larder_matrix(data, LARDER_F32, (uint64_t)chunk->rows * heads, dims);
        LARDER_TRY(device->ops->rmsnorm(device, &flat, &flat, norm, model->config.norm_eps));
    }
    const struct larder_rope_table *rope = model->rope;
    struct larder_tensor x = larder_cube(data, LARDER_F32, chunk->rows, heads, dims);
    struct larder_rotation rotation = {
        .cos = larder_matrix(rope->cos, LARDER_F32, rope->positions, rope->pairs),
        .sin = larder_matrix(rope->sin, LARDER_F32, rope->positions, rope->pairs),
        .positions = model->work.positions,
        .interleaved = rope->rope.interleaved,
    };
    return device->ops->rope(device, &x, &rotation);
}

/* Rounds the chunk's rows into the cache. */
static int keep(const struct chunk *chunk, uint32_t layer, enum larder_kv kv, float *rows)
{
    struct larder_device *device = chunk->model->device;
    struct larder_tensor to =
        larder_kv_cache_tensor(chunk->cache, layer, kv, chunk->first, chunk->rows);
    struct larder_tensor from =
        larder_cube(rows, LARDER_F32, chunk->rows, to.shape[1], to.shape[2]);
    return device->ops->convert(device, &to, &from);
}

static int run_attention(const struct chunk *chunk, uint32_t number)
{
    struct larder_llama *model = chunk->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    const struct llama_layer *layer = &model->weights.layers[number];
    struct workspace *w = &model->work;
    uint64_t rows = chunk->rows;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    struct larder_tensor x = larder_matrix(w->x, LARDER_F32, rows, c->hidden);
    struct larder_tensor h = larder_matrix(w->h, LARDER_F32, rows, c->hidden);
    struct larder_tensor q = larder_matrix(w->q, LARDER_F32, rows, q_dims);
    struct larder_tensor k = larder_matrix(w->k, LARDER_F32, rows, kv_dims);
    struct larder_tensor v = larder_matrix(w->v, LARDER_F32, rows, kv_dims);
    struct larder_tensor a = larder_matrix(w->a, LARDER_F32, rows, q_dims);

    LARDER_TRY(device->ops->rmsnorm(device, &h, &x, &layer->input_norm, c->norm_eps));
    LARDER_TRY(apply(chunk, &q, &h, &layer->q));
    LARDER_TRY(apply(chunk, &k, &h, &layer->k));
    LARDER_TRY(apply(chunk, &v, &h, &layer->v));
    LARDER_TRY(turn_heads(chunk, w->q, c->heads, &layer->q_norm));
    LARDER_TRY(turn_heads(chunk, w->k, c->kv_heads, &layer->k_norm));
    LARDER_TRY(keep(chunk, number, LARDER_K, w->k));
    LARDER_TRY(keep(chunk, number, LARDER_V, w->v));

    if (model->watch) {
        struct larder_tensor queries = larder_cube(w->q, LARDER_F32, rows, c->heads, c->head_dims);
        model->watch(model->watch_context, number, chunk->first, &queries);
    }
    uint32_t keys = chunk->first + chunk->rows;
    struct larder_tensor heads = larder_cube(w->a, LARDER_F32, rows, c->heads, c->head_dims);
    struct larder_attention attention = {
        .q = larder_cube(w->q, LARDER_F32, rows, c->heads, c->head_dims),
        .k = larder_kv_cache_tensor(chunk->cache, number, LARDER_K, 0, keys),
        .v = larder_kv_cache_tensor(chunk->cache, number, LARDER_V, 0, keys),
        .query_positions = w->positions,
        .scale = 1.0f / sqrtf((float)c->head_dims),
    };
    LARDER_TRY(device->ops->attention(device, &heads, &attention));
    LARDER_TRY(apply(chunk, &h, &a, &layer->out));
    return device->ops->add(device, &x, &h);
}

static int run_feedforward(const struct chunk *chunk, uint32_t number)
{
    struct larder_llama *model = chunk->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    const struct llama_layer *layer = &model->weights.layers[number];
    struct workspace *w = &model->work;
    struct larder_tensor x = larder_matrix(w->x, LARDER_F32, chunk->rows, c->hidden);
    struct larder_tensor h = larder_matrix(w->h, LARDER_F32, chunk->rows, c->hidden);
    struct larder_tensor gate = larder_matrix(w->gate, LARDER_F32, chunk->rows, c->feedforward);
    struct larder_tensor up = larder_matrix(w->up, LARDER_F32, chunk->rows, c->feedforward);

    LARDER_TRY(device->ops->rmsnorm(device, &h, &x, &layer->post_norm, c->norm_eps));
    LARDER_TRY(apply(chunk, &gate, &h, &layer->gate));
    LARDER_TRY(apply(chunk, &up, &h, &layer->up));
    LARDER_TRY(device->ops->swiglu(device, &gate, &gate, &up));
    LARDER_TRY(apply(chunk, &h, &gate, &layer->down));
    return device->ops->add(device, &x, &h);
}

/* Logits of the chunk's rows from `row` on, into `out`. */
static int run_head(const struct chunk *chunk, float *out, uint32_t row)
{
    struct larder_llama *model = chunk->model;
    struct larder_device *device = model->device;
    const struct larder_model_config *c = &model->config;
    struct workspace *w = &model->work;
    while (row < chunk->rows) {
        uint64_t count = larder_min_u64(LOGIT_ROWS, chunk->rows - row);
        struct larder_tensor x =
            larder_matrix(w->x + (uint64_t)row * c->hidden, LARDER_F32, count, c->hidden);
        struct larder_tensor h = larder_matrix(w->h, LARDER_F32, count, c->hidden);
        struct larder_tensor logits = larder_matrix(w->logits, LARDER_F32, count, c->vocab);
        LARDER_TRY(device->ops->rmsnorm(device, &h, &x, &model->weights.norm, c->norm_eps));
        LARDER_TRY(apply(chunk, &logits, &h, &model->weights.head));
        LARDER_TRY(device->ops->download(device, out, w->logits, count * c->vocab * sizeof(*out)));
        out += count * c->vocab;
        row += (uint32_t)count;
    }
    return 0;
}

static int run_layers(const struct chunk *chunk)
{
    struct larder_llama *model = chunk->model;
    struct larder_device *device = model->device;
    struct workspace *w = &model->work;
    for (uint32_t i = 0; i < chunk->rows; i++)
        w->positions[i] = chunk->first + i;
    struct larder_tensor x = larder_matrix(w->x, LARDER_F32, chunk->rows, model->config.hidden);
    LARDER_TRY(device->ops->embed(device, &x, &model->weights.embedding, chunk->tokens));
    for (uint32_t layer = 0; layer < model->config.layers; layer++) {
        LARDER_TRY(run_attention(chunk, layer));
        LARDER_TRY(run_feedforward(chunk, layer));
    }
    model->forwarded += chunk->rows;
    return 0;
}

static int check_tokens(const struct larder_llama *model, const struct larder_kv_cache *cache,
                        const uint32_t *tokens, size_t count)
{
    if (count == 0)
        return larder_fail(-EINVAL, "a forward of no tokens; at least 1 is needed");
    if (count > cache->capacity - cache->count)
        return larder_fail(LARDER_ELIMIT,
                           "%zu tokens behind %u do not fit the KV cache of %u; open a larger one",
                           count, cache->count, cache->capacity);
    for (size_t i = 0; i < count; i++)
        if (tokens[i] >= model->config.vocab)
            return larder_fail(-EINVAL, "token %zu is %u, not below the vocabulary of %u", i,
                               tokens[i], model->config.vocab);
    return 0;
}

int larder_llama_forward(struct larder_llama *model, struct larder_kv_cache *cache, float *logits,
                         enum larder_logits which, const uint32_t *tokens, size_t count)
{
    assert(cache->device == model->device);
    assert(cache->layers == model->config.layers);
    assert(cache->kv_heads == model->config.kv_heads);
    assert(cache->k_dims == model->config.head_dims);
    assert(cache->v_dims == model->config.head_dims);
    assert(cache->count <= cache->capacity);
    assert(cache->capacity <= model->rope->positions);
    assert(logits || which == LARDER_LOGITS_NONE);
    LARDER_TRY(check_tokens(model, cache, tokens, count));

    uint32_t before = cache->count;
    for (size_t done = 0; done < count;) {
        struct chunk chunk = {.model = model,
                              .cache = cache,
                              .tokens = tokens + done,
                              .rows = (uint32_t)larder_min_u64(CHUNK_ROWS, count - done),
                              .first = before + (uint32_t)done};
        LARDER_TRY(run_layers(&chunk));
        if (which == LARDER_LOGITS_ALL)
            LARDER_TRY(run_head(&chunk, logits + done * model->config.vocab, 0));
        done += chunk.rows;
        if (which == LARDER_LOGITS_LAST && done == count)
            LARDER_TRY(run_head(&chunk, logits, chunk.rows - 1));
    }
    cache->count = before + (uint32_t)count;
    return 0;
}
