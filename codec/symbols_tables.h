/* SPDX-License-Identifier: Apache-2.0 */
/* symbols_tables.h - frequency tables that a profile has for the symbols of a leaf: some for each
 * layer, and which of them each channel has.
 * Owns:    models, tables and the order of channels: nothing of it lies in the profile.
 * Threads: only read after bind.
 */
#ifndef LARDER_CODEC_SYMBOLS_TABLES_H
#define LARDER_CODEC_SYMBOLS_TABLES_H

#include <stdbool.h>
#include <stdint.h>

#include "codec/profile.h"
#include "codec/rans.h"

#define SYMBOL_GROUPS_MAX 64u

struct symbol_tables;

/* Those of the pipe of this name (struct codec_node); *out is NULL when the profile has none. One
 * piece of larder_alloc(). LARDER_EFORMAT when they are no tables. */
int symbol_tables_bind(struct symbol_tables **out, const char *pipe,
                       const struct larder_profile *profile);

/* Of memory; NULL: 0. */
uint64_t symbol_tables_bytes(const struct symbol_tables *tables);

/* Places are those of runs: channels by group, then by number, so that runs of one table stand
 * together and the table stays in the cache. */
struct symbol_tables_layer {
    const uint8_t *group_at;    /* by place */
    const uint32_t *channel_at; /* by place */
    const uint32_t *place_of;   /* by channel */
    uint32_t groups;
    const struct rans_model *models;
    const struct rans_table *tables;
};
/* False when there are none for so many channels and levels of this layer, or `tables` is NULL. */
bool symbol_tables_of(struct symbol_tables_layer *out, const struct symbol_tables *tables,
                      uint32_t layer, uint64_t channels, uint32_t levels);

#endif
