/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/sampler.h"

#include <assert.h>
#include <math.h>

/* SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint32_t pick_largest(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* The `top_k` largest, largest first; of equals the first. Returns how many there are. */
static uint32_t list_largest(uint32_t *tokens, uint32_t top_k, const float *logits, uint32_t count)
{
    uint32_t listed = 0;
    for (uint32_t token = 0; token < count; token++) {
        if (listed == top_k && !(logits[token] > logits[tokens[listed - 1]]))
            continue;
        uint32_t at = listed < top_k ? listed++ : listed - 1;
        for (; at > 0 && logits[token] > logits[tokens[at - 1]]; at--)
            tokens[at] = tokens[at - 1];
        tokens[at] = token;
    }
    return listed;
}

uint32_t larder_sampler_pick(struct larder_sampler *sampler, const float *logits, uint32_t count)
{
    assert(count > 0);
    if (!(sampler->temperature > 0))
        return pick_largest(logits, count);

    uint32_t tokens[LARDER_TOP_K_MAX];
    double weights[LARDER_TOP_K_MAX];
    uint32_t top_k = sampler->top_k;
    if (top_k == 0 || top_k > LARDER_TOP_K_MAX)
        top_k = LARDER_TOP_K_MAX;
    uint32_t listed = list_largest(tokens, top_k, logits, count);
    double sum = 0;
    for (uint32_t i = 0; i < listed; i++) {
        weights[i] =
            exp((double)(logits[tokens[i]] - logits[tokens[0]]) / (double)sampler->temperature);
        sum += weights[i];
    }
    double left = (double)(next_random(&sampler->state) >> 11) * 0x1p-53 * sum;
    for (uint32_t i = 0; i < listed; i++) {
        left -= weights[i];
        if (left < 0)
            return tokens[i];
    }
    return tokens[0];
}
