/* SPDX-License-Identifier: Apache-2.0 */
/* sampler.h - the next token from logits: greedy, or by temperature among the likeliest.
 * The same seed and logits give the same tokens. Threads: a sampler belongs to one.
 */
#ifndef LARDER_KERNELS_SAMPLER_H
#define LARDER_KERNELS_SAMPLER_H

#include <stdint.h>

#define LARDER_TOP_K_MAX 256u

struct larder_sampler {
    float temperature; /* 0: greedy */
    uint32_t top_k;    /* among this many; 0 or above LARDER_TOP_K_MAX: that many */
    uint64_t state;    /* set to the seed, advances */
};

uint32_t larder_sampler_pick(struct larder_sampler *sampler, const float *logits, uint32_t count);

#endif
