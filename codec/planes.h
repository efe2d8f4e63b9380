/* SPDX-License-Identifier: Apache-2.0 */
/* planes.h - elements to byte planes and back.
 *
 * An element is first rotated left by one bit, so that its sign becomes the lowest bit and the
 * whole exponent of bf16 and f32 fills the top byte (of f16: exponent and three bits of fraction,
 * still rising with the magnitude). Plane p then holds byte p of every element, little-endian.
 *
 * Threads: pure functions. The tables are const; planes_best() asks CPUID.
 */
#ifndef LARDER_CODEC_PLANES_H
#define LARDER_CODEC_PLANES_H

#include <stddef.h>
#include <stdint.h>

#define PLANES_MAX 4

/* index 0: 2-byte elements, index 1: 4-byte elements */
struct planes_ops {
    const char *name;
    /* planes[p][i] = byte p of rotated element i */
    void (*split[2])(uint8_t *const planes[], const void *elems, size_t count);
    /* The inverse over rows of `dims` elements; base[d] is first added to the top byte of the d-th
     * element of every row (base NULL: nothing is added). */
    void (*join[2])(void *elems, const uint8_t *const planes[], const uint8_t *base,
                    size_t row_count, size_t dims);
};

/* The specification. */
extern const struct planes_ops planes_scalar;

/* NULL where it cannot run. */
const struct planes_ops *planes_avx2(void);

const struct planes_ops *planes_best(void);

#endif
