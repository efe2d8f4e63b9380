/* SPDX-License-Identifier: Apache-2.0 */
/* minifloat.h - floats of few bits: a sign, an exponent, and `fraction` bits; below the smallest
 * normal number in whole steps, and without codes for what is no number. To nearest, ties to even;
 * what is larger than `most`, the largest one, becomes it.
 */
#ifndef LARDER_CODEC_MINIFLOAT_H
#define LARDER_CODEC_MINIFLOAT_H

#include <math.h>
#include <stdint.h>

#include "kernels/cpu/cpu_math.h"

/* Sign in bit 7, then exponent and fraction, from bit 0 on. */
static inline uint8_t minifloat_code(float x, uint32_t fraction, uint32_t bias, float most)
{
    uint32_t sign = bits_of(x) >> 24 & 0x80u;
    float magnitude = fabsf(x) < most ? fabsf(x) : most;
    uint32_t bits = bits_of(magnitude);
    uint32_t cut = 23 - fraction;
    uint32_t normal = (bits + ((1u << (cut - 1)) - 1) + (bits >> cut & 1u)) >> cut;
    normal -= (127 - bias) << fraction;
    /* Adding a power of two leaves whole steps, rounded. */
    float shifted = magnitude + float_of((128 - bias + cut) << 23);
    uint32_t steps = bits_of(shifted) & 0x7fu;
    uint32_t is_normal = bits >= (128 - bias) << 23;
    return (uint8_t)(sign | (is_normal ? normal : steps));
}

/* The number that the code stands for. */
static inline float minifloat_round(float x, uint32_t fraction, uint32_t bias, float most)
{
    float magnitude = fabsf(x) < most ? fabsf(x) : most;
    uint32_t bits = bits_of(magnitude);
    uint32_t cut = 23 - fraction;
    float normal = float_of((bits + ((1u << (cut - 1)) - 1) + (bits >> cut & 1u)) >> cut << cut);
    float power = float_of((128 - bias + cut) << 23);
    float steps = magnitude + power - power;
    return copysignf(bits >= (128 - bias) << 23 ? normal : steps, x);
}

#endif
