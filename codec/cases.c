/* SPDX-License-Identifier: Apache-2.0 */
/* cases.c - layers(): another pipe for some layers. The first case that names the layer is taken;
 * the last one, `else`, names all. */
#include <assert.h>

#include "codec/node.h"

static const struct codec_node *choose(const struct codec_node *node, uint32_t layer)
{
    const struct codec_node *inner = node->inner;
    while (layer < inner->layer_first || layer > inner->layer_last) {
        inner = inner->next;
        assert(inner);
    }
    return inner;
}

static int cases_fits(const struct codec_node *node, const struct codec_size *size)
{
    int err = 0;
    for (const struct codec_node *inner = node->inner; inner && err == 0; inner = inner->next)
        err = codec_fits(inner, size);
    return err;
}

static uint64_t cases_bound(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t most = 0;
    for (const struct codec_node *inner = node->inner; inner; inner = inner->next) {
        uint64_t bytes = codec_bound(inner, size);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static uint64_t cases_scratch(const struct codec_node *node, const struct codec_size *size)
{
    uint64_t most = 0;
    for (const struct codec_node *inner = node->inner; inner; inner = inner->next) {
        uint64_t bytes = codec_scratch(inner, size);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int cases_encode(const struct codec_node *node, struct codec_run *run,
                        struct codec_tile *tile)
{
    return codec_encode(choose(node, run->layer), run, tile);
}

static int cases_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    return codec_decode_begin(choose(node, run->layer), run, size, state);
}

static void cases_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    codec_decode_rows(choose(node, run->layer), run, state, first, tile);
}

const struct codec_node_ops codec_node_cases = {
    .name = "layers",
    .summary = "another pipe for some layers",
    .role = CODEC_CASES,
    .fits = cases_fits,
    .bound = cases_bound,
    .scratch = cases_scratch,
    .encode = cases_encode,
    .decode_begin = cases_decode_begin,
    .decode_rows = cases_decode_rows,
};
