/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/symbols.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

/* Bits of a symbol, from the parts that divide a byte: 4, 2 and 1. */
static uint32_t symbol_bits(uint32_t levels)
{
    assert(levels >= 2);
    assert(levels <= 256);
    uint32_t bits = 1;
    while ((1u << bits) < levels)
        bits++;
    return bits;
}

static uint64_t run_bytes(uint64_t count, uint32_t per_byte)
{
    return (count + per_byte - 1) / per_byte;
}

static uint64_t packed_bytes(uint64_t count, uint32_t levels)
{
    if (levels == 3)
        return run_bytes(count, 5);
    uint32_t bits = symbol_bits(levels);
    if (bits == 8)
        return count;
    uint64_t bytes = 0;
    for (uint32_t part = 4; part > 0; part /= 2) {
        if (bits & part)
            bytes += run_bytes(count, 8 / part);
    }
    return bytes;
}

uint64_t symbols_tile_bytes(const struct codec_size *size)
{
    return larder_min_u64(size->tokens, CODEC_TILE_TOKENS) * size->heads * size->dims;
}

static uint64_t tiles_packed_bytes(const struct codec_size *size, uint32_t levels)
{
    uint64_t row = (uint64_t)size->heads * size->dims;
    return size->tokens / CODEC_TILE_TOKENS * packed_bytes(row * CODEC_TILE_TOKENS, levels) +
           packed_bytes(row * (size->tokens % CODEC_TILE_TOKENS), levels);
}

uint64_t symbols_bound(const struct codec_node *leaf, const struct codec_size *size,
                       uint32_t levels)
{
    return leaf->entropy_coded + tiles_packed_bytes(size, levels);
}

uint64_t symbols_scratch(const struct codec_node *leaf, const struct codec_size *size)
{
    uint64_t coded = leaf->entropy_coded ? symbols_coded_scratch(size) : 0;
    return larder_round_up(symbols_tile_bytes(size), 64) + coded;
}

/* out[j] = (in[j] >> from & mask) << to, in each byte alone. */
CODEC_VECTOR static void move_bits(uint8_t *out, const uint8_t *in, uint64_t count, uint32_t from,
                                   uint8_t mask, uint32_t to)
{
    uint64_t masks = 0x0101010101010101ull * mask;
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        memcpy(&word, in + i, sizeof(word));
        word = ((word >> from) & masks) << to;
        memcpy(out + i, &word, sizeof(word));
    }
    for (; i < count; i++)
        out[i] = (uint8_t)(((in[i] >> from) & mask) << to);
}

/* The same, added to what is there. */
CODEC_VECTOR static void merge_bits(uint8_t *out, const uint8_t *in, uint64_t count, uint32_t from,
                                    uint8_t mask, uint32_t to)
{
    uint64_t masks = 0x0101010101010101ull * mask;
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t word;
        uint64_t merged;
        memcpy(&word, in + i, sizeof(word));
        memcpy(&merged, out + i, sizeof(merged));
        merged |= ((word >> from) & masks) << to;
        memcpy(out + i, &merged, sizeof(merged));
    }
    for (; i < count; i++)
        out[i] |= (uint8_t)(((in[i] >> from) & mask) << to);
}

CODEC_VECTOR static void pack_trits(uint8_t *out, const uint8_t *in, uint64_t count)
{
    uint64_t bytes = run_bytes(count, 5);
    memset(out, 0, bytes);
    uint16_t weight = 1;
    for (uint64_t first = 0; first < count; first += bytes, weight = (uint16_t)(weight * 3)) {
        uint64_t n = larder_min_u64(bytes, count - first);
        for (uint64_t j = 0; j < n; j++)
            out[j] = (uint8_t)(out[j] + in[first + j] * weight);
    }
}

CODEC_VECTOR static void unpack_trits(uint8_t *out, const uint8_t *in, uint64_t count)
{
    static const uint16_t weights[5] = {1, 3, 9, 27, 81};
    /* x / w for x < 256 as (x * m) >> 16, m = 65536 / w rounded up. */
    uint64_t bytes = run_bytes(count, 5);
    for (uint64_t first = 0, k = 0; first < count; first += bytes, k++) {
        uint64_t n = larder_min_u64(bytes, count - first);
        uint32_t inverse = (65536u + weights[k] - 1) / weights[k];
        for (uint64_t j = 0; j < n; j++) {
            uint32_t above = (in[j] * inverse) >> 16;
            out[first + j] = (uint8_t)(above - above * 171 / 512 * 3);
        }
    }
}

static void pack(uint8_t *out, const uint8_t *in, uint64_t count, uint32_t levels)
{
    if (levels == 3) {
        pack_trits(out, in, count);
        return;
    }
    uint32_t bits = symbol_bits(levels);
    if (bits == 8) {
        memcpy(out, in, count);
        return;
    }
    uint32_t done = 0;
    for (uint32_t part = 4; part > 0; part /= 2) {
        if (!(bits & part))
            continue;
        uint64_t bytes = run_bytes(count, 8 / part);
        uint8_t mask = (uint8_t)((1u << part) - 1);
        uint32_t to = 0;
        move_bits(out, in, bytes, done, mask, 0);
        for (uint64_t first = bytes; first < count; first += bytes) {
            to += part;
            merge_bits(out, in + first, larder_min_u64(bytes, count - first), done, mask, to);
        }
        out += bytes;
        done += part;
    }
}

static void unpack(uint8_t *out, const uint8_t *in, uint64_t count, uint32_t levels)
{
    if (levels == 3) {
        unpack_trits(out, in, count);
        return;
    }
    uint32_t bits = symbol_bits(levels);
    if (bits == 8) {
        memcpy(out, in, count);
        return;
    }
    uint32_t done = 0;
    for (uint32_t part = 4; part > 0; part /= 2) {
        if (!(bits & part))
            continue;
        uint64_t bytes = run_bytes(count, 8 / part);
        uint8_t mask = (uint8_t)((1u << part) - 1);
        uint32_t from = 0;
        for (uint64_t first = 0; first < count; first += bytes, from += part) {
            uint64_t n = larder_min_u64(bytes, count - first);
            if (done == 0)
                move_bits(out + first, in, n, from, mask, 0);
            else
                merge_bits(out + first, in, n, from, mask, done);
        }
        in += bytes;
        done += part;
    }
}

/* Symbols of a tile side by side, as they are coded. */
static void gather_tile(uint8_t *out, const uint8_t *symbols, const struct codec_size *size,
                        uint32_t first, uint64_t tokens)
{
    uint64_t head_count = tokens * size->dims;
    for (uint32_t head = 0; head < size->heads; head++)
        memcpy(out + head * head_count,
               symbols + ((uint64_t)head * size->tokens + first) * size->dims, head_count);
}

static void encode_packed(struct codec_run *run, const uint8_t *symbols,
                          const struct codec_size *size, uint32_t levels)
{
    uint8_t *mark = run->scratch;
    uint8_t *tile = codec_take_scratch(run, symbols_tile_bytes(size));
    for (uint32_t first = 0; first < size->tokens; first += CODEC_TILE_TOKENS) {
        uint64_t tokens = larder_min_u64(size->tokens - first, CODEC_TILE_TOKENS);
        uint64_t count = tokens * size->heads * size->dims;
        gather_tile(tile, symbols, size, first, tokens);
        pack(codec_append(run, packed_bytes(count, levels)), tile, count, levels);
    }
    run->scratch = mark;
}

void symbols_encode(const struct codec_node *leaf, struct codec_run *run, const uint8_t *symbols,
                    const struct codec_size *size, uint32_t levels)
{
    if (run->block->watch)
        run->block->watch->see(run->block->watch->context, leaf->pipe, run->layer, symbols,
                               size->heads, size->tokens, size->dims, levels);
    if (leaf->entropy_coded) {
        if (symbols_encode_coded(leaf, run, symbols, size, levels,
                                 1 + tiles_packed_bytes(size, levels)))
            return;
        *codec_append(run, 1) = SYMBOLS_PACKED;
    }
    encode_packed(run, symbols, size, levels);
}

int symbols_begin(struct symbols *out, const struct codec_node *leaf, struct codec_run *run,
                  const struct codec_size *size, uint32_t levels)
{
    uint64_t tile_count = (uint64_t)size->heads * size->dims * CODEC_TILE_TOKENS;
    *out = (struct symbols){.levels = levels, .tile_bytes = packed_bytes(tile_count, levels)};
    if (leaf->entropy_coded) {
        const uint8_t *form = codec_take(run, 1, "symbols");
        if (!form)
            return LARDER_ECORRUPT;
        if (*form != SYMBOLS_PACKED)
            return symbols_begin_coded(out, leaf, run, size, *form);
    }
    out->in = codec_take(run, tiles_packed_bytes(size, levels), "symbols");
    return out->in ? 0 : LARDER_ECORRUPT;
}

void symbols_rows(struct symbols *symbols, uint32_t first, const struct codec_size *size,
                  uint8_t *out)
{
    assert(first % CODEC_TILE_TOKENS == 0);
    if (symbols->entropy_coded)
        symbols_rows_coded(symbols, size, out);
    else
        unpack(out, symbols->in + first / CODEC_TILE_TOKENS * symbols->tile_bytes,
               codec_elems(size), symbols->levels);
}

const struct codec_node_ops codec_node_rans = {
    .name = "rans",
    .summary = "symbols entropy-coded, with the profile's tables or a model fitted to the section",
    .role = CODEC_CODER,
};
