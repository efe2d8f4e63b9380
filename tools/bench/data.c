/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench/data.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define NORMALS        4096u /* power of two */
#define CHANNELS_MAX   4096u
#define TWELVE_UNIFORM 12

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 32;
}

/* Near enough to normal: the sum of twelve uniform ones. */
static float next_normal(uint64_t *state)
{
    double sum = -TWELVE_UNIFORM / 2.0;
    for (int i = 0; i < TWELVE_UNIFORM; i++)
        sum += (double)next_random(state) * 0x1p-32;
    return (float)sum;
}

void bench_model_large(struct larder_model_desc *out)
{
    *out = (struct larder_model_desc){
        .name = "bench-8b",
        .weights = {8},
        .layers = 32,
        .kv_heads = 8,
        .k_dims = 128,
        .v_dims = 128,
        .dtype = LARDER_BF16,
        .vocab = 128256,
        .rope = {.kind = LARDER_ROPE_PLAIN,
                 .rotary_dims = 128,
                 .theta = 500000,
                 .factor = 1,
                 .attention_factor = 1},
    };
}

void bench_model_small(struct larder_model_desc *out)
{
    *out = (struct larder_model_desc){
        .name = "bench-small",
        .weights = {1},
        .layers = 1,
        .kv_heads = 1,
        .k_dims = 16,
        .v_dims = 16,
        .dtype = LARDER_BF16,
        .vocab = 128256,
        .rope = {.kind = LARDER_ROPE_PLAIN,
                 .rotary_dims = 16,
                 .theta = 10000,
                 .factor = 1,
                 .attention_factor = 1},
    };
}

void bench_fill_tokens(uint32_t *tokens, uint64_t count, uint64_t seed,
                       const struct larder_model_desc *model)
{
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint64_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)(next_random(&state) % model->vocab);
    /* Two seeds differ in their first tokens for certain, so they have no block in common. */
    if (count >= 2) {
        tokens[0] = (uint32_t)(seed % model->vocab);
        tokens[1] = (uint32_t)(seed / model->vocab % model->vocab);
    }
}

void bench_fill_kv(void *kv, uint64_t elem_count, uint32_t channel_count, uint64_t seed)
{
    float normals[NORMALS];
    float scales[CHANNELS_MAX];
    assert(channel_count > 0);
    assert(channel_count <= CHANNELS_MAX);
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (uint32_t i = 0; i < NORMALS; i++)
        normals[i] = next_normal(&state);
    for (uint32_t i = 0; i < channel_count; i++)
        scales[i] = expf(0.7f * next_normal(&state));
    uint16_t *out = kv;
    uint32_t channel = 0;
    for (uint64_t i = 0; i < elem_count; i++) {
        uint64_t random = next_random(&state);
        /* A little of the random bits goes into the fraction: the table alone would repeat. */
        float value = normals[random % NORMALS] * (1 + (float)(random >> 12) * 0x1p-26f);
        value *= scales[channel];
        channel = channel + 1 == channel_count ? 0 : channel + 1;
        uint32_t bits;
        memcpy(&bits, &value, sizeof(bits));
        out[i] = (uint16_t)(bits >> 16);
    }
}
