/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/order.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
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

/* A bit of the answer a pass, from the top: set where no more than `below` keys are smaller than
 * what it makes. Counting is what vectors do best: faster than a histogram for the rows that there
 * are. */
uint32_t order_nth(const uint32_t *keys, uint64_t count, uint64_t below)
{
    assert(below < count);
    assert(count <= UINT32_MAX);
    uint32_t found = 0;
    for (uint32_t bit = SIGN; bit > 0; bit /= 2) {
        if (count_below(keys, count, found | bit) <= below)
            found |= bit;
    }
    return found;
}

/* Of keys turned over by `turn`: all bits set make the largest the smallest. */
CODEC_VECTOR static void mark_up_to(uint8_t *restrict mark, uint8_t bit,
                                    const uint32_t *restrict keys, uint64_t count, uint32_t turn,
                                    uint32_t most)
{
    for (uint64_t i = 0; i < count; i++)
        mark[i] |= (keys[i] ^ turn) <= most ? bit : 0;
}

static void mark_equal(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                       uint32_t key, uint64_t wanted)
{
    for (uint64_t i = 0; i < count && wanted > 0; i++) {
        mark[i] |= keys[i] == key ? bit : 0;
        wanted -= keys[i] == key;
    }
}

static void mark_by_bits(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                         uint32_t turn, uint64_t wanted)
{
    uint32_t last = order_nth(keys, count, turn ? count - wanted : wanted - 1);
    uint64_t before = count_below(keys, count, last);
    if (turn)
        before = last == UINT32_MAX ? 0 : count - count_below(keys, count, last + 1);
    if (before > 0)
        mark_up_to(mark, bit, keys, count, turn, (last ^ turn) - 1);
    mark_equal(mark, bit, keys, count, last, wanted - before);
}

/* --- the ends of a row ------------------------------------------------------------------------ */

typedef uint32_t key_lanes __attribute__((vector_size(CODEC_LANES * sizeof(uint32_t))));

/* The smallest keys of each CODEC_LANES'th place. */
CODEC_VECTOR static void least_of_lanes(uint32_t out[CODEC_LANES], const uint32_t *keys,
                                        uint64_t count, uint32_t turn)
{
    key_lanes least = ~(key_lanes){0};
    uint64_t i = 0;
    for (; i + CODEC_LANES <= count; i += CODEC_LANES) {
        key_lanes next;
        memcpy(&next, keys + i, sizeof(next));
        next ^= turn;
        key_lanes smaller = (key_lanes)(next < least);
        least = (next & smaller) | (least & ~smaller);
    }
    memcpy(out, &least, sizeof(least));
    for (uint32_t lane = 0; i < count; i++, lane++)
        out[lane] = (keys[i] ^ turn) < out[lane] ? keys[i] ^ turn : out[lane];
}

/* The `wanted` smallest's largest: that many keys at least are not above it. */
CODEC_VECTOR static uint32_t nth_of_lanes(const uint32_t lanes[CODEC_LANES], uint64_t wanted)
{
    key_lanes keys;
    memcpy(&keys, lanes, sizeof(keys));
    key_lanes below = {0};
    for (uint32_t i = 0; i < CODEC_LANES; i++)
        below -= (key_lanes)(keys > lanes[i]); /* a lane where it is so holds -1 */
    keys &= (key_lanes)(below < (uint32_t)wanted);
    uint32_t nth = 0;
    for (uint32_t i = 0; i < CODEC_LANES; i++)
        nth = keys[i] > nth ? keys[i] : nth;
    return nth;
}

/* As many as lanes can tell apart well: few more than the wanted ones pass their bound. */
#define WANTED_MAX 12u
#define FOUND_MAX  48u

/* The places marked by `bit`, in order; more than FOUND_MAX when there are more. */
static uint32_t list_marked(uint32_t *places, const uint8_t *mark, uint8_t bit, uint64_t count)
{
    uint64_t bits = 0x0101010101010101ull * bit;
    uint32_t found = 0;
    for (uint64_t i = 0; i < count && found <= FOUND_MAX;) {
        uint64_t word = bits;
        if (count - i >= sizeof(word))
            memcpy(&word, mark + i, sizeof(word));
        if (!(word & bits)) {
            i += sizeof(word);
            continue;
        }
        uint64_t end = larder_min_u64(i + sizeof(word), count);
        for (; i < end && found <= FOUND_MAX; i++) {
            if (mark[i] & bit)
                places[found++] = (uint32_t)i;
        }
    }
    return found;
}

CODEC_VECTOR static void unmark(uint8_t *mark, uint8_t bit, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        mark[i] &= (uint8_t)~bit;
}

/* Of the smallest keys of all lanes, as many as are wanted are not above the largest of them: so
 * all that are wanted are not. Those are marked, and the few that are too many are found among
 * them. False, and nothing is marked, where they are many: there are equal ones. */
static bool mark_by_lanes(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                          uint32_t turn, uint64_t wanted)
{
    uint32_t least[CODEC_LANES];
    uint32_t places[FOUND_MAX + 1];
    uint32_t found_keys[FOUND_MAX];
    least_of_lanes(least, keys, count, turn);
    mark_up_to(mark, bit, keys, count, turn, nth_of_lanes(least, wanted));
    uint32_t found = list_marked(places, mark, bit, count);
    if (found > FOUND_MAX) {
        unmark(mark, bit, count);
        return false;
    }
    assert(found >= wanted);
    for (uint32_t i = 0; i < found; i++)
        found_keys[i] = keys[places[i]] ^ turn;
    /* Of equal ones the last goes. */
    for (; found > wanted; found--) {
        uint32_t most = 0;
        for (uint32_t i = 1; i < found; i++)
            most = found_keys[i] >= found_keys[most] ? i : most;
        mark[places[most]] &= (uint8_t)~bit;
        for (uint32_t i = most; i + 1 < found; i++) {
            places[i] = places[i + 1];
            found_keys[i] = found_keys[i + 1];
        }
    }
    return true;
}

static void mark_end(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                     uint32_t turn, uint64_t wanted)
{
    assert(wanted <= count);
    if (wanted == 0)
        return;
    if (wanted > WANTED_MAX || count < CODEC_LANES ||
        !mark_by_lanes(mark, bit, keys, count, turn, wanted))
        mark_by_bits(mark, bit, keys, count, turn, wanted);
}

void order_mark_largest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                        uint64_t wanted)
{
    mark_end(mark, bit, keys, count, UINT32_MAX, wanted);
}

void order_mark_smallest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                         uint64_t wanted)
{
    mark_end(mark, bit, keys, count, 0, wanted);
}
