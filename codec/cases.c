/* SPDX-License-Identifier: Apache-2.0 */
/* cases.c - another pipe for some layers. Appends nothing to what the pipe taken appends.
 *
 * layers(): the first case that names the layer is taken; the last one, `else`, names all.
 * choose:   a map of the profile, map.NAME (u8 [layer, 2]), has the number of the pipe for K and
 *           for V of each layer.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "codec/node.h"

enum { MAP };

static const char *const map_names[] = {"kvtuner", "cachegen1", "cachegen2", "cachegen3"};

static const struct codec_param choose_params[] = {
    [MAP] = {.name = "map", .missing = 0, .words = "kvtuner cachegen1 cachegen2 cachegen3"},
};

/* Of one side: which pipe each layer takes. */
struct map {
    uint8_t number[LARDER_LAYERS_MAX];
};

static int choose_bind(void **bound, const struct codec_node *node,
                       const struct larder_profile *profile, uint8_t kind)
{
    char name[32];
    snprintf(name, sizeof(name), "map.%s", map_names[(uint32_t)node->value[MAP]]);
    uint32_t layers = larder_profile_model(profile)->layers;
    uint32_t pipes = 0;
    for (const struct codec_node *inner = node->inner; inner; inner = inner->next)
        pipes++;
    const void *found;
    uint64_t shape[] = {layers, 2};
    LARDER_TRY(larder_profile_find(profile, &found, name, LARDER_PROFILE_U8, shape, 2));
    struct map *map = larder_alloc_zero(1, sizeof(*map));
    if (!map)
        return larder_fail(-ENOMEM, "no memory for a map of layers");
    *bound = map;
    const uint8_t *numbers = found;
    for (uint32_t layer = 0; layer < layers; layer++) {
        map->number[layer] = numbers[2 * layer + kind];
        if (map->number[layer] >= pipes)
            return larder_fail(LARDER_EFORMAT, "profile: %s: layer %u takes pipe %u of %u", name,
                               layer, map->number[layer], pipes);
    }
    return 0;
}

static const struct codec_node *choose(const struct codec_node *node, const struct codec_run *run)
{
    const struct codec_node *inner = node->inner;
    const struct map *map = node->bound;
    if (map) {
        for (uint32_t number = map->number[run->layer]; number > 0; number--)
            inner = inner->next;
        return inner;
    }
    while (run->layer < inner->layer_first || run->layer > inner->layer_last) {
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
    return codec_encode(choose(node, run), run, tile);
}

static int cases_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    return codec_decode_begin(choose(node, run), run, size, state);
}

static void cases_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    codec_decode_rows(choose(node, run), run, state, first, tile);
}

static uint32_t cases_decode_planes(const struct codec_node *node, const struct codec_run *run,
                                    void *state, uint32_t first, uint8_t *planes,
                                    const struct codec_size *size)
{
    return codec_decode_planes(choose(node, run), run, state, first, planes, size);
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
    .decode_planes = cases_decode_planes,
};

const struct codec_node_ops codec_node_choose = {
    .name = "choose",
    .summary = "the pipe that the profile's map has for the layer",
    .role = CODEC_WRAPPER,
    .inner_count = 2,
    .inner_more = true,
    .params = choose_params,
    .param_count = LARDER_COUNT_OF(choose_params),
    .needs_profile = true,
    .bind = choose_bind,
    .fits = cases_fits,
    .bound = cases_bound,
    .scratch = cases_scratch,
    .encode = cases_encode,
    .decode_begin = cases_decode_begin,
    .decode_rows = cases_decode_rows,
    .decode_planes = cases_decode_planes,
};
