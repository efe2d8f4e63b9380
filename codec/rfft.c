/* SPDX-License-Identifier: Apache-2.0 */
/* rfft.c - each token's channels of a head by the Fourier transform of real numbers, made
 * orthonormal: as many numbers come out as go in, the real parts of frequencies 0 .. dims / 2 and
 * then the imaginary parts of 1 .. (dims - 1) / 2.
 *
 * VidKV (Tao et al., 2025) quantizes what comes out at one bit; its own transform is the complex
 * one, which doubles the numbers.
 *
 * Any number of channels: it is a product with the transform's matrix, whose cosines are computed
 * here, so that they are the same on every machine.
 */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/matrix.h"
#include "codec/node.h"

struct rfft {
    uint32_t dims;
    float *matrix; /* [from][to]; back: [to][from] */
    float *rows;   /* CODEC_ROWS_TOKENS of them */
    void *inner;
};

static int rfft_fits(const struct codec_node *node, const struct codec_size *size)
{
    int err = matrix_fits("rfft", size->dims);
    return err < 0 ? err : codec_inner_fits(node, size);
}

static uint64_t matrix_bytes(const struct codec_size *size)
{
    return larder_round_up((uint64_t)size->dims * size->dims * sizeof(float), 64);
}

static uint64_t rows_bytes(const struct codec_size *size)
{
    return larder_round_up((uint64_t)CODEC_ROWS_TOKENS * size->dims * sizeof(float), 64);
}

static uint64_t cosines_bytes(const struct codec_size *size)
{
    return larder_round_up(4ul * size->dims * sizeof(double), 64);
}

static uint64_t rfft_scratch(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t inner = codec_scratch(node->inner, size);
    uint64_t cosines = cosines_bytes(size);
    return larder_round_up(sizeof(struct rfft), 64) + matrix_bytes(size) + rows_bytes(size) +
           (inner > cosines ? inner : cosines);
}

/* Taylor's series; 0 <= x <= pi / 4, where what is left out is below 2^-55. */
static double small_cosine(double x)
{
    double term = 1;
    double sum = 1;
    for (int i = 1; i < 16; i += 2) {
        term *= -x * x / (i * (i + 1));
        sum += term;
    }
    return sum;
}

static double small_sine(double x)
{
    double term = x;
    double sum = x;
    for (int i = 2; i < 17; i += 2) {
        term *= -x * x / (i * (i + 1));
        sum += term;
    }
    return sum;
}

/* cos(2 pi turns / count) for 0 <= turns < count. */
static double cosine(uint32_t turns, uint32_t count)
{
    static const double pi = 3.14159265358979323846;
    uint32_t quarter = (uint32_t)(4ull * turns / count);
    uint64_t rest = 4ull * turns % count; /* in quarters of a turn / count */
    bool past_half = 2 * rest > count;
    double angle = pi / 2 * (double)(past_half ? count - rest : rest) / count;
    double cos_rest = past_half ? small_sine(angle) : small_cosine(angle);
    double sin_rest = past_half ? small_cosine(angle) : small_sine(angle);
    switch (quarter) {
    case 0:
        return cos_rest;
    case 1:
        return -sin_rest;
    case 2:
        return -cos_rest;
    default:
        return sin_rest;
    }
}

/* matrix[channel][output], or turned over. The imaginary part of a frequency is -sin, which is the
 * cosine a quarter of a turn on. */
static void fill_matrix(float *matrix, const double *cosines, uint32_t dims, bool back)
{
    for (uint32_t channel = 0; channel < dims; channel++) {
        for (uint32_t output = 0; output < dims; output++) {
            bool imaginary = output > dims / 2;
            uint32_t frequency = imaginary ? output - dims / 2 : output;
            uint64_t turns = (uint64_t)channel * frequency % dims;
            bool alone = frequency == 0 || 2 * frequency == dims;
            double length = sqrt((alone ? 1.0 : 2.0) / dims);
            uint64_t at =
                back ? (uint64_t)output * dims + channel : (uint64_t)channel * dims + output;
            matrix[at] = (float)(length * cosines[(4 * turns + imaginary * dims) % (4ul * dims)]);
        }
    }
}

static void rfft_open(struct rfft *out, struct codec_run *run, const struct codec_size *size)
{
    *out = (struct rfft){.dims = size->dims};
    out->matrix = codec_take_scratch(run, matrix_bytes(size));
    out->rows = codec_take_scratch(run, rows_bytes(size));
}

static void turn_to(struct rfft *rfft, struct codec_run *run, const struct codec_size *size,
                    bool back)
{
    uint8_t *mark = run->scratch;
    double *cosines = codec_take_scratch(run, cosines_bytes(size));
    for (uint32_t i = 0; i < 4 * rfft->dims; i++)
        cosines[i] = cosine(i, 4 * rfft->dims);
    fill_matrix(rfft->matrix, cosines, rfft->dims, back);
    run->scratch = mark;
}

static void transform(const struct rfft *rfft, struct codec_tile *tile)
{
    uint64_t rows = (uint64_t)tile->size.heads * tile->size.tokens;
    for (uint64_t first = 0; first < rows; first += CODEC_ROWS_TOKENS) {
        uint64_t count = larder_min_u64(rows - first, CODEC_ROWS_TOKENS);
        float *x = tile->x + first * rfft->dims;
        matrix_times_rows(rfft->rows, x, count, rfft->matrix, rfft->dims);
        memcpy(x, rfft->rows, count * rfft->dims * sizeof(float));
    }
}

static int rfft_encode(const struct codec_node *node, struct codec_run *run,
                       struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    struct rfft rfft;
    rfft_open(&rfft, run, &tile->size);
    turn_to(&rfft, run, &tile->size, false);
    transform(&rfft, tile);
    int err = codec_encode(node->inner, run, tile);
    if (err == 0) {
        turn_to(&rfft, run, &tile->size, true);
        transform(&rfft, tile);
    }
    run->scratch = mark;
    return err;
}

static int rfft_decode_begin(const struct codec_node *node, struct codec_run *run,
                             const struct codec_size *size, void **state)
{
    struct rfft *rfft = codec_take_scratch(run, sizeof(*rfft));
    rfft_open(rfft, run, size);
    turn_to(rfft, run, size, true);
    *state = rfft;
    return codec_decode_begin(node->inner, run, size, &rfft->inner);
}

static void rfft_decode_rows(const struct codec_node *node, const struct codec_run *run,
                             void *state, uint32_t first, struct codec_tile *tile)
{
    struct rfft *rfft = state;
    codec_decode_rows(node->inner, run, rfft->inner, first, tile);
    transform(rfft, tile);
}

const struct codec_node_ops codec_node_rfft = {
    .name = "rfft",
    .summary = "channels of a token's head by the Fourier transform of real numbers",
    .role = CODEC_TRANSFORM,
    .fits = rfft_fits,
    .bound = codec_inner_bound,
    .scratch = rfft_scratch,
    .encode = rfft_encode,
    .decode_begin = rfft_decode_begin,
    .decode_rows = rfft_decode_rows,
};
