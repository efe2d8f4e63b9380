/* SPDX-License-Identifier: Apache-2.0 */
/* hadamard.c - each token's channels times a normalised Hadamard matrix, its own inverse, so that
 * an outlier is spread over all channels and none is left for the quantizer.
 *
 * `heads` neighbouring heads are turned together (RotateKV: 4); `block` cuts the row into blocks of
 * a power of two instead of the whole of it; `signs` flips signs before the turn by a seed, which
 * makes the rotation a random one (0: none).
 */
#include "codec/hadamard.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/node.h"

enum { HEADS, BLOCK, SIGNS };

static const struct codec_param params[] = {
    [HEADS] = {.name = "heads", .low = 1, .high = 64, .missing = 1, .whole = true},
    /* 0: all channels of the heads together. */
    [BLOCK] = {.name = "block", .low = 0, .high = 65536, .missing = 0, .whole = true},
    [SIGNS] = {.name = "signs", .low = 0, .high = 65535, .missing = 0, .whole = true},
};

/* Heads that turn together: not more than there are. */
static uint32_t joined_heads(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t heads = (uint32_t)node->value[HEADS];
    return heads < size->heads ? heads : size->heads;
}

static uint32_t turned_dims(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t block = (uint32_t)node->value[BLOCK];
    return block ? block : joined_heads(node, size) * size->dims;
}

static int hadamard_fits(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t heads = joined_heads(node, size);
    uint32_t dims = turned_dims(node, size);
    if (size->heads % heads != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "hadamard heads=%u does not divide the model's %u KV heads", heads,
                           size->heads);
    if (dims == 0 || (dims & (dims - 1)) != 0 || heads * size->dims % dims != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "hadamard of %u channels, %u at a time: that must be a power of two and "
                           "divide them; say block=N",
                           heads * size->dims, dims);
    return codec_fits(node->inner, size);
}

static uint64_t row_bytes(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up((uint64_t)joined_heads(node, size) * size->dims * sizeof(float), 64);
}

static uint64_t hadamard_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return 2 * row_bytes(node, size) + 64 + codec_scratch(node->inner, size);
}

void hadamard_scalar(float *x, uint64_t count, uint64_t dims, const float *factors)
{
    for (uint64_t step = dims / 2; step > 0; step /= 2) {
        for (uint64_t first = 0; first < count; first += 2 * step) {
            float *low = x + first;
            float *high = low + step;
            for (uint64_t i = 0; i < step; i++) {
                float sum = low[i] + high[i];
                float difference = low[i] - high[i];
                low[i] = sum;
                high[i] = difference;
            }
        }
    }
    for (uint64_t i = 0; i < count && factors; i++)
        x[i] *= factors[i];
}

static hadamard_function choose(void)
{
    static _Atomic(hadamard_function) chosen;
    hadamard_function turn = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!turn) {
        turn = hadamard_avx512();
        if (!turn)
            turn = hadamard_avx2();
        if (!turn)
            turn = hadamard_scalar;
        atomic_store_explicit(&chosen, turn, memory_order_relaxed);
    }
    return turn;
}

CODEC_VECTOR static void multiply(float *restrict x, const float *restrict y, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] *= y[i];
}

/* The factor or its negative each, the same in every release: bits of a multiplicative hash of seed
 * and channel. */
static void make_factors(float *out, uint64_t count, uint32_t seed, float factor)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t mixed = (i + 1 + ((uint64_t)seed << 32)) * 0x9e3779b97f4a7c15ull;
        mixed ^= mixed >> 29;
        mixed *= 0xbf58476d1ce4e5b9ull;
        out[i] = seed && (mixed >> 63) ? -factor : factor;
    }
}

struct hadamard {
    uint32_t heads;
    uint64_t count; /* channels that stand in a row */
    uint64_t dims;  /* ... and are turned together */
    float *factors;
    float *row;
    void *inner;
};

static void hadamard_open(struct hadamard *out, const struct codec_node *node,
                          struct codec_run *run, const struct codec_size *size)
{
    out->heads = joined_heads(node, size);
    out->count = (uint64_t)out->heads * size->dims;
    out->dims = turned_dims(node, size);
    out->factors = codec_take_scratch(run, out->count * sizeof(float));
    out->row = codec_take_scratch(run, out->count * sizeof(float));
    make_factors(out->factors, out->count, (uint32_t)node->value[SIGNS],
                 1 / sqrtf((float)out->dims));
}

static void turn(const struct hadamard *hadamard, struct codec_tile *tile, bool back)
{
    hadamard_function turn_row = choose();
    uint64_t dims = tile->size.dims;
    uint64_t head_count = (uint64_t)tile->size.tokens * dims;
    for (uint32_t head = 0; head < tile->size.heads; head += hadamard->heads) {
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            float *at = tile->x + head * head_count + token * dims;
            float *row = hadamard->heads == 1 ? at : hadamard->row;
            for (uint32_t i = 0; i < hadamard->heads && row != at; i++)
                memcpy(row + i * dims, at + i * head_count, dims * sizeof(float));
            if (!back)
                multiply(row, hadamard->factors, hadamard->count);
            turn_row(row, hadamard->count, hadamard->dims, back ? hadamard->factors : NULL);
            for (uint32_t i = 0; i < hadamard->heads && row != at; i++)
                memcpy(at + i * head_count, row + i * dims, dims * sizeof(float));
        }
    }
}

static int hadamard_encode(const struct codec_node *node, struct codec_run *run,
                           struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    struct hadamard hadamard;
    hadamard_open(&hadamard, node, run, &tile->size);
    turn(&hadamard, tile, false);
    int err = codec_encode(node->inner, run, tile);
    if (err == 0)
        turn(&hadamard, tile, true);
    run->scratch = mark;
    return err;
}

static int hadamard_decode_begin(const struct codec_node *node, struct codec_run *run,
                                 const struct codec_size *size, void **state)
{
    struct hadamard *hadamard = codec_take_scratch(run, sizeof(*hadamard));
    hadamard_open(hadamard, node, run, size);
    *state = hadamard;
    return codec_decode_begin(node->inner, run, size, &hadamard->inner);
}

static void hadamard_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                 void *state, uint32_t first, struct codec_tile *tile)
{
    struct hadamard *hadamard = state;
    codec_decode_rows(node->inner, run, hadamard->inner, first, tile);
    turn(hadamard, tile, true);
}

const struct codec_node_ops codec_node_hadamard = {
    .name = "hadamard",
    .summary = "channels of a token rotated by a Hadamard matrix",
    .role = CODEC_TRANSFORM,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .fits = hadamard_fits,
    .bound = codec_inner_bound,
    .scratch = hadamard_scratch,
    .encode = hadamard_encode,
    .decode_begin = hadamard_decode_begin,
    .decode_rows = hadamard_decode_rows,
};
