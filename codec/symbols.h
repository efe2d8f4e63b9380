/* SPDX-License-Identifier: Apache-2.0 */
/* symbols.h - small numbers, one an element, as bytes of a section.
 *
 * A leaf makes symbols below its number of levels, [head][token][dim]. They are stored in tiles of
 * CODEC_TILE_TOKENS tokens, [head][token of tile][dim] each, so that decoding gives a tile from few
 * places.
 *
 * Bit packing is planar: the symbols of a tile are cut into as many runs as fit a byte, and byte j
 * holds the j-th of each run. So packing and unpacking are shifts and masks of whole words.
 * Three levels take five to a byte.
 *
 * Entropy-coded (symbols_rans.c), the symbols of a tile stand in runs: [head][dim], each run the
 * CODEC_TILE_TOKENS tokens of one channel, so that each run can have a frequency table of its own
 * and a vector of lanes looks up one table. With the profile's tables, runs of one group stand
 * together. All runs have one model, fitted to the section; or each the table that the profile has
 * for its channel's group; or symbols are packed: whichever is smallest. A section of many symbols
 * is coded in two streams (rans.h), each of half a tile's runs, which a CPU decodes in lockstep.
 *
 *   0 | packed tiles
 *   1 | model | bytes of each stream (u32) | streams        2 | bytes of each stream | streams
 *
 * A tile of fewer tokens repeats each run's last symbol up to its end, and the last run is repeated
 * until there are as many as steps of the coder need.
 */
#ifndef LARDER_CODEC_SYMBOLS_H
#define LARDER_CODEC_SYMBOLS_H

#include <stdint.h>

#include "codec/node.h"
#include "codec/rans.h"

#define SYMBOLS_STREAMS_MAX 2u
/* From so many symbols on there are two streams: the states of the second one are 128 bytes. */
#define SYMBOLS_TWO_STREAMS (1u << 17)

/* Where a leaf's symbols stand in its section. */
struct symbols {
    uint32_t levels;
    bool entropy_coded;
    /* packed */
    const uint8_t *in;
    uint64_t tile_bytes; /* of a whole tile */
    /* entropy-coded */
    struct rans_decoder decoders[SYMBOLS_STREAMS_MAX];
    uint32_t streams;
    uint64_t run_count;              /* of a tile */
    const struct rans_table *tables; /* the profile's, or one on the run's scratch */
    const uint8_t *which;            /* by run */
    const uint32_t *place_of;        /* by channel: its run; NULL: runs stand as channels do */
    uint8_t *coded;                  /* a tile as it is coded */
};

/* Bytes at most, for 2..256 levels. */
uint64_t symbols_bound(const struct codec_node *leaf, const struct codec_size *size,
                       uint32_t levels);
/* Scratch for encoding or decoding, whichever is more. */
uint64_t symbols_scratch(const struct codec_node *leaf, const struct codec_size *size);
/* `symbols` is [head][token][dim]. */
void symbols_encode(const struct codec_node *leaf, struct codec_run *run, const uint8_t *symbols,
                    const struct codec_size *size, uint32_t levels);
/* Room for one tile's symbols as symbols_rows() gives them. */
uint64_t symbols_tile_bytes(const struct codec_size *size);
/* LARDER_ECORRUPT with a message. */
int symbols_begin(struct symbols *out, const struct codec_node *leaf, struct codec_run *run,
                  const struct codec_size *size, uint32_t levels);
/* The tile at token `first`, tiles in order: out[head][token][dim] of size->tokens tokens. What
 * stands there may be as large as the bits of a symbol allow, whatever the number of levels. */
void symbols_rows(struct symbols *symbols, uint32_t first, const struct codec_size *size,
                  uint8_t *out);

/* --- inside of symbols ------------------------------------------------------------------------ */

/* Appends the symbols coded; false, and nothing is written, when that takes `packed_bytes` or
 * more. */
bool symbols_encode_coded(const struct codec_node *leaf, struct codec_run *run,
                          const uint8_t *symbols, const struct codec_size *size, uint32_t levels,
                          uint64_t packed_bytes);
uint64_t symbols_coded_scratch(const struct codec_size *size);
int symbols_begin_coded(struct symbols *out, const struct codec_node *leaf, struct codec_run *run,
                        const struct codec_size *size, uint8_t form);
void symbols_rows_coded(struct symbols *symbols, const struct codec_size *size, uint8_t *out);

enum symbols_form {
    SYMBOLS_PACKED = 0,
    SYMBOLS_FITTED = 1,
    SYMBOLS_PROFILE = 2,
};

#endif
