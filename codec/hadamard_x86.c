/* SPDX-License-Identifier: Apache-2.0 */
/* hadamard_x86.c - hadamard.h with as much of a run in registers as there is room for: what stands
 * further apart meets in memory first, what stands in one vector by shuffles. There a lane becomes
 * its partner plus itself, or less itself: a product with 1 or -1 loses nothing, so that a fused
 * multiplication and addition rounds as the specification does. */
#include "codec/hadamard.h"

#include <stddef.h>

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f")))
#define AVX2   __attribute__((target("avx2,fma")))

AVX512 static inline __m512 within_512(__m512 x)
{
    const __m512 sign8 = _mm512_setr_ps(1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m512 sign4 = _mm512_setr_ps(1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1);
    const __m512 sign2 = _mm512_setr_ps(1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1);
    const __m512 sign1 = _mm512_setr_ps(1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1);
    x = _mm512_fmadd_ps(x, sign8, _mm512_shuffle_f32x4(x, x, 0x4e));
    x = _mm512_fmadd_ps(x, sign4, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = _mm512_fmadd_ps(x, sign2, _mm512_permute_ps(x, 0x4e));
    return _mm512_fmadd_ps(x, sign1, _mm512_permute_ps(x, 0xb1));
}

#define FOR      AVX512
#define NAME(x)  x##_512
#define LANES    16u
#define VECTORS  16u
#define VECTOR   __m512
#define LOAD     _mm512_loadu_ps
#define STORE    _mm512_storeu_ps
#define ADD      _mm512_add_ps
#define SUBTRACT _mm512_sub_ps
#define TIMES    _mm512_mul_ps
#include "codec/hadamard_x86.inc"

AVX2 static inline __m256 within_256(__m256 x)
{
    const __m256 sign4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    const __m256 sign2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const __m256 sign1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    x = _mm256_fmadd_ps(x, sign4, _mm256_permute2f128_ps(x, x, 0x01));
    x = _mm256_fmadd_ps(x, sign2, _mm256_permute_ps(x, 0x4e));
    return _mm256_fmadd_ps(x, sign1, _mm256_permute_ps(x, 0xb1));
}

#define FOR      AVX2
#define NAME(x)  x##_256
#define LANES    8u
#define VECTORS  8u
#define VECTOR   __m256
#define LOAD     _mm256_loadu_ps
#define STORE    _mm256_storeu_ps
#define ADD      _mm256_add_ps
#define SUBTRACT _mm256_sub_ps
#define TIMES    _mm256_mul_ps
#include "codec/hadamard_x86.inc"

hadamard_function hadamard_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? turn_256 : NULL;
}

hadamard_function hadamard_avx512(void)
{
    return __builtin_cpu_supports("avx512f") ? turn_512 : NULL;
}

#else

hadamard_function hadamard_avx2(void)
{
    return NULL;
}

hadamard_function hadamard_avx512(void)
{
    return NULL;
}

#endif
