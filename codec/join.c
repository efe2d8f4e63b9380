/* SPDX-License-Identifier: Apache-2.0 */
/* join.c - neighbouring KV heads seen as one wide head by what follows, so that groups of channels
 * and orders of channels may span heads. Appends no bytes.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/node.h"

enum { HEADS };

static const struct codec_param params[] = {
    /* 0: all. */
    [HEADS] = {.name = "heads", .low = 0, .high = 64, .missing = 0, .whole = true},
};

struct join {
    struct codec_size size; /* of the inner pipe's rows */
    float *rows;
    void *inner;
};

static uint32_t joined_heads(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t heads = (uint32_t)node->value[HEADS];
    return heads == 0 || heads > size->heads ? size->heads : heads;
}

static struct codec_size inner_size(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t heads = joined_heads(node, size);
    return (struct codec_size){
        .heads = size->heads / heads, .tokens = size->tokens, .dims = size->dims * heads};
}

static int join_fits(const struct codec_node *node, const struct codec_size *size)
{
    uint32_t heads = joined_heads(node, size);
    if (size->heads % heads != 0)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "join heads=%u does not divide the model's %u KV heads", heads,
                           size->heads);
    struct codec_size inner = inner_size(node, size);
    return codec_fits(node->inner, &inner);
}

/* Once is enough. */
static uint32_t join_wants(const struct codec_node *node)
{
    (void)node;
    return CODEC_WHOLE_HEADS;
}

static uint32_t join_breaks(const struct codec_node *node)
{
    (void)node;
    return CODEC_WHOLE_HEADS;
}

static uint64_t join_bound(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size inner = inner_size(node, size);
    return codec_bound(node->inner, &inner);
}

static uint64_t join_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size inner = inner_size(node, size);
    return larder_round_up(sizeof(struct join), 64) +
           larder_round_up(codec_elems(size) * sizeof(float), 64) +
           codec_scratch(node->inner, &inner);
}

/* Between [head][token][dim] and [head / n][token][head % n][dim]. */
static void move_rows(struct codec_tile *tile, struct codec_tile *joined, bool back)
{
    uint32_t heads = tile->size.heads / joined->size.heads;
    uint64_t dims = tile->size.dims;
    float *apart = tile->x;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        float *wide = joined->x + (uint64_t)(head / heads) * tile->size.tokens * joined->size.dims +
                      head % heads * dims;
        for (uint32_t token = 0; token < tile->size.tokens; token++) {
            memcpy(back ? apart : wide, back ? wide : apart, dims * sizeof(float));
            apart += dims;
            wide += joined->size.dims;
        }
    }
}

static int join_encode(const struct codec_node *node, struct codec_run *run,
                       struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    struct codec_tile joined = {
        .x = codec_take_scratch(run, codec_elems(&tile->size) * sizeof(float)),
        .size = inner_size(node, &tile->size)};
    move_rows(tile, &joined, false);
    int err = codec_encode(node->inner, run, &joined);
    if (err == 0)
        move_rows(tile, &joined, true);
    run->scratch = mark;
    return err;
}

static int join_decode_begin(const struct codec_node *node, struct codec_run *run,
                             const struct codec_size *size, void **state)
{
    struct join *join = codec_take_scratch(run, sizeof(*join));
    join->size = inner_size(node, size);
    join->rows = codec_take_scratch(run, codec_rows_bytes(size));
    *state = join;
    return codec_decode_begin(node->inner, run, &join->size, &join->inner);
}

static void join_decode_rows(const struct codec_node *node, const struct codec_run *run,
                             void *state, uint32_t first, struct codec_tile *tile)
{
    const struct join *join = state;
    struct codec_tile joined = {.x = join->rows, .size = join->size};
    joined.size.tokens = tile->size.tokens;
    codec_decode_rows(node->inner, run, join->inner, first, &joined);
    move_rows(tile, &joined, true);
}

const struct codec_node_ops codec_node_join = {
    .name = "join",
    .summary = "neighbouring heads seen as one wide head",
    .role = CODEC_TRANSFORM,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .wants = join_wants,
    .breaks = join_breaks,
    .fits = join_fits,
    .bound = join_bound,
    .scratch = join_scratch,
    .encode = join_encode,
    .decode_begin = join_decode_begin,
    .decode_rows = join_decode_rows,
};
