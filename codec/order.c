/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/order.h"

#include <assert.h>
#include <math.h>
#include <string.h>

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

/* A byte of the answer a pass, from the top: how many of the keys that share the bytes found so
 * far have which next byte. */
uint32_t order_nth(const uint32_t *keys, uint64_t count, uint64_t below)
{
    assert(below < count);
    uint32_t found = 0;
    for (uint32_t shift = 24;; shift -= 8) {
        uint64_t counts[256] = {0};
        uint64_t above = (uint64_t)shift + 8;
        for (uint64_t i = 0; i < count; i++)
            counts[keys[i] >> shift & 0xff] +=
                (uint64_t)keys[i] >> above == (uint64_t)found >> above;
        uint32_t byte = 0;
        while (below >= counts[byte])
            below -= counts[byte++];
        found |= byte << shift;
        if (shift == 0)
            return found;
    }
}

void order_mark_largest(uint8_t *mark, uint8_t bit, const uint32_t *keys, uint64_t count,
                        uint64_t wanted)
{
    assert(wanted <= count);
    if (wanted == 0)
        return;
    uint32_t least = order_nth(keys, count, count - wanted);
    uint64_t equal = wanted;
    for (uint64_t i = 0; i < count; i++)
        equal -= keys[i] > least;
    for (uint64_t i = 0; i < count; i++) {
        bool taken = keys[i] > least || (keys[i] == least && equal > 0);
        equal -= taken && keys[i] == least;
        mark[i] |= taken ? bit : 0;
    }
}
