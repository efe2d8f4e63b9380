/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_avx512.c - tiles of 6 rows by 64 columns in 24 registers. */
#include <immintrin.h>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_math.h"

static bool usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
}

__attribute__((always_inline)) static inline void tile(float *out, uint64_t out_stride,
                                                       const float *a, uint64_t a_stride,
                                                       const float *b, uint64_t b_stride,
                                                       uint64_t depth, bool accumulate,
                                                       const unsigned rows, const unsigned vectors)
{
    __m512 sums[6][4];
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (unsigned v = 0; v < vectors; v++)
            sums[row][v] =
                accumulate ? _mm512_loadu_ps(out + row * out_stride + v * 16) : _mm512_setzero_ps();
    for (uint64_t k = 0; k < depth; k++) {
        __m512 columns[4];
#pragma GCC unroll 4
        for (unsigned v = 0; v < vectors; v++)
            columns[v] = _mm512_loadu_ps(b + k * b_stride + v * 16);
#pragma GCC unroll 6
        for (unsigned row = 0; row < rows; row++) {
            __m512 x = _mm512_set1_ps(a[row * a_stride + k]);
#pragma GCC unroll 4
            for (unsigned v = 0; v < vectors; v++)
                sums[row][v] = _mm512_fmadd_ps(x, columns[v], sums[row][v]);
        }
    }
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
#pragma GCC unroll 4
        for (unsigned v = 0; v < vectors; v++)
            _mm512_storeu_ps(out + row * out_stride + v * 16, sums[row][v]);
}

#define TILE_CASE(rows, vectors)                                                                   \
    case rows:                                                                                     \
        tile(out, out_stride, a, a_stride, b, b_stride, depth, accumulate, rows, vectors);         \
        break

static void tile_wide(float *out, uint64_t out_stride, const float *a, uint64_t a_stride,
                      const float *b, uint64_t b_stride, uint64_t rows, uint64_t depth,
                      bool accumulate)
{
    switch (rows) {
        TILE_CASE(1, 4);
        TILE_CASE(2, 4);
        TILE_CASE(3, 4);
        TILE_CASE(4, 4);
        TILE_CASE(5, 4);
        TILE_CASE(6, 4);
    }
}

static void tile_narrow(float *out, uint64_t out_stride, const float *a, uint64_t a_stride,
                        const float *b, uint64_t b_stride, uint64_t rows, uint64_t depth,
                        bool accumulate)
{
    switch (rows) {
        TILE_CASE(1, 1);
        TILE_CASE(2, 1);
        TILE_CASE(3, 1);
        TILE_CASE(4, 1);
        TILE_CASE(5, 1);
        TILE_CASE(6, 1);
    }
}

static void tile_product(float *out, uint64_t out_stride, const float *a, uint64_t a_stride,
                         const float *b, uint64_t b_stride, uint64_t rows, uint64_t columns,
                         uint64_t depth, bool accumulate)
{
    for (uint64_t row = 0; row < rows; row += 6) {
        uint64_t count = larder_min_u64(6, rows - row);
        const float *x = a + row * a_stride;
        float *y = out + row * out_stride;
        uint64_t column = 0;
        for (; column + 64 <= columns; column += 64)
            tile_wide(y + column, out_stride, x, a_stride, b + column, b_stride, count, depth,
                      accumulate);
        for (; column < columns; column += 16)
            tile_narrow(y + column, out_stride, x, a_stride, b + column, b_stride, count, depth,
                        accumulate);
    }
}

/* 16 x 16 words: pairs of rows interleave, then pairs of pairs, then the 128-bit quarters. */
__attribute__((always_inline)) static inline void transpose(__m512i rows[16])
{
    __m512i two[16];
    __m512i four[16];
#pragma GCC unroll 8
    for (unsigned i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (unsigned i = 0; i < 16; i += 4) {
        four[i] = _mm512_unpacklo_epi64(two[i], two[i + 2]);
        four[i + 1] = _mm512_unpackhi_epi64(two[i], two[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(two[i + 1], two[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(two[i + 1], two[i + 3]);
    }
    /* four[4g + c] holds columns c, c + 4, c + 8, c + 12 of rows 4g .. 4g + 3. */
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        __m512i low0 = _mm512_shuffle_i32x4(four[c], four[4 + c], 0x88);
        __m512i low1 = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0x88);
        __m512i high0 = _mm512_shuffle_i32x4(four[c], four[4 + c], 0xdd);
        __m512i high1 = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0xdd);
        rows[c] = _mm512_shuffle_i32x4(low0, low1, 0x88);
        rows[c + 8] = _mm512_shuffle_i32x4(low0, low1, 0xdd);
        rows[c + 4] = _mm512_shuffle_i32x4(high0, high1, 0x88);
        rows[c + 12] = _mm512_shuffle_i32x4(high0, high1, 0xdd);
    }
}

static inline __m512 load_floats(const void *data, uint32_t dtype, uint64_t index)
{
    if (dtype == LARDER_F32)
        return _mm512_loadu_ps((const float *)data + index);
    __m256i halves = _mm256_loadu_si256((const void *)((const uint16_t *)data + index));
    if (dtype == LARDER_F16)
        return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* 32 elements of up to 16 rows of bf16, moved as pairs and parted after the transposition. */
static void pack_bf16(float *out, uint64_t out_stride, const uint16_t *data, uint64_t stride,
                      uint64_t rows)
{
    __m512i words[16];
    for (uint64_t i = 0; i < 16; i++)
        words[i] = i < rows ? _mm512_loadu_si512(data + i * stride) : _mm512_setzero_si512();
    transpose(words);
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000u);
    for (unsigned i = 0; i < 16; i++) {
        _mm512_storeu_si512(out + 2 * i * out_stride, _mm512_slli_epi32(words[i], 16));
        _mm512_storeu_si512(out + (2 * i + 1) * out_stride, _mm512_and_si512(words[i], upper));
    }
}

/* 16 elements of up to 16 rows. */
static void pack_floats(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                        uint64_t stride, uint64_t rows)
{
    __m512i words[16];
    for (uint64_t i = 0; i < 16; i++)
        words[i] = i < rows ? _mm512_castps_si512(load_floats(data, dtype, i * stride))
                            : _mm512_setzero_si512();
    transpose(words);
    for (unsigned i = 0; i < 16; i++)
        _mm512_storeu_si512(out + i * out_stride, words[i]);
}

static void pack_transposed(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                            uint64_t stride, uint64_t rows, uint64_t depth)
{
    size_t bytes = larder_dtype_bytes(dtype);
    for (uint64_t row = 0; row < rows; row += 16) {
        uint64_t count = larder_min_u64(16, rows - row);
        const char *block = (const char *)data + row * stride * bytes;
        uint64_t k = 0;
        if (dtype == LARDER_BF16)
            for (; k + 32 <= depth; k += 32)
                pack_bf16(out + k * out_stride + row, out_stride,
                          (const uint16_t *)(const void *)block + k, stride, count);
        for (; k + 16 <= depth; k += 16)
            pack_floats(out + k * out_stride + row, out_stride, block + k * bytes, dtype, stride,
                        count);
        for (; k < depth; k++)
            for (uint64_t i = 0; i < 16; i++)
                out[k * out_stride + row + i] =
                    i < count ? load_element(block, dtype, i * stride + k) : 0.0f;
    }
}

static void pack_rows(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                      uint64_t stride, uint64_t rows, uint64_t depth)
{
    for (uint64_t row = 0; row < rows; row++) {
        uint64_t k = 0;
        for (; k + 16 <= depth; k += 16)
            _mm512_storeu_ps(out + row * out_stride + k,
                             load_floats(data, dtype, row * stride + k));
        for (; k < out_stride; k++)
            out[row * out_stride + k] =
                k < depth ? load_element(data, dtype, row * stride + k) : 0.0f;
    }
}

#include "kernels/cpu/cpu_simd.inc"

const struct cpu_isa cpu_avx512 = {
    .name = "avx512",
    .usable = usable,
    .matmul = matmul,
    .attention = attention,
    .rmsnorm = rmsnorm,
    .rope = rope,
    .swiglu = swiglu,
    .add = add,
    .to_float = to_float,
    .from_float = from_float,
};
