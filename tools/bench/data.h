/* SPDX-License-Identifier: Apache-2.0 */
/* data.h - made-up models, prompts and KV for benchmarks. KV has what compression depends on: each
 * channel its own loudness, values of a normal distribution.
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_TOOLS_BENCH_DATA_H
#define LARDER_TOOLS_BENCH_DATA_H

#include <stdint.h>

#include "base/larder_base.h"

/* An 8B model's shape: 32 layers, 8 KV heads of 128, bf16; 32 MiB a block of 256 tokens. */
void bench_model_large(struct larder_model_desc *out);
/* One layer, one head of 16, bf16: 64 bytes a token, so that requests cost and data does not. */
void bench_model_small(struct larder_model_desc *out);

/* The same seed, the same tokens; other seeds share none of their first ones. */
void bench_fill_tokens(uint32_t *tokens, uint64_t count, uint64_t seed,
                       const struct larder_model_desc *model);

/* `elem_count` bf16 values over channels that repeat every `channel_count` elements. */
void bench_fill_kv(void *kv, uint64_t elem_count, uint32_t channel_count, uint64_t seed);

#endif
