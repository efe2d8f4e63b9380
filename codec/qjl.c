/* SPDX-License-Identifier: Apache-2.0 */
/* qjl.c - a row of a head as the signs of its products with as many random rows, and its length:
 * the quantized Johnson-Lindenstrauss transform (Zandieh et al., 2024), which TurboQuant's form for
 * inner products puts behind its levels, on what they left over.
 *
 * r becomes |r| and sign(S r); it is read as |r| sqrt(pi / 2) / dims * S^T sign(S r), whose product
 * with any query is right on average. It is a noisy copy: its own squared error is above |r|^2.
 *
 * S is square. Its numbers are sums of eight random bytes less their mean, near enough to normal
 * ones, and whole: so their products with signs have the same bits on every machine.
 *
 *   unit | |r| / sqrt(dims) of each token's heads, f16 | signs, a bit each (symbols.h)
 */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/grid.h"
#include "codec/matrix.h"
#include "codec/node.h"
#include "codec/symbols.h"
#include "kernels/cpu/cpu_math.h"

enum { SEED };

#define LEVELS          2u
#define BYTES_MEAN      1020    /* of a sum of eight bytes */
#define BYTES_DEVIATION 209.021 /* sqrt(8 * (65536 - 1) / 12) */

static const struct codec_param params[] = {
    [SEED] = {.name = "seed", .low = 0, .high = 65535, .missing = 0, .whole = true},
};

struct qjl {
    struct symbols symbols;
    const uint8_t *lengths;
    float unit;
    float factor; /* of the sums of S's rows by signs, for a length of sqrt(dims) */
    uint32_t tokens;
    float *matrix;
    float *length; /* [token][head] of CODEC_ROWS_TOKENS tokens */
    float *signs;  /* of their rows of one head */
    uint8_t *q;
};

static uint64_t floats_bytes(uint64_t count)
{
    return larder_round_up(count * sizeof(float), 64);
}

static uint64_t rows_bytes(const struct codec_size *size)
{
    return floats_bytes((uint64_t)CODEC_ROWS_TOKENS * size->dims);
}

static int qjl_fits(const struct codec_node *node, const struct codec_size *size)
{
    (void)node;
    return matrix_fits("qjl", size->dims);
}

static uint64_t qjl_bound(const struct codec_node *node, const struct codec_size *size)
{
    return CODEC_UNIT_BYTES + 2ul * size->tokens * size->heads + symbols_bound(node, size, LEVELS);
}

static uint64_t qjl_scratch(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t decoding = larder_round_up(symbols_tile_bytes(size), 64);
    uint64_t encoding = larder_round_up(codec_elems(size), 64);
    return larder_round_up(sizeof(struct qjl), 64) +
           2 * floats_bytes((uint64_t)size->dims * size->dims) +
           floats_bytes((uint64_t)CODEC_ROWS_TOKENS * size->heads) + 2 * rows_bytes(size) +
           (decoding > encoding ? decoding : encoding) + symbols_scratch(node, size);
}

/* Row by row of S: out[row][channel], or turned over. */
static void fill_matrix(float *out, uint32_t dims, uint32_t seed, bool turned)
{
    for (uint32_t row = 0; row < dims; row++) {
        for (uint32_t channel = 0; channel < dims; channel++) {
            uint64_t mixed = ((uint64_t)seed << 48 | (uint64_t)row << 24 | channel) + 1;
            mixed *= 0x9e3779b97f4a7c15ull;
            mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
            mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
            mixed ^= mixed >> 31;
            /* Pairs of bytes added in 16 bits each, then those four. */
            uint64_t pairs = (mixed & 0x00ff00ff00ff00ffull) + (mixed >> 8 & 0x00ff00ff00ff00ffull);
            uint32_t sum = (uint32_t)(pairs * 0x0001000100010001ull >> 48);
            uint64_t at = turned ? (uint64_t)channel * dims + row : (uint64_t)row * dims + channel;
            out[at] = (float)((int)sum - BYTES_MEAN);
        }
    }
}

static float factor_of(uint32_t dims)
{
    return (float)(sqrt(3.14159265358979323846 / 2 / dims) / BYTES_DEVIATION);
}

CODEC_VECTOR static void take_signs(uint8_t *q, float *signs, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        q[i] = x[i] >= 0;
        signs[i] = x[i] >= 0 ? 1.0f : -1.0f;
    }
}

CODEC_VECTOR static void signs_of(float *signs, const uint8_t *q, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        signs[i] = (float)(2 * (int)q[i] - 1);
}

CODEC_VECTOR static void multiply(float *x, uint64_t count, float factor)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] *= factor;
}

struct work {
    float *to_signs;
    float *from_signs;
    float *rows; /* CODEC_ROWS_TOKENS each */
    float *products;
    float unit;
};

/* The tokens from `first` on of one head. Their lengths are stored [token][head]. */
static void sketch(uint8_t *q, uint8_t *lengths, const struct work *work, struct codec_tile *tile,
                   uint32_t head, uint32_t first)
{
    uint32_t dims = tile->size.dims;
    uint64_t at = ((uint64_t)head * tile->size.tokens + first) * dims;
    uint64_t count = larder_min_u64(tile->size.tokens - first, CODEC_ROWS_TOKENS);
    float *x = tile->x + at;
    float length[CODEC_ROWS_TOKENS];
    memcpy(work->rows, x, count * dims * sizeof(float));
    multiply(work->rows, count * dims, work->unit);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *stored = lengths + 2 * ((first + i) * tile->size.heads + head);
        length[i] = sqrtf(grid_mean_square(work->rows + i * dims, dims));
        codec_store_f16(stored, &length[i], 1, 1);
        codec_load_f16(&length[i], stored, 1, work->unit);
    }
    matrix_times_rows(work->products, work->rows, count, work->to_signs, dims);
    take_signs(q + at, work->rows, work->products, count * dims);
    matrix_times_rows(x, work->rows, count, work->from_signs, dims);
    for (uint64_t i = 0; i < count; i++)
        multiply(x + i * dims, dims, length[i] * factor_of(dims));
}

static int qjl_encode(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile)
{
    const struct codec_size *size = &tile->size;
    uint32_t seed = (uint32_t)node->value[SEED];
    uint64_t matrix_elems = (uint64_t)size->dims * size->dims;
    uint8_t *mark = run->scratch;
    struct work work = {
        .to_signs = codec_take_scratch(run, matrix_elems * sizeof(float)),
        .from_signs = codec_take_scratch(run, matrix_elems * sizeof(float)),
        .rows = codec_take_scratch(run, rows_bytes(size)),
        .products = codec_take_scratch(run, rows_bytes(size)),
    };
    uint8_t *q = codec_take_scratch(run, codec_elems(size));
    fill_matrix(work.to_signs, size->dims, seed, true);
    fill_matrix(work.from_signs, size->dims, seed, false);
    int err = codec_append_unit(run, &work.unit, tile->x, codec_elems(size));
    if (err == 0) {
        uint8_t *lengths = codec_append(run, 2ul * size->tokens * size->heads);
        for (uint32_t head = 0; head < size->heads; head++) {
            for (uint32_t first = 0; first < size->tokens; first += CODEC_ROWS_TOKENS)
                sketch(q, lengths, &work, tile, head, first);
        }
        symbols_encode(node, run, q, size, LEVELS);
    }
    run->scratch = mark;
    return err;
}

static int qjl_decode_begin(const struct codec_node *node, struct codec_run *run,
                            const struct codec_size *size, void **state)
{
    struct qjl *qjl = codec_take_scratch(run, sizeof(*qjl));
    *qjl = (struct qjl){.tokens = size->tokens, .factor = factor_of(size->dims)};
    qjl->matrix = codec_take_scratch(run, (uint64_t)size->dims * size->dims * sizeof(float));
    qjl->length =
        codec_take_scratch(run, (uint64_t)CODEC_ROWS_TOKENS * size->heads * sizeof(float));
    qjl->signs = codec_take_scratch(run, rows_bytes(size));
    qjl->q = codec_take_scratch(run, symbols_tile_bytes(size));
    fill_matrix(qjl->matrix, size->dims, (uint32_t)node->value[SEED], false);
    LARDER_TRY(codec_take_unit(run, &qjl->unit));
    qjl->lengths = codec_take(run, 2ul * size->tokens * size->heads, "lengths");
    if (!qjl->lengths)
        return LARDER_ECORRUPT;
    *state = qjl;
    return symbols_begin(&qjl->symbols, node, run, size, LEVELS);
}

static void qjl_decode_rows(const struct codec_node *node, const struct codec_run *run, void *state,
                            uint32_t first, struct codec_tile *tile)
{
    (void)node;
    (void)run;
    struct qjl *qjl = state;
    uint32_t in_tile = first % CODEC_TILE_TOKENS;
    struct codec_size symbols = tile->size;
    symbols.tokens = (uint32_t)larder_min_u64(qjl->tokens - (first - in_tile), CODEC_TILE_TOKENS);
    if (in_tile == 0)
        symbols_rows(&qjl->symbols, first, &symbols, qjl->q);
    uint64_t dims = tile->size.dims;
    uint64_t heads = tile->size.heads;
    uint64_t tokens = tile->size.tokens;
    codec_load_f16(qjl->length, qjl->lengths + 2 * first * heads, tokens * heads, qjl->unit);
    for (uint64_t head = 0; head < heads; head++) {
        float *x = tile->x + head * tokens * dims;
        signs_of(qjl->signs, qjl->q + (head * symbols.tokens + in_tile) * dims, tokens * dims);
        matrix_times_rows(x, qjl->signs, tokens, qjl->matrix, (uint32_t)dims);
        for (uint64_t token = 0; token < tokens; token++)
            multiply(x + token * dims, dims, qjl->length[token * heads + head] * qjl->factor);
    }
}

const struct codec_node_ops codec_node_qjl = {
    .name = "qjl",
    .summary = "a row as the signs of its products with random rows, and its length",
    .role = CODEC_LEAF,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .fits = qjl_fits,
    .bound = qjl_bound,
    .scratch = qjl_scratch,
    .encode = qjl_encode,
    .decode_begin = qjl_decode_begin,
    .decode_rows = qjl_decode_rows,
};
