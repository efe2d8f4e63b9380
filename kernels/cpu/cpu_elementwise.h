/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_elementwise.h - operations without a product, included once by each instruction set's file.
 * The loops are plain C; the compiler makes vectors of them with the flags of the including file.
 * That changes no bit: each element is computed alone, sums run in CPU_LANES fixed lanes.
 */
#ifndef LARDER_KERNELS_CPU_ELEMENTWISE_H
#define LARDER_KERNELS_CPU_ELEMENTWISE_H

#include <string.h>

#include "kernels/cpu/cpu_isa.h"
#include "kernels/cpu/cpu_math.h"

static void rmsnorm(float *out, const float *x, const float *weight, uint64_t count, float eps)
{
    float lanes[CPU_LANES] = {0};
    uint64_t i = 0;
    for (; i + CPU_LANES <= count; i += CPU_LANES)
        for (uint64_t lane = 0; lane < CPU_LANES; lane++)
            lanes[lane] = fmaf(x[i + lane], x[i + lane], lanes[lane]);
    for (; i < count; i++)
        lanes[i % CPU_LANES] = fmaf(x[i], x[i], lanes[i % CPU_LANES]);
    float inverse = 1.0f / sqrtf(sum_lanes(lanes) / (float)count + eps);
    for (uint64_t j = 0; j < count; j++)
        out[j] = (x[j] * inverse) * weight[j];
}

static void rope(float *x, uint64_t heads, uint64_t head_stride, const float *cos, const float *sin,
                 uint64_t pairs, uint32_t interleaved)
{
    uint64_t step = interleaved ? 2 : 1;
    uint64_t partner = interleaved ? 1 : pairs;
    for (uint64_t head = 0; head < heads; head++) {
        float *row = x + head * head_stride;
        for (uint64_t i = 0; i < pairs; i++) {
            float low = row[i * step];
            float high = row[i * step + partner];
            row[i * step] = low * cos[i] - high * sin[i];
            row[i * step + partner] = high * cos[i] + low * sin[i];
        }
    }
}

static void swiglu(float *out, const float *gate, const float *up, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] = gate[i] / (1.0f + exp_float(-gate[i])) * up[i];
}

static void add(float *out, const float *x, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        out[i] += x[i];
}

static void to_float(float *out, const void *x, uint32_t dtype, uint64_t count)
{
    const uint16_t *halves = x;
    switch (dtype) {
    case LARDER_F32:
        memcpy(out, x, count * sizeof(*out));
        break;
    case LARDER_F16:
        for (uint64_t i = 0; i < count; i++)
            out[i] = float_from_f16(halves[i]);
        break;
    default:
        for (uint64_t i = 0; i < count; i++)
            out[i] = float_from_bf16(halves[i]);
    }
}

static void from_float(void *out, uint32_t dtype, const float *x, uint64_t count)
{
    uint16_t *halves = out;
    switch (dtype) {
    case LARDER_F32:
        memcpy(out, x, count * sizeof(*x));
        break;
    case LARDER_F16:
        for (uint64_t i = 0; i < count; i++)
            halves[i] = f16_from_float(x[i]);
        break;
    default:
        for (uint64_t i = 0; i < count; i++)
            halves[i] = bf16_from_float(x[i]);
    }
}

#endif
