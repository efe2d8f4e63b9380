/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/order.h"

#include <assert.h>

#include "codec/node.h"
#include "kernels/cpu/cpu_math.h"

#define SIGN 0x80000000u

CODEC_VECTOR void order_keys(uint32_t *keys, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(x[i]);
        uint32_t key = bits & SIGN ? ~bits : bits | SIGN;
        keys[i] = (bits & ~SIGN) > 0x7f800000u ? 0 : key;
    }
}

float order_number(uint32_t key)
{
    return float_of(key & SIGN ? key & ~SIGN : ~key);
}

CODEC_VECTOR static uint64_t count_below(const uint32_t *keys, uint64_t count, uint32_t bound)
{
    uint32_t below = 0; /* rows have less than 2^32 numbers */
    for (uint64_t i = 0; i < count; i++)
        below += keys[i] < bound;
    return below;
}

/* The smallest key above `bound`, and how many are not above that; keys turned over by `turn`. */
CODEC_VECTOR static uint32_t next_above(uint64_t *up_to, const uint32_t *keys, uint64_t count,
                                        uint32_t turn, int64_t bound)
{
    uint32_t least = UINT32_MAX;
    uint32_t floor = (uint32_t)(bound + 1);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t key = keys[i] ^ turn;
        least = key >= floor && key < least ? key : least;
    }
    uint32_t found = 0;
    for (uint64_t i = 0; i < count; i++)
        found += (keys[i] ^ turn) <= least;
    *up_to = found;
    return least;
}

/* Ends of a row are walked to, each step a key further. */
#define STEPS_MAX 6u

static uint32_t walk(const uint32_t *keys, uint64_t count, uint64_t below, uint32_t turn)
{
    uint64_t up_to = 0;
    int64_t at = -1;
    while (up_to <= below)
        at = next_above(&up_to, keys, count, turn, at);
    return (uint32_t)at ^ turn;
}

/* A bit of the answer a pass, from the top: set where no more than `below` keys are smaller than
 * what it makes. Counting is what vectors do best: faster than a histogram for the rows that there
 * are. */
uint32_t order_nth(const uint32_t *keys, uint64_t count, uint64_t below)
{
    assert(below < count);
    assert(count <= UINT32_MAX);
    if (below < STEPS_MAX)
        return walk(keys, count, below, 0);
    if (count - below <= STEPS_MAX)
        return walk(keys, count, count - 1 - below, UINT32_MAX);
    uint32_t found = 0;
    for (uint32_t bit = SIGN; bit > 0; bit /= 2) {
        if (count_below(keys, count, found | bit) <= below)
            found |= bit;
    }
    return found;
}

/* Keys turned over, bit by bit, make the smallest the largest. */
CODEC_VECTOR static void mark_above(uint8_t *restrict mark, uint8_t bit,
                                    const uint32_t *restrict keys, uint64_t count, uint32_t turn,
                                    uint32_t least)
{
    for (uint64_t i = 0; i < count; i++)
        mark[i] |= (keys[i] ^ turn) > least ? bit : 0;
}

static void mark_equal(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                       uint32_t key, uint64_t wanted)
{
    for (uint64_t i = 0; i < count && wanted > 0; i++) {
        mark[i] |= keys[i] == key ? bit : 0;
        wanted -= keys[i] == key;
    }
}

void order_mark_largest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                        uint64_t wanted)
{
    assert(wanted <= count);
    if (wanted == 0)
        return;
    uint32_t least = order_nth(keys, count, count - wanted);
    uint64_t above = least == UINT32_MAX ? 0 : count - count_below(keys, count, least + 1);
    mark_above(mark, bit, keys, count, 0, least);
    mark_equal(mark, bit, keys, count, least, wanted - above);
}

void order_mark_smallest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                         uint64_t wanted)
{
    assert(wanted <= count);
    if (wanted == 0)
        return;
    uint32_t most = order_nth(keys, count, wanted - 1);
    mark_above(mark, bit, keys, count, UINT32_MAX, ~most);
    mark_equal(mark, bit, keys, count, most, wanted - count_below(keys, count, most));
}
