/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/grid.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/symbols.h"
#include "kernels/cpu/cpu_math.h"

#define RUN          128u /* elements that are quantized at a time */
#define POWER_BIAS   127
#define POWER_NO_NUM 255 /* of the byte's values the one that is no number */

struct grid_state {
    struct grid grid;
    struct symbols symbols;
    const uint8_t *blocks;
    const uint8_t *raw;
    float unit;
    uint32_t loaded; /* block whose scales are loaded; UINT32_MAX: none */
    float *scale;
    uint8_t *q;
};

static const struct grid_leaf *leaf_of(const struct codec_node *node)
{
    return (const struct grid_leaf *)node->ops;
}

static void open_grid(struct grid *out, const struct codec_node *node,
                      const struct codec_size *size)
{
    *out = (struct grid){0};
    leaf_of(node)->open(out, node, size);
    assert(out->levels >= 2);
    assert(out->form);
}

static uint64_t block_bytes(const struct grid *grid)
{
    return (uint64_t)grid->groups.block_groups * (grid->power_scales ? 1 : 2);
}

static uint64_t block_elems(const struct grid *grid, const struct codec_size *size)
{
    return (uint64_t)grid->groups.tokens * size->heads * size->dims;
}

uint64_t grid_bound(const struct codec_node *node, const struct codec_size *size)
{
    struct grid grid;
    open_grid(&grid, node, size);
    struct codec_size whole = groups_whole(&grid.groups, size);
    return CODEC_UNIT_BYTES + grid.groups.block_count * block_bytes(&grid) +
           symbols_bound(node, &whole, grid.levels) + groups_tail_bound(&grid.groups, size);
}

uint64_t grid_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct grid grid;
    open_grid(&grid, node, size);
    uint64_t scales = larder_round_up(grid.groups.block_groups * sizeof(float), 64);
    uint64_t encoding = larder_round_up(block_elems(&grid, size) * sizeof(float), 64) +
                        larder_round_up(codec_elems(size), 64);
    uint64_t decoding = larder_round_up(sizeof(struct grid_state), 64) +
                        larder_round_up(symbols_tile_bytes(size), 64);
    return 2 * scales + (encoding > decoding ? encoding : decoding) + symbols_scratch(node, size);
}

/* --- forms ------------------------------------------------------------------------------------ */

void grid_lookup_scalar(const float level[GRID_TABLE_LEVELS], float *x, const uint8_t *q,
                        uint64_t count, const float *scale, uint32_t step)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = level[q[i] % GRID_TABLE_LEVELS] * scale[i * step];
}

static void table_restore(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                          const float *scale, uint32_t step)
{
    static _Atomic(grid_lookup_function) chosen;
    grid_lookup_function lookup = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!lookup) {
        lookup = grid_lookup_avx512();
        if (!lookup)
            lookup = grid_lookup_avx2();
        if (!lookup)
            lookup = grid_lookup_scalar;
        atomic_store_explicit(&chosen, lookup, memory_order_relaxed);
    }
    lookup(grid->level, x, q, count, scale, step);
}

/* Below 0, levels go down from the one above it, or from the one in the middle. */
CODEC_VECTOR static void find_by_bounds(uint8_t *q, const float *x, uint64_t count,
                                        const float *bounds, uint32_t bound_count, uint32_t levels)
{
    int32_t up = (int32_t)(levels / 2);
    int32_t down = (int32_t)((levels - 1) / 2);
    for (uint64_t first = 0; first < count; first += CODEC_LANES) {
        codec_lanes numbers = {0};
        uint64_t n = count - first < CODEC_LANES ? count - first : CODEC_LANES;
        if (n == CODEC_LANES)
            memcpy(&numbers, x + first, sizeof(numbers));
        else
            memcpy(&numbers, x + first, n * sizeof(float));
        codec_lane_ints negative = numbers < 0;
        codec_lanes magnitudes = (codec_lanes)((codec_lane_ints)numbers & INT32_MAX);
        codec_lane_ints above = {0};
        for (uint32_t i = 0; i < bound_count; i++)
            above += magnitudes > bounds[i]; /* a lane where it is so holds -1 */
        codec_lane_ints symbols = ((down + above) & negative) | ((up - above) & ~negative);
        codec_lane_bytes bytes = __builtin_convertvector(symbols, codec_lane_bytes);
        if (n == CODEC_LANES)
            memcpy(q + first, &bytes, sizeof(bytes));
        else
            memcpy(q + first, &bytes, n);
    }
}

static void table_find(const struct grid *grid, uint8_t *q, const float *x, uint64_t count)
{
    find_by_bounds(q, x, count, grid->bounds, grid->bound_count, grid->levels);
}

const struct grid_form grid_form_table = {.restore = table_restore, .find = table_find};

CODEC_VECTOR static void restore_whole(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                       float zero, float scale)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = ((float)q[i] - zero) * scale;
}

CODEC_VECTOR static void restore_whole_each(float *restrict x, const uint8_t *restrict q,
                                            uint64_t count, float zero, const float *scale)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = ((float)q[i] - zero) * scale[i];
}

static void whole_restore(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                          const float *scale, uint32_t step)
{
    float zero = (float)(grid->levels / 2);
    if (step)
        restore_whole_each(x, q, count, zero, scale);
    else
        restore_whole(x, q, count, zero, *scale);
}

/* To nearest, ties to even: adding 1.5 * 2^23 leaves a whole number in the low bits. */
CODEC_VECTOR static void find_whole(uint8_t *q, const float *x, uint64_t count, float zero,
                                    float top)
{
    for (uint64_t i = 0; i < count; i++) {
        float steps = x[i] > -zero ? x[i] : -zero;
        steps = steps < top - zero ? steps : top - zero;
        float shifted = steps + 0x1.8p23f;
        q[i] = (uint8_t)(shifted - 0x1.8p23f + zero);
    }
}

static void whole_find(const struct grid *grid, uint8_t *q, const float *x, uint64_t count)
{
    find_whole(q, x, count, (float)(grid->levels / 2), (float)(grid->levels - 1));
}

const struct grid_form grid_form_whole = {.restore = whole_restore, .find = whole_find};

/* --- for fits --------------------------------------------------------------------------------- */

CODEC_VECTOR float grid_mean_magnitude(const float *x, uint64_t count)
{
    float lanes[CPU_LANES] = {0};
    uint64_t i = 0;
    for (; i + CPU_LANES <= count; i += CPU_LANES) {
        for (uint64_t lane = 0; lane < CPU_LANES; lane++)
            lanes[lane] += fabsf(x[i + lane]);
    }
    for (; i < count; i++)
        lanes[i % CPU_LANES] += fabsf(x[i]);
    return sum_lanes(lanes) / (float)count;
}

CODEC_VECTOR static float sum_products(const float *x, const float *y, uint64_t count)
{
    float lanes[CPU_LANES] = {0};
    uint64_t i = 0;
    for (; i + CPU_LANES <= count; i += CPU_LANES) {
        for (uint64_t lane = 0; lane < CPU_LANES; lane++)
            lanes[lane] += x[i + lane] * y[i + lane];
    }
    for (; i < count; i++)
        lanes[i % CPU_LANES] += x[i] * y[i];
    return sum_lanes(lanes);
}

float grid_mean_square(const float *x, uint64_t count)
{
    return sum_products(x, x, count) / (float)count;
}

/* In scales; 0 where the scale is 0. */
CODEC_VECTOR static void divide(float *restrict y, const float *restrict x, uint64_t count,
                                const float *scale, uint32_t step)
{
    for (uint64_t i = 0; i < count && step; i++)
        y[i] = scale[i] > 0 ? x[i] / scale[i] : 0;
    float one = *scale;
    for (uint64_t i = 0; i < count && !step; i++)
        y[i] = one > 0 ? x[i] / one : 0;
}

CODEC_VECTOR static void multiply(float *restrict y, const float *restrict x, uint64_t count,
                                  const float *factor, uint32_t step)
{
    for (uint64_t i = 0; i < count && step; i++)
        y[i] = x[i] * factor[i];
    float one = *factor;
    for (uint64_t i = 0; i < count && !step; i++)
        y[i] = x[i] * one;
}

float grid_refit(const struct grid *grid, const float *x, uint64_t count, float scale)
{
    static const float one = 1;
    float products = 0;
    float squares = 0;
    for (uint64_t first = 0; first < count; first += RUN) {
        uint64_t n = larder_min_u64(count - first, RUN);
        float y[RUN];
        uint8_t q[RUN];
        divide(y, x + first, n, &scale, 0);
        grid->form->find(grid, q, y, n);
        grid->form->restore(grid, y, q, n, &one, 0);
        products += sum_products(x + first, y, n);
        squares += sum_products(y, y, n);
    }
    return products > 0 ? products / squares : scale;
}

float grid_power_below(float x)
{
    uint32_t exponent = bits_of(x) >> 23;
    return float_of((exponent ? exponent : 1) << 23);
}

/* --- a block's scales ------------------------------------------------------------------------- */

CODEC_VECTOR static void copy_scaled(float *restrict out, const float *restrict x, uint64_t count,
                                     uint64_t stride, float unit)
{
    for (uint64_t i = 0; i < count; i++)
        out[i * stride] = x[i] * unit;
}

/* The numbers of each group side by side, in units. */
static void gather_block(float *out, const struct grid *grid, const struct codec_tile *tile,
                         uint32_t first, float unit)
{
    uint64_t dims = tile->size.dims;
    uint64_t tokens = grid->groups.tokens;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        float *block = out + head * dims * tokens;
        for (uint64_t token = 0; token < tokens; token++) {
            const float *x = tile->x + ((uint64_t)head * tile->size.tokens + first + token) * dims;
            copy_scaled(block + token, x, dims, tokens, unit);
        }
    }
}

/* Elements of a group: the last one of a head's row may be short. */
static uint64_t group_elems(const struct groups *groups, const struct codec_size *size, uint32_t i)
{
    if (groups->by_channel)
        return groups->tokens;
    if (groups->per_head == 0)
        return (uint64_t)size->heads * size->dims;
    uint32_t at = i % groups->per_head * groups->dims;
    return larder_min_u64(groups->dims, size->dims - at);
}

static uint8_t power_byte(float scale)
{
    uint32_t exponent = bits_of(scale) >> 23;
    assert(exponent < POWER_NO_NUM);
    return (uint8_t)(exponent ? exponent : 1);
}

static void load_scales(float *scale, const uint8_t *in, const struct grid *grid, float unit)
{
    uint32_t count = grid->groups.block_groups;
    if (!grid->power_scales)
        codec_load_f16(scale, in, count, unit);
    for (uint32_t i = 0; i < count && grid->power_scales; i++)
        scale[i] = in[i] ? float_of((uint32_t)in[i] << 23) : 0x1p-127f;
}

static void store_scales(uint8_t *out, const float *scale, const struct grid *grid)
{
    uint32_t count = grid->groups.block_groups;
    if (!grid->power_scales)
        codec_store_f16(out, scale, count, 1);
    for (uint32_t i = 0; i < count && grid->power_scales; i++)
        out[i] = power_byte(scale[i]);
}

/* --- rows ------------------------------------------------------------------------------------- */

/* A head's scales within a block. */
static const float *head_scales(const struct groups *groups, const float *scale, uint32_t head)
{
    return scale + (uint64_t)head * groups->per_head;
}

static void restore_row(const struct grid *grid, float *x, const uint8_t *q, uint32_t dims,
                        const float *scale)
{
    const struct groups *groups = &grid->groups;
    if (groups->by_channel || groups->dims >= dims) {
        grid->form->restore(grid, x, q, dims, scale, groups->by_channel);
        return;
    }
    for (uint32_t dim = 0; dim < dims; dim += groups->dims, scale++)
        grid->form->restore(grid, x + dim, q + dim, larder_min_u64(groups->dims, dims - dim), scale,
                            0);
}

/* Scales of a row or of a group; `inverse` is NULL where only a division will do. */
struct row_scales {
    const float *scale;
    const float *inverse;
};

static void quantize_run(const struct grid *grid, uint8_t *q, float *x, uint64_t count,
                         const struct row_scales *by, uint32_t step)
{
    float y[RUN];
    for (uint64_t first = 0; first < count; first += RUN) {
        uint64_t n = larder_min_u64(count - first, RUN);
        if (by->inverse)
            multiply(y, x + first, n, by->inverse + first * step, step);
        else
            divide(y, x + first, n, by->scale + first * step, step);
        grid->form->find(grid, q + first, y, n);
    }
    grid->form->restore(grid, x, q, count, by->scale, step);
}

/* A number of each group for each of its elements. */
static void spread(float *out, const float *of_groups, uint64_t count, uint32_t group)
{
    for (uint64_t first = 0; first < count; first += group, of_groups++) {
        uint64_t end = larder_min_u64(first + group, count);
        for (uint64_t i = first; i < end; i++)
            out[i] = *of_groups;
    }
}

/* A head's row. Small groups are put together, as functions that are called for each cost more than
 * scales that stand there several times. */
static void quantize_row(const struct grid *grid, uint8_t *q, float *x, uint32_t dims,
                         const struct row_scales *by)
{
    const struct groups *groups = &grid->groups;
    if (groups->by_channel || groups->dims >= dims) {
        quantize_run(grid, q, x, dims, by, groups->by_channel);
        return;
    }
    uint32_t together = groups->dims < RUN ? RUN / groups->dims : 1;
    struct row_scales at = *by;
    float scale[RUN];
    float inverse[RUN];
    for (uint32_t dim = 0; dim < dims; dim += together * groups->dims, at.scale += together) {
        uint64_t n = larder_min_u64(together * groups->dims, dims - dim);
        struct row_scales each = at;
        if (together > 1) {
            spread(scale, at.scale, n, groups->dims);
            each.scale = scale;
            if (at.inverse) {
                spread(inverse, at.inverse, n, groups->dims);
                each.inverse = inverse;
            }
        }
        quantize_run(grid, q + dim, x + dim, n, &each, together > 1);
        at.inverse = at.inverse ? at.inverse + together : NULL;
    }
}

/* The block's tokens from `first` on. */
static void quantize_block(const struct grid *grid, uint8_t *q, struct codec_tile *tile,
                           uint32_t first, const float *scale, float *inverse)
{
    const struct groups *groups = &grid->groups;
    uint64_t dims = tile->size.dims;
    bool plain = groups_invert(inverse, scale, groups->block_groups);
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        uint64_t at = (uint64_t)head * groups->per_head;
        struct row_scales by = {.scale = scale + at, .inverse = plain ? inverse + at : NULL};
        for (uint32_t token = first; token < first + groups->tokens; token++)
            quantize_row(grid, q + ((uint64_t)head * groups->whole_tokens + token) * dims,
                         tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                         tile->size.dims, &by);
    }
}

int grid_encode(const struct codec_node *node, struct codec_run *run, struct codec_tile *tile)
{
    struct grid grid;
    const struct codec_size *size = &tile->size;
    open_grid(&grid, node, size);
    uint8_t *mark = run->scratch;
    float *scale = codec_take_scratch(run, grid.groups.block_groups * sizeof(float));
    float *inverse = codec_take_scratch(run, grid.groups.block_groups * sizeof(float));
    float *block = codec_take_scratch(run, block_elems(&grid, size) * sizeof(float));
    uint8_t *q = codec_take_scratch(run, codec_elems(size));
    float unit = 1;
    int err = 0;
    if (!grid.power_scales)
        err = codec_append_unit(run, &unit, tile->x, codec_elems(size));
    else if (!isfinite(codec_largest(tile->x, codec_elems(size))))
        err = CODEC_CANNOT;
    if (err != 0)
        goto done;
    for (uint32_t first = 0; first < grid.groups.whole_tokens; first += grid.groups.tokens) {
        gather_block(block, &grid, tile, first, unit);
        const float *at = block;
        for (uint32_t i = 0; i < grid.groups.block_groups; i++) {
            uint64_t count = group_elems(&grid.groups, size, i);
            scale[i] = leaf_of(node)->fit(&grid, at, count);
            at += count;
        }
        uint8_t *out = codec_append(run, block_bytes(&grid));
        store_scales(out, scale, &grid);
        load_scales(scale, out, &grid, unit);
        quantize_block(&grid, q, tile, first, scale, inverse);
    }
    struct codec_size whole = groups_whole(&grid.groups, size);
    symbols_encode(node, run, q, &whole, grid.levels);
    groups_append_tail(&grid.groups, run, tile);

done:
    run->scratch = mark;
    return err;
}

static int check_powers(const uint8_t *in, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        if (in[i] == POWER_NO_NUM)
            return larder_fail(LARDER_ECORRUPT, "scale %llu is %u, which is no number",
                               (unsigned long long)i, in[i]);
    }
    return 0;
}

int grid_decode_begin(const struct codec_node *node, struct codec_run *run,
                      const struct codec_size *size, void **state)
{
    struct grid_state *out = codec_take_scratch(run, sizeof(*out));
    *out = (struct grid_state){.loaded = UINT32_MAX, .unit = 1};
    struct grid *grid = &out->grid;
    open_grid(grid, node, size);
    out->scale = codec_take_scratch(run, grid->groups.block_groups * sizeof(float));
    out->q = codec_take_scratch(run, symbols_tile_bytes(size));
    if (!grid->power_scales)
        LARDER_TRY(codec_take_unit(run, &out->unit));
    uint64_t scale_bytes = grid->groups.block_count * block_bytes(grid);
    out->blocks = codec_take(run, scale_bytes, "scales");
    if (!out->blocks)
        return LARDER_ECORRUPT;
    if (grid->power_scales)
        LARDER_TRY(check_powers(out->blocks, scale_bytes));
    struct codec_size whole = groups_whole(&grid->groups, size);
    LARDER_TRY(symbols_begin(&out->symbols, node, run, &whole, grid->levels));
    *state = out;
    return groups_take_tail(&grid->groups, &out->raw, run, size);
}

void grid_decode_rows(const struct codec_node *node, const struct codec_run *run, void *state,
                      uint32_t first, struct codec_tile *tile)
{
    (void)node;
    struct grid_state *self = state;
    const struct groups *groups = &self->grid.groups;
    if (first >= groups->whole_tokens) {
        groups_restore_tail(groups, self->raw, run, first, tile);
        return;
    }
    uint32_t in_tile = first % CODEC_TILE_TOKENS;
    struct codec_size symbols = tile->size;
    symbols.tokens =
        (uint32_t)larder_min_u64(groups->whole_tokens - (first - in_tile), CODEC_TILE_TOKENS);
    if (in_tile == 0)
        symbols_rows(&self->symbols, first, &symbols, self->q);
    uint64_t dims = tile->size.dims;
    for (uint32_t token = 0; token < tile->size.tokens; token++) {
        uint32_t block = (first + token) / groups->tokens;
        if (block != self->loaded)
            load_scales(self->scale, self->blocks + block * block_bytes(&self->grid), &self->grid,
                        self->unit);
        self->loaded = block;
        for (uint32_t head = 0; head < tile->size.heads; head++)
            restore_row(&self->grid, tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                        self->q + ((uint64_t)head * symbols.tokens + in_tile + token) * dims,
                        (uint32_t)dims, head_scales(groups, self->scale, head));
    }
}
