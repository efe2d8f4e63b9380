/* SPDX-License-Identifier: Apache-2.0 */
/* symbols.c - how often each symbol occurs, by layer and channel, and tables from that.
 *
 *   rans.PIPE.frequency [layer, group, level] u16, rans.PIPE.group [layer, channel] u8
 *   (docs/CODECS.md, "Bytes of a section")
 *
 * Channels whose symbols are alike share a table: k-means with the bits that a channel's symbols
 * take with a group's frequencies as the distance, from groups of channels of like entropy. No
 * symbol has frequency 0, so that all blocks can be coded.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/rans.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"

#define GROUPS_MAX     16u
#define GROUP_CHANNELS 16u /* on average */
#define ITERATIONS     20u
#define PIPES_MAX      128u

/* What one leaf made. */
struct pipe {
    char name[17];
    uint32_t levels;
    uint32_t channels;
    uint32_t *counts; /* [layer][channel][level] */
};

struct counter {
    uint32_t layers;
    uint32_t pipe_count;
    int err;
    struct pipe pipes[PIPES_MAX];
};

static struct pipe *find_pipe(struct counter *counter, const char *name, uint32_t levels,
                              uint32_t channels)
{
    for (uint32_t i = 0; i < counter->pipe_count; i++) {
        if (strcmp(counter->pipes[i].name, name) == 0)
            return &counter->pipes[i];
    }
    if (counter->pipe_count == PIPES_MAX) {
        counter->err = larder_fail(LARDER_ELIMIT, "more than %u pipes to count", PIPES_MAX);
        return NULL;
    }
    struct pipe *pipe = &counter->pipes[counter->pipe_count];
    pipe->counts =
        larder_alloc_zero((uint64_t)counter->layers * channels * levels, sizeof(*pipe->counts));
    if (!pipe->counts) {
        counter->err = larder_fail(-ENOMEM, "no memory to count symbols");
        return NULL;
    }
    snprintf(pipe->name, sizeof(pipe->name), "%s", name);
    pipe->levels = levels;
    pipe->channels = channels;
    counter->pipe_count++;
    return pipe;
}

static void see(void *context, const char *name, uint32_t layer, const uint8_t *symbols,
                uint32_t heads, uint32_t tokens, uint32_t dims, uint32_t levels)
{
    struct counter *counter = context;
    struct pipe *pipe = find_pipe(counter, name, levels, heads * dims);
    /* Pipes that see other channels from block to block have no tables by channel. */
    if (!pipe || pipe->channels != heads * dims || pipe->levels != levels)
        return;
    for (uint32_t head = 0; head < heads; head++) {
        uint32_t *counts = pipe->counts + ((uint64_t)layer * pipe->channels + head * dims) * levels;
        for (uint32_t token = 0; token < tokens; token++) {
            for (uint32_t dim = 0; dim < dims; dim++)
                counts[(uint64_t)dim * levels + *symbols++]++;
        }
    }
}

/* --- groups of channels ----------------------------------------------------------------------- */

struct channel {
    double entropy; /* bits a symbol */
    uint32_t number;
};

static int by_entropy(const void *a, const void *b)
{
    const struct channel *x = a;
    const struct channel *y = b;
    if (x->entropy != y->entropy)
        return x->entropy < y->entropy ? -1 : 1;
    return x->number < y->number ? -1 : 1;
}

static double entropy_of(const uint32_t *counts, uint32_t levels)
{
    double all = 0;
    double bits = 0;
    for (uint32_t i = 0; i < levels; i++)
        all += counts[i];
    for (uint32_t i = 0; i < levels; i++) {
        if (counts[i] > 0)
            bits -= counts[i] / all * log2(counts[i] / all);
    }
    return bits;
}

/* A table takes 16 KiB of a decoder's cache, so few channels share few. */
static uint32_t group_count(const struct pipe *pipe)
{
    uint32_t groups = (pipe->channels + GROUP_CHANNELS - 1) / GROUP_CHANNELS;
    return groups < GROUPS_MAX ? groups : GROUPS_MAX;
}

static void start_groups(uint8_t *group_of, struct channel *sorted, const struct pipe *pipe,
                         const uint32_t *counts)
{
    for (uint32_t i = 0; i < pipe->channels; i++)
        sorted[i] = (struct channel){
            .entropy = entropy_of(counts + (uint64_t)i * pipe->levels, pipe->levels), .number = i};
    qsort(sorted, pipe->channels, sizeof(*sorted), by_entropy);
    for (uint32_t i = 0; i < pipe->channels; i++)
        group_of[sorted[i].number] = (uint8_t)((uint64_t)i * group_count(pipe) / pipe->channels);
}

/* A group that has lost all its channels keeps one of each symbol. */
static void fit_groups(struct rans_model *models, const uint8_t *group_of, const struct pipe *pipe,
                       const uint32_t *counts)
{
    for (uint32_t group = 0; group < group_count(pipe); group++) {
        uint64_t sums[RANS_LEVELS_MAX];
        for (uint32_t level = 0; level < pipe->levels; level++) {
            sums[level] = 1;
            for (uint32_t i = 0; i < pipe->channels; i++) {
                if (group_of[i] == group)
                    sums[level] += counts[(uint64_t)i * pipe->levels + level];
            }
        }
        rans_model_fit(&models[group], sums, pipe->levels);
    }
}

static double bits_with(const uint32_t *counts, const double *cost, uint32_t levels)
{
    double bits = 0;
    for (uint32_t i = 0; i < levels; i++)
        bits += counts[i] * cost[i];
    return bits;
}

static bool move_channels(uint8_t *group_of, const struct rans_model *models,
                          const struct pipe *pipe, const uint32_t *counts)
{
    double costs[GROUPS_MAX][RANS_LEVELS_MAX];
    for (uint32_t group = 0; group < group_count(pipe); group++) {
        for (uint32_t i = 0; i < pipe->levels; i++)
            costs[group][i] = RANS_SCALE_BITS - log2(models[group].frequency[i]);
    }
    bool moved = false;
    for (uint32_t i = 0; i < pipe->channels; i++) {
        const uint32_t *own = counts + (uint64_t)i * pipe->levels;
        uint8_t best = group_of[i];
        double least = bits_with(own, costs[best], pipe->levels);
        for (uint32_t group = 0; group < group_count(pipe); group++) {
            double bits = bits_with(own, costs[group], pipe->levels);
            if (bits < least) {
                least = bits;
                best = (uint8_t)group;
            }
        }
        moved |= best != group_of[i];
        group_of[i] = best;
    }
    return moved;
}

static int group_layers(uint16_t *frequencies, uint8_t *groups, const struct pipe *pipe,
                        uint32_t layers)
{
    struct channel *sorted = larder_alloc(pipe->channels * sizeof(*sorted));
    struct rans_model *models = larder_alloc(GROUPS_MAX * sizeof(*models));
    int err = sorted && models ? 0 : larder_fail(-ENOMEM, "no memory for tables");
    for (uint32_t layer = 0; layer < layers && err == 0; layer++) {
        const uint32_t *counts = pipe->counts + (uint64_t)layer * pipe->channels * pipe->levels;
        if (larder_all_zero(counts, (uint64_t)pipe->channels * pipe->levels * sizeof(*counts)))
            continue;
        uint8_t *group_of = groups + (uint64_t)layer * pipe->channels;
        start_groups(group_of, sorted, pipe, counts);
        fit_groups(models, group_of, pipe, counts);
        for (uint32_t i = 0; i < ITERATIONS && move_channels(group_of, models, pipe, counts); i++)
            fit_groups(models, group_of, pipe, counts);
        for (uint32_t group = 0; group < group_count(pipe); group++)
            memcpy(frequencies + ((uint64_t)layer * group_count(pipe) + group) * pipe->levels,
                   models[group].frequency, pipe->levels * sizeof(*frequencies));
    }
    larder_free(models);
    larder_free(sorted);
    return err;
}

static int put_pipe(const struct pipe *pipe, uint32_t layers, struct larder_profile_writer *writer)
{
    uint64_t rows = (uint64_t)layers * group_count(pipe);
    uint16_t *frequencies = larder_alloc_zero(rows * pipe->levels, sizeof(*frequencies));
    uint8_t *groups = larder_alloc_zero(layers, pipe->channels);
    int err = frequencies && groups ? group_layers(frequencies, groups, pipe, layers)
                                    : larder_fail(-ENOMEM, "no memory for tables");
    char name[48];
    snprintf(name, sizeof(name), "rans.%s.frequency", pipe->name);
    if (err == 0)
        err = larder_profile_put(writer, name, LARDER_PROFILE_U16,
                                 (uint64_t[]){layers, group_count(pipe), pipe->levels}, 3,
                                 frequencies);
    snprintf(name, sizeof(name), "rans.%s.group", pipe->name);
    if (err == 0)
        err = larder_profile_put(writer, name, LARDER_PROFILE_U8,
                                 (uint64_t[]){layers, pipe->channels}, 2, groups);
    larder_free(groups);
    larder_free(frequencies);
    return err;
}

/* --- the pass over the text ------------------------------------------------------------------- */

static int count_block(struct counter *counter, struct blocks *blocks, uint32_t block)
{
    for (uint32_t i = 0; i < 2 * counter->layers; i++) {
        struct larder_section_error error;
        uint64_t bytes;
        LARDER_TRY(
            blocks_encode(blocks, i / 2, i % 2 ? LARDER_V : LARDER_K, block, &bytes, &error));
    }
    return counter->err;
}

static int count_windows(struct calibration *c, struct counter *counter, const char *const *recipes,
                         uint32_t recipe_count, const struct larder_profile *profile)
{
    const struct larder_symbol_watch watch = {.see = see, .context = counter};
    int err = 0;
    for (uint32_t window = 0; window < c->window_count && err == 0; window++) {
        calibration_progress(c, "symbols", window, c->window_count);
        uint32_t count;
        err = calibration_fill_cache(c, window, &count);
        for (uint32_t i = 0; i < recipe_count && err == 0; i++) {
            struct blocks blocks;
            err = blocks_open(&blocks, c, recipes[i], profile, count);
            blocks.watch = &watch;
            for (uint32_t block = 0; block < count && err == 0; block++)
                err = count_block(counter, &blocks, block);
            blocks_close(&blocks);
        }
    }
    return err;
}

int calibration_count_symbols(struct calibration *c, const char *const *recipes,
                              uint32_t recipe_count, struct larder_profile_writer *writer)
{
    void *bytes;
    uint64_t byte_count;
    LARDER_TRY(larder_profile_finish(writer, &bytes, &byte_count));
    struct larder_profile *profile = NULL;
    struct counter *counter = larder_alloc_zero(1, sizeof(*counter));
    int err = counter ? larder_profile_open(&profile, bytes, byte_count)
                      : larder_fail(-ENOMEM, "no memory to count symbols");
    if (err == 0) {
        counter->layers = c->model.layers;
        err = count_windows(c, counter, recipes, recipe_count, profile);
    }
    for (uint32_t i = 0; counter && i < counter->pipe_count; i++) {
        if (err == 0)
            err = put_pipe(&counter->pipes[i], counter->layers, writer);
        larder_free(counter->pipes[i].counts);
    }
    larder_free(counter);
    larder_profile_close(profile);
    larder_free(bytes);
    return err;
}
