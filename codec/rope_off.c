/* SPDX-License-Identifier: Apache-2.0 */
/* rope_off.c - takes the rotary embedding off K, and puts it back when decoding: at the position it
 * was computed for, or at any other whose tables the reader brings. V passes unchanged.
 *
 * Works from the tables of the block's positions (larder_recipe_fill_tables), made as engines make
 * them. Off is the rotation by R^T / factor^2, the factor being YaRN's, so that on and off meet.
 */
#include "base/record.h"
#include "codec/node.h"

static bool turns(const struct codec_run *run)
{
    const struct larder_rope *rope = &run->block->model->rope;
    return run->kind == LARDER_SECTION_K && rope->kind != LARDER_ROPE_NONE;
}

/* low' = low * cos - high * sin, high' = high * cos + low * sin; pairs stand `partner` apart. */
CODEC_VECTOR static void rotate_halves(float *restrict low, float *restrict high,
                                       const float *restrict cos, const float *restrict sin,
                                       uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        float x = low[i];
        float y = high[i];
        low[i] = x * cos[i] - y * sin[i];
        high[i] = y * cos[i] + x * sin[i];
    }
}

CODEC_VECTOR static void rotate_neighbours(float *restrict x, const float *restrict cos,
                                           const float *restrict sin, uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        float low = x[2 * i];
        float high = x[2 * i + 1];
        x[2 * i] = low * cos[i] - high * sin[i];
        x[2 * i + 1] = high * cos[i] + low * sin[i];
    }
}

CODEC_VECTOR static void unrotate_halves(float *restrict low, float *restrict high,
                                         const float *restrict cos, const float *restrict sin,
                                         uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        float length = cos[i] * cos[i] + sin[i] * sin[i];
        float x = low[i];
        float y = high[i];
        low[i] = (x * cos[i] + y * sin[i]) / length;
        high[i] = (y * cos[i] - x * sin[i]) / length;
    }
}

CODEC_VECTOR static void unrotate_neighbours(float *restrict x, const float *restrict cos,
                                             const float *restrict sin, uint64_t pairs)
{
    for (uint64_t i = 0; i < pairs; i++) {
        float length = cos[i] * cos[i] + sin[i] * sin[i];
        float low = x[2 * i];
        float high = x[2 * i + 1];
        x[2 * i] = (low * cos[i] + high * sin[i]) / length;
        x[2 * i + 1] = (high * cos[i] - low * sin[i]) / length;
    }
}

static void turn(const struct codec_run *run, uint32_t first, struct codec_tile *tile, bool on)
{
    const struct larder_rope *rope = &run->block->model->rope;
    uint64_t pairs = rope->rotary_dims / 2;
    const float *cos = run->block->tables;
    const float *sin = cos + run->block->token_count * pairs;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            float *x = tile->x + ((uint64_t)head * tile->size.tokens + token) * tile->size.dims;
            const float *row_cos = cos + (first + token) * pairs;
            const float *row_sin = sin + (first + token) * pairs;
            if (rope->interleaved && on)
                rotate_neighbours(x, row_cos, row_sin, pairs);
            else if (rope->interleaved)
                unrotate_neighbours(x, row_cos, row_sin, pairs);
            else if (on)
                rotate_halves(x, x + pairs, row_cos, row_sin, pairs);
            else
                unrotate_halves(x, x + pairs, row_cos, row_sin, pairs);
        }
    }
}

static int rope_encode(const struct codec_node *node, struct codec_run *run,
                       struct codec_tile *tile)
{
    if (turns(run))
        turn(run, 0, tile, false);
    int err = codec_encode(node->inner, run, tile);
    if (err == 0 && turns(run))
        turn(run, 0, tile, true);
    return err;
}

static int rope_decode_begin(const struct codec_node *node, struct codec_run *run,
                             const struct codec_size *size, void **state)
{
    return codec_decode_begin(node->inner, run, size, state);
}

static void rope_decode_rows(const struct codec_node *node, const struct codec_run *run,
                             void *state, uint32_t first, struct codec_tile *tile)
{
    codec_decode_rows(node->inner, run, state, first, tile);
    if (turns(run))
        turn(run, first, tile, true);
}

static uint32_t rope_wants(const struct codec_node *node)
{
    (void)node;
    return CODEC_WHOLE_TOKENS | CODEC_WHOLE_HEADS;
}

const struct codec_node_ops codec_node_rope_off = {
    .name = "rope-off",
    .summary = "K without its rotary embedding; V unchanged",
    .role = CODEC_TRANSFORM,
    .needs_tables = true,
    .wants = rope_wants,
    .fits = codec_inner_fits,
    .bound = codec_inner_bound,
    .scratch = codec_inner_scratch,
    .encode = rope_encode,
    .decode_begin = rope_decode_begin,
    .decode_rows = rope_decode_rows,
};
