/* SPDX-License-Identifier: Apache-2.0 */
/* cachegen.c - how CacheGen (Liu et al., SIGCOMM 2024) codes each layer.
 *
 *   map.cachegen1, 2, 3 [layer, 2] u8   K, V: 0, 1, 2 for 32, 16, 12 bins, and 3 more where tokens
 *                                       are differences to anchors
 *   cachegen.gain [layer, 2]            bits an element that differences save at an equal error
 *
 * Bins are those of the authors' code for 32 layers, their borders moved in proportion to the
 * model's layers. Differences are measured, not assumed: both ways encode the same blocks with 16
 * bins, and half the logarithm of the ratio of their squared errors makes their sizes comparable.
 */
#include <errno.h>
#include <math.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"

#define WINDOWS_MAX 8u
#define BINS        "quant levels=15 axis=token group=0 mode=sym | rans"
#define ANCHORED    "anchors group=16{quant bits=8 axis=token group=0 mode=sym}{" BINS "}"

enum { BINS_32, BINS_16, BINS_12, BINS_COUNT };

/* By level and side: the first layer, of 32, of each tier but the first, and the tiers' bins. */
static const struct {
    uint32_t second;
    uint32_t third;
    uint8_t bins[3];
} tiers[3][2] = {
    {{10, 20, {BINS_16, BINS_16, BINS_12}}, {2, 32, {BINS_16, BINS_12, BINS_12}}},
    {{10, 32, {BINS_32, BINS_16, BINS_16}}, {2, 32, {BINS_32, BINS_16, BINS_16}}},
    {{32, 32, {BINS_32, BINS_32, BINS_32}}, {32, 32, {BINS_32, BINS_32, BINS_32}}},
};

/* A layer of 32 in a model of `layers`; at least one layer stands before it. */
static uint32_t scaled(uint32_t layer, uint32_t layers)
{
    uint32_t moved = (layer * layers + 16) / 32;
    return moved > 0 ? moved : 1;
}

struct sizes {
    double bytes;
    double error;
};

/* sizes: [layer][K, V]. */
static int add_sizes(struct sizes *sizes, struct blocks *blocks, uint32_t block_count)
{
    uint32_t layers = blocks->calibration->model.layers;
    for (uint32_t i = 0; i < 2 * layers * block_count; i++) {
        struct larder_section_error error;
        uint64_t bytes;
        uint32_t section = i / block_count;
        LARDER_TRY(blocks_encode(blocks, section / 2, section % 2 ? LARDER_V : LARDER_K,
                                 i % block_count, &bytes, &error));
        sizes[section].bytes += (double)bytes;
        sizes[section].error += error.error_energy;
    }
    return 0;
}

static int measure(struct calibration *c, struct sizes *sizes[2], double *elements)
{
    static const char *const recipes[] = {BINS, ANCHORED};
    uint32_t windows = c->window_count < WINDOWS_MAX ? c->window_count : WINDOWS_MAX;
    int err = 0;
    for (uint32_t i = 0; i < windows && err == 0; i++) {
        calibration_progress(c, "anchors", i, windows);
        uint32_t count;
        err =
            calibration_fill_cache(c, (uint32_t)((uint64_t)i * c->window_count / windows), &count);
        for (uint32_t way = 0; way < 2 && err == 0; way++) {
            struct blocks blocks;
            err = blocks_open(&blocks, c, recipes[way], NULL, count);
            if (err == 0)
                err = add_sizes(sizes[way], &blocks, count);
            blocks_close(&blocks);
        }
        *elements += (double)count * BLOCK_TOKENS * c->model.kv_heads;
    }
    return err;
}

static int put_maps(const struct calibration *c, const float *gain,
                    struct larder_profile_writer *writer)
{
    static const char *const names[] = {"map.cachegen1", "map.cachegen2", "map.cachegen3"};
    uint32_t layers = c->model.layers;
    uint8_t *map = larder_alloc(2ul * layers);
    int err = map ? 0 : larder_fail(-ENOMEM, "no memory for a map of layers");
    for (uint32_t level = 0; level < 3 && err == 0; level++) {
        for (uint32_t i = 0; i < 2 * layers; i++) {
            uint32_t layer = i / 2;
            uint32_t tier = layer >= scaled(tiers[level][i % 2].third, layers)    ? 2u
                            : layer >= scaled(tiers[level][i % 2].second, layers) ? 1u
                                                                                  : 0u;
            map[i] = (uint8_t)(tiers[level][i % 2].bins[tier] + (gain[i] > 0 ? BINS_COUNT : 0));
        }
        err = larder_profile_put(writer, names[level], LARDER_PROFILE_U8, (uint64_t[]){layers, 2},
                                 2, map);
    }
    larder_free(map);
    return err;
}

int calibration_choose_cachegen(struct calibration *c, struct larder_profile_writer *writer)
{
    uint64_t count = 2ull * c->model.layers;
    struct sizes *sizes = larder_alloc_zero(2 * count, sizeof(*sizes));
    float *gain = larder_alloc(count * sizeof(*gain));
    double elements = 0;
    int err = sizes && gain ? measure(c, (struct sizes *[]){sizes, sizes + count}, &elements)
                            : larder_fail(-ENOMEM, "no memory to measure anchors");
    for (uint64_t i = 0; i < count && err == 0; i++) {
        const struct sizes *plain = &sizes[i];
        const struct sizes *anchored = &sizes[count + i];
        double dims = i % 2 ? c->model.v_dims : c->model.k_dims;
        double saved = 8 * (plain->bytes - anchored->bytes) / (elements * dims);
        double closer =
            plain->error > 0 && anchored->error > 0 ? log2(plain->error / anchored->error) / 2 : 0;
        gain[i] = (float)(saved + closer);
    }
    if (err == 0)
        err = calibration_put(writer, "cachegen.gain", gain, c->model.layers, 2, 0, 0);
    if (err == 0)
        err = put_maps(c, gain, writer);
    larder_free(gain);
    larder_free(sizes);
    return err;
}
