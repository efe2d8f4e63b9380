/* SPDX-License-Identifier: Apache-2.0 */
/* rans.h - range asymmetric numeral systems (Duda, 2013), 32 coders in lockstep.
 *
 * Symbol i of a stream belongs to lane i % 32. A lane's state is 32 bits; when it is below 2^16 it
 * takes the next 16-bit word of the stream, lanes in order. So a vector of lanes decodes with one
 * lookup each and one packed load, on a CPU as in a GPU's warp. Frequencies are parts of 4,096.
 *
 *   states of the 32 lanes, u32 each | words
 *
 * Encoding runs from the last symbol to the first and fills its room from the end; the states it
 * ends with are the ones that decoding begins with. A decoder that is done has all states at 2^16.
 *
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_CODEC_RANS_H
#define LARDER_CODEC_RANS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RANS_LANES      32u
#define RANS_SCALE_BITS 12u
#define RANS_SCALE      (1u << RANS_SCALE_BITS)
#define RANS_LEVELS_MAX 256u

/* Frequencies of `levels` symbols; they add up to RANS_SCALE, and what occurs has at least 1. */
struct rans_model {
    uint16_t frequency[RANS_LEVELS_MAX];
    uint16_t start[RANS_LEVELS_MAX]; /* sums of those before */
    uint32_t levels;
};

/* From counts, of which at least one is not 0. */
void rans_model_fit(struct rans_model *out, const uint64_t *counts, uint32_t levels);
/* Bits that symbols of these counts take with this model; infinite when one cannot be coded. */
double rans_model_bits(const struct rans_model *model, const uint64_t *counts);
/* From frequencies; false when they do not add up to RANS_SCALE. */
bool rans_model_set(struct rans_model *out, const uint16_t *frequency, uint32_t levels);
/* As bytes: at most RANS_MODEL_BYTES_MAX of them; returns how many. */
#define RANS_MODEL_BYTES_MAX (2u * RANS_LEVELS_MAX)
size_t rans_model_store(const struct rans_model *model, uint8_t *out);
/* Bytes taken, or 0 when they are no model of so many levels. */
size_t rans_model_load(struct rans_model *out, const uint8_t *in, size_t bytes, uint32_t levels);

/* A slot of the table: symbol, frequency - 1 (it may be 4,096) and offset in the symbol's range. */
struct rans_table {
    uint32_t slots[RANS_SCALE];
};
void rans_table_fill(struct rans_table *out, const struct rans_model *model);

/* Bytes at most for `count` symbols. */
uint64_t rans_bound(uint64_t count);
/* Writes so that the stream ends at out + room; returns its bytes. `room` is at least the bound,
 * and every symbol has a frequency. */
uint64_t rans_encode(uint8_t *out, uint64_t room, const uint8_t *symbols, uint64_t count,
                     const struct rans_model *model);

struct rans_decoder {
    uint32_t states[RANS_LANES];
    const uint8_t *in;
    const uint8_t *end;
};
/* False when there are fewer bytes than the states need. */
bool rans_decoder_open(struct rans_decoder *out, const uint8_t *in, uint64_t bytes);
/* The next `count` symbols; a multiple of 32 unless they are the last. Behind the end of the stream
 * words read as 0. */
void rans_decode(struct rans_decoder *decoder, const struct rans_table *table, uint8_t *symbols,
                 uint64_t count);
/* Streams whose symbols have different models: each run of RANS_RUN symbols has one, `which[i]` of
 * `tables` or `models` for run i. Two runs are a step; a stream is of an even number of them. */
#define RANS_RUN 16u
uint64_t rans_encode_runs(uint8_t *out, uint64_t room, const uint8_t *symbols,
                          const struct rans_model *models, const uint8_t *which,
                          uint64_t run_count);
/* The next `run_count` runs, an even number. */
void rans_decode_runs(struct rans_decoder *decoder, const struct rans_table *tables,
                      const uint8_t *which, uint8_t *symbols, uint64_t run_count);
/* Of two streams in lockstep, which hides the time that each step waits for the one before: the
 * first half of the runs is the first stream's, the second half the other's; each half is of an
 * even number. */
void rans_decode_two(struct rans_decoder decoders[2], const struct rans_table *tables,
                     const uint8_t *which, uint8_t *symbols, uint64_t run_count);
/* Whether all was read, and what was read was a stream. */
bool rans_decoder_is_done(const struct rans_decoder *decoder);

/* What the functions of runs do, as one processor or another does it best. */
struct rans_version {
    void (*decode)(struct rans_decoder *decoder, const struct rans_table *table, uint8_t *symbols,
                   uint64_t count);
    void (*decode_runs)(struct rans_decoder *decoder, const struct rans_table *tables,
                        const uint8_t *which, uint8_t *symbols, uint64_t run_count);
    void (*decode_two)(struct rans_decoder decoders[2], const struct rans_table *tables,
                       const uint8_t *which, uint8_t *symbols, uint64_t run_count);
    uint64_t (*encode_runs)(uint8_t *out, uint64_t room, const uint8_t *symbols,
                            const struct rans_model *models, const uint8_t *which,
                            uint64_t run_count);
};

/* The specification. */
uint64_t rans_encode_runs_scalar(uint8_t *out, uint64_t room, const uint8_t *symbols,
                                 const struct rans_model *models, const uint8_t *which,
                                 uint64_t run_count);
extern const struct rans_version rans_scalar;
/* With the same answers; NULL where they cannot run. */
const struct rans_version *rans_avx2(void);
const struct rans_version *rans_avx512(void);

#endif
