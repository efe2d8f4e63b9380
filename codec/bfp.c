/* SPDX-License-Identifier: Apache-2.0 */
/* bfp.c - block floating point: a block of channels of a token shares an exponent (a power of two
 * in a byte), each number is a whole number of `mantissa` bits, two's complement, times it. The
 * largest number of a block uses all bits; what rounds beyond them becomes the largest mantissa.
 *
 * Source: BFP12 of "Accurate Block Quantization in LLMs with Outliers" (Trukhanov and Soloveychik,
 * 2024), 4 bits of mantissa in blocks of 32.
 */
#include "base/bytes.h"
#include "codec/grid.h"

enum { MANTISSA, BLOCK };

static const struct codec_param params[] = {
    [MANTISSA] = {.name = "mantissa", .low = 2, .high = 8, .missing = 4, .whole = true},
    /* Channels; 0: all heads and channels of a token. */
    [BLOCK] = {.name = "block", .low = 0, .high = 4096, .missing = 32, .whole = true},
};

static void bfp_open(struct grid *out, const struct codec_node *node, const struct codec_size *size)
{
    out->levels = 1u << (uint32_t)node->value[MANTISSA];
    out->form = &grid_form_whole;
    out->power_scales = true;
    groups_make(&out->groups, size, false, (uint32_t)node->value[BLOCK]);
}

/* Numbers of the largest one's exponent have the mantissa's highest bit. */
static float bfp_fit(const struct grid *grid, const float *x, uint64_t count)
{
    float most = codec_largest(x, count);
    return most > 0 ? grid_power_below(most) / (float)(grid->levels / 4) : 0;
}

const struct grid_leaf codec_node_bfp = {
    .ops = {.name = "bfp",
            .summary = "block floating point: whole numbers times a power of two of each block",
            .role = CODEC_LEAF,
            .params = params,
            .param_count = LARDER_COUNT_OF(params),
            .bound = grid_bound,
            .scratch = grid_scratch,
            .encode = grid_encode,
            .decode_begin = grid_decode_begin,
            .decode_rows = grid_decode_rows},
    .open = bfp_open,
    .fit = bfp_fit,
};
