/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/llama_weights.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

#define NAME_BYTES_MAX 128

/* What the loading functions share. */
struct loader {
    struct llama_weights *weights;
    const struct larder_weights *files;
    const struct larder_model_config *config;
    char prefix[NAME_BYTES_MAX]; /* "model.layers.3." */
};

/* The tensor [rows, columns], or [rows] when `columns` is 0. */
static int find(const struct larder_weight **out, const struct loader *loader, const char *name,
                uint64_t rows, uint64_t columns)
{
    char full[2 * NAME_BYTES_MAX];
    snprintf(full, sizeof(full), "%s%s", loader->prefix, name);
    const struct larder_weight *found = larder_weights_find(loader->files, full);
    if (!found)
        return larder_fail(
            LARDER_EFORMAT,
            "the model has no tensor %s; do config.json and weights belong together?", full);
    if (found->dtype == 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "tensor %s is %s; the forward takes BF16, F16 and F32", full,
                           found->dtype_name);
    /* Dimensions beyond a tensor's rank are 0. */
    if (found->rank != (columns ? 2 : 1) || found->shape[0] != rows || found->shape[1] != columns)
        return larder_fail(LARDER_EFORMAT,
                           "tensor %s of %u dimensions is %llu x %llu; config.json asks for %llu x "
                           "%llu",
                           full, found->rank, (unsigned long long)found->shape[0],
                           (unsigned long long)found->shape[1], (unsigned long long)rows,
                           (unsigned long long)columns);
    if ((uintptr_t)found->data % larder_dtype_bytes(found->dtype) != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "tensor %s does not start at a multiple of %zu bytes; save the file "
                           "again with a current safetensors",
                           full, larder_dtype_bytes(found->dtype));
    *out = found;
    return 0;
}

static int load_matrix(struct larder_tensor *out, const struct loader *loader, const char *name,
                       uint64_t rows, uint64_t columns)
{
    const struct larder_weight *found = NULL;
    LARDER_TRY(find(&found, loader, name, rows, columns));
    struct larder_device *device = loader->weights->device;
    void *placed;
    LARDER_TRY(device->ops->place(device, &placed, found->data, found->bytes));
    *out = larder_matrix(placed, found->dtype, rows, columns);
    return 0;
}

/* A norm or a bias, as f32 in the common block. */
static int load_vector(struct larder_tensor *out, const struct loader *loader, const char *name,
                       uint64_t count)
{
    const struct larder_weight *found = NULL;
    LARDER_TRY(find(&found, loader, name, count, 0));
    struct llama_weights *weights = loader->weights;
    struct larder_device *device = weights->device;
    assert(count <= weights->vector_room - weights->vector_count);
    void *placed;
    LARDER_TRY(device->ops->place(device, &placed, found->data, found->bytes));
    struct larder_tensor source = larder_matrix(placed, found->dtype, 1, count);
    *out = larder_matrix(weights->vectors + weights->vector_count, LARDER_F32, 1, count);
    weights->vector_count += count;
    int err = device->ops->convert(device, out, &source);
    device->ops->unplace(device, placed);
    return err;
}

static int load_linear(struct llama_linear *out, const struct loader *loader, const char *name,
                       uint64_t rows, uint64_t columns, bool bias)
{
    char full[NAME_BYTES_MAX];
    snprintf(full, sizeof(full), "%s.weight", name);
    LARDER_TRY(load_matrix(&out->weight, loader, full, rows, columns));
    if (!bias)
        return 0;
    snprintf(full, sizeof(full), "%s.bias", name);
    return load_vector(&out->bias, loader, full, rows);
}

static int load_layer(struct llama_layer *layer, const struct loader *loader)
{
    const struct larder_model_config *c = loader->config;
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    LARDER_TRY(load_vector(&layer->input_norm, loader, "input_layernorm.weight", c->hidden));
    LARDER_TRY(
        load_vector(&layer->post_norm, loader, "post_attention_layernorm.weight", c->hidden));
    if (c->qk_norm) {
        LARDER_TRY(load_vector(&layer->q_norm, loader, "self_attn.q_norm.weight", c->head_dims));
        LARDER_TRY(load_vector(&layer->k_norm, loader, "self_attn.k_norm.weight", c->head_dims));
    }
    LARDER_TRY(load_linear(&layer->q, loader, "self_attn.q_proj", q_dims, c->hidden, c->qkv_bias));
    LARDER_TRY(load_linear(&layer->k, loader, "self_attn.k_proj", kv_dims, c->hidden, c->qkv_bias));
    LARDER_TRY(load_linear(&layer->v, loader, "self_attn.v_proj", kv_dims, c->hidden, c->qkv_bias));
    LARDER_TRY(
        load_linear(&layer->out, loader, "self_attn.o_proj", c->hidden, q_dims, c->out_bias));
    LARDER_TRY(
        load_linear(&layer->gate, loader, "mlp.gate_proj", c->feedforward, c->hidden, c->mlp_bias));
    LARDER_TRY(
        load_linear(&layer->up, loader, "mlp.up_proj", c->feedforward, c->hidden, c->mlp_bias));
    return load_linear(&layer->down, loader, "mlp.down_proj", c->hidden, c->feedforward,
                       c->mlp_bias);
}

/* Room for every norm and bias that a model of this configuration can have. */
static uint64_t count_vectors(const struct larder_model_config *c)
{
    uint64_t q_dims = (uint64_t)c->heads * c->head_dims;
    uint64_t kv_dims = (uint64_t)c->kv_heads * c->head_dims;
    uint64_t layer =
        4ull * c->hidden + 2ull * c->head_dims + q_dims + 2 * kv_dims + 2ull * c->feedforward;
    return c->layers * layer + c->hidden;
}

static int load_all(struct loader *loader)
{
    struct llama_weights *weights = loader->weights;
    const struct larder_model_config *c = loader->config;
    snprintf(loader->prefix, sizeof(loader->prefix), "model.");
    LARDER_TRY(
        load_matrix(&weights->embedding, loader, "embed_tokens.weight", c->vocab, c->hidden));
    LARDER_TRY(load_vector(&weights->norm, loader, "norm.weight", c->hidden));
    weights->tied = c->tied;
    if (c->tied) {
        weights->head.weight = weights->embedding;
    } else {
        loader->prefix[0] = '\0';
        LARDER_TRY(load_linear(&weights->head, loader, "lm_head", c->vocab, c->hidden, false));
    }
    for (uint32_t i = 0; i < c->layers; i++) {
        snprintf(loader->prefix, sizeof(loader->prefix), "model.layers.%u.", i);
        LARDER_TRY(load_layer(&weights->layers[i], loader));
    }
    return 0;
}

int llama_weights_open(struct llama_weights *out, struct larder_device *device,
                       const struct larder_weights *files, const struct larder_model_config *config)
{
    *out = (struct llama_weights){.device = device, .vector_room = count_vectors(config)};
    out->layers = larder_alloc_zero(config->layers, sizeof(*out->layers));
    if (!out->layers)
        return larder_fail(-ENOMEM, "no memory for %u layers", config->layers);
    out->layer_count = config->layers;
    void *vectors = NULL;
    int err = device->ops->alloc(device, &vectors, out->vector_room * sizeof(*out->vectors));
    out->vectors = vectors;
    struct loader loader = {.weights = out, .files = files, .config = config};
    if (err == 0)
        err = load_all(&loader);
    if (err < 0)
        llama_weights_close(out);
    return err;
}

static void unplace(struct larder_device *device, const struct llama_linear *linear)
{
    if (linear->weight.data)
        device->ops->unplace(device, linear->weight.data);
}

void llama_weights_close(struct llama_weights *weights)
{
    struct larder_device *device = weights->device;
    for (uint32_t i = 0; i < weights->layer_count; i++) {
        const struct llama_layer *layer = &weights->layers[i];
        unplace(device, &layer->q);
        unplace(device, &layer->k);
        unplace(device, &layer->v);
        unplace(device, &layer->out);
        unplace(device, &layer->gate);
        unplace(device, &layer->up);
        unplace(device, &layer->down);
    }
    if (!weights->tied)
        unplace(device, &weights->head);
    if (weights->embedding.data)
        device->ops->unplace(device, weights->embedding.data);
    if (weights->vectors)
        device->ops->release(device, weights->vectors);
    larder_free(weights->layers);
    *weights = (struct llama_weights){0};
}
