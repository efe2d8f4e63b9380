/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/kv_cache.h"

#include <assert.h>
#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"

int larder_kv_cache_open(struct larder_kv_cache **out, struct larder_device *device,
                         const struct larder_model_desc *model, uint32_t capacity)
{
    *out = NULL;
    if (capacity == 0 || capacity > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "a KV cache of %u tokens is not within 1..%u", capacity,
                           LARDER_PROMPT_TOKENS_MAX);
    struct larder_kv_cache *cache = larder_alloc_zero(1, sizeof(*cache));
    if (!cache)
        return larder_fail(-ENOMEM, "no memory for a KV cache");
    uint64_t head_bytes = larder_dtype_bytes(model->dtype);
    assert(head_bytes > 0);
    *cache = (struct larder_kv_cache){
        .device = device,
        .layers = model->layers,
        .kv_heads = model->kv_heads,
        .k_dims = model->k_dims,
        .v_dims = model->v_dims,
        .dtype = model->dtype,
        .capacity = capacity,
        .k_token_bytes = head_bytes * model->kv_heads * model->k_dims,
        .v_token_bytes = head_bytes * model->kv_heads * model->v_dims,
    };
    cache->v_bytes = cache->k_token_bytes * capacity;
    cache->layer_bytes = cache->v_bytes + cache->v_token_bytes * capacity;
    /* The limits keep this below 2^56. */
    uint64_t bytes = cache->layer_bytes * cache->layers;
    assert(bytes == larder_model_kv_bytes(model, capacity));
    int err = device->ops->alloc(device, &cache->base, bytes);
    if (err < 0) {
        larder_free(cache);
        return err;
    }
    *out = cache;
    return 0;
}

void larder_kv_cache_close(struct larder_kv_cache *cache)
{
    if (!cache)
        return;
    cache->device->ops->release(cache->device, cache->base);
    larder_free(cache);
}

void *larder_kv_cache_rows(const struct larder_kv_cache *cache, uint32_t layer, enum larder_kv kv)
{
    assert(layer < cache->layers);
    return (char *)cache->base + layer * cache->layer_bytes + (kv == LARDER_V ? cache->v_bytes : 0);
}

struct larder_tensor larder_kv_cache_tensor(const struct larder_kv_cache *cache, uint32_t layer,
                                            enum larder_kv kv, uint32_t first, uint32_t count)
{
    assert(first <= cache->capacity);
    assert(count <= cache->capacity - first);
    uint64_t token_bytes = kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes;
    char *rows = larder_kv_cache_rows(cache, layer, kv);
    return larder_cube(rows + first * token_bytes, cache->dtype, count, cache->kv_heads,
                       kv == LARDER_K ? cache->k_dims : cache->v_dims);
}
