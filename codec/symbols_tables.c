/* SPDX-License-Identifier: Apache-2.0 */
/* symbols_tables.c - frequency tables that a profile has for the symbols of a leaf.
 *
 *   rans.PIPE.frequency [layer, group, level] u16   parts of 4,096; all 0: the layer has none
 *   rans.PIPE.group     [layer, channel] u8         which of a layer's groups a channel is in
 */
#include "codec/symbols_tables.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

struct symbol_tables {
    uint64_t bytes; /* with all that follows */
    uint32_t layers;
    uint32_t levels;
    uint32_t groups;
    uint64_t channels;
    uint8_t *group_at;         /* [layer][place] */
    uint32_t *channel_at;      /* [layer][place] */
    uint32_t *place_of;        /* [layer][channel] */
    struct rans_model *models; /* [layer][group] */
    struct rans_table *tables; /* the same */
};

/* Places of a layer's channels. */
static int sort_channels(struct symbol_tables *t, uint32_t layer, const uint8_t *group_of,
                         const char *name)
{
    uint64_t first = layer * t->channels;
    for (uint64_t i = 0; i < t->channels; i++) {
        if (group_of[first + i] >= t->groups)
            return larder_fail(LARDER_EFORMAT,
                               "profile: %s: channel %llu of layer %u is in group %u of %u", name,
                               (unsigned long long)i, layer, group_of[first + i], t->groups);
    }
    uint64_t place = first;
    for (uint32_t group = 0; group < t->groups; group++) {
        for (uint32_t i = 0; i < t->channels; i++) {
            if (group_of[first + i] != group)
                continue;
            t->group_at[place] = (uint8_t)group;
            t->channel_at[place] = i;
            t->place_of[first + i] = (uint32_t)(place - first);
            place++;
        }
    }
    return 0;
}

static int fill_layer(struct symbol_tables *t, uint32_t layer, const uint16_t *frequencies,
                      const char *name)
{
    for (uint32_t group = 0; group < t->groups; group++) {
        uint64_t at = (uint64_t)layer * t->groups + group;
        const uint16_t *frequency = frequencies + at * t->levels;
        if (larder_all_zero(frequency, t->levels * sizeof(*frequency)))
            continue;
        if (!rans_model_set(&t->models[at], frequency, t->levels))
            return larder_fail(LARDER_EFORMAT,
                               "profile: %s: frequencies of layer %u, group %u do not add up to %u",
                               name, layer, group, RANS_SCALE);
        rans_table_fill(&t->tables[at], &t->models[at]);
    }
    return 0;
}

int symbol_tables_bind(struct symbol_tables **out, const char *pipe,
                       const struct larder_profile *profile)
{
    *out = NULL;
    uint32_t layers = larder_profile_model(profile)->layers;
    char frequency_name[48];
    char group_name[48];
    snprintf(frequency_name, sizeof(frequency_name), "rans.%s.frequency", pipe);
    snprintf(group_name, sizeof(group_name), "rans.%s.group", pipe);
    if (!larder_profile_has(profile, frequency_name))
        return 0;
    const void *frequencies;
    const void *group_of;
    uint64_t shape[3] = {layers, 0, 0};
    uint64_t channels[2] = {layers, 0};
    LARDER_TRY(
        larder_profile_find(profile, &frequencies, frequency_name, LARDER_PROFILE_U16, shape, 3));
    LARDER_TRY(larder_profile_find(profile, &group_of, group_name, LARDER_PROFILE_U8, channels, 2));
    if (shape[1] > SYMBOL_GROUPS_MAX || shape[2] < 2 || shape[2] > RANS_LEVELS_MAX)
        return larder_fail(LARDER_EFORMAT,
                           "profile: %s has %llu groups of %llu levels; at most %u of 2 to %u",
                           frequency_name, (unsigned long long)shape[1],
                           (unsigned long long)shape[2], SYMBOL_GROUPS_MAX, RANS_LEVELS_MAX);
    uint64_t count = layers * shape[1];
    uint64_t places = layers * channels[1];
    uint64_t head = larder_round_up(sizeof(struct symbol_tables), 64);
    uint64_t models = larder_round_up(count * sizeof(struct rans_model), 64);
    uint64_t tables = count * sizeof(struct rans_table);
    uint64_t numbers = places * sizeof(uint32_t);
    uint64_t bytes = head + models + tables + 2 * numbers + places;
    uint8_t *memory = larder_alloc_zero(1, bytes);
    if (!memory)
        return larder_fail(-ENOMEM, "no memory for %llu tables", (unsigned long long)count);
    struct symbol_tables *t = (void *)memory;
    *t = (struct symbol_tables){.bytes = bytes,
                                .layers = layers,
                                .levels = (uint32_t)shape[2],
                                .groups = (uint32_t)shape[1],
                                .channels = channels[1],
                                .models = (void *)(memory + head),
                                .tables = (void *)(memory + head + models),
                                .channel_at = (void *)(memory + head + models + tables),
                                .place_of = (void *)(memory + head + models + tables + numbers),
                                .group_at = memory + head + models + tables + 2 * numbers};
    int err = 0;
    for (uint32_t layer = 0; layer < layers && err == 0; layer++) {
        err = sort_channels(t, layer, group_of, group_name);
        if (err == 0)
            err = fill_layer(t, layer, frequencies, frequency_name);
    }
    if (err < 0) {
        larder_free(t);
        return err;
    }
    *out = t;
    return 0;
}

uint64_t symbol_tables_bytes(const struct symbol_tables *t)
{
    return t ? t->bytes : 0;
}

bool symbol_tables_of(struct symbol_tables_layer *out, const struct symbol_tables *t,
                      uint32_t layer, uint64_t channels, uint32_t levels)
{
    if (!t || channels != t->channels || levels != t->levels)
        return false;
    assert(layer < t->layers);
    uint64_t first = (uint64_t)layer * t->groups;
    *out = (struct symbol_tables_layer){.group_at = t->group_at + layer * channels,
                                        .channel_at = t->channel_at + layer * channels,
                                        .place_of = t->place_of + layer * channels,
                                        .groups = t->groups,
                                        .models = t->models + first,
                                        .tables = t->tables + first};
    for (uint64_t i = 0; i < channels; i++) {
        if (out->models[out->group_at[i]].levels == 0)
            return false;
    }
    return true;
}
