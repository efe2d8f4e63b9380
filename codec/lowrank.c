/* SPDX-License-Identifier: Apache-2.0 */
/* lowrank.c - what the inner pipe got wrong, as a product of two thin matrices for each head:
 * error [token][dim] = A [token][rank] * B [rank][dim], both in f16.
 *
 * A and B come from a few rounds of power iteration that start at random columns; columns are made
 * orthonormal in the last round, so that A * B is the error projected on what A spans.
 *
 *   the inner pipe | unit | A, [head][token][rank] | unit | B, [head][rank][dim]
 *
 * Source: GEAR (Kang et al., 2024).
 */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/node.h"

enum { RANK, ITERATIONS };

static const struct codec_param params[] = {
    [RANK] = {.name = "rank", .low = 1, .high = 16, .missing = 4, .whole = true},
    [ITERATIONS] = {.name = "iterations", .low = 1, .high = 4, .missing = 3, .whole = true},
};

/* Columns that are worked on together: what is read of a matrix serves all of them. */
#define TOGETHER 4u

static uint32_t columns_of(uint32_t rank)
{
    return (uint32_t)larder_round_up(rank, TOGETHER);
}

struct lowrank {
    void *inner;
    const uint8_t *a;
    float *b;
    float *a_rows; /* of one head's tokens in a tile */
    float a_unit;
    uint32_t rank;
    uint32_t tokens;
};

static uint32_t rank_of(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t most = larder_min_u64(size->tokens, size->dims);
    return (uint32_t)larder_min_u64((uint64_t)node->value[RANK], most);
}

static uint64_t a_count(const struct codec_node *node, const struct codec_size *size)
{
    return (uint64_t)size->heads * size->tokens * rank_of(node, size);
}

static uint64_t b_count(const struct codec_node *node, const struct codec_size *size)
{
    return (uint64_t)size->heads * size->dims * rank_of(node, size);
}

static uint64_t lowrank_bound(const struct codec_node *node, const struct codec_size *size)
{
    return codec_bound(node->inner, size) + 2 * CODEC_UNIT_BYTES +
           2 * (a_count(node, size) + b_count(node, size));
}

static uint64_t lowrank_scratch(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t thin = larder_round_up(a_count(node, size) * sizeof(float), 64) +
                    larder_round_up(b_count(node, size) * sizeof(float), 64);
    uint64_t columns = columns_of(rank_of(node, size));
    return larder_round_up(sizeof(struct lowrank), 64) +
           larder_round_up(codec_elems(size) * sizeof(float), 64) + thin +
           larder_round_up(columns * size->tokens * sizeof(float), 64) +
           larder_round_up(columns * size->dims * sizeof(float), 64) +
           codec_scratch(node->inner, size);
}

/* --- the factors of one head ------------------------------------------------------------------ */

/* Sums of lanes, then of those: the same on every machine. */
CODEC_VECTOR static float dot(const float *x, const float *y, uint64_t count)
{
    codec_lanes sums = {0};
    uint64_t i = 0;
    for (; i + CODEC_LANES <= count; i += CODEC_LANES) {
        codec_lanes a;
        codec_lanes b;
        memcpy(&a, x + i, sizeof(a));
        memcpy(&b, y + i, sizeof(b));
        sums += a * b;
    }
    for (uint32_t lane = 0; i < count; i++, lane++)
        sums[lane] += x[i] * y[i];
    CODEC_SUM(sums);
    return sums[0];
}

/* columns[j][row] = the product of a row and of b[j], four j. */
CODEC_VECTOR static void project(float *restrict columns, const float *restrict rows,
                                 const float *restrict b, uint64_t row_count, uint64_t dims)
{
    uint64_t whole = dims / CODEC_LANES * CODEC_LANES;
    for (uint64_t row = 0; row < row_count; row++, rows += dims) {
        codec_lanes sums[TOGETHER] = {{0}};
        for (uint64_t i = 0; i < whole; i += CODEC_LANES) {
            codec_lanes x;
            memcpy(&x, rows + i, sizeof(x));
            for (uint32_t j = 0; j < TOGETHER; j++) {
                codec_lanes y;
                memcpy(&y, b + j * dims + i, sizeof(y));
                sums[j] += x * y;
            }
        }
        for (uint32_t j = 0; j < TOGETHER; j++) {
            for (uint64_t i = whole; i < dims; i++)
                sums[j][i - whole] += rows[i] * b[j * dims + i];
            CODEC_SUM(sums[j]);
            columns[j * row_count + row] = sums[j][0];
        }
    }
}

/* b[j] = the sum of all rows, each times its number in columns[j], four j. */
CODEC_VECTOR static void combine(float *restrict b, const float *restrict rows,
                                 const float *restrict columns, uint64_t row_count, uint64_t dims)
{
    for (uint64_t first = 0; first < dims; first += CODEC_LANES) {
        uint64_t n = dims - first < CODEC_LANES ? dims - first : CODEC_LANES;
        codec_lanes sums[TOGETHER] = {{0}};
        for (uint64_t row = 0; row < row_count; row++) {
            codec_lanes x = {0};
            if (n == CODEC_LANES)
                memcpy(&x, rows + row * dims + first, sizeof(x));
            else
                memcpy(&x, rows + row * dims + first, n * sizeof(float));
            for (uint32_t j = 0; j < TOGETHER; j++)
                sums[j] += x * columns[j * row_count + row];
        }
        for (uint32_t j = 0; j < TOGETHER; j++)
            memcpy(b + j * dims + first, &sums[j], n * sizeof(float));
    }
}

CODEC_VECTOR static void add_product(float *restrict x, const float *restrict y, float factor,
                                     uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] += factor * y[i];
}

/* Makes a column one long; one that was almost nothing becomes zero. */
static void normalize(float *x, uint64_t count, float nothing)
{
    float length = sqrtf(dot(x, x, count));
    float factor = length > nothing ? 1 / length : 0;
    for (uint64_t i = 0; i < count; i++)
        x[i] *= factor;
}

/* Columns one long each: off goes what lies along those before. Twice, since columns that were
 * almost the same leave little but rounding errors the first time. */
static void orthonormalize(float *columns, uint32_t rank, uint64_t count)
{
    for (uint32_t i = 0; i < rank; i++) {
        float *column = columns + i * count;
        normalize(column, count, 0);
        for (int pass = 0; pass < 2; pass++) {
            for (uint32_t j = 0; j < i; j++) {
                const float *other = columns + j * count;
                add_product(column, other, -dot(column, other, count), count);
            }
            normalize(column, count, 1e-5f);
        }
    }
}

/* Between -1 and 1, the same in every release. */
static float start_number(uint64_t index)
{
    uint64_t mixed = (index + 1) * 0x9e3779b97f4a7c15ull;
    mixed ^= mixed >> 29;
    mixed *= 0xbf58476d1ce4e5b9ull;
    return (float)(mixed >> 40) / 0x1p23f - 1;
}

/* `error` is [token][dim], of numbers up to 1; a [rank][token], b [rank][dim], both with room for
 * columns up to a multiple of TOGETHER, which are worked on as if they were wanted. */
static void factorize(float *a, float *b, const float *error, uint32_t rank, uint32_t iterations,
                      const struct codec_size *size)
{
    uint64_t dims = size->dims;
    uint32_t columns = columns_of(rank);
    memset(a, 0, columns * (uint64_t)size->tokens * sizeof(float));
    for (uint64_t i = 0; i < columns * dims; i++)
        b[i] = i < rank * dims ? start_number(i) : 0;
    for (uint32_t round = 1; round <= iterations; round++) {
        if (round == iterations)
            orthonormalize(b, rank, dims);
        for (uint32_t j = 0; j < rank; j += TOGETHER)
            project(a + j * (uint64_t)size->tokens, error, b + j * dims, size->tokens, dims);
        /* Lengths would grow with each round. */
        for (uint32_t j = 0; j < rank; j++)
            normalize(a + j * (uint64_t)size->tokens, size->tokens, 0);
        if (round == iterations)
            orthonormalize(a, rank, size->tokens);
        for (uint32_t j = 0; j < rank; j += TOGETHER)
            combine(b + j * dims, error, a + j * (uint64_t)size->tokens, size->tokens, dims);
    }
}

/* --- the node --------------------------------------------------------------------------------- */

/* Adds A * B of `tokens` rows of one head. */
CODEC_VECTOR static void add_rows(float *restrict x, const float *restrict a,
                                  const float *restrict b, uint32_t rank, uint32_t tokens,
                                  uint64_t dims)
{
    for (uint32_t token = 0; token < tokens; token++, x += dims, a += rank) {
        uint64_t i = 0;
        for (; i + CODEC_LANES <= dims; i += CODEC_LANES) {
            codec_lanes sums;
            memcpy(&sums, x + i, sizeof(sums));
            for (uint32_t j = 0; j < rank; j++) {
                codec_lanes y;
                memcpy(&y, b + j * dims + i, sizeof(y));
                sums += a[j] * y;
            }
            memcpy(x + i, &sums, sizeof(sums));
        }
        for (; i < dims; i++) {
            for (uint32_t j = 0; j < rank; j++)
                x[i] += a[j] * b[j * dims + i];
        }
    }
}

CODEC_VECTOR static void subtract_from(float *restrict x, const float *restrict y, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] - y[i];
}

CODEC_VECTOR static void multiply(float *x, uint64_t count, float factor)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] *= factor;
}

/* Appends numbers as f16 and leaves in them what was stored. */
static int append_f16(struct codec_run *run, float *x, uint64_t count)
{
    float unit;
    int err = codec_append_unit(run, &unit, x, count);
    if (err != 0)
        return err;
    uint8_t *out = codec_append(run, 2 * count);
    codec_store_f16(out, x, count, unit);
    codec_load_f16(x, out, count, unit);
    return 0;
}

static int append_factors(const struct codec_node *node, struct codec_run *run, float *error,
                          struct codec_tile *tile)
{
    const struct codec_size *size = &tile->size;
    uint32_t rank = rank_of(node, size);
    uint64_t head_count = (uint64_t)size->tokens * size->dims;
    float *a = codec_take_scratch(run, a_count(node, size) * sizeof(float));
    float *b = codec_take_scratch(run, b_count(node, size) * sizeof(float));
    uint32_t columns = columns_of(rank);
    float *thin_a = codec_take_scratch(run, (uint64_t)columns * size->tokens * sizeof(float));
    float *thin_b = codec_take_scratch(run, (uint64_t)columns * size->dims * sizeof(float));
    float most = codec_largest(error, codec_elems(size));
    if (!isfinite(most))
        return CODEC_CANNOT;
    int exponent = 0;
    (void)frexpf(most, &exponent);
    float scale = ldexpf(1, exponent < -126 ? 126 : -exponent);
    multiply(error, codec_elems(size), scale);
    for (uint32_t head = 0; head < size->heads; head++) {
        float *head_a = a + (uint64_t)head * size->tokens * rank;
        factorize(thin_a, thin_b, error + head * head_count, rank,
                  (uint32_t)node->value[ITERATIONS], size);
        for (uint64_t token = 0; token < size->tokens; token++) {
            for (uint64_t j = 0; j < rank; j++)
                head_a[token * rank + j] = thin_a[j * size->tokens + token];
        }
        memcpy(b + (uint64_t)head * size->dims * rank, thin_b,
               (uint64_t)rank * size->dims * sizeof(float));
    }
    multiply(b, b_count(node, size), 1 / scale); /* powers of two: exact */
    int err = append_f16(run, a, a_count(node, size));
    if (err == 0)
        err = append_f16(run, b, b_count(node, size));
    for (uint32_t head = 0; head < size->heads && err == 0; head++)
        add_rows(tile->x + head * head_count, a + (uint64_t)head * size->tokens * rank,
                 b + (uint64_t)head * size->dims * rank, rank, size->tokens, size->dims);
    return err;
}

static int lowrank_encode(const struct codec_node *node, struct codec_run *run,
                          struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    uint64_t count = codec_elems(&tile->size);
    float *error = codec_take_scratch(run, count * sizeof(float));
    memcpy(error, tile->x, count * sizeof(float));
    int err = codec_encode(node->inner, run, tile);
    if (err == 0) {
        subtract_from(error, tile->x, count);
        err = append_factors(node, run, error, tile);
    }
    run->scratch = mark;
    return err;
}

static int lowrank_decode_begin(const struct codec_node *node, struct codec_run *run,
                                const struct codec_size *size, void **state)
{
    struct lowrank *lowrank = codec_take_scratch(run, sizeof(*lowrank));
    *lowrank = (struct lowrank){.rank = rank_of(node, size), .tokens = size->tokens};
    *state = lowrank;
    LARDER_TRY(codec_decode_begin(node->inner, run, size, &lowrank->inner));
    LARDER_TRY(codec_take_unit(run, &lowrank->a_unit));
    lowrank->a = codec_take(run, 2 * a_count(node, size), "factors of rows");
    if (!lowrank->a)
        return LARDER_ECORRUPT;
    float unit;
    LARDER_TRY(codec_take_unit(run, &unit));
    const uint8_t *b = codec_take(run, 2 * b_count(node, size), "factors of channels");
    if (!b)
        return LARDER_ECORRUPT;
    lowrank->a_rows =
        codec_take_scratch(run, (uint64_t)lowrank->rank * CODEC_ROWS_TOKENS * sizeof(float));
    lowrank->b = codec_take_scratch(run, b_count(node, size) * sizeof(float));
    codec_load_f16(lowrank->b, b, b_count(node, size), unit);
    return 0;
}

static void lowrank_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                void *state, uint32_t first, struct codec_tile *tile)
{
    const struct lowrank *lowrank = state;
    codec_decode_rows(node->inner, run, lowrank->inner, first, tile);
    uint32_t rank = lowrank->rank;
    uint64_t dims = tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        uint64_t row = (uint64_t)head * lowrank->tokens + first;
        codec_load_f16(lowrank->a_rows, lowrank->a + 2 * row * rank,
                       (uint64_t)tile->size.tokens * rank, lowrank->a_unit);
        add_rows(tile->x + (uint64_t)head * tile->size.tokens * dims, lowrank->a_rows,
                 lowrank->b + head * dims * rank, rank, tile->size.tokens, dims);
    }
}

const struct codec_node_ops codec_node_lowrank = {
    .name = "lowrank",
    .summary = "the error of the inner pipe as a product of two thin matrices a head",
    .role = CODEC_WRAPPER,
    .inner_count = 1,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .fits = codec_inner_fits,
    .bound = lowrank_bound,
    .scratch = lowrank_scratch,
    .encode = lowrank_encode,
    .decode_begin = lowrank_decode_begin,
    .decode_rows = lowrank_decode_rows,
};
