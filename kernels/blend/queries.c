/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/blend/queries.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "kernels/llama_layer.h"

struct blend_queries {
    struct larder_llama *model;
    uint64_t layer_floats;
    float *rows;       /* [layer][heads, head_dims] */
    uint32_t position; /* of the row that is kept */
    bool watches;
    larder_llama_queries watch_before;
    void *context_before;
};

int blend_queries_open(struct blend_queries **out, struct larder_llama *model)
{
    *out = NULL;
    const struct larder_model_config *c = &model->config;
    struct blend_queries *queries = larder_alloc_zero(1, sizeof(*queries));
    if (!queries)
        return larder_fail(-ENOMEM, "no memory for queries");
    queries->model = model;
    queries->layer_floats = (uint64_t)c->heads * c->head_dims;
    queries->rows = larder_alloc_zero(c->layers * queries->layer_floats, sizeof(float));
    if (!queries->rows) {
        larder_free(queries);
        return larder_fail(-ENOMEM, "no memory for queries of %u layers", c->layers);
    }
    *out = queries;
    return 0;
}

void blend_queries_close(struct blend_queries *queries)
{
    if (!queries)
        return;
    assert(!queries->watches);
    larder_free(queries->rows);
    larder_free(queries);
}

static void keep_row(void *context, uint32_t layer, uint32_t first, const struct larder_tensor *q)
{
    struct blend_queries *queries = context;
    if (queries->watch_before)
        queries->watch_before(queries->context_before, layer, first, q);
    if (queries->position < first || queries->position - first >= q->shape[0])
        return;
    const float *row = (const float *)q->data + (queries->position - first) * q->stride[0];
    memcpy(queries->rows + layer * queries->layer_floats, row,
           queries->layer_floats * sizeof(float));
}

void blend_queries_watch(struct blend_queries *queries, uint32_t position)
{
    assert(!queries->watches);
    struct larder_llama *model = queries->model;
    queries->position = position;
    queries->watch_before = model->watch;
    queries->context_before = model->watch_context;
    queries->watches = true;
    larder_llama_watch(model, keep_row, queries);
}

void blend_queries_unwatch(struct blend_queries *queries)
{
    if (!queries->watches)
        return;
    queries->watches = false;
    larder_llama_watch(queries->model, queries->watch_before, queries->context_before);
}

/* Adds a row's weights over the keys; the products of all heads that share a KV head at once. */
static int add_layer(const struct blend_queries *queries, float *mass, float *products,
                     const struct larder_kv_cache *cache, uint32_t layer, uint32_t count)
{
    const struct larder_model_config *c = &queries->model->config;
    struct larder_device *device = queries->model->device;
    uint32_t group = c->heads / c->kv_heads;
    float scale = 1.0f / sqrtf((float)c->head_dims);
    for (uint32_t head = 0; head < c->kv_heads; head++) {
        float *q = queries->rows + layer * queries->layer_floats + head * group * c->head_dims;
        struct larder_tensor k = larder_kv_cache_tensor(cache, layer, LARDER_K, 0, count);
        struct larder_tensor keys =
            larder_matrix((char *)k.data + head * k.stride[1] * larder_dtype_bytes(k.dtype),
                          k.dtype, count, c->head_dims);
        keys.stride[0] = k.stride[0];
        struct larder_tensor x = larder_matrix(q, LARDER_F32, group, c->head_dims);
        struct larder_tensor out = larder_matrix(products, LARDER_F32, group, count);
        LARDER_TRY(device->ops->matmul(device, &out, &x, &keys, NULL));
        for (uint32_t i = 0; i < group; i++) {
            float *row = products + (uint64_t)i * count;
            float top = -INFINITY;
            for (uint32_t j = 0; j < count; j++)
                top = fmaxf(top, row[j]);
            double sum = 0;
            for (uint32_t j = 0; j < count; j++) {
                row[j] = expf((row[j] - top) * scale);
                sum += (double)row[j];
            }
            float part = (float)(1 / (sum * c->heads * c->layers));
            for (uint32_t j = 0; j < count; j++)
                mass[j] += row[j] * part;
        }
    }
    return 0;
}

int blend_queries_attention(const struct blend_queries *queries, float *mass,
                            const struct larder_kv_cache *cache, uint32_t count)
{
    const struct larder_model_config *c = &queries->model->config;
    uint64_t floats = (uint64_t)(c->heads / c->kv_heads) * count;
    float *products = larder_alloc(floats * sizeof(*products));
    if (!products)
        return larder_fail(-ENOMEM, "no memory for attention over %u keys", count);
    memset(mass, 0, count * sizeof(*mass));
    int err = 0;
    for (uint32_t layer = 0; err == 0 && layer < c->layers; layer++)
        err = add_layer(queries, mass, products, cache, layer, count);
    larder_free(products);
    return err;
}
