/* SPDX-License-Identifier: Apache-2.0 */
/* anchors.c - tokens as differences to an anchor, the first token of their group (CacheGen, Liu et
 * al., SIGCOMM 2024, whose groups are of about ten). Anchors go through the first pipe, what is
 * left of all tokens when their decoded anchor is taken off, through the second: so an anchor's own
 * error is seen by the second pipe and does not add up.
 *
 *   anchors, by the first pipe, [head][group][dim] | differences, by the second
 */
#include <string.h>

#include "base/bytes.h"
#include "codec/node.h"

enum { GROUP };

static const struct codec_param params[] = {
    [GROUP] = {.name = "group", .low = 2, .high = 256, .missing = 16, .whole = true},
};

struct anchors {
    void *first;
    void *second;
    struct codec_tile rows; /* decoded anchors, from `loaded` on */
    uint32_t group;
    uint32_t count; /* of all anchors */
    uint32_t loaded;
};

static uint32_t group_of(const struct codec_node *node)
{
    return (uint32_t)node->value[GROUP];
}

static struct codec_size anchors_size(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size anchors = *size;
    anchors.tokens = (size->tokens + group_of(node) - 1) / group_of(node);
    return anchors;
}

static int anchors_fits(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size anchors = anchors_size(node, size);
    int err = codec_fits(node->inner, &anchors);
    return err < 0 ? err : codec_fits(node->inner->next, size);
}

static uint64_t anchors_bound(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size anchors = anchors_size(node, size);
    return codec_bound(node->inner, &anchors) + codec_bound(node->inner->next, size);
}

static uint64_t anchors_scratch(const struct codec_node *node, const struct codec_size *size)
{
    struct codec_size anchors = anchors_size(node, size);
    return larder_round_up(sizeof(struct anchors), 64) +
           larder_round_up(codec_elems(&anchors) * sizeof(float), 64) + codec_rows_bytes(&anchors) +
           codec_scratch(node->inner, &anchors) + codec_scratch(node->inner->next, size);
}

CODEC_VECTOR static void add(float *restrict x, const float *restrict y, uint64_t count, float sign)
{
    for (uint64_t i = 0; i < count; i++)
        x[i] = x[i] + sign * y[i];
}

/* To each token its group's anchor, +1 or -1 times. */
static void add_anchors(const struct codec_tile *tile, const struct codec_tile *anchors,
                        uint32_t group, float sign)
{
    uint64_t dims = tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t token = 0; token < tile->size.tokens; token++)
            add(tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                anchors->x + ((uint64_t)head * anchors->size.tokens + token / group) * dims, dims,
                sign);
    }
}

static int anchors_encode(const struct codec_node *node, struct codec_run *run,
                          struct codec_tile *tile)
{
    uint8_t *mark = run->scratch;
    struct codec_tile anchors = {.size = anchors_size(node, &tile->size)};
    anchors.x = codec_take_scratch(run, codec_elems(&anchors.size) * sizeof(float));
    uint64_t dims = tile->size.dims;
    for (uint32_t head = 0; head < tile->size.heads; head++) {
        for (uint32_t i = 0; i < anchors.size.tokens; i++)
            memcpy(anchors.x + ((uint64_t)head * anchors.size.tokens + i) * dims,
                   tile->x + ((uint64_t)head * tile->size.tokens + i * group_of(node)) * dims,
                   dims * sizeof(float));
    }
    int err = codec_encode(node->inner, run, &anchors);
    if (err == 0) {
        add_anchors(tile, &anchors, group_of(node), -1);
        err = codec_encode(node->inner->next, run, tile);
    }
    if (err == 0)
        add_anchors(tile, &anchors, group_of(node), 1);
    run->scratch = mark;
    return err;
}

static int anchors_decode_begin(const struct codec_node *node, struct codec_run *run,
                                const struct codec_size *size, void **state)
{
    struct anchors *self = codec_take_scratch(run, sizeof(*self));
    struct codec_size anchors = anchors_size(node, size);
    *self = (struct anchors){
        .group = group_of(node), .count = anchors.tokens, .rows = {.size = anchors}};
    self->rows.size.tokens = 0;
    self->rows.x = codec_take_scratch(run, codec_rows_bytes(&anchors));
    *state = self;
    int err = codec_decode_begin(node->inner, run, &anchors, &self->first);
    return err < 0 ? err : codec_decode_begin(node->inner->next, run, size, &self->second);
}

/* The anchor of number `wanted` stands in rows afterwards. */
static void load_anchor(const struct codec_node *node, const struct codec_run *run,
                        struct anchors *self, uint32_t wanted)
{
    while (wanted >= self->loaded + self->rows.size.tokens) {
        self->loaded += self->rows.size.tokens;
        self->rows.size.tokens =
            (uint32_t)larder_min_u64(self->count - self->loaded, CODEC_ROWS_TOKENS);
        codec_decode_rows(node->inner, run, self->first, self->loaded, &self->rows);
    }
}

static void anchors_decode_rows(const struct codec_node *node, const struct codec_run *run,
                                void *state, uint32_t first, struct codec_tile *tile)
{
    struct anchors *self = state;
    codec_decode_rows(node->inner->next, run, self->second, first, tile);
    uint64_t dims = tile->size.dims;
    for (uint32_t token = 0; token < tile->size.tokens; token++) {
        uint32_t anchor = (first + token) / self->group;
        load_anchor(node, run, self, anchor);
        for (uint32_t head = 0; head < tile->size.heads; head++)
            add(tile->x + ((uint64_t)head * tile->size.tokens + token) * dims,
                self->rows.x +
                    ((uint64_t)head * self->rows.size.tokens + anchor - self->loaded) * dims,
                dims, 1);
    }
}

const struct codec_node_ops codec_node_anchors = {
    .name = "anchors",
    .summary = "differences to the first token of each group, which has a pipe of its own",
    .role = CODEC_WRAPPER,
    .inner_count = 2,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .fits = anchors_fits,
    .bound = anchors_bound,
    .scratch = anchors_scratch,
    .encode = anchors_encode,
    .decode_begin = anchors_decode_begin,
    .decode_rows = anchors_decode_rows,
};
