/* SPDX-License-Identifier: Apache-2.0 */
/* fp4.c - the MXFP4 format of the OCP Microscaling specification: 32 channels of a token share a
 * power of two (E8M0); each is a sign and 0, .5, 1, 1.5, 2, 3, 4 or 6 times it (E2M1), and symbols
 * are the format's own four bits. Rounds to nearest, ties to even.
 *
 * The specification's power is a quarter of the one below the block's largest number, and what
 * then is above 6 becomes 6. clip=search also tries twice and half of it, and takes the one with
 * the least squared error: a clip ratio for each block (BATQuant), of which with powers of two only
 * its power is left.
 */
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "codec/grid.h"

enum { CLIP };
enum { CLIP_SEARCH, CLIP_NONE };

#define BLOCK  32u
#define LEVELS 16u

static const struct codec_param params[] = {
    [CLIP] = {.name = "clip", .missing = CLIP_SEARCH, .words = "search none"},
};

#define MOST 6.0f

/* Of magnitudes' bits: those above have a larger code. Ties go to the even code, so every second
 * bound counts itself. */
static const int32_t bounds[LEVELS / 2 - 1] = {
    0x3e800000,     /* .25 */
    0x3f400000 - 1, /* .75 */
    0x3fa00000,     /* 1.25 */
    0x3fe00000 - 1, /* 1.75 */
    0x40200000,     /* 2.5 */
    0x40600000 - 1, /* 3.5 */
    0x40a00000,     /* 5 */
};

CODEC_VECTOR static void find_codes(uint8_t *q, const float *x, uint64_t count)
{
    for (uint64_t first = 0; first < count; first += CODEC_LANES) {
        codec_lane_ints bits = {0};
        uint64_t n = count - first < CODEC_LANES ? count - first : CODEC_LANES;
        if (n == CODEC_LANES)
            memcpy(&bits, x + first, sizeof(bits));
        else
            memcpy(&bits, x + first, n * sizeof(float));
        codec_lane_ints magnitudes = bits & INT32_MAX;
        codec_lane_ints codes = (bits < 0) & 8;
        for (uint32_t i = 0; i < LARDER_COUNT_OF(bounds); i++)
            codes -= magnitudes > bounds[i]; /* a lane where it is so holds -1 */
        codec_lane_bytes bytes = __builtin_convertvector(codes, codec_lane_bytes);
        if (n == CODEC_LANES)
            memcpy(q + first, &bytes, sizeof(bytes));
        else
            memcpy(q + first, &bytes, n);
    }
}

static void fp4_find(const struct grid *grid, uint8_t *q, const float *x, uint64_t count)
{
    (void)grid;
    find_codes(q, x, count);
}

static void fp4_restore(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                        const float *scale, uint32_t step)
{
    grid_form_table.restore(grid, x, q, count, scale, step);
}

static const struct grid_form fp4_form = {.restore = fp4_restore, .find = fp4_find};

static void fp4_open(struct grid *out, const struct codec_node *node, const struct codec_size *size)
{
    static const float magnitudes[LEVELS / 2] = {0, 0.5f, 1, 1.5f, 2, 3, 4, MOST};
    out->levels = LEVELS;
    out->form = &fp4_form;
    out->power_scales = true;
    out->rule = (uint32_t)node->value[CLIP];
    groups_make(&out->groups, size, false, BLOCK);
    for (uint32_t i = 0; i < LEVELS / 2; i++) {
        out->level[i] = magnitudes[i];
        out->level[LEVELS / 2 + i] = -magnitudes[i];
    }
}

/* Scales that are tried, as parts of the power below the largest number: the first is the
 * specification's. */
#define TRIES 3u
static const float tries[TRIES] = {0.25f, 0.5f, 0.125f};

/* Adding 1.5 * 2^23 steps leaves a whole number of them, ties to even: half of one below 2, one
 * below 4, then two. */
#define STEP_OF_2 0x1.8p22f
#define STEP_OF_4 0x1.8p23f
#define STEP_OF_8 0x1.8p24f

/* Of a block, whose places behind a short one hold 0, the scale of the tries with the least squared
 * error; errors are relative to the power, so that no square is lost. */
CODEC_VECTOR static float best_scale(const float x[BLOCK], float power)
{
    float inverse = 1 / power;
    float least = INFINITY;
    float best = 0;
    for (uint32_t try = 0; try < TRIES; try++) {
        codec_lanes sums = {0};
        float factor = inverse * (1 / tries[try]);
        for (uint32_t i = 0; i < BLOCK; i += CODEC_LANES) {
            codec_lanes y;
            memcpy(&y, x + i, sizeof(y));
            y = (codec_lanes)((codec_lane_ints)(y * factor) & INT32_MAX);
            codec_lanes steps = STEP_OF_8 - (codec_lanes){0};
            steps = CODEC_CHOOSE(y < 4, STEP_OF_4 - (codec_lanes){0}, steps);
            steps = CODEC_CHOOSE(y < 2, STEP_OF_2 - (codec_lanes){0}, steps);
            codec_lanes rounded = y + steps - steps;
            rounded = CODEC_CHOOSE(rounded < MOST, rounded, MOST - (codec_lanes){0});
            y -= rounded;
            sums += y * y;
        }
        CODEC_SUM(sums);
        float error = sums[0] * tries[try] * tries[try];
        best = error < least ? tries[try] : best;
        least = error < least ? error : least;
    }
    return power * best;
}

static float fp4_fit(const struct grid *grid, const float *x, uint64_t count)
{
    float most = codec_largest(x, count);
    if (most == 0)
        return 0;
    float power = grid_power_below(most);
    if (grid->rule == CLIP_NONE)
        return power * tries[0];
    if (count == BLOCK)
        return best_scale(x, power);
    float block[BLOCK] = {0};
    memcpy(block, x, count * sizeof(float));
    return best_scale(block, power);
}

const struct grid_leaf codec_node_fp4 = {
    .ops = {.name = "fp4",
            .summary = "4-bit floats, a power of two for each 32 channels (OCP MXFP4)",
            .role = CODEC_LEAF,
            .params = params,
            .param_count = LARDER_COUNT_OF(params),
            .bound = grid_bound,
            .scratch = grid_scratch,
            .encode = grid_encode,
            .decode_begin = grid_decode_begin,
            .decode_rows = grid_decode_rows},
    .open = fp4_open,
    .fit = fp4_fit,
};
