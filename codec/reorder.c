/* SPDX-License-Identifier: Apache-2.0 */
/* reorder.c - K's channels in an order of the profile's, so that channels that share a scale are
 * alike; V passes unchanged. The order is one of all channels of a token, head after head: place i
 * takes channel order[i].
 *
 * by=rotatekv: the profile's rotatekv.order, for channels behind `hadamard` of up to four heads
 *   (RotateKV, Su et al., 2025).
 * by=bfp: the profile's bfp.order, within each head (K-sort of Trukhanov and Soloveychik, 2024).
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/node.h"
#include "codec/profile.h"

enum { BY };
enum { BY_ROTATEKV, BY_BFP };

static const struct codec_param params[] = {
    [BY] = {.name = "by", .missing = BY_ROTATEKV, .words = "rotatekv bfp"},
};

static const char *const tensors[] = {[BY_ROTATEKV] = "rotatekv.order", [BY_BFP] = "bfp.order"};

/* Of all layers; allocated with its numbers. */
struct orders {
    uint32_t channels;
    const int32_t *order; /* [layer][channel], in the profile */
    int32_t place[];      /* [layer][channel]: where each channel went */
};

struct reorder {
    const int32_t *order; /* of the layer; NULL: this section passes unchanged */
    const int32_t *place;
    float *row;
    void *inner;
};

/* -1 in all places before. */
static int invert(int32_t *place, const int32_t *order, uint32_t channels, const char *name)
{
    for (uint32_t i = 0; i < channels; i++)
        place[i] = -1;
    for (uint32_t i = 0; i < channels; i++) {
        if (order[i] < 0 || (uint32_t)order[i] >= channels || place[order[i]] >= 0)
            return larder_fail(LARDER_EFORMAT,
                               "the profile's %s is no order of %u channels: place %u has %d; make "
                               "it again with larder calibrate",
                               name, channels, i, order[i]);
        place[order[i]] = (int32_t)i;
    }
    return 0;
}

static int reorder_bind(void **out, const struct codec_node *node,
                        const struct larder_profile *profile, uint8_t kind)
{
    *out = NULL;
    if (kind != LARDER_SECTION_K)
        return 0;
    const char *name = tensors[(uint32_t)node->value[BY]];
    const struct larder_profile_model *model = larder_profile_model(profile);
    uint32_t channels = model->kv_heads * model->k_dims;
    uint64_t shape[2] = {model->layers, channels};
    const void *order;
    LARDER_TRY(larder_profile_find(profile, &order, name, LARDER_PROFILE_I32, shape, 2));
    uint64_t count = (uint64_t)model->layers * channels;
    struct orders *orders = larder_alloc(sizeof(*orders) + count * sizeof(orders->place[0]));
    if (!orders)
        return larder_fail(-ENOMEM, "no memory for the order of %u channels", channels);
    orders->channels = channels;
    orders->order = order;
    for (uint64_t at = 0; at < count; at += channels) {
        int err = invert(orders->place + at, orders->order + at, channels, name);
        if (err < 0) {
            larder_free(orders);
            return err;
        }
    }
    *out = orders;
    return 0;
}

static int reorder_fits(const struct codec_node *node, const struct codec_size *size)
{
    const struct orders *orders = node->bound;
    if (orders && orders->channels != size->heads * size->dims)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "reorder has an order of all %u channels of a token, here are %u; it "
                           "stands outside of what splits them",
                           orders->channels, size->heads * size->dims);
    return codec_fits(node->inner, size);
}

static uint64_t row_bytes(const struct codec_size *size)
{
    return larder_round_up((uint64_t)size->heads * size->dims * sizeof(float), 64);
}

static uint64_t reorder_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return larder_round_up(sizeof(struct reorder), 64) + row_bytes(size) +
           codec_scratch(node->inner, size);
}

static void reorder_open(struct reorder *out, const struct codec_node *node, struct codec_run *run,
                         const struct codec_size *size)
{
    *out = (struct reorder){.row = codec_take_scratch(run, row_bytes(size))};
    const struct orders *orders = node->bound;
    if (orders) {
        uint64_t at = (uint64_t)run->layer * orders->channels;
        out->order = orders->order + at;
        out->place = orders->place + at;
    }
}

CODEC_VECTOR static void pick(float *restrict out, const float *restrict row,
                              const int32_t *restrict from, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = row[from[i]];
}

/* Place i of each token takes what stood at from[i]. */
static void move(const struct reorder *reorder, struct codec_tile *tile, const int32_t *from)
{
    uint64_t dims = tile->size.dims;
    uint64_t head_count = (uint64_t)tile->size.tokens * dims;
    for (uint32_t token = 0; token < tile->size.tokens; token++) {
        float *at = tile->x + token * dims;
        for (uint32_t head = 0; head < tile->size.heads; head++)
            memcpy(reorder->row + head * dims, at + head * head_count, dims * sizeof(float));
        for (uint32_t head = 0; head < tile->size.heads; head++)
            pick(at + head * head_count, reorder->row, from + head * dims, dims);
    }
}

static int reorder_encode(const struct codec_node *node, struct codec_run *run,
                          struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    struct reorder reorder;
    reorder_open(&reorder, node, run, &tile->size);
    if (reorder.order)
        move(&reorder, tile, reorder.order);
    int err = codec_encode(node->inner, run, tile);
    if (err == 0 && reorder.place)
        move(&reorder, tile, reorder.place);
    run->scratch = mark;
    return err;
}

static int reorder_decode_begin(const struct codec_node *node, struct codec_run *run,
                                const struct codec_size *size, void **state)
{
    struct reorder *reorder = codec_take_scratch(run, sizeof(*reorder));
    reorder_open(reorder, node, run, size);
    *state = reorder;
    return codec_decode_begin(node->inner, run, size, &reorder->inner);
}

static void reorder_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                void *state, uint32_t first, struct codec_tile *tile)
{
    struct reorder *reorder = state;
    codec_decode_rows(node->inner, run, reorder->inner, first, tile);
    if (reorder->place)
        move(reorder, tile, reorder->place);
}

const struct codec_node_ops codec_node_reorder = {
    .name = "reorder",
    .summary = "K's channels in an order of the profile's; V unchanged",
    .role = CODEC_TRANSFORM,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .needs_profile = true,
    .bind = reorder_bind,
    .fits = reorder_fits,
    .bound = codec_inner_bound,
    .scratch = reorder_scratch,
    .encode = reorder_encode,
    .decode_begin = reorder_decode_begin,
    .decode_rows = reorder_decode_rows,
};
