/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/planes.h"

#include <assert.h>
#include <string.h>

/* Rows of one head in a layer's K or V: `stride` from one token's to the next one's. */
struct strip {
    uint8_t *rows;
    uint64_t row_bytes;
    uint64_t stride;
};

static struct strip strip_of(const struct larder_kv_cache *cache, uint32_t index, uint32_t first)
{
    uint32_t head = index % cache->kv_heads;
    enum larder_kv kv = index / cache->kv_heads % 2 ? LARDER_V : LARDER_K;
    uint32_t layer = index / cache->kv_heads / 2;
    uint64_t stride = kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes;
    uint64_t row_bytes = stride / cache->kv_heads;
    return (struct strip){
        .rows =
            (uint8_t *)larder_kv_cache_rows(cache, layer, kv) + first * stride + head * row_bytes,
        .row_bytes = row_bytes,
        .stride = stride,
    };
}

static uint32_t strip_count(const struct larder_kv_cache *cache)
{
    return cache->layers * 2 * cache->kv_heads;
}

uint64_t eval_planes_bytes(const struct larder_kv_cache *cache, uint32_t tokens)
{
    return tokens * cache->layers * (cache->k_token_bytes + cache->v_token_bytes);
}

void eval_planes_take(uint8_t *planes, const struct larder_kv_cache *cache, uint32_t first,
                      uint32_t tokens)
{
    assert(first + tokens <= cache->capacity);
    for (uint32_t i = 0; i < strip_count(cache); i++) {
        struct strip strip = strip_of(cache, i, first);
        for (uint32_t token = 0; token < tokens; token++, planes += strip.row_bytes)
            memcpy(planes, strip.rows + token * strip.stride, strip.row_bytes);
    }
}

void eval_planes_give(const uint8_t *planes, struct larder_kv_cache *cache, uint32_t first,
                      uint32_t tokens)
{
    assert(first + tokens <= cache->capacity);
    for (uint32_t i = 0; i < strip_count(cache); i++) {
        struct strip strip = strip_of(cache, i, first);
        for (uint32_t token = 0; token < tokens; token++, planes += strip.row_bytes)
            memcpy(strip.rows + token * strip.stride, planes, strip.row_bytes);
    }
}
