/* SPDX-License-Identifier: Apache-2.0 */
/* grid_x86.c - the lookup of grid.h with 16 or 8 lanes a vector: all levels stand in a register or
 * two, and symbols choose among their lanes. What is left of a run goes to the scalar code. */
#include "codec/grid.h"

#if defined(__x86_64__)

#include <immintrin.h>

__attribute__((target("avx512f"))) static void lookup_512(const float level[GRID_TABLE_LEVELS],
                                                          float *x, const uint8_t *q,
                                                          uint64_t count, const float *scale,
                                                          uint32_t step)
{
    __m512 table = _mm512_loadu_ps(level);
    __m512 factor = _mm512_set1_ps(*scale);
    uint64_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m512i symbols =
            _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(q + i)));
        if (step)
            factor = _mm512_loadu_ps(scale + i);
        _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_permutexvar_ps(symbols, table), factor));
    }
    grid_lookup_scalar(level, x + i, q + i, count - i, scale + i * step, step);
}

__attribute__((target("avx2"))) static void lookup_256(const float level[GRID_TABLE_LEVELS],
                                                       float *x, const uint8_t *q, uint64_t count,
                                                       const float *scale, uint32_t step)
{
    __m256 low = _mm256_loadu_ps(level);
    __m256 high = _mm256_loadu_ps(level + 8);
    __m256 factor = _mm256_set1_ps(*scale);
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256i symbols =
            _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(q + i)));
        /* The fourth bit of a symbol, as its lane's sign, chooses between the halves. */
        __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(symbols, 28));
        __m256 chosen = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, symbols),
                                         _mm256_permutevar8x32_ps(high, symbols), upper);
        if (step)
            factor = _mm256_loadu_ps(scale + i);
        _mm256_storeu_ps(x + i, _mm256_mul_ps(chosen, factor));
    }
    grid_lookup_scalar(level, x + i, q + i, count - i, scale + i * step, step);
}

grid_lookup_function grid_lookup_avx2(void)
{
    return __builtin_cpu_supports("avx2") ? lookup_256 : NULL;
}

grid_lookup_function grid_lookup_avx512(void)
{
    return __builtin_cpu_supports("avx512f") ? lookup_512 : NULL;
}

#else

grid_lookup_function grid_lookup_avx2(void)
{
    return NULL;
}

grid_lookup_function grid_lookup_avx512(void)
{
    return NULL;
}

#endif
