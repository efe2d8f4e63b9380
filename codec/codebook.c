/* SPDX-License-Identifier: Apache-2.0 */
/* codebook.c - numbers of a known range, as the nearest of a few levels that a profile holds for K
 * or V of the layer: k-means of that layer's numbers, between -1 and 1.
 *
 * axis=channel: the range of each channel comes from the profile too, and the section holds nothing
 * but symbols. axis=token: a token's range, over all heads and channels, is its smallest and
 * largest number.
 * norm=on: what is decoded are the levels moved and scaled, so that they have the mean and spread
 * that the numbers had before they were rounded (KVQuant's Q-Norm).
 *
 *   axis=token: unit | half the range of each token | its middle (f16)
 *   symbols
 *
 * Source: KVQuant (Hooper et al., NeurIPS 2024).
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/node.h"
#include "codec/ranges.h"
#include "codec/symbols.h"

enum { BITS, AXIS, NORM };
enum { AXIS_TOKEN, AXIS_CHANNEL };

#define LEVELS_MAX 16u
/* Levels lie between -1 and 1, or close to that with norm=on. */
#define LEVEL_MOST 4.0f

static const struct codec_param params[] = {
    [BITS] = {.name = "bits", .low = 1, .high = 4, .missing = 4, .whole = true},
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    [NORM] = {.name = "norm", .words = "off on"},
};

/* Of a layer. */
struct book {
    float border[LEVELS_MAX]; /* between a level and the next; behind the last: infinity */
    float level[LEVELS_MAX];  /* as decoded */
};

struct bound {
    struct ranges ranges; /* axis=channel */
    struct book books[];
};

struct codebook {
    struct symbols symbols;
    const struct book *book;
    const uint8_t *halves; /* axis=token */
    const uint8_t *middles;
    float unit;
    float *half; /* axis=channel: [head][dim] */
    float *middle;
    uint8_t *q;
    uint32_t tokens;
};

static bool by_channel(const struct codec_node *node)
{
    return (uint32_t)node->value[AXIS] == AXIS_CHANNEL;
}

static uint32_t levels_of(const struct codec_node *node)
{
    return 1u << (uint32_t)node->value[BITS];
}

static uint32_t codebook_wants(const struct codec_node *node)
{
    return by_channel(node) ? CODEC_WHOLE_CHANNELS : 0;
}

/* --- the profile ------------------------------------------------------------------------------ */

static int find_levels(const float **out, const struct larder_profile *profile, uint8_t kind,
                       const char *what, uint32_t levels, uint32_t count)
{
    char last[RANGES_NAME_BYTES];
    char name[RANGES_NAME_BYTES];
    snprintf(last, sizeof(last), "%s%u", what, levels);
    ranges_name(name, kind, last);
    const void *data;
    uint64_t shape[2] = {larder_profile_model(profile)->layers, count};
    LARDER_TRY(larder_profile_find(profile, &data, name, LARDER_PROFILE_F32, shape, 2));
    *out = data;
    return 0;
}

static int make_book(struct book *out, const float *levels, const float *norm, uint32_t count)
{
    for (uint32_t i = 0; i < LEVELS_MAX; i++) {
        bool more = i + 1 < count;
        if (more && !(levels[i] < levels[i + 1]))
            return larder_fail(LARDER_EFORMAT,
                               "profile: a code book goes from %g to %g; levels ascend",
                               (double)levels[i], (double)levels[i + 1]);
        out->border[i] = more ? levels[i] / 2 + levels[i + 1] / 2 : INFINITY;
        out->level[i] = i < count ? levels[i] : 0;
        if (norm && i < count)
            out->level[i] = levels[i] * norm[0] + norm[1];
        if (!(fabsf(out->level[i]) <= LEVEL_MOST))
            return larder_fail(LARDER_EFORMAT,
                               "profile: a code book's level is %g; they lie between -%g and %g",
                               (double)out->level[i], (double)LEVEL_MOST, (double)LEVEL_MOST);
    }
    return 0;
}

static int codebook_bind(void **out, const struct codec_node *node,
                         const struct larder_profile *profile, uint8_t kind)
{
    uint32_t layers = larder_profile_model(profile)->layers;
    uint32_t count = levels_of(node);
    const float *levels;
    const float *norms = NULL;
    struct ranges ranges = {0};
    LARDER_TRY(find_levels(&levels, profile, kind, "lut", count, count));
    if (node->value[NORM] > 0)
        LARDER_TRY(find_levels(&norms, profile, kind, "norm", count, 2));
    if (by_channel(node))
        LARDER_TRY(ranges_find(&ranges, profile, kind));
    struct bound *bound = larder_alloc(sizeof(*bound) + layers * sizeof(bound->books[0]));
    if (!bound)
        return larder_fail(-ENOMEM, "no memory for the code books of %u layers", layers);
    bound->ranges = ranges;
    for (uint32_t i = 0; i < layers; i++) {
        int err = make_book(&bound->books[i], levels + (uint64_t)i * count,
                            norms ? norms + 2ul * i : NULL, count);
        if (err < 0) {
            larder_free(bound);
            return err;
        }
    }
    *out = bound;
    return 0;
}

/* --- numbers and symbols ---------------------------------------------------------------------- */

/* Borders below it. */
static inline uint8_t symbol_of(float x, const float *border)
{
    uint8_t symbol = 0;
    for (uint32_t i = 0; i < LEVELS_MAX; i++)
        symbol = (uint8_t)(symbol + (x > border[i]));
    return symbol;
}

CODEC_VECTOR static void restore_each(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                      const float *level, const float *half, const float *middle)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = level[q[i]] * half[i] + middle[i];
}

CODEC_VECTOR static void restore_one(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                     const float *level, float half, float middle)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = level[q[i]] * half + middle;
}

CODEC_VECTOR static void quantize_each(uint8_t *restrict q, const float *restrict x, uint64_t count,
                                       const float *border, const float *half, const float *middle)
{
    for (uint64_t i = 0; i < count; i++)
        q[i] = symbol_of(half[i] > 0 ? (x[i] - middle[i]) / half[i] : 0, border);
}

CODEC_VECTOR static void quantize_one(uint8_t *restrict q, const float *restrict x, uint64_t count,
                                      const float *border, float half, float middle)
{
    for (uint64_t i = 0; i < count; i++)
        q[i] = symbol_of(half > 0 ? (x[i] - middle) / half : 0, border);
}

/* Halves and middles of the profile's ranges. */
static void load_ranges(float *half, float *middle, const struct ranges *ranges, uint32_t layer)
{
    const float *lower = ranges->lower + layer * ranges->channels;
    const float *upper = ranges->upper + layer * ranges->channels;
    for (uint64_t i = 0; i < ranges->channels; i++) {
        half[i] = upper[i] / 2 - lower[i] / 2;
        middle[i] = upper[i] / 2 + lower[i] / 2;
    }
}

static void measure_tokens(float *half, float *middle, const struct codec_tile *tile)
{
    uint64_t dims = tile->size.dims;
    for (uint32_t token = 0; token < tile->size.tokens; token++) {
        float low = INFINITY;
        float high = -INFINITY;
        for (uint32_t head = 0; head < tile->size.heads; head++) {
            const float *x = tile->x + ((uint64_t)head * tile->size.tokens + token) * dims;
            for (uint64_t i = 0; i < dims; i++) {
                low = x[i] < low ? x[i] : low;
                high = x[i] > high ? x[i] : high;
            }
        }
        half[token] = high / 2 - low / 2;
        middle[token] = high / 2 + low / 2;
    }
}

/* --- the node --------------------------------------------------------------------------------- */

static uint64_t codebook_bound(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t ranges = by_channel(node) ? 0 : CODEC_UNIT_BYTES + 4ull * size->tokens;
    return ranges + symbols_bound(node, size, levels_of(node));
}

static uint64_t codebook_scratch(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t ranges = by_channel(node) ? (uint64_t)size->heads * size->dims : size->tokens;
    return larder_round_up(sizeof(struct codebook), 64) +
           2 * larder_round_up(ranges * sizeof(float), 64) +
           larder_round_up(codec_elems(size), 64) + larder_round_up(symbols_tile_bytes(size), 64) +
           symbols_scratch(node, size);
}

static const struct book *book_of(const struct codec_node *node, const struct codec_run *run)
{
    const struct bound *bound = node->bound;
    return &bound->books[run->layer];
}

/* Ranges of tokens go into the stream, and come back as they stand there. */
static int append_tokens(struct codec_run *run, float *half, float *middle,
                         const struct codec_tile *tile)
{
    uint64_t count = tile->size.tokens;
    float unit;
    int err = codec_append_unit(run, &unit, tile->x, codec_elems(&tile->size));
    if (err != 0)
        return err;
    measure_tokens(half, middle, tile);
    uint8_t *out = codec_append(run, 4 * count);
    codec_store_f16(out, half, count, unit);
    codec_load_f16(half, out, count, unit);
    codec_store_f16(out + 2 * count, middle, count, unit);
    codec_load_f16(middle, out + 2 * count, count, unit);
    return 0;
}

static int codebook_encode(const struct codec_node *node, struct codec_run *run,
                           struct codec_tile *tile)
{
    const struct codec_size *size = &tile->size;
    const struct bound *bound = node->bound;
    const struct book *book = book_of(node, run);
    uint64_t dims = size->dims;
    uint64_t ranges = by_channel(node) ? size->heads * dims : size->tokens;
    uint8_t *top = run->scratch;
    float *half = codec_take_scratch(run, ranges * sizeof(float));
    float *middle = codec_take_scratch(run, ranges * sizeof(float));
    uint8_t *q = codec_take_scratch(run, codec_elems(size));
    int err = 0;
    if (by_channel(node))
        load_ranges(half, middle, &bound->ranges, run->layer);
    else
        err = append_tokens(run, half, middle, tile);
    for (uint64_t row = 0; row < (uint64_t)size->heads * size->tokens && err == 0; row++) {
        float *x = tile->x + row * dims;
        uint8_t *row_q = q + row * dims;
        uint64_t at = by_channel(node) ? row / size->tokens * dims : row % size->tokens;
        if (by_channel(node)) {
            quantize_each(row_q, x, dims, book->border, half + at, middle + at);
            restore_each(x, row_q, dims, book->level, half + at, middle + at);
        } else {
            quantize_one(row_q, x, dims, book->border, half[at], middle[at]);
            restore_one(x, row_q, dims, book->level, half[at], middle[at]);
        }
    }
    if (err == 0)
        symbols_encode(node, run, q, size, levels_of(node));
    run->scratch = top;
    return err;
}

static int codebook_decode_begin(const struct codec_node *node, struct codec_run *run,
                                 const struct codec_size *size, void **state)
{
    struct codebook *codebook = codec_take_scratch(run, sizeof(*codebook));
    *codebook = (struct codebook){.book = book_of(node, run), .tokens = size->tokens};
    *state = codebook;
    uint64_t ranges = by_channel(node) ? (uint64_t)size->heads * size->dims : CODEC_ROWS_TOKENS;
    codebook->half = codec_take_scratch(run, ranges * sizeof(float));
    codebook->middle = codec_take_scratch(run, ranges * sizeof(float));
    codebook->q = codec_take_scratch(run, symbols_tile_bytes(size));
    if (by_channel(node)) {
        const struct bound *bound = node->bound;
        load_ranges(codebook->half, codebook->middle, &bound->ranges, run->layer);
    } else {
        LARDER_TRY(codec_take_unit(run, &codebook->unit));
        codebook->halves = codec_take(run, 4ull * size->tokens, "ranges of tokens");
        if (!codebook->halves)
            return LARDER_ECORRUPT;
        codebook->middles = codebook->halves + 2ul * size->tokens;
    }
    return symbols_begin(&codebook->symbols, node, run, size, levels_of(node));
}

static void codebook_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                 void *state, uint32_t first, struct codec_tile *tile)
{
    (void)run;
    struct codebook *codebook = state;
    uint64_t dims = tile->size.dims;
    uint32_t in_tile = first % CODEC_TILE_TOKENS;
    struct codec_size symbols = tile->size;
    symbols.tokens =
        (uint32_t)larder_min_u64(codebook->tokens - (first - in_tile), CODEC_TILE_TOKENS);
    if (in_tile == 0)
        symbols_rows(&codebook->symbols, first, &symbols, codebook->q);
    if (!by_channel(node)) {
        codec_load_f16(codebook->half, codebook->halves + 2ul * first, tile->size.tokens,
                       codebook->unit);
        codec_load_f16(codebook->middle, codebook->middles + 2ul * first, tile->size.tokens,
                       codebook->unit);
    }
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            float *x = tile->x + ((uint64_t)head * tile->size.tokens + token) * dims;
            const uint8_t *q =
                codebook->q + ((uint64_t)head * symbols.tokens + in_tile + token) * dims;
            if (by_channel(node))
                restore_each(x, q, dims, codebook->book->level, codebook->half + head * dims,
                             codebook->middle + head * dims);
            else
                restore_one(x, q, dims, codebook->book->level, codebook->half[token],
                            codebook->middle[token]);
        }
    }
}

const struct codec_node_ops codec_node_codebook = {
    .name = "codebook",
    .summary = "the nearest of a few levels that the profile holds for the layer",
    .role = CODEC_LEAF,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .needs_profile = true,
    .wants = codebook_wants,
    .bind = codebook_bind,
    .bound = codebook_bound,
    .scratch = codebook_scratch,
    .encode = codebook_encode,
    .decode_begin = codebook_decode_begin,
    .decode_rows = codebook_decode_rows,
};
