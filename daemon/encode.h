/* SPDX-License-Identifier: Apache-2.0 */
/* encode.h - a block's planes encoded into the record that was reserved for it, a section at a
 * time, so that several workers may share it.
 *
 * Used in this order: encode_plan(), the reservation, encode_into(), encode_section() for each
 * section, encode_finish(); encode_free() at any time.
 * Owns:    what encode_plan() made.
 * Threads: workers. encode_section() of different sections from several at a time, the others from
 *          one.
 */
#ifndef LARDER_DAEMON_ENCODE_H
#define LARDER_DAEMON_ENCODE_H

#include <stdint.h>

#include "codec/codec.h"

struct larder_put;
struct scratch;

struct encoding {
    /* the caller's */
    const struct larder_recipe *recipe;
    struct larder_block block; /* but for its tables */
    /* All of the block: layer-major, K before V. May be a client's to change at any time: each
     * byte is read once. */
    const volatile uint8_t *planes;

    uint32_t section_count;
    uint64_t *places; /* of sections in the payload: room for the bound of each */
    struct larder_section_error *errors;
    void *tables; /* larder_recipe_fill_tables(); NULL when the recipe needs none */
    uint8_t *payload;
    uint64_t payload_offset; /* in the record */
    struct larder_section *directory;
};

/* Where each section may go at most, and how long all may become. LARDER_ELIMIT, -ENOMEM. */
int encode_plan(struct encoding *encoding, uint64_t *payload_bytes_max);
void encode_into(struct encoding *encoding, struct larder_put *put);
/* At `place` in the payload: places[index], or, by who does all of them, behind the one before. */
int encode_section(struct encoding *encoding, uint32_t index, uint64_t place,
                   struct scratch *scratch);
/* Closes the gaps that bounds left, and tells the record its errors. *fell_back: sections that were
 * stored exact in place of what their recipe does. The payload's length. */
uint64_t encode_finish(struct encoding *encoding, struct larder_put *put, uint32_t *fell_back);
void encode_free(struct encoding *encoding);

/* Canonical planes of a slice from, or to, those of a whole block. */
void encode_gather(void *out, const volatile uint8_t *planes, const struct larder_slice *slice,
                   const struct larder_model_desc *model, uint32_t token_count);
void encode_scatter(uint8_t *planes, const void *in, const struct larder_slice *slice,
                    const struct larder_model_desc *model, uint32_t token_count);

#endif
