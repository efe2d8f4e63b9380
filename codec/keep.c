/* SPDX-License-Identifier: Apache-2.0 */
/* keep.c - numbers in the model's dtype: the pipe for what a split does not quantize.
 *
 *   [head][token][dim]
 */
#include "base/error.h"
#include "codec/node.h"

struct keep {
    const uint8_t *numbers;
    uint32_t tokens;
};

static uint64_t keep_bound(const struct codec_node *node, const struct codec_size *size)
{
    (void)node;
    return codec_elems(size) * sizeof(float);
}

static uint64_t keep_scratch(const struct codec_node *node, const struct codec_size *size)
{
    (void)node;
    (void)size;
    return larder_round_up(sizeof(struct keep), 64);
}

static int keep_encode(const struct codec_node *node, struct codec_run *run,
                       struct codec_tile *tile)
{
    (void)node;
    uint32_t dtype = run->block->model->dtype;
    uint64_t count = codec_elems(&tile->size);
    uint8_t *out = codec_append(run, count * larder_dtype_bytes(dtype));
    codec_store_elems(out, tile->x, count, dtype);
    codec_load_elems(tile->x, out, count, dtype);
    return 0;
}

static int keep_decode_begin(const struct codec_node *node, struct codec_run *run,
                             const struct codec_size *size, void **state)
{
    (void)node;
    struct keep *keep = codec_take_scratch(run, sizeof(*keep));
    keep->tokens = size->tokens;
    keep->numbers =
        codec_take(run, codec_elems(size) * larder_dtype_bytes(run->block->model->dtype), "keep");
    *state = keep;
    return keep->numbers ? 0 : LARDER_ECORRUPT;
}

static void keep_decode_rows(const struct codec_node *node, const struct codec_run *run,
                             void *state, uint32_t first, struct codec_tile *tile)
{
    (void)node;
    const struct keep *keep = state;
    uint32_t dtype = run->block->model->dtype;
    uint64_t dims = tile->size.dims;
    uint64_t count = tile->size.tokens * dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        uint64_t from = ((uint64_t)head * keep->tokens + first) * dims;
        codec_load_elems(tile->x + head * count, keep->numbers + from * larder_dtype_bytes(dtype),
                         count, dtype);
    }
}

const struct codec_node_ops codec_node_keep = {
    .name = "keep",
    .summary = "numbers in the model's dtype",
    .role = CODEC_LEAF,
    .bound = keep_bound,
    .scratch = keep_scratch,
    .encode = keep_encode,
    .decode_begin = keep_decode_begin,
    .decode_rows = keep_decode_rows,
};
