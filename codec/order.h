/* SPDX-License-Identifier: Apache-2.0 */
/* order.h - the largest, the smallest and the middle of a row of numbers, in time that does not
 * depend on them.
 *
 * Threads: pure functions.
 */
#ifndef LARDER_CODEC_ORDER_H
#define LARDER_CODEC_ORDER_H

#include <stdint.h>

/* Keys that compare as the numbers do; -0 below 0. What is no number comes first of all. */
void order_keys(uint32_t *keys, const float *x, uint64_t count);
/* The number of a key. */
float order_number(uint32_t key);
/* The key that `below` others stand before, when they are sorted; below < count. */
uint32_t order_nth(const uint32_t *keys, uint64_t count, uint64_t below);
/* mark[i] |= bit for the `wanted` largest, or smallest; of equal ones the first are taken. No mark
 * has that bit before. A few are found quickly. */
void order_mark_largest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                        uint64_t wanted);
void order_mark_smallest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                         uint64_t wanted);

#endif
