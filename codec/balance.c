/* SPDX-License-Identifier: Apache-2.0 */
/* balance.c - channels divided by a factor of their own before what follows, and multiplied by it
 * when decoding, so that a loud channel does not set the scale of all. Factors are f16 and are
 * divided by as they are stored; one that is stored as zero counts as 1.
 *
 * `normalize` (ZipCache's channel-separable token-wise quantization): sqrt(max |x|) of the tokens.
 * `balance` (MiKV's channel balancer): sqrt(max |k| / max |q|), which shares what is loud between K
 * and the queries that meet it: a channel that no query looks at may be coarse. Needs q_max of the
 * PUT; V passes unchanged.
 *
 *   unit | factors, [head][dim]
 *
 * Sources: ZipCache (He et al., 2024) and MiKV (Yang et al., 2024).
 */
#include <math.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/record.h"
#include "codec/node.h"

/* A channel that queries leave alone is taken for one that they touch by this part of the loudest:
 * else its factor would make any rounding error a huge number. */
#define QUERY_PART_LEAST 0x1p-10

struct balance {
    float *factors; /* [head][dim]; NULL: this section passes unchanged */
    void *inner;
};

static bool is_balance(const struct codec_node *node)
{
    return node->ops == &codec_node_balance;
}

static bool passes(const struct codec_node *node, const struct codec_run *run)
{
    return is_balance(node) && run->kind != LARDER_SECTION_K;
}

static uint64_t factor_count(const struct codec_size *size)
{
    return (uint64_t)size->heads * size->dims;
}

static uint32_t balance_needs(const struct codec_node *node)
{
    (void)node;
    return LARDER_INPUT_Q_MAX;
}

static uint64_t balance_bound(const struct codec_node *node, const struct codec_size *size)
{
    return CODEC_UNIT_BYTES + 2 * factor_count(size) + codec_bound(node->inner, size);
}

static uint64_t balance_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up(sizeof(struct balance), 64) +
           larder_round_up(factor_count(size) * sizeof(float), 64) +
           codec_scratch(node->inner, size);
}

CODEC_VECTOR static void widen(float *restrict most, const float *restrict x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        float size = x[i] < 0 ? -x[i] : x[i];
        most[i] = size > most[i] ? size : most[i];
    }
}

CODEC_VECTOR static void divide(float *restrict x, const float *restrict by, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] / by[i];
}

CODEC_VECTOR static void multiply(float *restrict x, const float *restrict by, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] * by[i];
}

static float largest_finite(const float *x, uint64_t count)
{
    float most = 0;
    for (uint64_t i = 0; i < count; i++)
        most = isfinite(x[i]) && x[i] > most ? x[i] : most;
    return most;
}

static void find_factors(float *factors, const struct codec_node *node, const struct codec_run *run,
                         const struct codec_tile *tile)
{
    uint64_t count = factor_count(&tile->size);
    uint32_t dims = tile->size.dims;
    for (uint64_t i = 0; i < count; i++)
        factors[i] = 0;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = 0; token < tile->size.tokens; token++)
            widen(factors + (uint64_t)head * dims,
                  tile->x + ((uint64_t)head * tile->size.tokens + token) * dims, dims);
    }
    const float *q_max = is_balance(node) ? run->block->q_max + run->layer * count : NULL;
    double floor = q_max ? (double)largest_finite(q_max, count) * QUERY_PART_LEAST : 0;
    for (uint64_t i = 0; i < count; i++) {
        double ratio = (double)factors[i];
        if (q_max)
            ratio /= (double)q_max[i] > floor ? (double)q_max[i] : floor;
        float factor = (float)sqrt(ratio);
        factors[i] = isfinite(factor) && factor > 0 ? factor : 1;
    }
}

static void load_factors(float *factors, const uint8_t *in, uint64_t count, float unit)
{
    codec_load_f16(factors, in, count, unit);
    for (uint64_t i = 0; i < count; i++)
        factors[i] = factors[i] != 0 ? factors[i] : 1;
}

static void multiply_rows(const float *factors, struct codec_tile *tile)
{
    uint64_t dims = tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = 0; token < tile->size.tokens; token++)
            multiply(tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                     factors + head * dims, dims);
    }
}

static int balance_encode(const struct codec_node *node, struct codec_run *run,
                          struct codec_tile *tile)
{
    if (passes(node, run))
        return codec_encode(node->inner, run, tile);
    uint8_t *mark = run->scratch;
    uint64_t count = factor_count(&tile->size);
    uint64_t dims = tile->size.dims;
    float *factors = codec_take_scratch(run, count * sizeof(float));
    find_factors(factors, node, run, tile);
    float unit;
    int err = codec_append_unit(run, &unit, factors, count);
    if (err == 0) {
        uint8_t *out = codec_append(run, 2 * count);
        codec_store_f16(out, factors, count, unit);
        load_factors(factors, out, count, unit);
        for (uint32_t head = 0; head < tile->size.heads; head++) {
            for (uint32_t token = 0; token < tile->size.tokens; token++)
                divide(tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                       factors + head * dims, dims);
        }
        err = codec_encode(node->inner, run, tile);
    }
    if (err == 0)
        multiply_rows(factors, tile);
    run->scratch = mark;
    return err;
}

static int balance_decode_begin(const struct codec_node *node, struct codec_run *run,
                                const struct codec_size *size, void **state)
{
    struct balance *balance = codec_take_scratch(run, sizeof(*balance));
    *balance = (struct balance){0};
    *state = balance;
    if (!passes(node, run)) {
        uint64_t count = factor_count(size);
        balance->factors = codec_take_scratch(run, count * sizeof(float));
        float unit;
        LARDER_TRY(codec_take_unit(run, &unit));
        const uint8_t *in = codec_take(run, 2 * count, "factors of channels");
        if (!in)
            return LARDER_ECORRUPT;
        load_factors(balance->factors, in, count, unit);
    }
    return codec_decode_begin(node->inner, run, size, &balance->inner);
}

static void balance_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                void *state, uint32_t first, struct codec_tile *tile)
{
    const struct balance *balance = state;
    codec_decode_rows(node->inner, run, balance->inner, first, tile);
    if (balance->factors)
        multiply_rows(balance->factors, tile);
}

static uint32_t balance_wants(const struct codec_node *node)
{
    (void)node;
    return CODEC_WHOLE_CHANNELS;
}

const struct codec_node_ops codec_node_balance = {
    .name = "balance",
    .summary = "channels of K divided by sqrt(max |k| / max |q|); needs q_max with the PUT",
    .role = CODEC_TRANSFORM,
    .needs = balance_needs,
    .wants = balance_wants,
    .fits = codec_inner_fits,
    .bound = balance_bound,
    .scratch = balance_scratch,
    .encode = balance_encode,
    .decode_begin = balance_decode_begin,
    .decode_rows = balance_decode_rows,
};

const struct codec_node_ops codec_node_normalize = {
    .name = "normalize",
    .summary = "channels divided by sqrt(max |x|)",
    .role = CODEC_TRANSFORM,
    .fits = codec_inner_fits,
    .bound = balance_bound,
    .scratch = balance_scratch,
    .encode = balance_encode,
    .decode_begin = balance_decode_begin,
    .decode_rows = balance_decode_rows,
};
