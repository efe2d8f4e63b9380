/* SPDX-License-Identifier: Apache-2.0 */
/* hadamard.h - runs of numbers times a Hadamard matrix, in versions with the same bits.
 *
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_CODEC_HADAMARD_H
#define LARDER_CODEC_HADAMARD_H

#include <stdint.h>

/* Each run of `dims` of the `count` elements, a power of two that divides them, times the Hadamard
 * matrix of that size, not normalised: sums and differences of elements dims / 2 apart, then
 * dims / 4 and so on. Then each element times its factor; NULL: none. */
typedef void (*hadamard_function)(float *x, uint64_t count, uint64_t dims, const float *factors);

/* The specification. */
void hadamard_scalar(float *x, uint64_t count, uint64_t dims, const float *factors);
/* NULL where they cannot run. */
hadamard_function hadamard_avx2(void);
hadamard_function hadamard_avx512(void);

#endif
