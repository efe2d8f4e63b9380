/* SPDX-License-Identifier: Apache-2.0 */
/* residual.c - a second pipe for what the first one got wrong: decoding adds both.
 *
 *   the first pipe | the second pipe
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/node.h"

struct residual {
    void *first;
    void *second;
    float *rows;
};

static int residual_fits(const struct codec_node *node, const struct codec_size *size)
{
    int err = codec_fits(node->inner, size);
    return err < 0 ? err : codec_fits(node->inner->next, size);
}

static uint64_t residual_bound(const struct codec_node *node, const struct codec_size *size)
{
    return codec_bound(node->inner, size) + codec_bound(node->inner->next, size);
}

static uint64_t residual_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up(sizeof(struct residual), 64) +
           larder_round_up(codec_elems(size) * sizeof(float), 64) + codec_rows_bytes(size) +
           codec_scratch(node->inner, size) + codec_scratch(node->inner->next, size);
}

CODEC_VECTOR static void subtract(float *restrict x, const float *restrict y, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] - y[i];
}

CODEC_VECTOR static void add(float *restrict x, const float *restrict y, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] + y[i];
}

static int residual_encode(const struct codec_node *node, struct codec_run *run,
                           struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    uint64_t count = codec_elems(&tile->size);
    struct codec_tile rest = {.x = codec_take_scratch(run, count * sizeof(float)),
                              .size = tile->size};
    memcpy(rest.x, tile->x, count * sizeof(float));
    int err = codec_encode(node->inner, run, tile);
    if (err == 0) {
        subtract(rest.x, tile->x, count);
        err = codec_encode(node->inner->next, run, &rest);
    }
    if (err == 0)
        add(tile->x, rest.x, count);
    run->scratch = mark;
    return err;
}

static int residual_decode_begin(const struct codec_node *node, struct codec_run *run,
                                 const struct codec_size *size, void **state)
{
    struct residual *residual = codec_take_scratch(run, sizeof(*residual));
    residual->rows = codec_take_scratch(run, codec_rows_bytes(size));
    *state = residual;
    int err = codec_decode_begin(node->inner, run, size, &residual->first);
    return err < 0 ? err : codec_decode_begin(node->inner->next, run, size, &residual->second);
}

static void residual_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                 void *state, uint32_t first, struct codec_tile *tile)
{
    const struct residual *residual = state;
    struct codec_tile rest = {.x = residual->rows, .size = tile->size};
    codec_decode_rows(node->inner, run, residual->first, first, tile);
    codec_decode_rows(node->inner->next, run, residual->second, first, &rest);
    add(tile->x, rest.x, codec_elems(&tile->size));
}

const struct codec_node_ops codec_node_residual = {
    .name = "residual",
    .summary = "a second pipe for what the first one got wrong",
    .role = CODEC_WRAPPER,
    .inner_count = 2,
    .fits = residual_fits,
    .bound = residual_bound,
    .scratch = residual_scratch,
    .encode = residual_encode,
    .decode_begin = residual_decode_begin,
    .decode_rows = residual_decode_rows,
};
