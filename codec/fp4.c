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
#include <string.h>

#include "base/bytes.h"
#include "codec/grid.h"
#include "codec/minifloat.h"
#include "kernels/cpu/cpu_math.h"

enum { CLIP };
enum { CLIP_SEARCH, CLIP_NONE };

#define BLOCK  32u
#define LEVELS 16u

static const struct codec_param params[] = {
    [CLIP] = {.name = "clip", .missing = CLIP_SEARCH, .words = "search none"},
};

/* E2M1: a bit of fraction, an exponent of bias 1. */
#define FRACTION 1
#define BIAS     1
#define MOST     6

CODEC_VECTOR static void find_codes(uint8_t *q, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t code = minifloat_code(x[i], FRACTION, BIAS, MOST);
        q[i] = (uint8_t)((code >> 4 & 8u) | (code & 7u));
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

/* Of a block, whose places behind a short one hold 0, at each scale; relative to the power, so that
 * no square is lost. */
CODEC_VECTOR static void square_errors(float out[TRIES], const float x[BLOCK], float power)
{
    float inverse = 1 / power;
    for (uint32_t try = 0; try < TRIES; try++) {
        float lanes[CPU_LANES] = {0};
        for (uint32_t i = 0; i < BLOCK; i += CPU_LANES) {
            for (uint32_t lane = 0; lane < CPU_LANES; lane++) {
                float y = x[i + lane] * inverse * (1 / tries[try]);
                float off = minifloat_round(y, FRACTION, BIAS, MOST) - y;
                lanes[lane] += off * off;
            }
        }
        out[try] = sum_lanes(lanes) * tries[try] * tries[try];
    }
}

static float fp4_fit(const struct grid *grid, const float *x, uint64_t count)
{
    float most = codec_largest(x, count);
    if (most == 0)
        return 0;
    float power = grid_power_below(most);
    if (grid->rule == CLIP_NONE)
        return power * tries[0];
    float block[BLOCK] = {0};
    memcpy(block, x, count * sizeof(float));
    float error[TRIES];
    square_errors(error, block, power);
    uint32_t best = 0;
    for (uint32_t i = 1; i < TRIES; i++)
        best = error[i] < error[best] ? i : best;
    return power * tries[best];
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
