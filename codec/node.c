/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/node.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/cpu/cpu_math.h"

int codec_inner_fits(const struct codec_node *node, const struct codec_size *size)
{
    return codec_fits(node->inner, size);
}

uint64_t codec_inner_bound(const struct codec_node *node, const struct codec_size *size)
{
    return codec_bound(node->inner, size);
}

uint64_t codec_inner_scratch(const struct codec_node *node, const struct codec_size *size)
{
    return codec_scratch(node->inner, size);
}

/* --- streams and scratch ---------------------------------------------------------------------- */

void *codec_take_scratch(struct codec_run *run, uint64_t bytes)
{
    uint64_t rounded = larder_round_up(bytes, 64);
    assert(rounded <= (uint64_t)(run->scratch_end - run->scratch));
    void *taken = run->scratch;
    run->scratch += rounded;
    return taken;
}

uint8_t *codec_append(struct codec_run *run, uint64_t bytes)
{
    uint8_t *room = run->out;
    run->out += bytes;
    return room;
}

const uint8_t *codec_take(struct codec_run *run, uint64_t bytes, const char *what)
{
    uint64_t left = (uint64_t)(run->in_end - run->in);
    if (bytes > left) {
        larder_fail(LARDER_ECORRUPT, "%s: %llu bytes expected, the section has %llu left", what,
                    (unsigned long long)bytes, (unsigned long long)left);
        return NULL;
    }
    const uint8_t *taken = run->in;
    run->in += bytes;
    return taken;
}

CODEC_VECTOR void codec_store_f16(uint8_t *out, const float *x, uint64_t count, float unit)
{
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half = f16_from_float(x[i] * unit);
        memcpy(out + 2 * i, &half, sizeof(half));
    }
}

CODEC_VECTOR void codec_load_f16(float *out, const uint8_t *in, uint64_t count, float unit)
{
    float inverse = 1.0f / unit; /* powers of two: exact */
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, in + 2 * i, sizeof(half));
        out[i] = float_from_f16(half) * inverse;
    }
}

CODEC_VECTOR static void load_bf16(float *out, const uint8_t *in, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, in + 2 * i, sizeof(half));
        out[i] = float_from_bf16(half);
    }
}

/* To nearest, ties to even, in the upper half. Numbers are finite, unless the stream is hostile:
 * then a NaN becomes some other number, the same everywhere. */
static inline uint32_t rounded_bf16(float x)
{
    uint32_t bits = bits_of(x);
    return bits + 0x7fffu + ((bits >> 16) & 1u);
}

CODEC_VECTOR static void store_bf16(uint8_t *restrict out, const float *restrict x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half = (uint16_t)(rounded_bf16(x[i]) >> 16);
        memcpy(out + 2 * i, &half, sizeof(half));
    }
}

CODEC_VECTOR static void round_bf16(float *restrict out, const float *restrict x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = float_of(rounded_bf16(x[i]) & 0xffff0000u);
}

CODEC_VECTOR static void round_f16(float *restrict out, const float *restrict x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = float_from_f16(f16_from_float(x[i]));
}

void codec_load_elems(float *out, const uint8_t *in, uint64_t count, uint32_t dtype)
{
    if (dtype == LARDER_BF16)
        load_bf16(out, in, count);
    else if (dtype == LARDER_F16)
        codec_load_f16(out, in, count, 1);
    else
        memcpy(out, in, count * sizeof(float));
}

void codec_store_elems(uint8_t *out, const float *x, uint64_t count, uint32_t dtype)
{
    if (dtype == LARDER_BF16)
        store_bf16(out, x, count);
    else if (dtype == LARDER_F16)
        codec_store_f16(out, x, count, 1);
    else
        memcpy(out, x, count * sizeof(float));
}

void codec_round_elems(float *out, const float *x, uint64_t count, uint32_t dtype)
{
    if (dtype == LARDER_BF16)
        round_bf16(out, x, count);
    else if (dtype == LARDER_F16)
        round_f16(out, x, count);
    else
        memcpy(out, x, count * sizeof(float));
}

CODEC_VECTOR float codec_largest(const float *x, uint64_t count)
{
    uint32_t most = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most >= 0x7f800000u ? INFINITY : float_of(most);
}

int codec_append_unit(struct codec_run *run, float *unit, const float *x, uint64_t count)
{
    float most = codec_largest(x, count);
    if (!isfinite(most))
        return CODEC_CANNOT;
    /* `most` times the unit lies in [2^13, 2^14): twice as much is still an f16. */
    int exponent = 0;
    if (most > 0) {
        (void)frexpf(most, &exponent);
        exponent = 14 - exponent;
    }
    int8_t stored = (int8_t)(exponent < -126 ? -126 : exponent > 126 ? 126 : exponent);
    *codec_append(run, 1) = (uint8_t)stored;
    *unit = ldexpf(1, stored);
    return 0;
}

int codec_take_unit(struct codec_run *run, float *unit)
{
    const uint8_t *in = codec_take(run, 1, "unit");
    if (!in)
        return LARDER_ECORRUPT;
    int8_t stored = (int8_t)*in;
    if (stored < -126 || stored > 126)
        return larder_fail(LARDER_ECORRUPT, "a unit of 2^%d; it is within 2^-126..2^126", stored);
    *unit = ldexpf(1, stored);
    return 0;
}
