/* SPDX-License-Identifier: Apache-2.0 */
/* planes_avx2.c - planes.h in steps of 32 elements; what is left of a row goes to the scalar code.
 */
#include "codec/planes.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define AVX2 __attribute__((target("avx2")))

AVX2 static inline __m256i load(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

AVX2 static inline void store(void *to, __m256i x)
{
    _mm256_storeu_si256((__m256i *)to, x);
}

AVX2 static inline __m256i rotate_left_2(__m256i x)
{
    return _mm256_or_si256(_mm256_slli_epi16(x, 1), _mm256_srli_epi16(x, 15));
}

AVX2 static inline __m256i rotate_right_2(__m256i x)
{
    return _mm256_or_si256(_mm256_srli_epi16(x, 1), _mm256_slli_epi16(x, 15));
}

AVX2 static inline __m256i rotate_left_4(__m256i x)
{
    return _mm256_or_si256(_mm256_slli_epi32(x, 1), _mm256_srli_epi32(x, 31));
}

AVX2 static inline __m256i rotate_right_4(__m256i x)
{
    return _mm256_or_si256(_mm256_srli_epi32(x, 1), _mm256_slli_epi32(x, 31));
}

AVX2 static void split_2(uint8_t *const planes[], const void *elems, size_t count)
{
    const uint8_t *from = elems;
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i a = rotate_left_2(load(from + 2 * i));
        __m256i b = rotate_left_2(load(from + 2 * i + 32));
        __m256i low =
            _mm256_packus_epi16(_mm256_and_si256(a, low_byte), _mm256_and_si256(b, low_byte));
        __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        store(planes[0] + i, _mm256_permute4x64_epi64(low, 0xd8));
        store(planes[1] + i, _mm256_permute4x64_epi64(high, 0xd8));
    }
    uint8_t *const rest[] = {planes[0] + i, planes[1] + i};
    planes_scalar.split[0](rest, from + 2 * i, count - i);
}

AVX2 static void join_2(void *elems, const uint8_t *const planes[], const uint8_t *base,
                        size_t row_count, size_t dims)
{
    uint8_t *to = elems;
    for (size_t row = 0; row < row_count; row++) {
        const uint8_t *low_row = planes[0] + row * dims;
        const uint8_t *high_row = planes[1] + row * dims;
        uint8_t *out = to + 2 * row * dims;
        size_t d = 0;
        for (; d + 32 <= dims; d += 32) {
            __m256i low = load(low_row + d);
            __m256i high = load(high_row + d);
            if (base)
                high = _mm256_add_epi8(high, load(base + d));
            __m256i a = rotate_right_2(_mm256_unpacklo_epi8(low, high));
            __m256i b = rotate_right_2(_mm256_unpackhi_epi8(low, high));
            store(out + 2 * d, _mm256_permute2x128_si256(a, b, 0x20));
            store(out + 2 * d + 32, _mm256_permute2x128_si256(a, b, 0x31));
        }
        if (d < dims) {
            const uint8_t *const rest[] = {low_row + d, high_row + d};
            planes_scalar.join[0](out + 2 * d, rest, base ? base + d : NULL, 1, dims - d);
        }
    }
}

AVX2 static inline __m256i gather_byte(const __m256i x[4], int shift)
{
    const __m256i low_byte = _mm256_set1_epi32(0xff);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i y[4];
    for (int i = 0; i < 4; i++)
        y[i] = _mm256_and_si256(_mm256_srli_epi32(x[i], shift), low_byte);
    __m256i packed =
        _mm256_packus_epi16(_mm256_packus_epi32(y[0], y[1]), _mm256_packus_epi32(y[2], y[3]));
    return _mm256_permutevar8x32_epi32(packed, order);
}

AVX2 static void split_4(uint8_t *const planes[], const void *elems, size_t count)
{
    const uint8_t *from = elems;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i x[4];
        for (size_t j = 0; j < 4; j++)
            x[j] = rotate_left_4(load(from + 4 * i + 32 * j));
        store(planes[0] + i, gather_byte(x, 0));
        store(planes[1] + i, gather_byte(x, 8));
        store(planes[2] + i, gather_byte(x, 16));
        store(planes[3] + i, gather_byte(x, 24));
    }
    uint8_t *const rest[] = {planes[0] + i, planes[1] + i, planes[2] + i, planes[3] + i};
    planes_scalar.split[1](rest, from + 4 * i, count - i);
}

AVX2 static void join_4(void *elems, const uint8_t *const planes[], const uint8_t *base,
                        size_t row_count, size_t dims)
{
    uint8_t *to = elems;
    for (size_t row = 0; row < row_count; row++) {
        size_t first = row * dims;
        size_t d = 0;
        for (; d + 32 <= dims; d += 32) {
            size_t i = first + d;
            __m256i p0 = load(planes[0] + i);
            __m256i p1 = load(planes[1] + i);
            __m256i p2 = load(planes[2] + i);
            __m256i p3 = load(planes[3] + i);
            if (base)
                p3 = _mm256_add_epi8(p3, load(base + d));
            __m256i low_01 = _mm256_unpacklo_epi8(p0, p1);
            __m256i high_01 = _mm256_unpackhi_epi8(p0, p1);
            __m256i low_23 = _mm256_unpacklo_epi8(p2, p3);
            __m256i high_23 = _mm256_unpackhi_epi8(p2, p3);
            __m256i a = rotate_right_4(_mm256_unpacklo_epi16(low_01, low_23));
            __m256i b = rotate_right_4(_mm256_unpackhi_epi16(low_01, low_23));
            __m256i c = rotate_right_4(_mm256_unpacklo_epi16(high_01, high_23));
            __m256i e = rotate_right_4(_mm256_unpackhi_epi16(high_01, high_23));
            store(to + 4 * i, _mm256_permute2x128_si256(a, b, 0x20));
            store(to + 4 * i + 32, _mm256_permute2x128_si256(c, e, 0x20));
            store(to + 4 * i + 64, _mm256_permute2x128_si256(a, b, 0x31));
            store(to + 4 * i + 96, _mm256_permute2x128_si256(c, e, 0x31));
        }
        if (d < dims) {
            size_t i = first + d;
            const uint8_t *const rest[] = {planes[0] + i, planes[1] + i, planes[2] + i,
                                           planes[3] + i};
            planes_scalar.join[1](to + 4 * i, rest, base ? base + d : NULL, 1, dims - d);
        }
    }
}

static const struct planes_ops avx2 = {
    .name = "avx2",
    .split = {split_2, split_4},
    .join = {join_2, join_4},
};

const struct planes_ops *planes_avx2(void)
{
    return __builtin_cpu_supports("avx2") ? &avx2 : NULL;
}

#else

const struct planes_ops *planes_avx2(void)
{
    return NULL;
}

#endif
