/* SPDX-License-Identifier: Apache-2.0 */
/* planes.h - rows of a cache as the planes that recipes take and give, and back.
 * Threads: pure functions over the caller's memory.
 *
 * Planes of some tokens: [layer][K, V], each [KV head][token][dim], in the cache's dtype.
 */
#ifndef LARDER_TOOLS_EVAL_PLANES_H
#define LARDER_TOOLS_EVAL_PLANES_H

#include <stdint.h>

#include "kernels/kv_cache.h"

uint64_t eval_planes_bytes(const struct larder_kv_cache *cache, uint32_t tokens);
/* Of rows [first, first + tokens). */
void eval_planes_take(uint8_t *planes, const struct larder_kv_cache *cache, uint32_t first,
                      uint32_t tokens);
/* Into these rows; the cache's count stays. */
void eval_planes_give(const uint8_t *planes, struct larder_kv_cache *cache, uint32_t first,
                      uint32_t tokens);

#endif
