/* SPDX-License-Identifier: Apache-2.0 */
/* symbols_rans.c - symbols.h's entropy coding. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "codec/square.h"
#include "codec/symbols.h"
#include "codec/symbols_tables.h"

/* How the symbols of a section are cut into tiles, streams and runs. */
struct coding {
    uint64_t channels;
    uint64_t tiles;
    uint64_t runs; /* of a tile, those that fill it up included */
    uint32_t streams;
};

static_assert(CODEC_TILE_TOKENS == RANS_RUN, "a run is a channel's tokens of a tile");
static_assert(RANS_RUN == SQUARE_BYTES, "runs are turned over as they stand");

static struct coding coding_of(const struct codec_size *size)
{
    struct coding c = {
        .channels = (uint64_t)size->heads * size->dims,
        .tiles = (size->tokens + CODEC_TILE_TOKENS - 1) / CODEC_TILE_TOKENS,
    };
    c.streams = codec_elems(size) >= SYMBOLS_TWO_STREAMS ? 2 : 1;
    c.runs = larder_round_up(c.channels, 2ul * c.streams); /* each stream: an even number */
    return c;
}

static uint64_t stream_runs(const struct coding *c)
{
    return c->tiles * (c->runs / c->streams);
}

uint64_t symbols_coded_scratch(const struct codec_size *size)
{
    struct coding c = coding_of(size);
    uint64_t runs = stream_runs(&c);
    uint64_t encoding =
        c.streams * (larder_round_up(runs * RANS_RUN, 64) + larder_round_up(runs, 64) +
                     larder_round_up(rans_bound(runs * RANS_RUN), 64));
    uint64_t decoding = larder_round_up(sizeof(struct rans_table), 64) +
                        larder_round_up(c.runs, 64) + larder_round_up(c.runs * RANS_RUN, 64);
    return encoding > decoding ? encoding : decoding;
}

/* A run's table, by its place in a tile; `tables` NULL: all have the first. */
static uint8_t table_of(const struct coding *c, const struct symbol_tables_layer *tables,
                        uint64_t run)
{
    return tables ? tables->group_at[run < c->channels ? run : c->channels - 1] : 0;
}

/* --- encoding --------------------------------------------------------------------------------- */

/* What a section's streams are made of; stream s has the runs of each tile from
 * s * runs / streams on. */
struct coded {
    struct coding c;
    uint8_t *symbols[SYMBOLS_STREAMS_MAX];
    uint8_t *which[SYMBOLS_STREAMS_MAX];
    uint8_t *out[SYMBOLS_STREAMS_MAX];
    uint64_t room; /* of each */
    uint64_t bytes[SYMBOLS_STREAMS_MAX];
};

static void gather_run(uint8_t *out, const uint8_t *symbols, const struct codec_size *size,
                       uint64_t tile, uint64_t channel)
{
    uint64_t first = tile * CODEC_TILE_TOKENS;
    uint64_t tokens = larder_min_u64(size->tokens - first, CODEC_TILE_TOKENS);
    const uint8_t *at =
        symbols + (channel / size->dims * size->tokens + first) * size->dims + channel % size->dims;
    for (uint64_t i = 0; i < CODEC_TILE_TOKENS; i++)
        out[i] = at[(i < tokens ? i : tokens - 1) * size->dims];
}

/* `tables` NULL: runs stand as channels do. */
static void gather(struct coded *coded, const uint8_t *symbols, const struct codec_size *size,
                   const struct symbol_tables_layer *tables)
{
    const struct coding *c = &coded->c;
    uint64_t part = c->runs / c->streams;
    for (uint64_t tile = 0; tile < c->tiles; tile++) {
        for (uint64_t run = 0; run < c->runs; run++) {
            uint64_t place = run < c->channels ? run : c->channels - 1;
            gather_run(coded->symbols[run / part] + (tile * part + run % part) * RANS_RUN, symbols,
                       size, tile, tables ? tables->channel_at[place] : place);
        }
    }
}

static void set_which(struct coded *coded, const struct symbol_tables_layer *tables)
{
    const struct coding *c = &coded->c;
    uint64_t part = c->runs / c->streams;
    for (uint32_t s = 0; s < c->streams; s++) {
        for (uint64_t run = 0; run < part; run++)
            coded->which[s][run] = table_of(c, tables, s * part + run);
        for (uint64_t tile = 1; tile < c->tiles; tile++)
            memcpy(coded->which[s] + tile * part, coded->which[s], part);
    }
}

static void count_all(uint64_t *counts, const struct coded *coded)
{
    uint64_t count = stream_runs(&coded->c) * RANS_RUN;
    for (uint32_t s = 0; s < coded->c.streams; s++) {
        for (uint64_t i = 0; i < count; i++)
            counts[coded->symbols[s][i]]++;
    }
}

/* With the tables by run. */
static double bits_by_run(const struct coded *coded, const struct rans_model *models,
                          uint32_t groups)
{
    uint64_t counts[SYMBOL_GROUPS_MAX][RANS_LEVELS_MAX] = {0};
    for (uint32_t s = 0; s < coded->c.streams; s++) {
        const uint8_t *symbols = coded->symbols[s];
        for (uint64_t run = 0; run < stream_runs(&coded->c); run++, symbols += RANS_RUN) {
            uint64_t *own = counts[coded->which[s][run]];
            for (uint32_t i = 0; i < RANS_RUN; i++)
                own[symbols[i]]++;
        }
    }
    double bits = 0;
    for (uint32_t group = 0; group < groups; group++)
        bits += rans_model_bits(&models[group], counts[group]);
    return bits;
}

static uint64_t encode_streams(struct coded *coded, const struct rans_model *models)
{
    uint64_t all = 0;
    for (uint32_t s = 0; s < coded->c.streams; s++) {
        coded->bytes[s] = rans_encode_runs(coded->out[s], coded->room, coded->symbols[s], models,
                                           coded->which[s], stream_runs(&coded->c));
        all += sizeof(uint32_t) + coded->bytes[s];
    }
    return all;
}

static void append_streams(struct codec_run *run, const struct coded *coded)
{
    for (uint32_t s = 0; s < coded->c.streams; s++) {
        uint32_t bytes = (uint32_t)coded->bytes[s];
        memcpy(codec_append(run, sizeof(bytes)), &bytes, sizeof(bytes));
    }
    for (uint32_t s = 0; s < coded->c.streams; s++)
        memcpy(codec_append(run, coded->bytes[s]), coded->out[s] + coded->room - coded->bytes[s],
               coded->bytes[s]);
}

static void open_coded(struct coded *coded, struct codec_run *run, const struct codec_size *size)
{
    coded->c = coding_of(size);
    uint64_t runs = stream_runs(&coded->c);
    coded->room = rans_bound(runs * RANS_RUN);
    for (uint32_t s = 0; s < coded->c.streams; s++) {
        coded->symbols[s] = codec_take_scratch(run, runs * RANS_RUN);
        coded->which[s] = codec_take_scratch(run, runs);
        coded->out[s] = codec_take_scratch(run, coded->room);
    }
}

bool symbols_encode_coded(const struct codec_node *leaf, struct codec_run *run,
                          const uint8_t *symbols, const struct codec_size *size, uint32_t levels,
                          uint64_t packed_bytes)
{
    if (codec_elems(size) == 0)
        return false;
    uint8_t *mark = run->scratch;
    struct coded coded;
    open_coded(&coded, run, size);
    struct symbol_tables_layer layer;
    const struct symbol_tables_layer *tables =
        symbol_tables_of(&layer, leaf->tables, run->layer, coded.c.channels, levels) ? &layer
                                                                                     : NULL;
    gather(&coded, symbols, size, tables);
    uint64_t counts[RANS_LEVELS_MAX] = {0};
    count_all(counts, &coded);
    struct rans_model fitted;
    uint8_t model_bytes[RANS_MODEL_BYTES_MAX];
    rans_model_fit(&fitted, counts, levels);
    uint64_t model_count = rans_model_store(&fitted, model_bytes);
    set_which(&coded, tables);
    if (tables && bits_by_run(&coded, tables->models, tables->groups) >=
                      rans_model_bits(&fitted, counts) + 8 * (double)model_count) {
        tables = NULL;
        gather(&coded, symbols, size, NULL);
        set_which(&coded, NULL);
    }
    uint64_t bytes = encode_streams(&coded, tables ? tables->models : &fitted);
    if (!tables)
        bytes += model_count;
    bool smaller = 1 + bytes < packed_bytes;
    if (smaller) {
        *codec_append(run, 1) = tables ? SYMBOLS_PROFILE : SYMBOLS_FITTED;
        if (!tables)
            memcpy(codec_append(run, model_count), model_bytes, model_count);
        append_streams(run, &coded);
    }
    run->scratch = mark;
    return smaller;
}

/* --- decoding --------------------------------------------------------------------------------- */

static int take_model(struct symbols *out, struct codec_run *run, uint8_t *which,
                      const struct coding *c)
{
    struct rans_model model;
    size_t bytes = rans_model_load(&model, run->in, (size_t)(run->in_end - run->in), out->levels);
    if (bytes == 0)
        return larder_fail(LARDER_ECORRUPT, "symbols: no model of %u levels", out->levels);
    run->in += bytes;
    struct rans_table *table = codec_take_scratch(run, sizeof(*table));
    rans_table_fill(table, &model);
    memset(which, 0, c->runs);
    out->tables = table;
    return 0;
}

static int take_streams(struct symbols *out, struct codec_run *run)
{
    uint32_t bytes[SYMBOLS_STREAMS_MAX];
    const uint8_t *in = codec_take(run, out->streams * sizeof(bytes[0]), "symbols");
    if (!in)
        return LARDER_ECORRUPT;
    memcpy(bytes, in, out->streams * sizeof(bytes[0]));
    for (uint32_t s = 0; s < out->streams; s++) {
        in = codec_take(run, bytes[s], "symbols");
        if (!in || !rans_decoder_open(&out->decoders[s], in, bytes[s]))
            return larder_fail(LARDER_ECORRUPT, "symbols: a stream of %u bytes", bytes[s]);
    }
    return 0;
}

int symbols_begin_coded(struct symbols *out, const struct codec_node *leaf, struct codec_run *run,
                        const struct codec_size *size, uint8_t form)
{
    struct coding c = coding_of(size);
    if (codec_elems(size) == 0 || form > SYMBOLS_PROFILE)
        return larder_fail(LARDER_ECORRUPT, "symbols: neither packed nor a stream");
    out->entropy_coded = true;
    out->streams = c.streams;
    out->run_count = c.runs;
    out->coded = codec_take_scratch(run, c.runs * RANS_RUN);
    uint8_t *which = codec_take_scratch(run, c.runs);
    out->which = which;
    if (form == SYMBOLS_FITTED) {
        LARDER_TRY(take_model(out, run, which, &c));
        return take_streams(out, run);
    }
    struct symbol_tables_layer tables;
    if (!symbol_tables_of(&tables, leaf->tables, run->layer, c.channels, out->levels))
        return larder_fail(LARDER_ECORRUPT, "symbols of tables that the profile does not have");
    for (uint64_t i = 0; i < c.runs; i++)
        which[i] = table_of(&c, &tables, i);
    out->place_of = tables.place_of;
    out->tables = tables.tables;
    return take_streams(out, run);
}

static const uint8_t *run_of(const struct symbols *symbols, uint64_t channel)
{
    uint64_t place = symbols->place_of ? symbols->place_of[channel] : channel;
    return symbols->coded + place * RANS_RUN;
}

/* The runs of channels from `channel` on, which are a head's, as rows of `dims`. */
static void turn_head(const struct symbols *symbols, uint8_t *out, uint64_t channel, uint64_t dims,
                      uint64_t tokens)
{
    uint64_t dim = 0;
    for (; dim + SQUARE_BYTES <= dims && tokens == RANS_RUN; dim += SQUARE_BYTES) {
        const uint8_t *runs[SQUARE_BYTES];
        for (uint64_t i = 0; i < SQUARE_BYTES; i++)
            runs[i] = run_of(symbols, channel + dim + i);
        square_turn(out + dim, dims, runs);
    }
    for (; dim < dims; dim++) {
        const uint8_t *run = run_of(symbols, channel + dim);
        for (uint64_t token = 0; token < tokens; token++)
            out[token * dims + dim] = run[token];
    }
}

void symbols_rows_coded(struct symbols *symbols, const struct codec_size *size, uint8_t *out)
{
    if (symbols->streams == 2)
        rans_decode_two(symbols->decoders, symbols->tables, symbols->which, symbols->coded,
                        symbols->run_count);
    else
        rans_decode_runs(&symbols->decoders[0], symbols->tables, symbols->which, symbols->coded,
                         symbols->run_count);
    uint64_t dims = size->dims;
    for (uint64_t head = 0; head < size->heads; head++)
        turn_head(symbols, out + head * size->tokens * dims, head * dims, dims, size->tokens);
}
