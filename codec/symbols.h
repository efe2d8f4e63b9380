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
 * Entropy-coded, a section's symbols have one model, fitted to them, and one stream (rans.h) of all
 * tiles, each filled up with zeros to whole steps; or they are packed where that is smaller.
 *
 *   0 | packed tiles        1 | model | bytes of the stream (u32) | stream
 */
#ifndef LARDER_CODEC_SYMBOLS_H
#define LARDER_CODEC_SYMBOLS_H

#include <stdint.h>

#include "codec/node.h"
#include "codec/rans.h"

/* Where a leaf's symbols stand in its section. */
struct symbols {
    const uint8_t *in;
    uint32_t levels;
    uint64_t tile_bytes; /* of a whole tile, packed */
    bool entropy_coded;
    struct rans_decoder decoder;
    struct rans_table *table; /* on the run's scratch */
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

#endif
