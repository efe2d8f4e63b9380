/* SPDX-License-Identifier: Apache-2.0 */
/* ternary.c - a scale's negative, zero, or the scale; five symbols to a byte. Numbers below half
 * the scale become zero.
 *
 * scale=mean is the mean magnitude of the group (VidKV's V); scale=sigma 1.224 times the deviation
 * from 0, which suits a normal number best (ITQ3's grid at its optimum, where theirs has .798).
 */
#include <math.h>

#include "base/bytes.h"
#include "codec/grid.h"

enum { AXIS, GROUP, SCALE };
enum { AXIS_TOKEN, AXIS_CHANNEL };
enum { SCALE_MEAN, SCALE_SIGMA };

#define LEVEL_PER_SIGMA 1.224006362f /* of three levels, lloyd.c */

static const struct codec_param params[] = {
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    /* 0: all tokens of a channel, or all heads and channels of a token. */
    [GROUP] = {.name = "group", .low = 0, .high = 4096, .missing = 32, .whole = true},
    [SCALE] = {.name = "scale", .missing = SCALE_SIGMA, .words = "mean sigma"},
};

static int ternary_check(const struct codec_node *node)
{
    return groups_check("ternary", (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                        (uint32_t)node->value[GROUP]);
}

static void ternary_open(struct grid *out, const struct codec_node *node,
                         const struct codec_size *size)
{
    out->levels = 3;
    out->form = &grid_form_whole;
    out->rule = (uint32_t)node->value[SCALE];
    groups_make(&out->groups, size, (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                (uint32_t)node->value[GROUP]);
}

static float ternary_fit(const struct grid *grid, const float *x, uint64_t count)
{
    if (grid->rule == SCALE_MEAN)
        return grid_mean_magnitude(x, count);
    return sqrtf(grid_mean_square(x, count)) * LEVEL_PER_SIGMA;
}

const struct grid_leaf codec_node_ternary = {
    .ops = {.name = "ternary",
            .summary = "-1, 0 or 1 times a scale of each group, five to a byte",
            .role = CODEC_LEAF,
            .params = params,
            .param_count = LARDER_COUNT_OF(params),
            .check = ternary_check,
            .bound = grid_bound,
            .scratch = grid_scratch,
            .encode = grid_encode,
            .decode_begin = grid_decode_begin,
            .decode_rows = grid_decode_rows},
    .open = ternary_open,
    .fit = ternary_fit,
};
