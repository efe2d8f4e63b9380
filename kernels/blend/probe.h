/* SPDX-License-Identifier: Apache-2.0 */
/* probe.h - how much a token's KV depends on what stands before its chunk, found out when the chunk
 * is stored: the method "probe" computes those tokens again that depend most.
 * Threads: the model's.
 *
 * The chunk runs once more, behind some other text, and V is compared with that of the chunk alone.
 * A token that found all it needs within its chunk comes out the same; one that looked for
 * something before it, and found only the start, does not. The score of a token is the sum over
 * layers of the squared difference of its V over the mean square of the chunk's V in that layer:
 * one f32 a token, to be kept beside the chunk, and given to larder_blend_open() by each token's
 * place in the prompt. It costs one more forward of the chunk when it is stored, and nothing when
 * it is blended: no check layer, and rows that will be computed need not be loaded.
 */
#ifndef LARDER_KERNELS_BLEND_PROBE_H
#define LARDER_KERNELS_BLEND_PROBE_H

#include <stdint.h>

#include "kernels/kv_cache.h"
#include "kernels/llama.h"

struct larder_blend_probe {
    const struct larder_kv_cache *alone; /* the chunk's KV, computed behind BOS alone */
    uint32_t alone_first;                /* row there of its first token */
    const uint32_t *tokens;              /* the chunk's, without BOS */
    uint32_t count;
    const uint32_t *before; /* text of the kind that will stand before it, without BOS: another */
    uint32_t before_count;  /* chunk or two; at least 1 */
};

/* Scores of the chunk's tokens: `count` numbers, none below 0. LARDER_ELIMIT when both texts
 * together are longer than the model's context. */
int larder_blend_probe(float *scores, struct larder_llama *model,
                       const struct larder_blend_probe *probe);

#endif
