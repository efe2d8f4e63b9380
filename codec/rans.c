/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/rans.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/bytes.h"

#define STATE_LOW (1u << 16)

/* --- models ----------------------------------------------------------------------------------- */

bool rans_model_set(struct rans_model *out, const uint16_t *frequency, uint32_t levels)
{
    assert(levels <= RANS_LEVELS_MAX);
    *out = (struct rans_model){.levels = levels};
    uint32_t sum = 0;
    for (uint32_t i = 0; i < levels; i++) {
        out->frequency[i] = frequency[i];
        out->start[i] = (uint16_t)sum;
        sum += frequency[i];
    }
    return sum == RANS_SCALE;
}

/* Sums and products alone, so that a model is the same with every C library: ln of what is left
 * when powers of two are taken out, by atanh's series; z is at most .172, and what is left out
 * below 1e-17. */
#define LN2       0x1.62e42fefa39efp-1
#define LAST_TERM 21
static double natural_log(double x)
{
    int exponent;
    double rest = frexp(x, &exponent);
    if (rest < 0x1.6a09e667f3bcdp-1) { /* sqrt(1 / 2) */
        rest *= 2;
        exponent--;
    }
    double z = (rest - 1) / (rest + 1);
    double sum = 0;
    for (int term = LAST_TERM; term > 0; term -= 2)
        sum = sum * z * z + 1.0 / term;
    return 2 * z * sum + exponent * LN2;
}

/* Rounded shares, then the difference goes to or comes from the symbols that it costs least: one
 * part at a time, by what it changes in bits. */
void rans_model_fit(struct rans_model *out, const uint64_t *counts, uint32_t levels)
{
    assert(levels <= RANS_LEVELS_MAX);
    uint16_t frequencies[RANS_LEVELS_MAX] = {0};
    uint64_t total = 0;
    for (uint32_t i = 0; i < levels; i++)
        total += counts[i];
    assert(total > 0);
    int32_t left = (int32_t)RANS_SCALE;
    for (uint32_t i = 0; i < levels; i++) {
        if (counts[i] == 0)
            continue;
        double share = (double)counts[i] * RANS_SCALE / (double)total;
        uint16_t frequency = (uint16_t)(share < 1 ? 1 : share + 0.5);
        frequencies[i] = frequency;
        left -= frequency;
    }
    while (left != 0) {
        int32_t step = left > 0 ? 1 : -1;
        uint32_t best = RANS_LEVELS_MAX;
        double best_gain = -INFINITY;
        for (uint32_t i = 0; i < levels; i++) {
            double frequency = frequencies[i];
            if (frequency == 0 || frequency + step < 1)
                continue;
            double gain = (double)counts[i] * natural_log((frequency + step) / frequency);
            if (gain > best_gain) {
                best_gain = gain;
                best = i;
            }
        }
        assert(best < RANS_LEVELS_MAX);
        frequencies[best] = (uint16_t)(frequencies[best] + step);
        left -= step;
    }
    bool whole = rans_model_set(out, frequencies, levels);
    assert(whole);
}

double rans_model_bits(const struct rans_model *model, const uint64_t *counts)
{
    double bits = 0;
    for (uint32_t i = 0; i < model->levels; i++) {
        if (counts[i] > 0)
            bits += (double)counts[i] *
                    (RANS_SCALE_BITS - natural_log((double)model->frequency[i]) / LN2);
    }
    return bits;
}

/* Seven bits a byte, a set top bit says that another follows: at most two. */
size_t rans_model_store(const struct rans_model *model, uint8_t *out)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < model->levels; i++) {
        uint16_t frequency = model->frequency[i];
        if (frequency >= 128)
            out[bytes++] = (uint8_t)(0x80u | (frequency & 0x7fu));
        out[bytes++] = (uint8_t)(frequency >= 128 ? frequency >> 7 : frequency);
    }
    return bytes;
}

size_t rans_model_load(struct rans_model *out, const uint8_t *in, size_t bytes, uint32_t levels)
{
    uint16_t frequencies[RANS_LEVELS_MAX];
    size_t at = 0;
    for (uint32_t i = 0; i < levels; i++) {
        if (at == bytes)
            return 0;
        uint32_t frequency = in[at++];
        if (frequency & 0x80u) {
            if (at == bytes)
                return 0;
            frequency = (frequency & 0x7fu) | (uint32_t)in[at++] << 7;
        }
        if (frequency > RANS_SCALE)
            return 0;
        frequencies[i] = (uint16_t)frequency;
    }
    return rans_model_set(out, frequencies, levels) ? at : 0;
}

void rans_table_fill(struct rans_table *out, const struct rans_model *model)
{
    uint32_t slot = 0;
    for (uint32_t symbol = 0; symbol < model->levels; symbol++) {
        uint32_t frequency = model->frequency[symbol];
        for (uint32_t i = 0; i < frequency; i++)
            out->slots[slot++] = symbol | (frequency - 1) << 8 | i << 20;
    }
    assert(slot == RANS_SCALE);
}

/* --- encoding --------------------------------------------------------------------------------- */

uint64_t rans_bound(uint64_t count)
{
    /* A symbol of frequency 1 takes 12 bits; a lane emits at most a word for each symbol. */
    return RANS_LANES * sizeof(uint32_t) + 2 * count;
}

/* A symbol onto a lane's state; what does not fit goes before `at`. */
static inline uint8_t *push(uint32_t *state, uint8_t *at, uint32_t frequency, uint32_t start)
{
    assert(frequency > 0);
    /* 64 bits: the limit of a symbol that has all slots is 2^32. */
    if (*state >= (uint64_t)frequency << (32 - RANS_SCALE_BITS)) {
        uint16_t word = (uint16_t)*state;
        at -= sizeof(word);
        memcpy(at, &word, sizeof(word));
        *state >>= 16;
    }
    *state = (*state / frequency << RANS_SCALE_BITS) + *state % frequency + start;
    return at;
}

static void start_states(uint32_t states[RANS_LANES])
{
    for (uint32_t i = 0; i < RANS_LANES; i++)
        states[i] = STATE_LOW;
}

static uint64_t store_states(const uint8_t *end, uint8_t *at, const uint32_t states[RANS_LANES])
{
    at -= RANS_LANES * sizeof(*states);
    memcpy(at, states, RANS_LANES * sizeof(*states));
    return (uint64_t)(end - at);
}

uint64_t rans_encode(uint8_t *out, uint64_t room, const uint8_t *symbols, uint64_t count,
                     const struct rans_model *model)
{
    assert(room >= rans_bound(count));
    uint32_t states[RANS_LANES];
    start_states(states);
    uint8_t *at = out + room;
    for (uint64_t i = count; i-- > 0;)
        at = push(&states[i % RANS_LANES], at, model->frequency[symbols[i]],
                  model->start[symbols[i]]);
    return store_states(out + room, at, states);
}

uint64_t rans_encode_runs_scalar(uint8_t *out, uint64_t room, const uint8_t *symbols,
                                 const struct rans_model *models, const uint8_t *which,
                                 uint64_t run_count)
{
    uint32_t states[RANS_LANES];
    start_states(states);
    uint8_t *at = out + room;
    for (uint64_t run = run_count; run-- > 0;) {
        const struct rans_model *model = &models[which[run]];
        uint32_t *lanes = states + run % 2 * RANS_RUN;
        for (uint32_t i = RANS_RUN; i-- > 0;) {
            uint8_t symbol = symbols[run * RANS_RUN + i];
            at = push(&lanes[i], at, model->frequency[symbol], model->start[symbol]);
        }
    }
    return store_states(out + room, at, states);
}

/* --- decoding --------------------------------------------------------------------------------- */

bool rans_decoder_open(struct rans_decoder *out, const uint8_t *in, uint64_t bytes)
{
    if (bytes < sizeof(out->states))
        return false;
    memcpy(out->states, in, sizeof(out->states));
    out->in = in + sizeof(out->states);
    out->end = in + bytes;
    return true;
}

bool rans_decoder_is_done(const struct rans_decoder *decoder)
{
    for (uint32_t i = 0; i < RANS_LANES; i++) {
        if (decoder->states[i] != STATE_LOW)
            return false;
    }
    return decoder->in == decoder->end;
}

/* The symbol of a lane; the state takes a word when it is low. */
static inline uint8_t pop(struct rans_decoder *decoder, uint32_t *state, const uint32_t *slots)
{
    uint32_t slot = slots[*state % RANS_SCALE];
    *state = ((slot >> 8 & 0xfffu) + 1) * (*state >> RANS_SCALE_BITS) + (slot >> 20);
    if (*state < STATE_LOW) {
        uint16_t word = 0;
        if (decoder->end - decoder->in >= (ptrdiff_t)sizeof(word)) {
            memcpy(&word, decoder->in, sizeof(word));
            decoder->in += sizeof(word);
        }
        *state = *state << 16 | word;
    }
    return (uint8_t)slot;
}

static void decode(struct rans_decoder *decoder, const struct rans_table *table, uint8_t *symbols,
                   uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        symbols[i] = pop(decoder, &decoder->states[i % RANS_LANES], table->slots);
}

static void decode_runs(struct rans_decoder *decoder, const struct rans_table *tables,
                        const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    for (uint64_t run = 0; run < run_count; run++) {
        uint32_t *lanes = decoder->states + run % 2 * RANS_RUN;
        for (uint32_t i = 0; i < RANS_RUN; i++)
            symbols[run * RANS_RUN + i] = pop(decoder, &lanes[i], tables[which[run]].slots);
    }
}

static void decode_two(struct rans_decoder decoders[2], const struct rans_table *tables,
                       const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    uint64_t half = run_count / 2;
    decode_runs(&decoders[0], tables, which, symbols, half);
    decode_runs(&decoders[1], tables, which + half, symbols + half * RANS_RUN, half);
}

/* --- versions --------------------------------------------------------------------------------- */

const struct rans_version rans_scalar = {
    .decode = decode,
    .decode_runs = decode_runs,
    .decode_two = decode_two,
    .encode_runs = rans_encode_runs_scalar,
};

static const struct rans_version *fastest(void)
{
    static _Atomic(const struct rans_version *) chosen;
    const struct rans_version *version = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!version) {
        version = rans_avx512();
        if (!version)
            version = rans_avx2();
        if (!version)
            version = &rans_scalar;
        atomic_store_explicit(&chosen, version, memory_order_relaxed);
    }
    return version;
}

void rans_decode(struct rans_decoder *decoder, const struct rans_table *table, uint8_t *symbols,
                 uint64_t count)
{
    fastest()->decode(decoder, table, symbols, count);
}

uint64_t rans_encode_runs(uint8_t *out, uint64_t room, const uint8_t *symbols,
                          const struct rans_model *models, const uint8_t *which, uint64_t run_count)
{
    assert(run_count % 2 == 0);
    assert(room >= rans_bound(run_count * RANS_RUN));
    return fastest()->encode_runs(out, room, symbols, models, which, run_count);
}

void rans_decode_runs(struct rans_decoder *decoder, const struct rans_table *tables,
                      const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    assert(run_count % 2 == 0);
    fastest()->decode_runs(decoder, tables, which, symbols, run_count);
}

void rans_decode_two(struct rans_decoder decoders[2], const struct rans_table *tables,
                     const uint8_t *which, uint8_t *symbols, uint64_t run_count)
{
    assert(run_count % 4 == 0);
    fastest()->decode_two(decoders, tables, which, symbols, run_count);
}
