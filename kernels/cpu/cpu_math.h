/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_math.h - number formats and the exponential, the same bits at every instruction set.
 * Only operations that IEEE 754 rounds in one way are used, in an order written out here; the
 * build never contracts or reorders them.
 */
#ifndef LARDER_KERNELS_CPU_MATH_H
#define LARDER_KERNELS_CPU_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/larder_base.h"

/* Sums of many terms run in this many lanes, term i in lane i % 16, added up by sum_lanes(). */
#define CPU_LANES 16

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static inline float float_from_bf16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

/* To nearest, ties to even; a NaN stays one and becomes quiet. */
static inline uint16_t bf16_from_float(float x)
{
    uint32_t bits = bits_of(x);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    uint32_t quiet = bits | 0x00400000u;
    return (uint16_t)(((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded) >> 16);
}

static inline float float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(half & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) { /* infinity or NaN, which becomes quiet */
        uint32_t quiet = rest > 0x0f800000u ? 0x00400000u : 0;
        return float_of(sign | quiet | (rest + 0x70000000u));
    }
    /* 2^112 moves the exponent's bias from 15 to 127, for subnormal halves too. */
    return float_of(sign | bits_of(float_of(rest) * 0x1p112f));
}

static inline uint16_t f16_from_float(float x)
{
    uint32_t bits = bits_of(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | ((rest >> 13) & 0x03ffu));
    if (rest >= 0x477ff000u) /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    if (rest < 0x38800000u) { /* below 2^-14: adding 1/2 leaves multiples of 2^-24, rounded */
        uint32_t steps = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | steps);
    }
    uint32_t rounded = rest + 0x0fffu + ((rest >> 13) & 1u);
    return (uint16_t)(sign | ((rounded - 0x38000000u) >> 13));
}

static inline float load_element(const void *data, uint32_t dtype, uint64_t index)
{
    switch (dtype) {
    case LARDER_F32:
        return ((const float *)data)[index];
    case LARDER_F16:
        return float_from_f16(((const uint16_t *)data)[index]);
    default:
        return float_from_bf16(((const uint16_t *)data)[index]);
    }
}

/* e^x; 0 below -87, e^88 above 88. Error at most 2 units in the last place. x = n ln 2 + r with
 * |r| <= ln 2 / 2; the Taylor series of degree 7 leaves 5e-9 there, less than half a unit. */
static inline float exp_float(float x)
{
    float bounded = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    /* Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits. */
    float shifted = fmaf(bounded, 0x1.715476p+0f, 0x1.8p23f);
    float n = shifted - 0x1.8p23f;
    float r = fmaf(n, -0x1.62e4p-1f, bounded);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float y = fmaf(r, 1.0f / 5040, 1.0f / 720);
    y = fmaf(y, r, 1.0f / 120);
    y = fmaf(y, r, 1.0f / 24);
    y = fmaf(y, r, 1.0f / 6);
    y = fmaf(y, r, 0.5f);
    y = fmaf(y, r, 1.0f);
    y = fmaf(y, r, 1.0f);
    float power = float_of((bits_of(shifted) + 127u) << 23);
    return x < -87.0f ? 0.0f : y * power;
}

/* The pairs are the ones that halving a vector register gives. */
static inline float sum_lanes(float lanes[CPU_LANES])
{
    for (unsigned step = CPU_LANES / 2; step > 0; step /= 2)
        for (unsigned i = 0; i < step; i++)
            lanes[i] += lanes[i + step];
    return lanes[0];
}

#endif
