/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/llama.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/llama_layer.h"

static int make_workspace(struct larder_llama *model)
{
    const struct larder_model_config *c = &model->config;
    struct llama_workspace *w = &model->work;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    struct {
        float **part;
        uint64_t floats;
    } parts[] = {
        {&w->x, (uint64_t)LLAMA_ROWS_MAX * c->hidden},
        {&w->h, (uint64_t)LLAMA_ROWS_MAX * c->hidden},
        {&w->q, LLAMA_ROWS_MAX * q_dims},
        {&w->k, LLAMA_ROWS_MAX * kv_dims},
        {&w->v, LLAMA_ROWS_MAX * kv_dims},
        {&w->a, LLAMA_ROWS_MAX * q_dims},
        {&w->gate, (uint64_t)LLAMA_ROWS_MAX * c->feedforward},
        {&w->up, (uint64_t)LLAMA_ROWS_MAX * c->feedforward},
        {&w->logits, (uint64_t)LLAMA_LOGIT_ROWS * c->vocab},
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

int larder_llama_rope(struct larder_llama *model, const struct larder_rope_table **out,
                      uint32_t positions)
{
    *out = model->rope;
    return larder_rope_table_grow(model->rope, positions);
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

static int run_layers(const struct llama_rows *rows, const uint32_t *tokens)
{
    LARDER_TRY(llama_rows_embed(rows, tokens));
    for (uint32_t layer = 0; layer < rows->model->config.layers; layer++) {
        LARDER_TRY(llama_rows_project(rows, layer));
        LARDER_TRY(llama_rows_write(rows, layer));
        LARDER_TRY(llama_rows_finish(rows, layer));
    }
    rows->model->forwarded += rows->count;
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
    return llama_check_tokens(model, tokens, count);
}

int larder_llama_forward(struct larder_llama *model, struct larder_kv_cache *cache, float *logits,
                         enum larder_logits which, const uint32_t *tokens, size_t count)
{
    llama_check_cache(model, cache);
    assert(logits || which == LARDER_LOGITS_NONE);
    LARDER_TRY(check_tokens(model, cache, tokens, count));

    uint32_t before = cache->count;
    struct llama_workspace *w = &model->work;
    for (size_t done = 0; done < count;) {
        struct llama_rows rows = {.model = model,
                                  .cache = cache,
                                  .positions = w->positions,
                                  .count = (uint32_t)larder_min_u64(LLAMA_ROWS_MAX, count - done),
                                  .x = w->x,
                                  .k = w->k,
                                  .v = w->v};
        for (uint32_t i = 0; i < rows.count; i++)
            w->positions[i] = before + (uint32_t)done + i;
        LARDER_TRY(run_layers(&rows, tokens + done));
        if (which == LARDER_LOGITS_ALL)
            LARDER_TRY(llama_rows_logits(&rows, logits + done * model->config.vocab, 0));
        done += rows.count;
        if (which == LARDER_LOGITS_LAST && done == count)
            LARDER_TRY(llama_rows_logits(&rows, logits, rows.count - 1));
    }
    cache->count = before + (uint32_t)count;
    return 0;
}
