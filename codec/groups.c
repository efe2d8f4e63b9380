/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/groups.h"

#include <errno.h>

#include "base/error.h"

void groups_make(struct groups *out, const struct codec_size *size, bool by_channel, uint32_t group)
{
    *out = (struct groups){.by_channel = by_channel, .tokens = 1, .dims = 1};
    if (by_channel) {
        out->tokens = group ? group : size->tokens;
        out->per_head = size->dims;
    } else {
        out->dims = group ? group : size->dims;
        out->per_head = group ? (size->dims + group - 1) / group : 0;
    }
    out->block_groups = out->per_head ? size->heads * out->per_head : 1;
    out->block_count = size->tokens / out->tokens;
    out->whole_tokens = out->block_count * out->tokens;
    out->tail_tokens = size->tokens - out->whole_tokens;
}

int groups_check(const char *leaf, bool by_channel, uint32_t group)
{
    if (by_channel && group % CODEC_TILE_TOKENS != 0)
        return larder_fail(-EINVAL, "%s: group=%u with axis=channel; it must be a multiple of %u",
                           leaf, group, CODEC_TILE_TOKENS);
    return 0;
}

CODEC_VECTOR bool groups_invert(float *restrict inverse, const float *restrict scale,
                                uint64_t count)
{
    uint32_t far = 0;
    for (uint64_t i = 0; i < count; i++) {
        inverse[i] = scale[i] > 0 ? 1 / scale[i] : 0;
        far |= scale[i] != 0 && !(scale[i] >= 0x1p-60f && scale[i] <= 0x1p60f);
    }
    return far == 0;
}

struct codec_size groups_whole(const struct groups *groups, const struct codec_size *size)
{
    return (struct codec_size){
        .heads = size->heads, .tokens = groups->whole_tokens, .dims = size->dims};
}

static uint64_t tail_elems(const struct groups *groups, const struct codec_size *size)
{
    return (uint64_t)groups->tail_tokens * size->heads * size->dims;
}

uint64_t groups_tail_bound(const struct groups *groups, const struct codec_size *size)
{
    return tail_elems(groups, size) * sizeof(float);
}

void groups_append_tail(const struct groups *groups, struct codec_run *run, struct codec_tile *tile)
{
    uint32_t dtype = run->block->model->dtype;
    uint64_t count = (uint64_t)groups->tail_tokens * tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        uint64_t row = (uint64_t)head * tile->size.tokens + groups->whole_tokens;
        float *x = tile->x + row * tile->size.dims;
        uint8_t *out = codec_append(run, count * larder_dtype_bytes(dtype));
        codec_store_elems(out, x, count, dtype);
        codec_load_elems(x, out, count, dtype);
    }
}

int groups_take_tail(const struct groups *groups, const uint8_t **out, struct codec_run *run,
                     const struct codec_size *size)
{
    uint64_t elem_bytes = larder_dtype_bytes(run->block->model->dtype);
    *out = codec_take(run, tail_elems(groups, size) * elem_bytes, "raw tokens");
    return *out ? 0 : LARDER_ECORRUPT;
}

void groups_restore_tail(const struct groups *groups, const uint8_t *raw,
                         const struct codec_run *run, uint32_t first, struct codec_tile *tile)
{
    uint32_t dtype = run->block->model->dtype;
    uint64_t row_bytes = tile->size.dims * larder_dtype_bytes(dtype);
    uint64_t count = (uint64_t)tile->size.tokens * tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        uint64_t row = (uint64_t)head * groups->tail_tokens + (first - groups->whole_tokens);
        codec_load_elems(tile->x + head * count, raw + row * row_bytes, count, dtype);
    }
}
