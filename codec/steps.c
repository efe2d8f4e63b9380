/* SPDX-License-Identifier: Apache-2.0 */
/* steps.c - one step for all coefficients of a model, coded by what the profile knows of each.
 *
 * Numbers come from a transform that makes their errors cost the same (klt.c): so all are rounded
 * to multiples of one step, and the bits go by themselves to what varies more than that. The step
 * is the profile's for the divergence asked for: `kl` nats a token, as measured when the profile
 * was made. With `ends=fine` the last 16 tokens of a block have a step 2.8 times finer and the 48
 * before them 1.4 times: what is generated next reads them most.
 *
 * Reads from the profile, S being k or v:
 *   larder.S.scale  i32 [layer, kv_head, coefficient]  standard deviation, in quarters of octaves
 *   larder.tables   u16 [table, symbol]                frequencies, parts of 4,096
 *   larder.kl       f32 [place]                        nats a token ...
 *   larder.step     i32 [place]                        ... and the step, in quarters of octaves
 * A coefficient has the table of its scale's ratio to the step: table 10 is for a ratio of 1, each
 * after it for one that is an octave's half larger. Symbol 128 is zero steps; symbol 0, and so any
 * that its table has not, is an escape.
 *
 *   a bit for each coefficient of each head: whether it is ever not 0 | escapes (u32) | what they
 *   stand for (i16 each) | bytes of the stream (u32) | stream
 *
 * The stream is of runs (rans.h), tile after tile of 16 tokens: for each coefficient that is not
 * always 0, heads in order, its 16 tokens; then perhaps a run of zeros by table 0, so that they are
 * an even number. Tokens behind the last one are zeros.
 */
#include "codec/steps.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/node.h"
#include "codec/rans.h"
#include "codec/square.h"

static_assert(CODEC_TILE_TOKENS == RANS_RUN, "a run is a coefficient's tokens of a tile");
static_assert(RANS_RUN == SQUARE_BYTES, "runs are turned over as they stand");

enum { KL, ENDS };
enum { ENDS_FINE, ENDS_EVEN };

static const struct codec_param params[] = {
    [KL] = {.name = "kl", .low = 0.0001, .high = 1, .missing = 0.01},
    [ENDS] = {.name = "ends", .missing = ENDS_FINE, .words = "fine even"},
};

/* By the place in a block: half octaves by which the step is finer. */
enum place { FAR, NEAR, LAST, PLACES };
static const int finer[PLACES] = {[FAR] = 0, [NEAR] = 1, [LAST] = 3};

struct steps {
    uint32_t heads;
    uint32_t dims;
    const int32_t *scale;
    int step_quarters;
    struct rans_model models[STEPS_TABLES];
    struct rans_table tables[STEPS_TABLES];
};

#define NO_RUN UINT32_MAX

/* Which runs a section's tiles have. */
struct runs {
    uint32_t *live;         /* head * dims + coefficient */
    uint32_t *run_of;       /* by head * dims + coefficient; NO_RUN: it is always 0 */
    uint32_t live_count;    /* of a tile */
    uint32_t count;         /* an even number */
    uint8_t *which[PLACES]; /* tables */
};

struct steps_state {
    struct runs runs;
    struct rans_decoder decoder;
    const uint8_t *escapes;
    const uint8_t *escapes_end;
    uint32_t tile_count;
    uint8_t *symbols;
    float *values; /* of a tile: [head][CODEC_TILE_TOKENS][dim] */
};

/* --- the profile ------------------------------------------------------------------------------ */

static int bad_tensor(const char *name, const char *what)
{
    return larder_fail(LARDER_EFORMAT, "profile: %s %s; `larder calibrate` makes a good one", name,
                       what);
}

/* The largest step whose divergence is within what was asked for. */
static int find_step(int *quarters, const struct codec_node *node,
                     const struct larder_profile *profile)
{
    const void *kl;
    const void *step;
    uint64_t places[] = {0};
    LARDER_TRY(larder_profile_find(profile, &kl, "larder.kl", LARDER_PROFILE_F32, places, 1));
    LARDER_TRY(larder_profile_find(profile, &step, "larder.step", LARDER_PROFILE_I32, places, 1));
    const float *kls = kl;
    const int32_t *steps = step;
    float asked = (float)node->value[KL] * 1.0001f;
    float least = INFINITY;
    bool found = false;
    for (uint64_t i = 0; i < places[0]; i++) {
        if (steps[i] < -STEPS_QUARTERS_MAX || steps[i] > STEPS_QUARTERS_MAX)
            return bad_tensor("larder.step", "has a step out of range");
        least = kls[i] < least ? kls[i] : least;
        if (kls[i] <= asked && (!found || steps[i] > *quarters)) {
            *quarters = steps[i];
            found = true;
        }
    }
    if (!found)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "steps: kl=%g; this profile's finest step is for %g nats a token",
                           node->value[KL], (double)least);
    return 0;
}

static int load_tables(struct steps *steps, const struct larder_profile *profile)
{
    const void *found;
    uint64_t shape[] = {STEPS_TABLES, RANS_LEVELS_MAX};
    LARDER_TRY(larder_profile_find(profile, &found, "larder.tables", LARDER_PROFILE_U16, shape, 2));
    const uint16_t *frequencies = found;
    for (uint32_t i = 0; i < STEPS_TABLES; i++, frequencies += RANS_LEVELS_MAX) {
        if (!rans_model_set(&steps->models[i], frequencies, RANS_LEVELS_MAX) ||
            frequencies[STEPS_ZERO] == 0 || frequencies[STEPS_ESCAPE] == 0)
            return bad_tensor("larder.tables", "has a table that is none");
        rans_table_fill(&steps->tables[i], &steps->models[i]);
    }
    return 0;
}

static int steps_bind(void **bound, const struct codec_node *node,
                      const struct larder_profile *profile, uint8_t kind)
{
    const struct larder_profile_model *model = larder_profile_model(profile);
    const char *name = kind == LARDER_SECTION_K ? "larder.k.scale" : "larder.v.scale";
    uint64_t shape[] = {model->layers, model->kv_heads,
                        kind == LARDER_SECTION_K ? model->k_dims : model->v_dims};
    const void *scale;
    LARDER_TRY(larder_profile_find(profile, &scale, name, LARDER_PROFILE_I32, shape, 3));
    const int32_t *scales = scale;
    for (uint64_t i = 0; i < shape[0] * shape[1] * shape[2]; i++) {
        if (scales[i] < -STEPS_QUARTERS_MAX || scales[i] > STEPS_QUARTERS_MAX)
            return bad_tensor(name, "has a scale out of range");
    }
    int quarters = 0;
    LARDER_TRY(find_step(&quarters, node, profile));
    struct steps *steps = larder_alloc(sizeof(*steps));
    if (!steps)
        return larder_fail(-ENOMEM, "no memory for a recipe");
    steps->heads = model->kv_heads;
    steps->dims = (uint32_t)shape[2];
    steps->scale = scales;
    steps->step_quarters = quarters;
    int err = load_tables(steps, profile);
    if (err < 0) {
        larder_free(steps);
        return err;
    }
    *bound = steps;
    return 0;
}

static int steps_fits(const struct codec_node *node, const struct codec_size *size)
{
    const struct steps *steps = node->bound;
    if (steps && (size->heads != steps->heads || size->dims != steps->dims))
        return larder_fail(LARDER_EUNSUPPORTED,
                           "steps for %u heads of %u channels stands where there are %u of %u; no "
                           "stage before it may take channels away",
                           steps->heads, steps->dims, size->heads, size->dims);
    return 0;
}

float steps_power_of(int quarters)
{
    static const float roots[4] = {1, 0x1.306fe0p0f, 0x1.6a09e6p0f, 0x1.ae89fap0f};
    int octaves = (quarters + 4 * STEPS_QUARTERS_MAX) / 4 - STEPS_QUARTERS_MAX;
    return ldexpf(roots[quarters - 4 * octaves], octaves);
}

uint8_t steps_table_of(int scale_quarters, int step_quarters)
{
    /* Halves of octaves, rounded; the sum is kept positive for that. */
    int ratio = scale_quarters - step_quarters + 1;
    int table = (ratio + 4 * STEPS_QUARTERS_MAX) / 2 - 2 * STEPS_QUARTERS_MAX + STEPS_TABLE_OF_ONE;
    return (uint8_t)(table < 0 ? 0 : table < (int)STEPS_TABLES ? table : (int)STEPS_TABLES - 1);
}

static int quarters_of(const struct steps *steps, enum place place)
{
    return steps->step_quarters - 2 * finer[place];
}

/* --- sizes ------------------------------------------------------------------------------------ */

static uint32_t tiles_of(const struct codec_size *size)
{
    return (size->tokens + CODEC_TILE_TOKENS - 1) / CODEC_TILE_TOKENS;
}

static uint64_t channels_of(const struct codec_size *size)
{
    return (uint64_t)size->heads * size->dims;
}

/* Symbols of a tile at most. */
static uint64_t tile_symbols(const struct codec_size *size)
{
    return larder_round_up(channels_of(size), 2) * CODEC_TILE_TOKENS;
}

static uint64_t mask_bytes(const struct codec_size *size)
{
    return (channels_of(size) + 7) / 8;
}

static uint64_t steps_bound(const struct codec_node *node, const struct codec_size *size)
{
    (void)node;
    uint64_t symbols = tiles_of(size) * tile_symbols(size);
    return mask_bytes(size) + 2 * sizeof(uint32_t) + symbols * sizeof(int16_t) +
           rans_bound(symbols);
}

static uint64_t runs_scratch(const struct codec_size *size)
{
    uint64_t channels = channels_of(size);
    return 2 * larder_round_up(channels * sizeof(uint32_t), 64) +
           PLACES * larder_round_up(channels + 1, 64);
}

static uint64_t steps_scratch(const struct codec_node *node, const struct codec_size *size)
{
    (void)node;
    uint64_t tile = tile_symbols(size);
    uint64_t all = tiles_of(size) * tile;
    uint64_t encoding = larder_round_up(all, 64) + larder_round_up(all / RANS_RUN, 64) +
                        larder_round_up(all * sizeof(int16_t), 64) +
                        larder_round_up(rans_bound(all), 64);
    uint64_t decoding = larder_round_up(sizeof(struct steps_state), 64) +
                        larder_round_up(tile, 64) + larder_round_up(tile * sizeof(float), 64);
    return runs_scratch(size) + larder_round_up(mask_bytes(size), 64) +
           (encoding > decoding ? encoding : decoding);
}

/* --- runs ------------------------------------------------------------------------------------- */

static enum place place_of(const struct codec_node *node, uint32_t tile, uint32_t tile_count)
{
    uint32_t behind = tile_count - 1 - tile;
    if ((uint32_t)node->value[ENDS] == ENDS_EVEN || behind > 3)
        return FAR;
    return behind > 0 ? NEAR : LAST;
}

static void open_runs(struct runs *out, const struct codec_node *node, struct codec_run *run,
                      const struct codec_size *size, const uint8_t *mask)
{
    const struct steps *steps = node->bound;
    uint64_t channels = channels_of(size);
    *out = (struct runs){.live = codec_take_scratch(run, channels * sizeof(uint32_t)),
                         .run_of = codec_take_scratch(run, channels * sizeof(uint32_t))};
    for (int place = 0; place < PLACES; place++)
        out->which[place] = codec_take_scratch(run, channels + 1);
    for (uint32_t i = 0; i < channels; i++) {
        bool live = mask[i / 8] >> i % 8 & 1;
        out->run_of[i] = live ? out->live_count : NO_RUN;
        if (!live)
            continue;
        for (int place = 0; place < PLACES; place++)
            out->which[place][out->live_count] = steps_table_of(
                steps->scale[run->layer * channels + i], quarters_of(steps, (enum place)place));
        out->live[out->live_count++] = i;
    }
    for (int place = 0; place < PLACES; place++)
        out->which[place][out->live_count] = 0;
    out->count = (uint32_t)larder_round_up(out->live_count, 2);
}

/* --- encoding --------------------------------------------------------------------------------- */

/* Numbers become what decoding gives, and whole numbers of steps stand in `whole`, laid out as the
 * numbers are. */
CODEC_VECTOR static bool round_run(int16_t *restrict whole, float *restrict x, uint64_t count,
                                   float step, float inverse)
{
    uint32_t outside = 0;
    for (uint64_t i = 0; i < count; i++) {
        float steps = x[i] * inverse;
        float within = steps > -32767 ? steps : -32767;
        within = within < 32767 ? within : 32767;
        outside |= within != steps;
        /* Adding 1.5 * 2^23 leaves a whole number, ties to even. */
        float rounded = (within + 0x1.8p23f) - 0x1.8p23f;
        whole[i] = (int16_t)(int32_t)rounded;
        /* 0 has no sign behind this sum, as in decoding. */
        x[i] = (rounded + 0.0f) * step;
    }
    return outside == 0;
}

static bool round_all(int16_t *whole, const struct codec_node *node, struct codec_tile *tile)
{
    const struct steps *steps = node->bound;
    uint64_t dims = tile->size.dims;
    uint32_t tile_count = tiles_of(&tile->size);
    bool good = true;
    for (uint32_t i = 0; i < tile_count; i++) {
        int quarters = quarters_of(steps, place_of(node, i, tile_count));
        float step = steps_power_of(quarters);
        float inverse = steps_power_of(-quarters);
        uint32_t first = i * CODEC_TILE_TOKENS;
        uint64_t tokens = larder_min_u64(tile->size.tokens - first, CODEC_TILE_TOKENS);
        for (uint32_t head = 0; head < tile->size.heads; head++) {
            uint64_t at = ((uint64_t)head * tile->size.tokens + first) * dims;
            good &= round_run(whole + at, tile->x + at, tokens * dims, step, inverse);
        }
    }
    return good;
}

CODEC_VECTOR static void merge(uint16_t *restrict out, const int16_t *restrict whole,
                               uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] |= (uint16_t)whole[i];
}

static void find_live(uint8_t *mask, const int16_t *whole, const struct codec_size *size)
{
    uint16_t any[LARDER_HEAD_DIMS_MAX];
    memset(mask, 0, mask_bytes(size));
    for (uint32_t head = 0; head < size->heads; head++) {
        memset(any, 0, size->dims * sizeof(*any));
        for (uint32_t token = 0; token < size->tokens; token++, whole += size->dims)
            merge(any, whole, size->dims);
        uint64_t first = (uint64_t)head * size->dims;
        for (uint32_t i = 0; i < size->dims; i++)
            mask[(first + i) / 8] |= (uint8_t)((any[i] != 0) << (first + i) % 8);
    }
}

static uint8_t symbol_of(struct codec_run *run, int16_t whole, const struct rans_model *model)
{
    int symbol = whole + STEPS_ZERO;
    if (symbol > STEPS_ESCAPE && symbol < (int)RANS_LEVELS_MAX && model->frequency[symbol] > 0)
        return (uint8_t)symbol;
    memcpy(codec_append(run, sizeof(whole)), &whole, sizeof(whole));
    return STEPS_ESCAPE;
}

/* Appends escapes as they come. */
static void make_symbols(uint8_t *symbols, uint8_t *which, struct codec_run *run,
                         const struct codec_node *node, const struct runs *runs,
                         const int16_t *whole, const struct codec_size *size)
{
    const struct steps *steps = node->bound;
    uint32_t tile_count = tiles_of(size);
    memset(symbols, STEPS_ZERO, (uint64_t)tile_count * runs->count * RANS_RUN);
    for (uint32_t tile = 0; tile < tile_count; tile++) {
        const uint8_t *tables = runs->which[place_of(node, tile, tile_count)];
        uint32_t first = tile * CODEC_TILE_TOKENS;
        uint64_t tokens = larder_min_u64(size->tokens - first, CODEC_TILE_TOKENS);
        memcpy(which, tables, runs->count);
        which += runs->count;
        for (uint32_t i = 0; i < runs->live_count; i++) {
            uint64_t head = runs->live[i] / size->dims;
            const int16_t *at =
                whole + (head * size->tokens + first) * size->dims + runs->live[i] % size->dims;
            for (uint64_t token = 0; token < tokens; token++, at += size->dims)
                symbols[i * RANS_RUN + token] = symbol_of(run, *at, &steps->models[tables[i]]);
        }
        symbols += (uint64_t)runs->count * RANS_RUN;
    }
}

static int steps_encode(const struct codec_node *node, struct codec_run *run,
                        struct codec_tile *tile)
{
    const struct steps *steps = node->bound;
    const struct codec_size *size = &tile->size;
    uint8_t *mark = run->scratch;
    uint64_t all = tiles_of(size) * tile_symbols(size);
    int16_t *whole = codec_take_scratch(run, all * sizeof(*whole));
    if (!round_all(whole, node, tile)) {
        run->scratch = mark;
        return CODEC_CANNOT;
    }
    uint8_t *symbols = codec_take_scratch(run, all);
    uint8_t *which = codec_take_scratch(run, all / RANS_RUN);
    uint8_t *mask = codec_append(run, mask_bytes(size));
    find_live(mask, whole, size);
    struct runs runs;
    open_runs(&runs, node, run, size, mask);
    uint8_t *count_at = codec_append(run, sizeof(uint32_t));
    uint8_t *escapes = run->out;
    make_symbols(symbols, which, run, node, &runs, whole, size);
    uint32_t escape_count = (uint32_t)((uint64_t)(run->out - escapes) / sizeof(int16_t));
    memcpy(count_at, &escape_count, sizeof(escape_count));
    uint64_t run_count = (uint64_t)tiles_of(size) * runs.count;
    uint64_t room = rans_bound(run_count * RANS_RUN);
    uint8_t *stream = codec_take_scratch(run, room);
    uint32_t bytes =
        (uint32_t)rans_encode_runs(stream, room, symbols, steps->models, which, run_count);
    memcpy(codec_append(run, sizeof(bytes)), &bytes, sizeof(bytes));
    memcpy(codec_append(run, bytes), stream + room - bytes, bytes);
    run->scratch = mark;
    return 0;
}

/* --- decoding --------------------------------------------------------------------------------- */

static int steps_decode_begin(const struct codec_node *node, struct codec_run *run,
                              const struct codec_size *size, void **state)
{
    struct steps_state *opened = codec_take_scratch(run, sizeof(*opened));
    *opened = (struct steps_state){.tile_count = tiles_of(size)};
    *state = opened;
    uint64_t values_bytes = tile_symbols(size) * sizeof(float);
    opened->symbols = codec_take_scratch(run, tile_symbols(size));
    opened->values = codec_take_scratch(run, values_bytes);
    memset(opened->values, 0, values_bytes);
    const uint8_t *mask = codec_take(run, mask_bytes(size), "steps");
    if (!mask)
        return LARDER_ECORRUPT;
    open_runs(&opened->runs, node, run, size, mask);
    uint32_t count;
    const uint8_t *in = codec_take(run, sizeof(count), "escapes");
    if (!in)
        return LARDER_ECORRUPT;
    memcpy(&count, in, sizeof(count));
    opened->escapes = codec_take(run, (uint64_t)count * sizeof(int16_t), "escapes");
    if (!opened->escapes)
        return LARDER_ECORRUPT;
    opened->escapes_end = opened->escapes + (uint64_t)count * sizeof(int16_t);
    in = codec_take(run, sizeof(count), "steps");
    if (!in)
        return LARDER_ECORRUPT;
    memcpy(&count, in, sizeof(count));
    in = codec_take(run, count, "steps");
    if (!in || !rans_decoder_open(&opened->decoder, in, count))
        return larder_fail(LARDER_ECORRUPT, "steps: a stream of %u bytes", count);
    return 0;
}

/* More escapes than there are stand for 0. */
static float next_escape(struct steps_state *opened)
{
    int16_t whole = 0;
    if (opened->escapes_end - opened->escapes >= (ptrdiff_t)sizeof(whole)) {
        memcpy(&whole, opened->escapes, sizeof(whole));
        opened->escapes += sizeof(whole);
    }
    return (float)whole;
}

static bool has_escape(const uint8_t symbols[RANS_RUN])
{
    uint64_t words[2];
    memcpy(words, symbols, sizeof(words));
    uint64_t zero = 0;
    for (int i = 0; i < 2; i++)
        zero |= (words[i] - 0x0101010101010101ull) & ~words[i] & 0x8080808080808080ull;
    return zero != 0;
}

/* Symbols of up to 16 neighbouring coefficients become numbers, at the same place of each token's
 * row. */
CODEC_VECTOR static void spread(float *restrict out, uint64_t stride, uint32_t count,
                                const uint8_t *const *rows, float step)
{
    uint8_t turned[RANS_RUN][RANS_RUN];
    square_turn(turned[0], RANS_RUN, rows);
    for (uint32_t token = 0; token < CODEC_TILE_TOKENS; token++, out += stride) {
        if (count == RANS_RUN) {
            for (uint32_t i = 0; i < RANS_RUN; i++)
                out[i] = (float)((int)turned[token][i] - STEPS_ZERO) * step;
        } else {
            for (uint32_t i = 0; i < count; i++)
                out[i] = (float)((int)turned[token][i] - STEPS_ZERO) * step;
        }
    }
}

static void spread_head(struct steps_state *opened, const struct steps *steps, uint32_t head,
                        float step)
{
    static const uint8_t zeros[RANS_RUN] = {STEPS_ZERO, STEPS_ZERO, STEPS_ZERO, STEPS_ZERO,
                                            STEPS_ZERO, STEPS_ZERO, STEPS_ZERO, STEPS_ZERO,
                                            STEPS_ZERO, STEPS_ZERO, STEPS_ZERO, STEPS_ZERO,
                                            STEPS_ZERO, STEPS_ZERO, STEPS_ZERO, STEPS_ZERO};
    uint64_t dims = steps->dims;
    const uint32_t *run_of = opened->runs.run_of + head * dims;
    float *values = opened->values + head * CODEC_TILE_TOKENS * dims;
    for (uint32_t first = 0; first < dims; first += RANS_RUN) {
        uint32_t count = (uint32_t)larder_min_u64(dims - first, RANS_RUN);
        const uint8_t *rows[RANS_RUN];
        bool any = false;
        for (uint32_t i = 0; i < RANS_RUN; i++) {
            uint32_t run = i < count ? run_of[first + i] : NO_RUN;
            rows[i] = run == NO_RUN ? zeros : opened->symbols + (uint64_t)run * RANS_RUN;
            any |= run != NO_RUN;
        }
        if (any)
            spread(values + first, dims, count, rows, step);
    }
}

static void decode_tile(struct steps_state *opened, const struct codec_node *node, uint32_t tile)
{
    const struct steps *steps = node->bound;
    const struct runs *runs = &opened->runs;
    enum place place = place_of(node, tile, opened->tile_count);
    float step = steps_power_of(quarters_of(steps, place));
    rans_decode_runs(&opened->decoder, steps->tables, runs->which[place], opened->symbols,
                     runs->count);
    for (uint32_t head = 0; head < steps->heads; head++)
        spread_head(opened, steps, head, step);
    for (uint32_t i = 0; i < runs->live_count; i++) {
        const uint8_t *symbols = opened->symbols + (uint64_t)i * RANS_RUN;
        if (!has_escape(symbols))
            continue;
        uint64_t head = runs->live[i] / steps->dims;
        float *out =
            opened->values + head * CODEC_TILE_TOKENS * steps->dims + runs->live[i] % steps->dims;
        for (uint32_t token = 0; token < CODEC_TILE_TOKENS; token++) {
            if (symbols[token] == STEPS_ESCAPE)
                out[(uint64_t)token * steps->dims] = next_escape(opened) * step;
        }
    }
}

static void steps_decode_rows(const struct codec_node *node, const struct codec_run *run,
                              void *state, uint32_t first, struct codec_tile *tile)
{
    (void)run;
    struct steps_state *opened = state;
    const struct codec_size *size = &tile->size;
    if (first % CODEC_TILE_TOKENS == 0)
        decode_tile(opened, node, first / CODEC_TILE_TOKENS);
    uint64_t count = (uint64_t)size->tokens * size->dims;
    for (uint32_t head = 0; head < size->heads; head++) {
        uint64_t row = (uint64_t)head * CODEC_TILE_TOKENS + first % CODEC_TILE_TOKENS;
        memcpy(tile->x + head * count, opened->values + row * size->dims, count * sizeof(float));
    }
}

const struct codec_node_ops codec_node_steps = {
    .name = "steps",
    .summary = "one step for all coefficients, entropy-coded by the profile's tables",
    .role = CODEC_LEAF,
    .params = params,
    .param_count = LARDER_COUNT_OF(params),
    .needs_profile = true,
    .bind = steps_bind,
    .fits = steps_fits,
    .bound = steps_bound,
    .scratch = steps_scratch,
    .encode = steps_encode,
    .decode_begin = steps_decode_begin,
    .decode_rows = steps_decode_rows,
};
