/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_avx2.c - tiles of 6 rows by 16 columns in 12 registers; needs FMA and F16C too. */
#include <immintrin.h>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_math.h"

static bool usable(void)
{
    /* clang 14 cannot ask for F16C; it came before AVX2. */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

__attribute__((always_inline)) static inline void
tile(float *out, uint64_t out_stride, const float *a, uint64_t a_stride, const float *b,
     uint64_t b_stride, uint64_t depth, bool accumulate, const unsigned rows)
{
    __m256 sums[6][2];
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (unsigned v = 0; v < 2; v++)
            sums[row][v] =
                accumulate ? _mm256_loadu_ps(out + row * out_stride + v * 8) : _mm256_setzero_ps();
    for (uint64_t k = 0; k < depth; k++) {
        __m256 low = _mm256_loadu_ps(b + k * b_stride);
        __m256 high = _mm256_loadu_ps(b + k * b_stride + 8);
#pragma GCC unroll 6
        for (unsigned row = 0; row < rows; row++) {
            __m256 x = _mm256_set1_ps(a[row * a_stride + k]);
            sums[row][0] = _mm256_fmadd_ps(x, low, sums[row][0]);
            sums[row][1] = _mm256_fmadd_ps(x, high, sums[row][1]);
        }
    }
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
#pragma GCC unroll 2
        for (unsigned v = 0; v < 2; v++)
            _mm256_storeu_ps(out + row * out_stride + v * 8, sums[row][v]);
}

#define TILE_CASE(rows)                                                                            \
    case rows:                                                                                     \
        tile(y, out_stride, x, a_stride, b + column, b_stride, depth, accumulate, rows);           \
        break

static void tile_product(float *out, uint64_t out_stride, const float *a, uint64_t a_stride,
                         const float *b, uint64_t b_stride, uint64_t rows, uint64_t columns,
                         uint64_t depth, bool accumulate)
{
    for (uint64_t column = 0; column < columns; column += 16)
        for (uint64_t row = 0; row < rows; row += 6) {
            const float *x = a + row * a_stride;
            float *y = out + row * out_stride + column;
            switch (larder_min_u64(6, rows - row)) {
                TILE_CASE(1);
                TILE_CASE(2);
                TILE_CASE(3);
                TILE_CASE(4);
                TILE_CASE(5);
                TILE_CASE(6);
            }
        }
}

/* 8 x 8 words: pairs of rows interleave, then pairs of pairs, then the 128-bit halves. */
__attribute__((always_inline)) static inline void transpose(__m256i rows[8])
{
    __m256i two[8];
    __m256i four[8];
#pragma GCC unroll 4
    for (unsigned i = 0; i < 8; i += 2) {
        two[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 2
    for (unsigned i = 0; i < 8; i += 4) {
        four[i] = _mm256_unpacklo_epi64(two[i], two[i + 2]);
        four[i + 1] = _mm256_unpackhi_epi64(two[i], two[i + 2]);
        four[i + 2] = _mm256_unpacklo_epi64(two[i + 1], two[i + 3]);
        four[i + 3] = _mm256_unpackhi_epi64(two[i + 1], two[i + 3]);
    }
    /* four[4g + c] holds columns c, c + 4 of rows 4g .. 4g + 3. */
#pragma GCC unroll 4
    for (unsigned c = 0; c < 4; c++) {
        rows[c] = _mm256_permute2x128_si256(four[c], four[4 + c], 0x20);
        rows[c + 4] = _mm256_permute2x128_si256(four[c], four[4 + c], 0x31);
    }
}

static inline __m256 load_floats(const void *data, uint32_t dtype, uint64_t index)
{
    if (dtype == LARDER_F32)
        return _mm256_loadu_ps((const float *)data + index);
    __m128i halves = _mm_loadu_si128((const void *)((const uint16_t *)data + index));
    if (dtype == LARDER_F16)
        return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

/* 16 elements of up to 8 rows of bf16, moved as pairs and parted after the transposition. */
static void pack_bf16(float *out, uint64_t out_stride, const uint16_t *data, uint64_t stride,
                      uint64_t rows)
{
    __m256i words[8];
    for (uint64_t i = 0; i < 8; i++)
        words[i] = i < rows ? _mm256_loadu_si256((const void *)(data + i * stride))
                            : _mm256_setzero_si256();
    transpose(words);
    const __m256i upper = _mm256_set1_epi32((int)0xffff0000u);
    for (unsigned i = 0; i < 8; i++) {
        _mm256_storeu_si256((void *)(out + 2 * i * out_stride), _mm256_slli_epi32(words[i], 16));
        _mm256_storeu_si256((void *)(out + (2 * i + 1) * out_stride),
                            _mm256_and_si256(words[i], upper));
    }
}

/* 8 elements of up to 8 rows. */
static void pack_floats(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                        uint64_t stride, uint64_t rows)
{
    __m256i words[8];
    for (uint64_t i = 0; i < 8; i++)
        words[i] = i < rows ? _mm256_castps_si256(load_floats(data, dtype, i * stride))
                            : _mm256_setzero_si256();
    transpose(words);
    for (unsigned i = 0; i < 8; i++)
        _mm256_storeu_si256((void *)(out + i * out_stride), words[i]);
}

static void pack_transposed(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                            uint64_t stride, uint64_t rows, uint64_t depth)
{
    size_t bytes = larder_dtype_bytes(dtype);
    uint64_t padded = larder_round_up(rows, 16);
    for (uint64_t row = 0; row < padded; row += 8) {
        uint64_t count = row < rows ? larder_min_u64(8, rows - row) : 0;
        const char *block = (const char *)data + row * stride * bytes;
        uint64_t k = 0;
        if (dtype == LARDER_BF16)
            for (; k + 16 <= depth; k += 16)
                pack_bf16(out + k * out_stride + row, out_stride,
                          (const uint16_t *)(const void *)block + k, stride, count);
        for (; k + 8 <= depth; k += 8)
            pack_floats(out + k * out_stride + row, out_stride, block + k * bytes, dtype, stride,
                        count);
        for (; k < depth; k++)
            for (uint64_t i = 0; i < 8; i++)
                out[k * out_stride + row + i] =
                    i < count ? load_element(block, dtype, i * stride + k) : 0.0f;
    }
}

static void pack_rows(float *out, uint64_t out_stride, const void *data, uint32_t dtype,
                      uint64_t stride, uint64_t rows, uint64_t depth)
{
    for (uint64_t row = 0; row < rows; row++) {
        uint64_t k = 0;
        for (; k + 8 <= depth; k += 8)
            _mm256_storeu_ps(out + row * out_stride + k,
                             load_floats(data, dtype, row * stride + k));
        for (; k < out_stride; k++)
            out[row * out_stride + k] =
                k < depth ? load_element(data, dtype, row * stride + k) : 0.0f;
    }
}

#include "kernels/cpu/cpu_simd.inc"

const struct cpu_isa cpu_avx2 = {
    .name = "avx2",
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
