/* SPDX-License-Identifier: Apache-2.0 */
/* lloyd.c - the levels that suit a normal number best (Lloyd, 1957; Max, 1960), for numbers that a
 * rotation has made look like ones: TurboQuant (Zandieh et al., 2025) behind `hadamard signs=1`.
 *
 * The scale of a group is the deviation of its numbers from 0, for a row of d channels its norm
 * over sqrt(d); or (scale=fit) the one by which the levels that were chosen come nearest to the
 * numbers. Decoding is the same for both.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/grid.h"

enum { BITS, LEVELS, AXIS, GROUP, SCALE };
enum { AXIS_TOKEN, AXIS_CHANNEL };
enum { SCALE_NORM, SCALE_FIT };

static const struct codec_param params[] = {
    [BITS] = {.name = "bits", .low = 1, .high = 4, .missing = 4, .whole = true},
    /* Instead of bits; 0: as many as the bits allow. */
    [LEVELS] = {.name = "levels", .low = 0, .high = GRID_TABLE_LEVELS, .missing = 0, .whole = true},
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    /* 0: all channels of a token's head, or all tokens of a channel. */
    [GROUP] = {.name = "group", .low = 0, .high = 4096, .missing = 0, .whole = true},
    [SCALE] = {.name = "scale", .missing = SCALE_NORM, .words = "norm fit"},
};

/* The positive levels for a deviation of 1, by how many there are in all; and the squared error of
 * a normal number. tests/reference/lloyd_max.py prints them. */
static const float positive[GRID_TABLE_LEVELS + 1][GRID_TABLE_LEVELS / 2] = {
    [2] = {0.797884561f},                                                          /* 0.363380 */
    [3] = {1.224006362f},                                                          /* 0.190174 */
    [4] = {0.452780035f, 1.510417608f},                                            /* 0.117482 */
    [5] = {0.764567571f, 1.724147407f},                                            /* 0.079941 */
    [6] = {0.317716369f, 1.000106046f, 1.893594812f},                              /* 0.057978 */
    [7] = {0.560576888f, 1.188146953f, 2.033369181f},                              /* 0.044000 */
    [8] = {0.245094179f, 0.756005281f, 1.343909279f, 2.151945705f},                /* 0.034548 */
    [9] = {0.443638648f, 0.918795884f, 1.476391739f, 2.254663636f},                /* 0.027853 */
    [10] = {0.199622852f, 0.609857509f, 1.057825045f, 1.591340442f, 2.345095886f}, /* 0.022937 */
    [11] = {0.367458112f, 0.752367292f, 1.178826407f, 1.692639034f, 2.425746394f}, /* 0.019220 */
    [12] = {0.168437747f, 0.511846503f, 0.876779522f, 1.285711288f, 1.783029896f,
            2.498435264f}, /* 0.016340 */
    [13] = {0.313773230f, 0.638250734f, 0.986949078f, 1.381262661f, 1.864518208f,
            2.564525349f}, /* 0.014063 */
    [14] = {0.145706244f, 0.441320889f, 0.750442618f, 1.085635312f, 1.467528268f, 1.938612406f,
            2.625062508f}, /* 0.012232 */
    [15] = {0.273856855f, 0.554763695f, 0.851134412f, 1.174879178f, 1.546056754f, 2.006474396f,
            2.680866119f}, /* 0.010737 */
    [16] = {0.128395030f, 0.388048299f, 0.656759119f, 0.942340456f, 1.256231197f, 1.618046386f,
            2.069017227f, 2.732589571f}, /* 0.009501 */
};

static int lloyd_check(const struct codec_node *node)
{
    if (node->value[LEVELS] == 1)
        return larder_fail(-EINVAL, "lloyd: levels=1; there must be 2 to %u", GRID_TABLE_LEVELS);
    return groups_check("lloyd", (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                        (uint32_t)node->value[GROUP]);
}

static void lloyd_open(struct grid *out, const struct codec_node *node,
                       const struct codec_size *size)
{
    bool by_channel = (uint32_t)node->value[AXIS] == AXIS_CHANNEL;
    uint32_t group = (uint32_t)node->value[GROUP];
    uint32_t levels = (uint32_t)node->value[LEVELS];
    out->levels = levels ? levels : 1u << (uint32_t)node->value[BITS];
    out->form = &grid_form_table;
    out->rule = (uint32_t)node->value[SCALE];
    groups_make(&out->groups, size, by_channel, group || by_channel ? group : size->dims);
    uint32_t half = out->levels / 2;
    for (uint32_t i = 0; i < half; i++) {
        out->level[half - 1 - i] = -positive[out->levels][i];
        out->level[out->levels - half + i] = positive[out->levels][i];
    }
    out->bound_count = (out->levels - 1) / 2;
    const float *upper = out->level + out->levels / 2;
    for (uint32_t i = 0; i < out->bound_count; i++)
        out->bounds[i] = (upper[i] + upper[i + 1]) / 2;
}

static float lloyd_fit(const struct grid *grid, const float *x, uint64_t count)
{
    float scale = sqrtf(grid_mean_square(x, count));
    /* The second round is already close to where many would end. */
    for (uint32_t round = 0; round < 2 && grid->rule == SCALE_FIT; round++)
        scale = grid_refit(grid, x, count, scale);
    return scale;
}

const struct grid_leaf codec_node_lloyd = {
    .ops = {.name = "lloyd",
            .summary = "the levels that suit a normal number best, times a scale of each group",
            .role = CODEC_LEAF,
            .params = params,
            .param_count = LARDER_COUNT_OF(params),
            .check = lloyd_check,
            .bound = grid_bound,
            .scratch = grid_scratch,
            .encode = grid_encode,
            .decode_begin = grid_decode_begin,
            .decode_rows = grid_decode_rows},
    .open = lloyd_open,
    .fit = lloyd_fit,
};
