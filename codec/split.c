/* SPDX-License-Identifier: Apache-2.0 */
/* split.c - the numbers in two parts, each with a pipe of its own.
 *
 * by=channels: `share` of the channels goes to the first pipe: those of the widest range over the
 *   tokens and all heads (order=range), or simply the first ones (order=first). The same channels
 *   in every head.
 * by=class: `share` of the tokens goes to the first pipe: the most important ones, by the scores
 *   that came with the PUT. heads=together: one choice for all heads, so that a token's row stays
 *   whole and its scale is its own; heads=each: every head chooses, and is coded by itself. Of
 *   equal scores the earlier token is the more important one.
 *
 * How many go to the first pipe follows from `share` alone. A pipe that gets nothing appends
 * nothing.
 *
 *   map of what went to the first pipe, a bit each, for each choice (order=first: none) | bytes of
 *   the first pipe | of the second; heads=each: both pipes of a head, then the next head's
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/node.h"
#include "codec/order.h"

enum { BY, SHARE, ORDER, HEADS };
enum { BY_CHANNELS, BY_CLASS };
enum { ORDER_RANGE, ORDER_FIRST };
enum { HEADS_TOGETHER, HEADS_EACH };

static const struct codec_param params[] = {
    [BY] = {.name = "by", .missing = BY_CHANNELS, .words = "channels class"},
    [SHARE] = {.name = "share", .low = 0, .high = 1, .missing = 0.5},
    [ORDER] = {.name = "order", .missing = ORDER_RANGE, .words = "range first"},
    [HEADS] = {.name = "heads", .missing = HEADS_TOGETHER, .words = "together each"},
};

/* How the numbers are cut. A lane is what chooses, and is coded, by itself. */
struct plan {
    bool by_class;
    bool has_map;
    uint32_t lanes;
    uint32_t count;         /* tokens or channels that are chosen among */
    struct codec_size lane; /* whole */
    struct codec_size part[2];
};

/* One part of one lane while rows are given. */
struct part {
    void *inner;
    float *rows;    /* as many as are given at a time */
    uint32_t given; /* by class: tokens so far */
};

struct lane {
    const uint8_t *map; /* NULL: the first ones are chosen */
    struct part part[2];
};

struct split {
    struct plan plan;
    struct lane *lanes;
    uint32_t *places; /* by channels: of the first part's, then of the second's */
};

static void make_plan(struct plan *out, const struct codec_node *node,
                      const struct codec_size *size)
{
    bool by_class = (uint32_t)node->value[BY] == BY_CLASS;
    bool each = by_class && (uint32_t)node->value[HEADS] == HEADS_EACH;
    *out = (struct plan){
        .by_class = by_class,
        .has_map = by_class || (uint32_t)node->value[ORDER] == ORDER_RANGE,
        .lanes = each ? size->heads : 1,
        .count = by_class ? size->tokens : size->dims,
        .lane = {.heads = each ? 1 : size->heads, .tokens = size->tokens, .dims = size->dims},
    };
    uint32_t first = (uint32_t)lround(node->value[SHARE] * out->count);
    for (int i = 0; i < 2; i++) {
        uint32_t count = i == 0 ? first : out->count - first;
        out->part[i] = out->lane;
        if (by_class)
            out->part[i].tokens = count;
        else
            out->part[i].dims = count;
    }
}

static uint64_t map_bytes(const struct plan *plan)
{
    return plan->has_map ? (plan->count + 7u) / 8u : 0;
}

static const struct codec_node *pipe_of(const struct codec_node *node, int part)
{
    return part == 0 ? node->inner : node->inner->next;
}

static uint32_t split_needs(const struct codec_node *node)
{
    return (uint32_t)node->value[BY] == BY_CLASS ? LARDER_INPUT_IMPORTANCE : 0;
}

/* Scores are of the model's heads and of the block's tokens. */
static uint32_t split_wants(const struct codec_node *node)
{
    if ((uint32_t)node->value[BY] == BY_CHANNELS)
        return 0;
    return CODEC_WHOLE_TOKENS |
           ((uint32_t)node->value[HEADS] == HEADS_EACH ? CODEC_WHOLE_HEADS : 0);
}

static uint32_t split_breaks(const struct codec_node *node)
{
    if ((uint32_t)node->value[BY] == BY_CHANNELS)
        return CODEC_WHOLE_CHANNELS | CODEC_WHOLE_HEADS;
    return CODEC_WHOLE_TOKENS |
           ((uint32_t)node->value[HEADS] == HEADS_EACH ? CODEC_WHOLE_HEADS | CODEC_WHOLE_CHANNELS
                                                       : 0);
}

static int split_fits(const struct codec_node *node, const struct codec_size *size)
{
    struct plan plan;
    make_plan(&plan, node, size);
    int err = 0;
    for (int i = 0; i < 2 && err == 0; i++) {
        if (codec_elems(&plan.part[i]) > 0)
            err = codec_fits(pipe_of(node, i), &plan.part[i]);
    }
    return err;
}

static uint64_t split_bound(const struct codec_node *node, const struct codec_size *size)
{
    struct plan plan;
    make_plan(&plan, node, size);
    uint64_t lane = map_bytes(&plan);
    for (int i = 0; i < 2; i++) {
        if (codec_elems(&plan.part[i]) > 0)
            lane += codec_bound(pipe_of(node, i), &plan.part[i]);
    }
    return plan.lanes * lane;
}

static uint64_t split_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct plan plan;
    make_plan(&plan, node, size);
    uint64_t inner = 0;
    for (int i = 0; i < 2; i++) {
        if (codec_elems(&plan.part[i]) > 0)
            inner +=
                codec_scratch(pipe_of(node, i), &plan.part[i]) + codec_rows_bytes(&plan.part[i]);
    }
    /* Two numbers for each that is chosen among, its mark and its place, are more than enough. */
    uint64_t choosing = 4 * larder_round_up(plan.count * sizeof(uint32_t), 64);
    uint64_t lanes = larder_round_up(plan.lanes * sizeof(struct lane), 64);
    uint64_t numbers = larder_round_up(codec_elems(&plan.part[0]) * sizeof(float), 64) +
                       larder_round_up(codec_elems(&plan.part[1]) * sizeof(float), 64);
    return larder_round_up(sizeof(struct split), 64) + lanes + choosing + numbers +
           plan.lanes * inner;
}

/* --- choosing --------------------------------------------------------------------------------- */

/* Scores of a lane's tokens: its head's, or sums over all heads. */
static void score_tokens(float *score, const struct codec_run *run, const struct plan *plan,
                         uint32_t lane)
{
    const struct larder_block *block = run->block;
    uint32_t heads = block->model->kv_heads;
    const float *importance = block->importance + (uint64_t)run->layer * heads * block->token_count;
    assert(plan->count == block->token_count);
    for (uint32_t token = 0; token < plan->count; token++) {
        double sum = 0;
        for (uint32_t head = 0; head < heads && plan->lanes == 1; head++)
            sum += (double)importance[(uint64_t)head * block->token_count + token];
        if (plan->lanes > 1)
            sum = (double)importance[(uint64_t)lane * block->token_count + token];
        score[token] = (float)sum;
    }
}

CODEC_VECTOR static void widen(float *restrict low, float *restrict high, const float *restrict x,
                               uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        low[i] = x[i] < low[i] ? x[i] : low[i];
        high[i] = x[i] > high[i] ? x[i] : high[i];
    }
}

/* A channel's score is the widest range that it has in a head. */
static void score_channels(float *score, float *low, float *high, const struct codec_tile *tile)
{
    uint32_t dims = tile->size.dims;
    for (uint32_t i = 0; i < dims; i++)
        score[i] = 0;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        const float *x = tile->x + (uint64_t)head * tile->size.tokens * dims;
        memcpy(low, x, dims * sizeof(float));
        memcpy(high, x, dims * sizeof(float));
        for (uint32_t token = 1; token < tile->size.tokens; token++)
            widen(low, high, x + (uint64_t)token * dims, dims);
        for (uint32_t i = 0; i < dims; i++)
            score[i] = high[i] - low[i] > score[i] ? high[i] - low[i] : score[i];
    }
}

/* mark[i]: 1 in the first part. Appends the map. */
static void choose(uint8_t *mark, struct codec_run *run, const struct plan *plan, uint32_t lane,
                   const struct codec_tile *tile)
{
    uint32_t first = plan->by_class ? plan->part[0].tokens : plan->part[0].dims;
    memset(mark, 0, plan->count);
    if (!plan->has_map) {
        memset(mark, 1, first);
        return;
    }
    uint8_t *top = run->scratch;
    float *score = codec_take_scratch(run, plan->count * sizeof(float));
    uint32_t *keys = codec_take_scratch(run, plan->count * sizeof(uint32_t));
    float *low = codec_take_scratch(run, plan->count * sizeof(float));
    if (plan->by_class)
        score_tokens(score, run, plan, lane);
    else
        score_channels(score, low, (float *)keys, tile);
    order_keys(keys, score, plan->count);
    order_mark_largest(mark, 1, keys, plan->count, first);
    run->scratch = top;
    uint8_t *map = codec_append(run, map_bytes(plan));
    memset(map, 0, map_bytes(plan));
    for (uint32_t i = 0; i < plan->count; i++)
        map[i / 8] |= (uint8_t)(mark[i] << i % 8);
}

/* --- encoding --------------------------------------------------------------------------------- */

/* Between a lane and its parts, `back` from them. */
static void move_tokens(struct codec_tile *lane, struct codec_tile part[2], const uint8_t *mark,
                        bool back)
{
    uint64_t row = lane->size.dims * sizeof(float);
    for (uint32_t head = 0; head < lane->size.heads; head++) {
        float *to[2];
        for (int i = 0; i < 2; i++)
            to[i] = part[i].x + (uint64_t)head * part[i].size.tokens * lane->size.dims;
        float *from = lane->x + (uint64_t)head * lane->size.tokens * lane->size.dims;
        for (uint32_t token = 0; token < lane->size.tokens; token++) {
            int chosen = mark[token] ? 0 : 1;
            memcpy(back ? from : to[chosen], back ? to[chosen] : from, row);
            from += lane->size.dims;
            to[chosen] += lane->size.dims;
        }
    }
}

/* Places of the channels of both parts. */
static void find_places(uint32_t *places, const struct plan *plan, const uint8_t *mark)
{
    uint32_t at[2] = {0, plan->part[0].dims};
    for (uint32_t dim = 0; dim < plan->count; dim++)
        places[at[mark[dim] ? 0 : 1]++] = dim;
}

CODEC_VECTOR static void gather(float *restrict out, const float *restrict x,
                                const uint32_t *restrict places, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = x[places[i]];
}

CODEC_VECTOR static void scatter(float *restrict out, const float *restrict x,
                                 const uint32_t *restrict places, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[places[i]] = x[i];
}

static void move_channels(struct codec_tile *tile, struct codec_tile part[2],
                          const uint32_t *places, bool back)
{
    for (int i = 0; i < 2; i++) {
        uint64_t dims = part[i].size.dims;
        uint64_t rows = dims > 0 ? (uint64_t)tile->size.heads * tile->size.tokens : 0;
        for (uint64_t row = 0; row < rows; row++) {
            if (back)
                scatter(tile->x + row * tile->size.dims, part[i].x + row * dims, places, dims);
            else
                gather(part[i].x + row * dims, tile->x + row * tile->size.dims, places, dims);
        }
        places += dims;
    }
}

static int encode_lane(const struct codec_node *node, struct codec_run *run,
                       const struct plan *plan, uint32_t lane, struct codec_tile *tile)
{
    uint8_t *top = run->scratch;
    uint8_t *mark = codec_take_scratch(run, plan->count);
    choose(mark, run, plan, lane, tile);
    uint32_t *places = codec_take_scratch(run, plan->count * sizeof(uint32_t));
    struct codec_tile part[2];
    for (int i = 0; i < 2; i++)
        part[i] = (struct codec_tile){
            .x = codec_take_scratch(run, codec_elems(&plan->part[i]) * sizeof(float)),
            .size = plan->part[i]};
    if (plan->by_class) {
        move_tokens(tile, part, mark, false);
    } else {
        find_places(places, plan, mark);
        move_channels(tile, part, places, false);
    }
    int err = 0;
    for (int i = 0; i < 2 && err == 0; i++) {
        if (codec_elems(&part[i].size) > 0)
            err = codec_encode(pipe_of(node, i), run, &part[i]);
    }
    if (err == 0 && plan->by_class)
        move_tokens(tile, part, mark, true);
    else if (err == 0)
        move_channels(tile, part, places, true);
    run->scratch = top;
    return err;
}

static int split_encode(const struct codec_node *node, struct codec_run *run,
                        struct codec_tile *tile)
{
    struct plan plan;
    make_plan(&plan, node, &tile->size);
    int err = 0;
    for (uint32_t lane = 0; lane < plan.lanes && err == 0; lane++) {
        struct codec_tile part = {.x = tile->x + lane * codec_elems(&plan.lane), .size = plan.lane};
        err = encode_lane(node, run, &plan, lane, &part);
    }
    return err;
}

/* --- decoding --------------------------------------------------------------------------------- */

static bool is_chosen(const struct lane *lane, const struct plan *plan, uint32_t index)
{
    if (!lane->map)
        return index < plan->part[0].dims;
    return lane->map[index / 8] >> index % 8 & 1;
}

/* The map must choose as many as the plan says, and nothing behind the last. */
static const uint8_t *take_map(struct codec_run *run, const struct plan *plan)
{
    const uint8_t *map = codec_take(run, map_bytes(plan), "split: map");
    if (!map)
        return NULL;
    uint32_t chosen = 0;
    for (uint64_t i = 0; i < map_bytes(plan); i++)
        chosen += (uint32_t)__builtin_popcount(map[i]);
    uint32_t wanted = plan->by_class ? plan->part[0].tokens : plan->part[0].dims;
    uint32_t loose = plan->count % 8 ? (uint32_t)map[plan->count / 8] >> plan->count % 8 : 0;
    if (chosen == wanted && loose == 0)
        return map;
    larder_fail(LARDER_ECORRUPT, "split: a map with %u bits of %u set; %u should be", chosen,
                plan->count, wanted);
    return NULL;
}

static int begin_lane(const struct codec_node *node, struct codec_run *run, const struct plan *plan,
                      struct lane *lane)
{
    *lane = (struct lane){0};
    if (plan->has_map) {
        lane->map = take_map(run, plan);
        if (!lane->map)
            return LARDER_ECORRUPT;
    }
    for (int i = 0; i < 2; i++) {
        const struct codec_size *size = &plan->part[i];
        if (codec_elems(size) == 0)
            continue;
        lane->part[i].rows = codec_take_scratch(run, codec_rows_bytes(size));
        LARDER_TRY(codec_decode_begin(pipe_of(node, i), run, size, &lane->part[i].inner));
    }
    return 0;
}

static int split_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    struct split *split = codec_take_scratch(run, sizeof(*split));
    struct plan *plan = &split->plan;
    make_plan(plan, node, size);
    split->lanes = codec_take_scratch(run, plan->lanes * sizeof(struct lane));
    *state = split;
    for (uint32_t i = 0; i < plan->lanes; i++)
        LARDER_TRY(begin_lane(node, run, plan, &split->lanes[i]));
    if (plan->by_class)
        return 0;
    uint8_t *mark = codec_take_scratch(run, plan->count);
    split->places = codec_take_scratch(run, plan->count * sizeof(uint32_t));
    for (uint32_t i = 0; i < plan->count; i++)
        mark[i] = is_chosen(&split->lanes[0], plan, i);
    find_places(split->places, plan, mark);
    return 0;
}

/* The next token of one part into its place of the lane's rows. */
static void give_token(const struct codec_node *node, const struct codec_run *run,
                       const struct codec_size *size, struct part *part, struct codec_tile *lane,
                       uint32_t token)
{
    uint32_t in_rows = part->given % CODEC_ROWS_TOKENS;
    uint32_t first = part->given - in_rows;
    struct codec_tile rows = {.x = part->rows, .size = *size};
    rows.size.tokens = (uint32_t)larder_min_u64(size->tokens - first, CODEC_ROWS_TOKENS);
    if (in_rows == 0)
        codec_decode_rows(node, run, part->inner, first, &rows);
    uint64_t dims = size->dims;
    for (uint32_t head = 0; head < size->heads; head++)
        memcpy(lane->x + ((uint64_t)head * lane->size.tokens + token) * dims,
               rows.x + ((uint64_t)head * rows.size.tokens + in_rows) * dims, dims * sizeof(float));
    part->given++;
}

static void split_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    const struct split *split = state;
    const struct plan *plan = &split->plan;
    if (!plan->by_class) {
        struct codec_tile part[2];
        for (int i = 0; i < 2; i++) {
            part[i] = (struct codec_tile){.x = split->lanes[0].part[i].rows, .size = plan->part[i]};
            part[i].size.tokens = tile->size.tokens;
            if (codec_elems(&part[i].size) > 0)
                codec_decode_rows(pipe_of(node, i), run, split->lanes[0].part[i].inner, first,
                                  &part[i]);
        }
        move_channels(tile, part, split->places, true);
        return;
    }
    for (uint32_t i = 0; i < plan->lanes; i++) {
        struct codec_tile lane = {.x = tile->x + i * codec_elems(&tile->size) / plan->lanes,
                                  .size = plan->lane};
        lane.size.tokens = tile->size.tokens;
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            int chosen = is_chosen(&split->lanes[i], plan, first + token) ? 0 : 1;
            give_token(pipe_of(node, chosen), run, &plan->part[chosen],
                       &split->lanes[i].part[chosen], &lane, token);
        }
    }
}

const struct codec_node_ops codec_node_split = {
    .name = "split",
    .summary = "channels, or tokens by their importance, in two parts, each with its own pipe",
    .role = CODEC_WRAPPER,
    .inner_count = 2,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .needs = split_needs,
    .wants = split_wants,
    .breaks = split_breaks,
    .fits = split_fits,
    .bound = split_bound,
    .scratch = split_scratch,
    .encode = split_encode,
    .decode_begin = split_decode_begin,
    .decode_rows = split_decode_rows,
};
