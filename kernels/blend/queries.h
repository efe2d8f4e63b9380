/* SPDX-License-Identifier: Apache-2.0 */
/* queries.h - the queries of one row in every layer, kept as it runs, and what that row attends to.
 * Inside kernels/blend/ only.
 * Owns:    the queries. While it watches, it stands in the place of whoever watched the model
 *          before (larder_llama_watch) and shows that one everything, too.
 * Threads: the model's.
 */
#ifndef LARDER_KERNELS_BLEND_QUERIES_H
#define LARDER_KERNELS_BLEND_QUERIES_H

#include <stdint.h>

#include "kernels/kv_cache.h"
#include "kernels/llama.h"

struct blend_queries;

int blend_queries_open(struct blend_queries **out, struct larder_llama *model);
void blend_queries_close(struct blend_queries *queries);

/* Keeps the queries of the row at `position`, until unwatch(). */
void blend_queries_watch(struct blend_queries *queries, uint32_t position);
void blend_queries_unwatch(struct blend_queries *queries);

/* mass[j] = what the kept row gives key j, in the mean over layers and heads; for the keys of rows
 * [0, count) of the cache, all at or before the row's position. */
int blend_queries_attention(const struct blend_queries *queries, float *mass,
                            const struct larder_kv_cache *cache, uint32_t count);

#endif
