/* SPDX-License-Identifier: Apache-2.0 */
/* outliers.c - the few numbers that would widen their groups kept exactly, in the model's dtype.
 * Inside, each is replaced by a number of its row that widens nothing.
 *
 * A row is a channel's tokens (axis=channel) or all heads and channels of a token (axis=token).
 * by=quantile: of each row the `share`/2 largest and as many smallest, rounded to the nearest whole
 * number each. by=thresholds: what lies outside the range that a profile knows for its channel;
 * where that is more than an eighth of all, the profile is not for these numbers, and they are
 * stored exact.
 *
 * Places are those of the order in which decoding gives numbers: tokens in fours, and of each four
 * [head][token][dim]. They are cut into runs of 256, so that a place is a byte; of a run that is
 * all outliers the last one stays inside.
 *
 *   outliers of each run (a byte each) | places in their runs (a byte each) | numbers | inner pipe
 *
 * Sources: KVQuant (Hooper et al., NeurIPS 2024) and GEAR (Kang et al., 2024).
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/node.h"
#include "codec/order.h"
#include "codec/ranges.h"

enum { SHARE, AXIS, BY, FILL };
enum { AXIS_TOKEN, AXIS_CHANNEL };
enum { BY_QUANTILE, BY_THRESHOLDS };
enum { FILL_MEDIAN, FILL_MEAN };

#define RUN      256u
#define RUN_MOST 255u
/* by=thresholds: one of so many numbers may be an outlier. */
#define THRESHOLDS_PART 8u

/* Channels that are worked on together, since they stand side by side in memory. */
#define ROWS_TOGETHER 16u

enum { MARK_LARGE = 1, MARK_SMALL = 2 };

static const struct codec_param params[] = {
    [SHARE] = {.name = "share", .low = 0, .high = 0.25, .missing = 0.01},
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    [BY] = {.name = "by", .missing = BY_QUANTILE, .words = "quantile thresholds"},
    [FILL] = {.name = "fill", .missing = FILL_MEDIAN, .words = "median mean"},
};

struct outliers {
    void *inner;
    const uint8_t *counts;
    const uint8_t *places;
    const uint8_t *numbers;
    uint64_t run_count;
    uint64_t run;  /* of the next outlier */
    uint32_t done; /* outliers of that run that were put back */
    uint64_t at;   /* ... of all */
};

static bool by_channel(const struct codec_node *node)
{
    return (uint32_t)node->value[AXIS] == AXIS_CHANNEL;
}

static bool by_thresholds(const struct codec_node *node)
{
    return (uint32_t)node->value[BY] == BY_THRESHOLDS;
}

struct rows {
    uint64_t count;
    uint64_t length;
    uint64_t each_side; /* by=quantile: outliers */
};

static struct rows rows_of(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t channels = (uint64_t)size->heads * size->dims;
    struct rows rows = {.count = by_channel(node) ? channels : size->tokens,
                        .length = by_channel(node) ? size->tokens : channels};
    rows.each_side = (uint64_t)llround(node->value[SHARE] / 2 * (double)rows.length);
    return rows;
}

static uint64_t runs_of(const struct codec_size *size)
{
    return (codec_elems(size) + RUN - 1) / RUN;
}

static uint64_t outliers_most(const struct codec_node *node, const struct codec_size *size)
{
    if (by_thresholds(node))
        return codec_elems(size) / THRESHOLDS_PART;
    struct rows rows = rows_of(node, size);
    return larder_min_u64(2 * rows.each_side * rows.count, codec_elems(size));
}

static int outliers_check(const struct codec_node *node)
{
    if (by_thresholds(node) && !by_channel(node))
        return larder_fail(-EINVAL,
                           "outliers: by=thresholds, which are of channels; say axis=channel");
    return 0;
}

static uint32_t outliers_needs(const struct codec_node *node)
{
    return by_thresholds(node) ? LARDER_INPUT_PROFILE : 0;
}

static uint32_t outliers_wants(const struct codec_node *node)
{
    return by_thresholds(node) ? CODEC_WHOLE_CHANNELS : 0;
}

static int outliers_bind(void **bound, const struct codec_node *node,
                         const struct larder_profile *profile, uint8_t kind)
{
    if (!by_thresholds(node))
        return 0;
    struct ranges found;
    LARDER_TRY(ranges_find(&found, profile, kind));
    struct ranges *ranges = larder_alloc(sizeof(*ranges));
    if (!ranges)
        return larder_fail(-ENOMEM, "no memory for thresholds");
    *ranges = found;
    *bound = ranges;
    return 0;
}

static uint64_t outliers_bound(const struct codec_node *node, const struct codec_size *size)
{
    return runs_of(size) + outliers_most(node, size) * (1 + sizeof(float)) +
           codec_bound(node->inner, size);
}

static uint64_t list_bytes(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up(outliers_most(node, size) * sizeof(uint64_t), 64) +
           larder_round_up(outliers_most(node, size) * sizeof(float), 64);
}

static uint64_t outliers_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct rows rows = rows_of(node, size);
    return larder_round_up(sizeof(struct outliers), 64) + larder_round_up(codec_elems(size), 64) +
           larder_round_up(rows.count * sizeof(float), 64) +
           larder_round_up(ROWS_TOGETHER * rows.length * sizeof(float), 64) +
           larder_round_up(rows.length * sizeof(float), 64) +
           larder_round_up(ROWS_TOGETHER * rows.length, 64) + list_bytes(node, size) +
           codec_scratch(node->inner, size);
}

/* --- finding them ----------------------------------------------------------------------------- */

/* Rows `row` and those behind it, one after the other. */
static void gather_rows(float *out, const struct codec_node *node, const struct codec_tile *tile,
                        uint64_t row, uint64_t count)
{
    uint64_t dims = tile->size.dims;
    uint64_t tokens = tile->size.tokens;
    if (by_channel(node)) {
        const float *x = tile->x + row / dims * tokens * dims + row % dims;
        for (uint64_t token = 0; token < tokens; token++, x += dims) {
            for (uint64_t i = 0; i < count; i++)
                out[i * tokens + token] = x[i];
        }
        return;
    }
    for (uint64_t head = 0; head < tile->size.heads; head++)
        memcpy(out + head * dims, tile->x + (head * tokens + row) * dims, dims * sizeof(float));
}

/* The same way back, for marks of a byte. */
static void scatter_marks(uint8_t *marks, const uint8_t *from, const struct codec_node *node,
                          const struct codec_size *size, uint64_t row, uint64_t count)
{
    uint64_t dims = size->dims;
    uint64_t tokens = size->tokens;
    if (by_channel(node)) {
        uint8_t *to = marks + row / dims * tokens * dims + row % dims;
        for (uint64_t token = 0; token < tokens; token++, to += dims) {
            for (uint64_t i = 0; i < count; i++)
                to[i] = from[i * tokens + token];
        }
        return;
    }
    for (uint64_t head = 0; head < size->heads; head++)
        memcpy(marks + (head * tokens + row) * dims, from + head * dims, dims);
}

#define LANES 8u

/* Of what is not marked; summed by lanes, so that the order is the same everywhere. */
CODEC_VECTOR static float mean_of(const float *restrict x, const uint8_t *restrict mark,
                                  uint64_t count)
{
    double sums[LANES] = {0};
    uint64_t kept = 0;
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (uint64_t lane = 0; lane < LANES; lane++)
            sums[lane] += mark[i + lane] ? 0 : (double)x[i + lane];
    }
    for (; i < count; i++)
        sums[i % LANES] += mark[i] ? 0 : (double)x[i];
    /* Where most numbers are equal, some are among the largest and the smallest at once. */
    for (i = 0; i < count; i++)
        kept += !mark[i];
    double sum = 0;
    for (uint64_t lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    return kept ? (float)(sum / (double)kept) : 0;
}

static void mark_quantiles(uint8_t *marks, float *fills, const struct codec_node *node,
                           struct codec_run *run, const struct codec_tile *tile)
{
    struct rows rows = rows_of(node, &tile->size);
    uint64_t length = rows.length;
    uint8_t *top = run->scratch;
    float *x = codec_take_scratch(run, ROWS_TOGETHER * length * sizeof(float));
    uint32_t *keys = codec_take_scratch(run, length * sizeof(uint32_t));
    uint8_t *mark = codec_take_scratch(run, ROWS_TOGETHER * length);
    for (uint64_t row = 0, count; row < rows.count && rows.each_side > 0; row += count) {
        count = by_channel(node)
                    ? larder_min_u64(ROWS_TOGETHER, tile->size.dims - row % tile->size.dims)
                    : 1;
        gather_rows(x, node, tile, row, count);
        memset(mark, 0, count * length);
        for (uint64_t i = 0; i < count; i++) {
            const float *row_x = x + i * length;
            uint8_t *row_mark = mark + i * length;
            order_keys(keys, row_x, length);
            order_mark_largest(row_mark, MARK_LARGE, keys, length, rows.each_side);
            order_mark_smallest(row_mark, MARK_SMALL, keys, length, rows.each_side);
            if ((uint32_t)node->value[FILL] == FILL_MEDIAN)
                fills[row + i] = order_number(order_nth(keys, length, (length - 1) / 2));
            else
                fills[row + i] = mean_of(row_x, row_mark, length);
        }
        scatter_marks(marks, mark, node, &tile->size, row, count);
    }
    run->scratch = top;
}

static void mark_thresholds(uint8_t *marks, float *fills, const struct codec_node *node,
                            const struct codec_run *run, const struct codec_tile *tile)
{
    const struct ranges *ranges = node->bound;
    uint64_t dims = tile->size.dims;
    const float *lower = ranges->lower + run->layer * ranges->channels;
    const float *upper = ranges->upper + run->layer * ranges->channels;
    for (uint64_t i = 0; i < ranges->channels; i++)
        fills[i] = lower[i] / 2 + upper[i] / 2;
    for (uint32_t head = 0; head < tile->size.heads; head++, lower += dims, upper += dims) {
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            uint64_t at = ((uint64_t)head * tile->size.tokens + token) * dims;
            for (uint64_t i = 0; i < dims; i++)
                marks[at + i] = (tile->x[at + i] < lower[i]) | (tile->x[at + i] > upper[i]);
        }
    }
}

/* --- encoding --------------------------------------------------------------------------------- */

struct list {
    uint64_t *at; /* in the tile */
    float *x;
    uint64_t count;
    uint64_t most;
};

static inline bool none_of_eight(const uint8_t *marks)
{
    uint64_t word;
    memcpy(&word, marks, sizeof(word));
    return word == 0;
}

/* Goes through the marked numbers in the order of decoding; appends the counts of their runs, and
 * replaces them. CODEC_CANNOT when there are more than the list has room for. */
static int take_out(struct list *list, struct codec_run *run, const struct codec_node *node,
                    const uint8_t *marks, const float *fills, struct codec_tile *tile)
{
    const struct codec_size *size = &tile->size;
    uint8_t *counts = codec_append(run, runs_of(size));
    memset(counts, 0, runs_of(size));
    uint64_t place = 0;
    for (uint32_t first = 0; first < size->tokens; first += CODEC_ROWS_TOKENS) {
        uint64_t tokens = larder_min_u64(size->tokens - first, CODEC_ROWS_TOKENS);
        for (uint32_t head = 0; head < size->heads; head++) {
            uint64_t at = ((uint64_t)head * size->tokens + first) * size->dims;
            uint64_t count = tokens * size->dims;
            for (uint64_t i = 0; i < count; i++, at++, place++) {
                if (count - i >= 8 && none_of_eight(marks + at)) {
                    i += 7;
                    at += 7;
                    place += 7;
                    continue;
                }
                if (!marks[at] || counts[place / RUN] == RUN_MOST)
                    continue;
                if (list->count == list->most)
                    return CODEC_CANNOT;
                list->at[list->count] = at;
                list->x[list->count++] = tile->x[at];
                counts[place / RUN]++;
                *codec_append(run, 1) = (uint8_t)(place % RUN);
                tile->x[at] = fills[by_channel(node) ? head * (uint64_t)size->dims + i % size->dims
                                                     : first + i / size->dims];
            }
        }
    }
    return 0;
}

static int outliers_encode(const struct codec_node *node, struct codec_run *run,
                           struct codec_tile *tile)
{
    uint8_t *top = run->scratch;
    const struct codec_size *size = &tile->size;
    uint32_t dtype = run->block->model->dtype;
    struct list list = {.most = outliers_most(node, size)};
    list.at = codec_take_scratch(run, list.most * sizeof(uint64_t));
    list.x = codec_take_scratch(run, list.most * sizeof(float));
    uint8_t *marks = codec_take_scratch(run, codec_elems(size));
    float *fills = codec_take_scratch(run, rows_of(node, size).count * sizeof(float));
    memset(marks, 0, codec_elems(size));
    if (by_thresholds(node))
        mark_thresholds(marks, fills, node, run, tile);
    else
        mark_quantiles(marks, fills, node, run, tile);
    int err = take_out(&list, run, node, marks, fills, tile);
    if (err == 0) {
        uint8_t *numbers = codec_append(run, list.count * larder_dtype_bytes(dtype));
        codec_store_elems(numbers, list.x, list.count, dtype);
        codec_load_elems(list.x, numbers, list.count, dtype);
        err = codec_encode(node->inner, run, tile);
    }
    for (uint64_t i = 0; i < list.count && err == 0; i++)
        tile->x[list.at[i]] = list.x[i];
    run->scratch = top;
    return err;
}

/* --- decoding --------------------------------------------------------------------------------- */

static int outliers_decode_begin(const struct codec_node *node, struct codec_run *run,
                                 const struct codec_size *size, void **state)
{
    struct outliers *outliers = codec_take_scratch(run, sizeof(*outliers));
    *outliers = (struct outliers){.run_count = runs_of(size)};
    *state = outliers;
    outliers->counts = codec_take(run, outliers->run_count, "outliers: counts");
    if (!outliers->counts)
        return LARDER_ECORRUPT;
    uint64_t count = 0;
    for (uint64_t i = 0; i < outliers->run_count; i++)
        count += outliers->counts[i];
    outliers->places = codec_take(run, count, "outliers: places");
    if (!outliers->places)
        return LARDER_ECORRUPT;
    outliers->numbers =
        codec_take(run, count * larder_dtype_bytes(run->block->model->dtype), "outliers: numbers");
    if (!outliers->numbers)
        return LARDER_ECORRUPT;
    return codec_decode_begin(node->inner, run, size, &outliers->inner);
}

/* Numbers of these rows stand in the tile in the very order of places. */
static void outliers_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                 void *state, uint32_t first, struct codec_tile *tile)
{
    struct outliers *outliers = state;
    codec_decode_rows(node->inner, run, outliers->inner, first, tile);
    uint32_t dtype = run->block->model->dtype;
    uint64_t elem_bytes = larder_dtype_bytes(dtype);
    uint64_t begin = (uint64_t)first * tile->size.heads * tile->size.dims;
    uint64_t end = begin + codec_elems(&tile->size);
    while (outliers->run < outliers->run_count && outliers->run * RUN < end) {
        if (outliers->done == outliers->counts[outliers->run]) {
            outliers->run++;
            outliers->done = 0;
            continue;
        }
        uint64_t place = outliers->run * RUN + outliers->places[outliers->at];
        if (place >= end)
            return;
        /* Places ascend, but for those that no encoder made. */
        if (place >= begin)
            codec_load_elems(tile->x + (place - begin),
                             outliers->numbers + outliers->at * elem_bytes, 1, dtype);
        outliers->at++;
        outliers->done++;
    }
}

const struct codec_node_ops codec_node_outliers = {
    .name = "outliers",
    .summary = "the few largest and smallest numbers kept exactly",
    .role = CODEC_WRAPPER,
    .inner_count = 1,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .needs = outliers_needs,
    .wants = outliers_wants,
    .check = outliers_check,
    .bind = outliers_bind,
    .fits = codec_inner_fits,
    .bound = outliers_bound,
    .scratch = outliers_scratch,
    .encode = outliers_encode,
    .decode_begin = outliers_decode_begin,
    .decode_rows = outliers_decode_rows,
};
