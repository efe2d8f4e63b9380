/* SPDX-License-Identifier: Apache-2.0 */
/* rope.h - tables of cosines and sines per position, built as engines build them, and moving keys.
 * Owns:    a table owns its numbers.
 * Threads: a table is read by any number of threads; growing it excludes them.
 * I1  Frequencies, angles and table entries are rounded to f32 where transformers rounds them.
 * I2  Keys move by R(to) R(from)^-1 taken from two rows of one table, never by R(to - from): in
 *     f32 the angles of far positions are not additive (off by .06 rad at 2^20).
 */
#ifndef LARDER_KERNELS_ROPE_H
#define LARDER_KERNELS_ROPE_H

#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/kernels.h"

struct larder_rope_table {
    struct larder_rope rope;
    uint32_t positions; /* rows built, from position 0 */
    uint32_t pairs;     /* rotary_dims / 2; 0 for the kind none */
    float *cos;         /* [positions][pairs], times the attention factor */
    float *sin;
};

/* LARDER_EUNSUPPORTED for an unknown kind, LARDER_EMODEL for parameters that make no table. */
int larder_rope_check(const struct larder_rope *rope, uint32_t head_dims);

/* Angle per position of each pair: rotary_dims / 2 numbers. `rope` was checked and is not none. */
void larder_rope_frequencies(float *out, const struct larder_rope *rope);

/* cos and sin [count][rotary_dims / 2] of the positions from `first` on, times the attention
 * factor: rows of a table. `rope` was checked and is not none. */
void larder_rope_rows(float *cosines, float *sines, const struct larder_rope *rope, uint32_t first,
                      uint32_t count);

/* Checks `rope`; the table is empty until it grows. */
int larder_rope_table_open(struct larder_rope_table **out, const struct larder_rope *rope,
                           uint32_t head_dims);
void larder_rope_table_close(struct larder_rope_table *table);

/* At least `positions` rows afterwards. On an error the table is as before. */
int larder_rope_table_grow(struct larder_rope_table *table, uint32_t positions);

/* Keys [rows, heads, dims], which `from` rotated, rotated to `to` instead: computed in f32 from
 * in's elements, rounded once to out's dtype. `out` may be `in`. from == to changes no bit when
 * the dtypes are the same. Positions are below table->positions. */
struct larder_rope_move {
    struct larder_tensor out;
    struct larder_tensor in;
    const uint32_t *from; /* per row */
    const uint32_t *to;   /* per row */
};
void larder_rope_move(const struct larder_rope_table *table, const struct larder_rope_move *move);

#endif
