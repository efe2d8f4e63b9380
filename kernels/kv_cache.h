/* SPDX-License-Identifier: Apache-2.0 */
/* kv_cache.h - K and V of one sequence, for all layers.
 * Owns:    its memory, on the device it was opened on.
 * Threads: belongs to one thread at a time.
 * I1  Rows [0, count) of every layer are valid; a forward appends behind them.
 * I2  A row holds K after RoPE, rounded to `dtype`, at position = its index.
 *
 * Layout: base is [layer][K, V][capacity][kv_heads][dims], dense, dims = k_dims for K, v_dims for
 * V. Restored KV is copied to the first rows of every layer and `count` is set to their number:
 *     memcpy(larder_kv_cache_rows(cache, layer, LARDER_K), ..., count * cache->k_token_bytes);
 */
#ifndef LARDER_KERNELS_KV_CACHE_H
#define LARDER_KERNELS_KV_CACHE_H

#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/kernels.h"

enum larder_kv {
    LARDER_K = 0,
    LARDER_V = 1,
};

struct larder_kv_cache {
    /* fixed after open */
    struct larder_device *device;
    void *base;
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t k_dims;
    uint32_t v_dims;
    uint32_t dtype;         /* enum larder_dtype */
    uint32_t capacity;      /* tokens */
    uint64_t layer_bytes;   /* from one layer's K to the next one's */
    uint64_t v_bytes;       /* from a layer's K to its V */
    uint64_t k_token_bytes; /* from one token's K to the next one's */
    uint64_t v_token_bytes;

    /* the owner's */
    uint32_t count; /* tokens whose KV is in the cache */
};

/* `model` was checked (larder_model_check); its dtype is the cache's. */
int larder_kv_cache_open(struct larder_kv_cache **out, struct larder_device *device,
                         const struct larder_model_desc *model, uint32_t capacity);
void larder_kv_cache_close(struct larder_kv_cache *cache);

/* Row 0 of a layer's K or V. */
void *larder_kv_cache_rows(const struct larder_kv_cache *cache, uint32_t layer, enum larder_kv kv);

/* Rows [first, first + count) as [count, kv_heads, dims]. */
struct larder_tensor larder_kv_cache_tensor(const struct larder_kv_cache *cache, uint32_t layer,
                                            enum larder_kv kv, uint32_t first, uint32_t count);

#endif
