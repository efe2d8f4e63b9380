/* SPDX-License-Identifier: Apache-2.0 */
/* klt.h - the sum at the heart of klt.c, whose scalar version is the specification of the others.
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_CODEC_KLT_H
#define LARDER_CODEC_KLT_H

#include <stdint.h>

/* Tokens that share what is loaded of a matrix. */
#define KLT_TOKENS 4u

/* out[token][i] = start[i] + the sum of factors[token][c] * matrix[c][i], from the first c to the
 * last, each product and sum rounded once. A c whose factors are 0 for all tokens is passed
 * over. */
struct klt_sum {
    uint32_t dims;
    uint32_t tokens;      /* 1..KLT_TOKENS: what `out` has room for */
    const float *start;   /* [dims]; NULL: zeros */
    const float *factors; /* [KLT_TOKENS][dims]; of tokens that are not there: zeros */
    const float *matrix;  /* [dims][dims] */
};

typedef void (*klt_sum_function)(float *out, const struct klt_sum *sum);
void klt_sum_scalar(float *out, const struct klt_sum *sum);
/* The dims from `first` on, for the others. */
void klt_sum_rest(float *out, const struct klt_sum *sum, uint32_t first);
/* NULL where they cannot run. */
klt_sum_function klt_sum_avx512(void);
klt_sum_function klt_sum_avx2(void);

#endif
