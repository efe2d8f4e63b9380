/* SPDX-License-Identifier: Apache-2.0 */
/* fp8.c - 8-bit floats (OCP E4M3 and E5M2) times a scale by which the largest of a group is the
 * format's largest, 448 or 57,344. Rounds to nearest, ties to even; what rounds beyond the largest
 * becomes it. Codes that the format has for what is no number are never made; reading one gives 480
 * and so on, or for E5M2 infinity, as if it were the upper byte of an f16.
 */
#include "base/bytes.h"
#include "codec/grid.h"
#include "codec/minifloat.h"
#include "kernels/cpu/cpu_math.h"

enum { FORMAT, AXIS, GROUP };
enum { FORMAT_E4M3, FORMAT_E5M2 };
enum { AXIS_TOKEN, AXIS_CHANNEL };

#define E4M3_MAX 448.0f
#define E5M2_MAX 57344.0f

static const struct codec_param params[] = {
    [FORMAT] = {.name = "format", .missing = FORMAT_E4M3, .words = "e4m3 e5m2"},
    [AXIS] = {.name = "axis", .missing = AXIS_TOKEN, .words = "token channel"},
    /* 0: all tokens of a channel, or all heads and channels of a token. */
    [GROUP] = {.name = "group", .low = 0, .high = 4096, .missing = 0, .whole = true},
};

static int fp8_check(const struct codec_node *node)
{
    return groups_check("fp8", (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                        (uint32_t)node->value[GROUP]);
}

/* Both formats are f16s with less fraction; E4M3's exponent is one bit shorter too, by which it
 * lies 2^8 lower. */
static inline float number_of(uint8_t q, uint32_t format)
{
    if (format == FORMAT_E5M2)
        return float_from_f16((uint16_t)(q << 8));
    return float_from_f16((uint16_t)((q & 0x80u) << 8 | (q & 0x7fu) << 7)) * 0x1p8f;
}

CODEC_VECTOR static void find_e4m3(uint8_t *q, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        q[i] = minifloat_code(x[i], 3, 7, E4M3_MAX);
}

CODEC_VECTOR static void find_e5m2(uint8_t *q, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        q[i] = minifloat_code(x[i], 2, 15, E5M2_MAX);
}

static void fp8_find(const struct grid *grid, uint8_t *q, const float *x, uint64_t count)
{
    if (grid->rule == FORMAT_E5M2)
        find_e5m2(q, x, count);
    else
        find_e4m3(q, x, count);
}

CODEC_VECTOR static void restore_e4m3(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                      const float *scale, uint32_t step)
{
    for (uint64_t i = 0; i < count && step; i++)
        x[i] = number_of(q[i], FORMAT_E4M3) * scale[i];
    for (uint64_t i = 0; i < count && !step; i++)
        x[i] = number_of(q[i], FORMAT_E4M3) * *scale;
}

CODEC_VECTOR static void restore_e5m2(float *restrict x, const uint8_t *restrict q, uint64_t count,
                                      const float *scale, uint32_t step)
{
    for (uint64_t i = 0; i < count && step; i++)
        x[i] = number_of(q[i], FORMAT_E5M2) * scale[i];
    for (uint64_t i = 0; i < count && !step; i++)
        x[i] = number_of(q[i], FORMAT_E5M2) * *scale;
}

static void fp8_restore(const struct grid *grid, float *x, const uint8_t *q, uint64_t count,
                        const float *scale, uint32_t step)
{
    if (grid->rule == FORMAT_E5M2)
        restore_e5m2(x, q, count, scale, step);
    else
        restore_e4m3(x, q, count, scale, step);
}

static const struct grid_form fp8_form = {.restore = fp8_restore, .find = fp8_find};

static void fp8_open(struct grid *out, const struct codec_node *node, const struct codec_size *size)
{
    out->levels = 256;
    out->form = &fp8_form;
    out->rule = (uint32_t)node->value[FORMAT];
    groups_make(&out->groups, size, (uint32_t)node->value[AXIS] == AXIS_CHANNEL,
                (uint32_t)node->value[GROUP]);
}

static float fp8_fit(const struct grid *grid, const float *x, uint64_t count)
{
    return codec_largest(x, count) / (grid->rule == FORMAT_E5M2 ? E5M2_MAX : E4M3_MAX);
}

const struct grid_leaf codec_node_fp8 = {
    .ops = {.name = "fp8",
            .summary = "8-bit floats (OCP E4M3, E5M2) times a scale of each group",
            .role = CODEC_LEAF,
            .params = params,
            .param_count = LARDER_COUNT_OF(params),
            .check = fp8_check,
            .bound = grid_bound,
            .scratch = grid_scratch,
            .encode = grid_encode,
            .decode_begin = grid_decode_begin,
            .decode_rows = grid_decode_rows},
    .open = fp8_open,
    .fit = fp8_fit,
};
