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

/* --- 16 vectors of 16 lanes ------------------------------------------------------------------- */

#define LANES_512 16u
#define BLOCK_512 256u

AVX512 static void meet_512(float *x, uint64_t count, uint64_t step)
{
    for (uint64_t first = 0; first < count; first += 2 * step) {
        for (uint64_t i = first; i < first + step; i += LANES_512) {
            __m512 low = _mm512_loadu_ps(x + i);
            __m512 high = _mm512_loadu_ps(x + i + step);
            _mm512_storeu_ps(x + i, _mm512_add_ps(low, high));
            _mm512_storeu_ps(x + i + step, _mm512_sub_ps(low, high));
        }
    }
}

AVX512 static inline __m512 lanes_512(__m512 x)
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

/* `vectors` is a constant where this is called: everything stays in registers. */
AVX512 static inline __attribute__((always_inline)) void block_512(float *x, const float *factors,
                                                                   unsigned vectors)
{
    __m512 v[BLOCK_512 / LANES_512];
    for (unsigned i = 0; i < vectors; i++)
        v[i] = _mm512_loadu_ps(x + (size_t)i * LANES_512);
#pragma GCC unroll 4
    for (unsigned step = vectors / 2; step > 0; step /= 2) {
#pragma GCC unroll 16
        for (unsigned i = 0; i < vectors; i++) {
            if (i & step)
                continue;
            __m512 low = v[i];
            v[i] = _mm512_add_ps(low, v[i + step]);
            v[i + step] = _mm512_sub_ps(low, v[i + step]);
        }
    }
#pragma GCC unroll 16
    for (unsigned i = 0; i < vectors; i++) {
        __m512 turned = lanes_512(v[i]);
        if (factors)
            turned = _mm512_mul_ps(turned, _mm512_loadu_ps(factors + (size_t)i * LANES_512));
        _mm512_storeu_ps(x + (size_t)i * LANES_512, turned);
    }
}

AVX512 static void turn_512(float *x, uint64_t count, uint64_t dims, const float *factors)
{
    if (dims < LANES_512) {
        hadamard_scalar(x, count, dims, factors);
        return;
    }
    for (uint64_t step = dims / 2; step >= BLOCK_512; step /= 2)
        meet_512(x, count, step);
    uint64_t block = dims < BLOCK_512 ? dims : BLOCK_512;
    for (uint64_t first = 0; first < count; first += block) {
        const float *own = factors ? factors + first : NULL;
        switch (block / LANES_512) {
        case 1:
            block_512(x + first, own, 1);
            break;
        case 2:
            block_512(x + first, own, 2);
            break;
        case 4:
            block_512(x + first, own, 4);
            break;
        case 8:
            block_512(x + first, own, 8);
            break;
        default:
            block_512(x + first, own, 16);
        }
    }
}

/* --- 8 vectors of 8 lanes --------------------------------------------------------------------- */

#define LANES_256 8u
#define BLOCK_256 64u

AVX2 static void meet_256(float *x, uint64_t count, uint64_t step)
{
    for (uint64_t first = 0; first < count; first += 2 * step) {
        for (uint64_t i = first; i < first + step; i += LANES_256) {
            __m256 low = _mm256_loadu_ps(x + i);
            __m256 high = _mm256_loadu_ps(x + i + step);
            _mm256_storeu_ps(x + i, _mm256_add_ps(low, high));
            _mm256_storeu_ps(x + i + step, _mm256_sub_ps(low, high));
        }
    }
}

AVX2 static inline __m256 lanes_256(__m256 x)
{
    const __m256 sign4 = _mm256_setr_ps(1, 1, 1, 1, -1, -1, -1, -1);
    const __m256 sign2 = _mm256_setr_ps(1, 1, -1, -1, 1, 1, -1, -1);
    const __m256 sign1 = _mm256_setr_ps(1, -1, 1, -1, 1, -1, 1, -1);
    x = _mm256_fmadd_ps(x, sign4, _mm256_permute2f128_ps(x, x, 0x01));
    x = _mm256_fmadd_ps(x, sign2, _mm256_permute_ps(x, 0x4e));
    return _mm256_fmadd_ps(x, sign1, _mm256_permute_ps(x, 0xb1));
}

AVX2 static inline __attribute__((always_inline)) void block_256(float *x, const float *factors,
                                                                 unsigned vectors)
{
    __m256 v[BLOCK_256 / LANES_256];
    for (unsigned i = 0; i < vectors; i++)
        v[i] = _mm256_loadu_ps(x + (size_t)i * LANES_256);
#pragma GCC unroll 3
    for (unsigned step = vectors / 2; step > 0; step /= 2) {
#pragma GCC unroll 8
        for (unsigned i = 0; i < vectors; i++) {
            if (i & step)
                continue;
            __m256 low = v[i];
            v[i] = _mm256_add_ps(low, v[i + step]);
            v[i + step] = _mm256_sub_ps(low, v[i + step]);
        }
    }
#pragma GCC unroll 8
    for (unsigned i = 0; i < vectors; i++) {
        __m256 turned = lanes_256(v[i]);
        if (factors)
            turned = _mm256_mul_ps(turned, _mm256_loadu_ps(factors + (size_t)i * LANES_256));
        _mm256_storeu_ps(x + (size_t)i * LANES_256, turned);
    }
}

AVX2 static void turn_256(float *x, uint64_t count, uint64_t dims, const float *factors)
{
    if (dims < LANES_256) {
        hadamard_scalar(x, count, dims, factors);
        return;
    }
    for (uint64_t step = dims / 2; step >= BLOCK_256; step /= 2)
        meet_256(x, count, step);
    uint64_t block = dims < BLOCK_256 ? dims : BLOCK_256;
    for (uint64_t first = 0; first < count; first += block) {
        const float *own = factors ? factors + first : NULL;
        switch (block / LANES_256) {
        case 1:
            block_256(x + first, own, 1);
            break;
        case 2:
            block_256(x + first, own, 2);
            break;
        case 4:
            block_256(x + first, own, 4);
            break;
        default:
            block_256(x + first, own, 8);
        }
    }
}

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
