/* SPDX-License-Identifier: Apache-2.0 */
/* sinks.c - the first tokens of a chain, on which attention rests, kept as they are. Only the block
 * at position 0 has them. Inside, they are replaced by the token behind them, so that they widen no
 * group and groups keep their places.
 *
 *   first tokens, [head][token][dim] in the model's dtype | the inner pipe
 */
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/node.h"

enum { TOKENS };

static const struct codec_param params[] = {
    [TOKENS] = {.name = "tokens", .low = 1, .high = CODEC_TILE_TOKENS, .missing = 4, .whole = true},
};

struct sinks {
    const uint8_t *raw;
    uint32_t tokens;
    void *inner;
};

static uint32_t sink_tokens(const struct codec_node *node, const struct codec_run *run,
                            const struct codec_size *size)
{
    uint32_t tokens = (uint32_t)node->value[TOKENS];
    if (run->block->position > 0)
        return 0;
    return tokens < size->tokens ? tokens : size->tokens;
}

static uint64_t sinks_bound(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t tokens = (uint64_t)node->value[TOKENS];
    return tokens * size->heads * size->dims * sizeof(float) + codec_bound(node->inner, size);
}

static uint64_t kept_bytes(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up((uint64_t)node->value[TOKENS] * size->heads * size->dims * sizeof(float),
                           64);
}

static uint64_t sinks_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return 64 + kept_bytes(node, size) + codec_scratch(node->inner, size);
}

static int sinks_encode(const struct codec_node *node, struct codec_run *run,
                        struct codec_tile *tile)
{
    uint32_t tokens = sink_tokens(node, run, &tile->size);
    uint32_t dtype = run->block->model->dtype;
    uint64_t count = (uint64_t)tokens * tile->size.dims;
    uint64_t head_count = (uint64_t)tile->size.tokens * tile->size.dims;
    uint8_t *mark = run->scratch;
    float *kept = codec_take_scratch(run, kept_bytes(node, &tile->size));
    for (uint32_t head = 0; head < tile->size.heads && tokens > 0; head++) {
        float *x = tile->x + head * head_count;
        uint8_t *out = codec_append(run, count * larder_dtype_bytes(dtype));
        codec_store_elems(out, x, count, dtype);
        codec_load_elems(kept + head * count, out, count, dtype);
        for (uint32_t token = 0; token < tokens && tokens < tile->size.tokens; token++)
            memcpy(x + token * tile->size.dims, x + count, tile->size.dims * sizeof(float));
    }
    int err = codec_encode(node->inner, run, tile);
    for (uint32_t head = 0; head < tile->size.heads && err == 0; head++)
        memcpy(tile->x + head * head_count, kept + head * count, count * sizeof(float));
    run->scratch = mark;
    return err;
}

static int sinks_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    struct sinks *sinks = codec_take_scratch(run, sizeof(*sinks));
    sinks->tokens = sink_tokens(node, run, size);
    sinks->raw = codec_take(run,
                            (uint64_t)sinks->tokens * size->heads * size->dims *
                                larder_dtype_bytes(run->block->model->dtype),
                            "sinks");
    if (!sinks->raw)
        return LARDER_ECORRUPT;
    *state = sinks;
    return codec_decode_begin(node->inner, run, size, &sinks->inner);
}

static void sinks_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    const struct sinks *sinks = state;
    codec_decode_rows(node->inner, run, sinks->inner, first, tile);
    if (first >= sinks->tokens)
        return;
    uint32_t dtype = run->block->model->dtype;
    uint64_t row_bytes = tile->size.dims * larder_dtype_bytes(dtype);
    uint64_t count = larder_min_u64(sinks->tokens - first, tile->size.tokens) * tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++)
        codec_load_elems(tile->x + (uint64_t)head * tile->size.tokens * tile->size.dims,
                         sinks->raw + ((uint64_t)head * sinks->tokens + first) * row_bytes, count,
                         dtype);
}

static uint32_t sinks_wants(const struct codec_node *node)
{
    (void)node;
    return CODEC_WHOLE_TOKENS;
}

const struct codec_node_ops codec_node_sinks = {
    .name = "sinks",
    .summary = "the first tokens of a chain kept as they are",
    .role = CODEC_WRAPPER,
    .inner_count = 1,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .wants = sinks_wants,
    .fits = codec_inner_fits,
    .bound = sinks_bound,
    .scratch = sinks_scratch,
    .encode = sinks_encode,
    .decode_begin = sinks_decode_begin,
    .decode_rows = sinks_decode_rows,
};
