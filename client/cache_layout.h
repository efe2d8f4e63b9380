/* SPDX-License-Identifier: Apache-2.0 */
/* cache_layout.h - the KV cache of kernels/ as a layout of this library: for programs of ours that
 * are engines, too. Not installed. */
#ifndef LARDER_CLIENT_CACHE_LAYOUT_H
#define LARDER_CLIENT_CACHE_LAYOUT_H

#include "client/larder.h"
#include "kernels/kv_cache.h"

/* Where the cache has the element (layer, K or V, token, head, dim). */
static inline struct larder_layout larder_cache_layout(const struct larder_kv_cache *cache)
{
    const int64_t element = (int64_t)larder_dtype_bytes(cache->dtype);
    return (struct larder_layout){
        .base = cache->base,
        .layer_stride = (int64_t)cache->layer_bytes,
        .kv_stride = (int64_t)cache->v_bytes,
        .token_stride = (int64_t)cache->k_token_bytes,
        .v_token_stride = (int64_t)cache->v_token_bytes,
        .head_stride = element * cache->k_dims,
        .v_head_stride = element * cache->v_dims,
        .k_dim_stride = element,
        .v_dim_stride = element,
        .dtype = cache->dtype,
        .token_capacity = cache->capacity,
    };
}

#endif
