/* SPDX-License-Identifier: Apache-2.0 */
/* klt_x86.c - klt.h with the sums of four tokens in registers; dims that fill no vector go to the
 * scalar code. */
#include "codec/klt.h"

#include <stddef.h>

#include "base/limits.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,popcnt")))
#define AVX2   __attribute__((target("avx2,fma,popcnt")))

/* What is not passed over, in order; up to a vector more than there are may be written. */
struct live {
    uint32_t count;
    uint32_t at[LARDER_HEAD_DIMS_MAX + 16];
};

static uint32_t bits_of(float x)
{
    union {
        float number;
        uint32_t bits;
    } both = {.number = x};
    return both.bits & 0x7fffffffu;
}

static void find_rest(struct live *out, const struct klt_sum *sum, uint32_t first)
{
    uint32_t dims = sum->dims;
    for (uint32_t c = first; c < dims; c++) {
        uint32_t bits = 0;
        for (uint32_t token = 0; token < KLT_TOKENS; token++)
            bits |= bits_of(sum->factors[token * dims + c]);
        out->at[out->count] = c;
        out->count += bits != 0;
    }
}

AVX512 static void find_512(struct live *out, const struct klt_sum *sum)
{
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    out->count = 0;
    uint32_t c = 0;
    for (; c + 16 <= sum->dims; c += 16) {
        __m512i bits = _mm512_setzero_si512();
        for (uint32_t token = 0; token < KLT_TOKENS; token++)
            bits = _mm512_or_si512(
                bits, _mm512_loadu_si512(sum->factors + (uint64_t)token * sum->dims + c));
        __mmask16 live = _mm512_test_epi32_mask(bits, magnitude);
        __m512i places = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)c));
        _mm512_storeu_si512(out->at + out->count, _mm512_maskz_compress_epi32(live, places));
        out->count += (uint32_t)__builtin_popcount(live);
    }
    find_rest(out, sum, c);
}

AVX512 static inline __m512 start_512(const struct klt_sum *sum, uint64_t first)
{
    return sum->start ? _mm512_loadu_ps(sum->start + first) : _mm512_setzero_ps();
}

/* 32 dims: eight sums hide the latency of each, and a factor serves two. */
AVX512 static inline void sum_pair_512(float *out, const struct klt_sum *sum,
                                       const struct live *live, uint64_t first)
{
    uint64_t dims = sum->dims;
    const float *factors[KLT_TOKENS];
    __m512 low[KLT_TOKENS];
    __m512 high[KLT_TOKENS];
    for (uint32_t token = 0; token < KLT_TOKENS; token++) {
        factors[token] = sum->factors + token * dims;
        low[token] = start_512(sum, first);
        high[token] = start_512(sum, first + 16);
    }
    for (uint32_t n = 0; n < live->count; n++) {
        uint64_t c = live->at[n];
        __m512 row = _mm512_loadu_ps(sum->matrix + c * dims + first);
        __m512 next = _mm512_loadu_ps(sum->matrix + c * dims + first + 16);
        for (uint32_t token = 0; token < KLT_TOKENS; token++) {
            __m512 factor = _mm512_set1_ps(factors[token][c]);
            low[token] = _mm512_fmadd_ps(factor, row, low[token]);
            high[token] = _mm512_fmadd_ps(factor, next, high[token]);
        }
    }
    for (uint32_t token = 0; token < sum->tokens; token++) {
        _mm512_storeu_ps(out + token * dims + first, low[token]);
        _mm512_storeu_ps(out + token * dims + first + 16, high[token]);
    }
}

AVX512 static void sum_512(float *out, const struct klt_sum *sum)
{
    struct live live;
    find_512(&live, sum);
    uint32_t first = 0;
    for (; first + 32 <= sum->dims; first += 32)
        sum_pair_512(out, sum, &live, first);
    klt_sum_rest(out, sum, first);
}

AVX2 static void sum_256(float *out, const struct klt_sum *sum)
{
    struct live live = {.count = 0};
    find_rest(&live, sum, 0);
    const float *factors = sum->factors;
    uint64_t dims = sum->dims;
    uint32_t first = 0;
    for (; first + 8 <= dims; first += 8) {
        __m256 start = sum->start ? _mm256_loadu_ps(sum->start + first) : _mm256_setzero_ps();
        __m256 x[KLT_TOKENS] = {start, start, start, start};
        for (uint32_t n = 0; n < live.count; n++) {
            uint64_t c = live.at[n];
            __m256 row = _mm256_loadu_ps(sum->matrix + c * dims + first);
            for (uint32_t token = 0; token < KLT_TOKENS; token++)
                x[token] =
                    _mm256_fmadd_ps(_mm256_set1_ps(factors[token * dims + c]), row, x[token]);
        }
        for (uint32_t token = 0; token < sum->tokens; token++)
            _mm256_storeu_ps(out + token * dims + first, x[token]);
    }
    klt_sum_rest(out, sum, first);
}

klt_sum_function klt_sum_avx512(void)
{
    return __builtin_cpu_supports("avx512f") ? sum_512 : NULL;
}

klt_sum_function klt_sum_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? sum_256 : NULL;
}

#else

klt_sum_function klt_sum_avx512(void)
{
    return NULL;
}

klt_sum_function klt_sum_avx2(void)
{
    return NULL;
}

#endif
