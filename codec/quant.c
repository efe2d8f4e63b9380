/* SPDX-License-Identifier: Apache-2.0 */
/* quant.c - uniform quantization: x = q * scale + low, q a small whole number.
 *
 * A group shares scale and low: g tokens of one channel (axis=channel), or g channels of one token
 * (axis=token). Modes: `asym` keeps the smallest number as f16, never clamped; `int` keeps it as a
 * whole number of scales, unclamped too; `sym` has none and an odd number of levels. The scale is
 * rounded to f16 before numbers are quantized with it.
 *
 *   unit | scale and low of each block of groups | symbols | raw tokens
 *
 * A block of groups: those of one token, or of one run of g tokens: all scales, then all lows.
 *
 * Sources: KIVI (Liu et al., ICML 2024) for asym by channel and token; QuaRot (Ashkboos et al.,
 * NeurIPS 2024) for sym.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/groups.h"
#include "codec/node.h"
#include "codec/symbols.h"
#include "kernels/cpu/cpu_math.h"

enum { BITS, LEVELS, AXIS, GROUP, CLIP, MODE, PARTS };
enum { AXIS_TOKEN, AXIS_CHANNEL };
enum { MODE_ASYM, MODE_INT, MODE_SYM };

static const struct codec_param params[] = {
    [BITS] = {.name = "bits", .low = 1, .high = 8, .missing = 4, .whole = true},
    /* Instead of bits; 0: as many as the bits allow. */
    [LEVELS] = {.name = "levels", .low = 0, .high = 256, .missing = 0, .whole = true},
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    /* 0: all tokens of a channel, or all heads and channels of a token. */
    [GROUP] = {.name = "group", .low = 0, .high = 4096, .missing = 32, .whole = true},
    [CLIP] = {.name = "clip", .low = 0.1, .high = 1, .missing = 1},
    [MODE] = {.name = "mode", .missing = MODE_ASYM, .words = "asym int sym"},
    /* Groups of a head's channels, whatever the model has of them; 0: as `group` says. */
    [PARTS] = {.name = "parts", .low = 0, .high = 64, .missing = 0, .whole = true},
};

struct grid {
    uint32_t levels;
    uint32_t mode;
    struct groups groups;
};

struct quant_state {
    struct grid grid;
    struct symbols symbols;
    const uint8_t *blocks;
    const uint8_t *raw;
    float unit;
    uint32_t loaded; /* block whose numbers stand in scale and low; UINT32_MAX: none */
    bool in_pairs;   /* ... as restore_bf16_each() reads them */
    float *scale;
    float *low;
    uint8_t *q;
};

static void make_grid(struct grid *out, const struct codec_node *node,
                      const struct codec_size *size)
{
    uint32_t levels = (uint32_t)node->value[LEVELS];
    *out = (struct grid){
        .mode = (uint32_t)node->value[MODE],
        .levels = levels ? levels : 1u << (uint32_t)node->value[BITS],
    };
    if (out->mode == MODE_SYM)
        out->levels -= out->levels % 2 == 0;
    uint32_t parts = (uint32_t)node->value[PARTS];
    uint32_t group = parts ? (size->dims + parts - 1) / parts : (uint32_t)node->value[GROUP];
    groups_make(&out->groups, size, (uint32_t)node->value[AXIS] == AXIS_CHANNEL, group);
}

static int quant_check(const struct codec_node *node)
{
    uint32_t levels = (uint32_t)node->value[LEVELS];
    bool sym = (uint32_t)node->value[MODE] == MODE_SYM;
    if (levels == 1 || (sym && (levels == 2 || (levels == 0 && node->value[BITS] < 2))))
        return larder_fail(-EINVAL, "quant: %s has too few levels; sym needs 3, the others 2",
                           sym ? "mode=sym" : "levels=1");
    if (node->value[PARTS] > 0 && (uint32_t)node->value[AXIS] == AXIS_CHANNEL)
        return larder_fail(-EINVAL,
                           "quant: parts=%u cuts a token's channels; it goes with "
                           "axis=token",
                           (uint32_t)node->value[PARTS]);
    return groups_check("quant", (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                        (uint32_t)node->value[GROUP]);
}

static uint64_t block_bytes(const struct grid *grid)
{
    return (uint64_t)grid->groups.block_groups * (grid->mode == MODE_SYM ? 2 : 4);
}

static uint64_t quant_bound(const struct codec_node *node, const struct codec_size *size)
{
    struct grid grid;
    make_grid(&grid, node, size);
    struct codec_size whole = groups_whole(&grid.groups, size);
    return CODEC_UNIT_BYTES + grid.groups.block_count * block_bytes(&grid) +
           symbols_bound(node, &whole, grid.levels) + groups_tail_bound(&grid.groups, size);
}

static uint64_t quant_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct grid grid;
    make_grid(&grid, node, size);
    uint64_t numbers = larder_round_up(grid.groups.block_groups * sizeof(float), 64);
    uint64_t tile = larder_round_up(symbols_tile_bytes(size), 64);
    uint64_t symbols = larder_round_up(codec_elems(size), 64);
    return larder_round_up(sizeof(struct quant_state), 64) + 3 * numbers + tile + symbols +
           symbols_scratch(node, size);
}

/* --- a block's scale and low ------------------------------------------------------------------ */

CODEC_VECTOR static void widen_each(float *low, float *high, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        low[i] = x[i] < low[i] ? x[i] : low[i];
        high[i] = x[i] > high[i] ? x[i] : high[i];
    }
}

CODEC_VECTOR static void widen_one(float *low, float *high, const float *x, uint64_t count)
{
    codec_lanes lows = *low - (codec_lanes){0};
    codec_lanes highs = *high - (codec_lanes){0};
    uint64_t i = 0;
    for (; i + CODEC_LANES <= count; i += CODEC_LANES) {
        codec_lanes next;
        memcpy(&next, x + i, sizeof(next));
        lows = CODEC_CHOOSE(next < lows, next, lows);
        highs = CODEC_CHOOSE(next > highs, next, highs);
    }
    for (uint32_t lane = 0; i < count; i++, lane++) {
        lows[lane] = x[i] < lows[lane] ? x[i] : lows[lane];
        highs[lane] = x[i] > highs[lane] ? x[i] : highs[lane];
    }
#define FOLD(...)                                                                                  \
    do {                                                                                           \
        codec_lanes other_low = __builtin_shufflevector(lows, lows, __VA_ARGS__);                  \
        codec_lanes other_high = __builtin_shufflevector(highs, highs, __VA_ARGS__);               \
        lows = CODEC_CHOOSE(other_low < lows, other_low, lows);                                    \
        highs = CODEC_CHOOSE(other_high > highs, other_high, highs);                               \
    } while (0)
    FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#undef FOLD
    *low = lows[0];
    *high = highs[0];
}

static void find_ranges(float *low, float *high, const struct grid *grid,
                        const struct codec_tile *tile, uint32_t first)
{
    for (uint32_t i = 0; i < grid->groups.block_groups; i++) {
        low[i] = INFINITY;
        high[i] = -INFINITY;
    }
    uint32_t dims = tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = first; token < first + grid->groups.tokens; token++) {
            const float *row = tile->x + ((uint64_t)head * tile->size.tokens + token) * dims;
            uint32_t at = head * grid->groups.per_head;
            if (grid->groups.by_channel)
                widen_each(low + at, high + at, row, dims);
            for (uint32_t dim = 0; dim < dims && !grid->groups.by_channel;
                 dim += grid->groups.dims, at++)
                widen_one(low + at, high + at, row + dim,
                          larder_min_u64(grid->groups.dims, dims - dim));
        }
    }
}

/* Ranges become a low and a scale for each group. */
CODEC_VECTOR static void fit_scales(float *restrict low, float *restrict high, uint64_t count,
                                    float levels, float clip)
{
    for (uint64_t i = 0; i < count; i++) {
        float from = low[i] * clip;
        float to = high[i] * clip;
        low[i] = from;
        high[i] = (to - from) / (levels - 1);
    }
}

CODEC_VECTOR static void fit_sym_scales(const float *restrict low, float *restrict high,
                                        uint64_t count, float levels, float clip)
{
    for (uint64_t i = 0; i < count; i++) {
        float from = low[i] * clip;
        float to = high[i] * clip;
        high[i] = (-from > to ? -from : to) / ((levels - 1) / 2);
    }
}

/* As whole numbers of scales, which become what is stored. */
static int store_steps(uint8_t *out, const float *low, float *scale, uint64_t count,
                       const uint8_t *stored_scales, float unit)
{
    codec_load_f16(scale, stored_scales, count, unit);
    for (uint64_t i = 0; i < count; i++) {
        float steps = scale[i] > 0 ? roundf(low[i] / scale[i]) : 0;
        if (fabsf(steps) > 32767)
            return CODEC_CANNOT;
        int16_t stored = (int16_t)steps;
        memcpy(out + 2ul * i, &stored, sizeof(stored));
    }
    return 0;
}

/* Ranges become what is stored of them, in the stream. */
static int store_block(uint8_t *out, float *low, float *high, const struct grid *grid, double clip,
                       float unit)
{
    uint64_t count = grid->groups.block_groups;
    float levels = (float)grid->levels;
    uint8_t *lows = out + 2 * count;
    if (grid->mode == MODE_SYM)
        fit_sym_scales(low, high, count, levels, (float)clip);
    else
        fit_scales(low, high, count, levels, (float)clip);
    for (uint64_t i = 0; i < count && grid->mode == MODE_INT; i++)
        high[i] = high[i] == 0 ? fabsf(low[i]) : high[i];
    codec_store_f16(out, high, count, unit);
    if (grid->mode == MODE_ASYM)
        codec_store_f16(lows, low, count, unit);
    return grid->mode == MODE_INT ? store_steps(lows, low, high, count, out, unit) : 0;
}

static void load_block(float *scale, float *low, const uint8_t *in, const struct grid *grid,
                       float unit)
{
    uint32_t count = grid->groups.block_groups;
    codec_load_f16(scale, in, count, unit);
    const uint8_t *lows = in + 2ul * count;
    if (grid->mode == MODE_ASYM)
        codec_load_f16(low, lows, count, unit);
    for (uint32_t i = 0; i < count && grid->mode != MODE_ASYM; i++) {
        int16_t steps = (int16_t) - (int)(grid->levels / 2);
        if (grid->mode == MODE_INT)
            memcpy(&steps, lows + 2ul * i, sizeof(steps));
        low[i] = (float)steps * scale[i];
    }
}

/* --- rows ------------------------------------------------------------------------------------- */

/* x / scale rounded as a division rounds it, for scales that groups_invert() takes: from the
 * inverse, itself rounded well, by two steps of Markstein's ("IA-64 and elementary functions",
 * 2000). A vector's division takes several times as long. 0 where scale and inverse are. */
static inline float divided(float x, float scale, float inverse)
{
    float steps = x * inverse;
    steps = fmaf(fmaf(-steps, scale, x), inverse, steps);
    return fmaf(fmaf(-steps, scale, x), inverse, steps);
}

/* Rounds to nearest, ties to even: adding 1.5 * 2^23 leaves a whole number in the low bits. */
static inline float shifted_level(float steps, float top)
{
    steps = steps > 0 ? steps : 0;
    steps = steps < top ? steps : top;
    return steps + 0x1.8p23f;
}

static inline void quantize(uint8_t *q, float *x, float steps, float scale, float low, float top)
{
    float shifted = shifted_level(steps, top);
    *q = (uint8_t)bits_of(shifted);
    *x = (shifted - 0x1.8p23f) * scale + low;
}

CODEC_VECTOR static void quantize_each(uint8_t *restrict q, float *restrict x, uint64_t count,
                                       const float *restrict scale, const float *restrict inverse,
                                       const float *restrict low, float top)
{
    for (uint64_t i = 0; i < count; i++)
        quantize(&q[i], &x[i], divided(x[i] - low[i], scale[i], inverse[i]), scale[i], low[i], top);
}

/* Groups as in restore_groups(). */
#define RUN 32u
CODEC_VECTOR static void quantize_groups(uint8_t *restrict q, float *restrict x, uint64_t count,
                                         uint64_t group, const float *restrict scale,
                                         const float *restrict inverse, const float *restrict low,
                                         float top)
{
    for (uint64_t first = 0; first < count; first += group, scale++, inverse++, low++) {
        uint64_t end = larder_min_u64(first + group, count);
        uint64_t i = first;
        for (; i + RUN <= end; i += RUN) {
            for (uint64_t lane = i; lane < i + RUN; lane++)
                quantize(&q[lane], &x[lane], divided(x[lane] - *low, *scale, *inverse), *scale,
                         *low, top);
        }
        for (; i < end; i++)
            quantize(&q[i], &x[i], divided(x[i] - *low, *scale, *inverse), *scale, *low, top);
    }
}

/* Scales that are very large or small: in another order of magnitude the steps of divided() would
 * be rounded themselves. */
static void quantize_far(uint8_t *q, float *x, uint64_t count, float scale, float low, float top)
{
    for (uint64_t i = 0; i < count; i++)
        quantize(&q[i], &x[i], scale > 0 ? (x[i] - low) / scale : 0, scale, low, top);
}

CODEC_VECTOR static void restore_each(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                      const float *scale, const float *low)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = (float)q[i] * scale[i] + low[i];
}

/* A row whose groups of `group` elements have a scale and low each, the last group perhaps short.
 * Runs of a known length are what the compiler makes vectors of without a look at their ends. */
CODEC_VECTOR static void restore_groups(float *restrict x, const uint8_t *restrict q,
                                        uint64_t count, uint64_t group, const float *scale,
                                        const float *low)
{
    for (uint64_t first = 0; first < count; first += group, scale++, low++) {
        uint64_t end = larder_min_u64(first + group, count);
        uint64_t i = first;
        for (; i + RUN <= end; i += RUN) {
            for (uint64_t lane = 0; lane < RUN; lane++)
                x[i + lane] = (float)q[i + lane] * *scale + *low;
        }
        for (; i < end; i++)
            x[i] = (float)q[i] * *scale + *low;
    }
}

/* --- rows of bf16 ----------------------------------------------------------------------------- */

/* Elements are worked on in pairs of neighbours, one of even places and one of odd ones, so that
 * widening symbols and narrowing numbers are shifts within a lane. */
#define PAIRS CODEC_LANES

/* A macro, for vectors are taken apart for a machine without them before a function is put into
 * its caller. */
#define RESTORE_PAIRS(out, q, even_scale, odd_scale, even_low, odd_low)                            \
    do {                                                                                           \
        codec_lane_halves symbols;                                                                 \
        memcpy(&symbols, q, sizeof(symbols));                                                      \
        codec_lane_words pairs = __builtin_convertvector(symbols, codec_lane_words);               \
        codec_lanes even = __builtin_convertvector((codec_lane_ints)(pairs & 0xffu), codec_lanes); \
        codec_lanes odd = __builtin_convertvector((codec_lane_ints)(pairs >> 8), codec_lanes);     \
        even = even * (even_scale) + (even_low);                                                   \
        odd = odd * (odd_scale) + (odd_low);                                                       \
        pairs = CODEC_ROUNDED_BF16(even) >> 16 | (CODEC_ROUNDED_BF16(odd) & 0xffff0000u);          \
        memcpy(out, &pairs, sizeof(pairs));                                                        \
    } while (0)

/* A row of a tile's symbols; `scale` and `low` have PAIRS numbers for even places, then as many for
 * odd ones, and so on. */
CODEC_VECTOR static void restore_bf16_each(uint8_t *restrict out, const uint8_t *restrict q,
                                           uint64_t count, const float *restrict scale,
                                           const float *restrict low)
{
    for (uint64_t i = 0; i < count; i += 2 * PAIRS) {
        codec_lanes scales[2];
        codec_lanes lows[2];
        memcpy(&scales[0], scale + i, sizeof(scales[0]));
        memcpy(&scales[1], scale + i + PAIRS, sizeof(scales[1]));
        memcpy(&lows[0], low + i, sizeof(lows[0]));
        memcpy(&lows[1], low + i + PAIRS, sizeof(lows[1]));
        RESTORE_PAIRS(out + 2 * i, q + i, scales[0], scales[1], lows[0], lows[1]);
    }
}

/* Groups of `group` elements, the last one perhaps short, have one each. */
CODEC_VECTOR static void restore_bf16_groups(uint8_t *restrict out, const uint8_t *restrict q,
                                             uint64_t count, uint64_t group,
                                             const float *restrict scale, const float *restrict low)
{
    for (uint64_t first = 0; first < count; first += group, scale++, low++) {
        codec_lanes scales = *scale - (codec_lanes){0};
        codec_lanes lows = *low - (codec_lanes){0};
        uint64_t end = larder_min_u64(first + group, count);
        for (uint64_t i = first; i < end; i += 2 * PAIRS)
            RESTORE_PAIRS(out + 2 * i, q + i, scales, scales, lows, lows);
    }
}

static void quantize_block(uint8_t *q, struct codec_tile *tile, const struct grid *grid,
                           uint32_t first, const float *scale, float *inverse, const float *low)
{
    const struct groups *groups = &grid->groups;
    float top = (float)(grid->levels - 1);
    uint32_t dims = tile->size.dims;
    bool plain = groups_invert(inverse, scale, groups->block_groups);
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = first; token < first + groups->tokens; token++) {
            float *x = tile->x + ((uint64_t)head * tile->size.tokens + token) * dims;
            uint8_t *row = q + ((uint64_t)head * groups->whole_tokens + token) * dims;
            uint32_t at = head * groups->per_head;
            if (plain && groups->by_channel)
                quantize_each(row, x, dims, scale + at, inverse + at, low + at, top);
            else if (plain)
                quantize_groups(row, x, dims, groups->dims, scale + at, inverse + at, low + at,
                                top);
            for (uint32_t dim = 0; dim < dims && !plain; dim += groups->dims, at++)
                quantize_far(row + dim, x + dim, larder_min_u64(groups->dims, dims - dim),
                             scale[at], low[at], top);
        }
    }
}

static int quant_encode(const struct codec_node *node, struct codec_run *run,
                        struct codec_tile *tile)
{
    struct grid grid;
    make_grid(&grid, node, &tile->size);
    uint8_t *mark = run->scratch;
    float *low = codec_take_scratch(run, grid.groups.block_groups * sizeof(float));
    float *scale = codec_take_scratch(run, grid.groups.block_groups * sizeof(float));
    float *inverse = codec_take_scratch(run, grid.groups.block_groups * sizeof(float));
    uint8_t *q = codec_take_scratch(run, codec_elems(&tile->size));
    float unit;
    int err = codec_append_unit(run, &unit, tile->x, codec_elems(&tile->size));
    for (uint32_t i = 0; i < grid.groups.block_count && err == 0; i++) {
        uint8_t *out = codec_append(run, block_bytes(&grid));
        find_ranges(low, scale, &grid, tile, i * grid.groups.tokens);
        err = store_block(out, low, scale, &grid, node->value[CLIP], unit);
        if (err != 0)
            break;
        load_block(scale, low, out, &grid, unit);
        quantize_block(q, tile, &grid, i * grid.groups.tokens, scale, inverse, low);
    }
    if (err == 0) {
        struct codec_size whole = groups_whole(&grid.groups, &tile->size);
        symbols_encode(node, run, q, &whole, grid.levels);
        groups_append_tail(&grid.groups, run, tile);
    }
    run->scratch = mark;
    return err;
}

static int quant_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    struct quant_state *quant = codec_take_scratch(run, sizeof(*quant));
    *quant = (struct quant_state){.loaded = UINT32_MAX};
    struct grid *grid = &quant->grid;
    make_grid(grid, node, size);
    quant->scale = codec_take_scratch(run, grid->groups.block_groups * sizeof(float));
    quant->low = codec_take_scratch(run, grid->groups.block_groups * sizeof(float));
    quant->q = codec_take_scratch(run, symbols_tile_bytes(size));
    LARDER_TRY(codec_take_unit(run, &quant->unit));
    quant->blocks = codec_take(run, grid->groups.block_count * block_bytes(grid), "scales");
    if (!quant->blocks)
        return LARDER_ECORRUPT;
    struct codec_size whole = groups_whole(&grid->groups, size);
    LARDER_TRY(symbols_begin(&quant->symbols, node, run, &whole, grid->levels));
    *state = quant;
    return groups_take_tail(&grid->groups, &quant->raw, run, size);
}

/* Each 2 * PAIRS numbers become those at even places, then the others. */
static void part_pairs(float *x, uint64_t count)
{
    for (uint64_t first = 0; first < count; first += 2 * PAIRS) {
        float parted[2 * PAIRS];
        for (uint32_t i = 0; i < PAIRS; i++) {
            parted[i] = x[first + 2 * i];
            parted[PAIRS + i] = x[first + 2 * i + 1];
        }
        memcpy(x + first, parted, sizeof(parted));
    }
}

/* The scales and lows of a block, by channel perhaps in pairs. */
static void need_block(struct quant_state *quant, uint32_t block, bool in_pairs)
{
    const struct grid *grid = &quant->grid;
    if (block == quant->loaded && in_pairs == quant->in_pairs)
        return;
    load_block(quant->scale, quant->low, quant->blocks + block * block_bytes(grid), grid,
               quant->unit);
    if (in_pairs) {
        part_pairs(quant->scale, grid->groups.block_groups);
        part_pairs(quant->low, grid->groups.block_groups);
    }
    quant->loaded = block;
    quant->in_pairs = in_pairs;
}

static void quant_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    (void)node;
    struct quant_state *quant = state;
    const struct grid *grid = &quant->grid;
    if (first >= grid->groups.whole_tokens) {
        groups_restore_tail(&grid->groups, quant->raw, run, first, tile);
        return;
    }
    uint32_t dims = tile->size.dims;
    uint32_t in_tile = first % CODEC_TILE_TOKENS;
    struct codec_size symbols = tile->size;
    symbols.tokens =
        (uint32_t)larder_min_u64(grid->groups.whole_tokens - (first - in_tile), CODEC_TILE_TOKENS);
    if (in_tile == 0)
        symbols_rows(&quant->symbols, first, &symbols, quant->q);
    for (uint32_t token = 0; token < tile->size.tokens; token++) {
        need_block(quant, (first + token) / grid->groups.tokens, false);
        for (uint32_t head = 0; head < tile->size.heads; head++) {
            float *x = tile->x + ((uint64_t)head * tile->size.tokens + token) * dims;
            const uint8_t *q =
                quant->q + ((uint64_t)head * symbols.tokens + in_tile + token) * dims;
            uint32_t at = head * grid->groups.per_head;
            if (grid->groups.by_channel)
                restore_each(x, q, dims, quant->scale + at, quant->low + at);
            else
                restore_groups(x, q, dims, grid->groups.dims, quant->scale + at, quant->low + at);
        }
    }
}

static bool has_pairs(const struct groups *groups, uint32_t dims)
{
    uint64_t run = groups->by_channel ? dims : larder_min_u64(groups->dims, dims);
    return dims % (2 * PAIRS) == 0 && run % (2 * PAIRS) == 0;
}

static uint32_t quant_decode_planes(const struct codec_node *node, const struct codec_run *run,
                                    void *state, uint32_t first, uint8_t *planes,
                                    const struct codec_size *size)
{
    (void)node;
    (void)run;
    struct quant_state *quant = state;
    const struct groups *groups = &quant->grid.groups;
    if (first + CODEC_TILE_TOKENS > groups->whole_tokens || !has_pairs(groups, size->dims))
        return 0;
    struct codec_size tile = {
        .heads = size->heads, .tokens = CODEC_TILE_TOKENS, .dims = size->dims};
    symbols_rows(&quant->symbols, first, &tile, quant->q);
    uint64_t row_bytes = size->dims * sizeof(uint16_t);
    for (uint32_t token = 0; token < CODEC_TILE_TOKENS; token++) {
        need_block(quant, (first + token) / groups->tokens, groups->by_channel);
        for (uint32_t head = 0; head < size->heads; head++) {
            uint8_t *out = planes + ((uint64_t)head * size->tokens + first + token) * row_bytes;
            const uint8_t *q = quant->q + ((uint64_t)head * CODEC_TILE_TOKENS + token) * size->dims;
            uint32_t at = head * groups->per_head;
            if (groups->by_channel)
                restore_bf16_each(out, q, size->dims, quant->scale + at, quant->low + at);
            else
                restore_bf16_groups(out, q, size->dims, groups->dims, quant->scale + at,
                                    quant->low + at);
        }
    }
    return CODEC_TILE_TOKENS;
}

const struct codec_node_ops codec_node_quant = {
    .name = "quant",
    .summary = "uniform levels: x = q * scale + low, a scale and low for each group",
    .role = CODEC_LEAF,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .check = quant_check,
    .bound = quant_bound,
    .scratch = quant_scratch,
    .encode = quant_encode,
    .decode_begin = quant_decode_begin,
    .decode_rows = quant_decode_rows,
    .decode_planes = quant_decode_planes,
};
