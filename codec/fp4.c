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

enum { CLIP };
enum { CLIP_SEARCH, CLIP_NONE };

#define BLOCK  32u
#define LEVELS 16u

static const struct codec_param params[] = {
    [CLIP] = {.name = "clip", .missing = CLIP_SEARCH, .words = "search none"},
};

static void fp4_find(const struct grid *grid, uint8_t *q, const float *x, uint64_t count)
{
    grid_form_table.find(grid, q, x, count);
    /* From the place among -6, -4, ... -.5, 0, .5, ... 6 to sign and magnitude. */
    for (uint64_t i = 0; i < count; i++)
        q[i] = q[i] < 7 ? (uint8_t)(15 - q[i]) : (uint8_t)(q[i] - 7);
}

static void fp4_restore(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                        const float *scale, uint32_t step)
{
    grid_form_table.restore(grid, x, q, count, scale, step);
}

static const struct grid_form fp4_form = {.restore = fp4_restore, .find = fp4_find};

static void fp4_open(struct grid *out, const struct codec_node *node, const struct codec_size *size)
{
    static const float magnitudes[LEVELS / 2] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    /* Half way between levels, or a bit below where a number just there belongs to the upper one:
     * ties go to the even magnitudes 0, 1, 2 and 4. */
    static const float bounds[] = {
        -0x1.400002p2f, -0x1.cp1f,       -0x1.400002p1f, -0x1.cp0f,      -0x1.400002p0f,
        -0x1.8p-1f,     -0x1.000002p-2f, 0x1.0p-2f,      0x1.7ffffep-1f, 0x1.4p0f,
        0x1.bffffep0f,  0x1.4p1f,        0x1.bffffep1f,  0x1.4p2f,
    };
    out->levels = LEVELS;
    out->form = &fp4_form;
    out->power_scales = true;
    out->rule = (uint32_t)node->value[CLIP];
    groups_make(&out->groups, size, false, BLOCK);
    for (uint32_t i = 0; i < LEVELS / 2; i++) {
        out->level[i] = magnitudes[i];
        out->level[LEVELS / 2 + i] = -magnitudes[i];
    }
    out->bound_count = LARDER_COUNT_OF(bounds);
    memcpy(out->bounds, bounds, sizeof(bounds));
}

/* Of a block at a scale; relative to the block's own power, so that no square is lost. */
static float squared_error(const struct grid *grid, const float *x, uint64_t count, float power,
                           float ratio)
{
    float y[BLOCK] = {0};
    float is[BLOCK] = {0};
    uint8_t q[BLOCK];
    for (uint64_t i = 0; i < count; i++)
        y[i] = x[i] / power / ratio;
    fp4_find(grid, q, y, count);
    fp4_restore(grid, is, q, count, &ratio, 0);
    for (uint64_t i = 0; i < count; i++)
        is[i] -= x[i] / power;
    return grid_mean_square(is, count);
}

static float fp4_fit(const struct grid *grid, const float *x, uint64_t count)
{
    static const float ratios[] = {0.25f, 0.5f, 0.125f};
    float most = codec_largest(x, count);
    if (most == 0)
        return 0;
    float power = grid_power_below(most);
    float best = ratios[0];
    float least = squared_error(grid, x, count, power, best);
    for (uint32_t i = 1; i < LARDER_COUNT_OF(ratios) && grid->rule == CLIP_SEARCH; i++) {
        float error = squared_error(grid, x, count, power, ratios[i]);
        if (error < least) {
            least = error;
            best = ratios[i];
        }
    }
    return power * best;
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
