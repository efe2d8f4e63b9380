/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/planes.h"

#include <string.h>

static void split_2(uint8_t *const planes[], const void *elems, size_t count)
{
    const uint8_t *from = elems;
    for (size_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, from + 2 * i, sizeof(x));
        x = (uint16_t)(x << 1 | x >> 15);
        planes[0][i] = (uint8_t)x;
        planes[1][i] = (uint8_t)(x >> 8);
    }
}

static void join_2(void *elems, const uint8_t *const planes[], const uint8_t *base,
                   size_t row_count, size_t dims)
{
    uint8_t *to = elems;
    for (size_t row = 0; row < row_count; row++) {
        for (size_t d = 0; d < dims; d++) {
            size_t i = row * dims + d;
            uint8_t top = (uint8_t)(planes[1][i] + (base ? base[d] : 0));
            uint16_t x = (uint16_t)(top << 8 | planes[0][i]);
            x = (uint16_t)(x >> 1 | x << 15);
            memcpy(to + 2 * i, &x, sizeof(x));
        }
    }
}

static void split_4(uint8_t *const planes[], const void *elems, size_t count)
{
    const uint8_t *from = elems;
    for (size_t i = 0; i < count; i++) {
        uint32_t x;
        memcpy(&x, from + 4 * i, sizeof(x));
        x = x << 1 | x >> 31;
        for (unsigned p = 0; p < 4; p++)
            planes[p][i] = (uint8_t)(x >> (8 * p));
    }
}

static void join_4(void *elems, const uint8_t *const planes[], const uint8_t *base,
                   size_t row_count, size_t dims)
{
    uint8_t *to = elems;
    for (size_t row = 0; row < row_count; row++) {
        for (size_t d = 0; d < dims; d++) {
            size_t i = row * dims + d;
            uint8_t top = (uint8_t)(planes[3][i] + (base ? base[d] : 0));
            uint32_t x = (uint32_t)top << 24 | (uint32_t)planes[2][i] << 16 |
                         (uint32_t)planes[1][i] << 8 | planes[0][i];
            x = x >> 1 | x << 31;
            memcpy(to + 4 * i, &x, sizeof(x));
        }
    }
}

const struct planes_ops planes_scalar = {
    .name = "scalar",
    .split = {split_2, split_4},
    .join = {join_2, join_4},
};

const struct planes_ops *planes_best(void)
{
    const struct planes_ops *fast = planes_avx2();
    return fast ? fast : &planes_scalar;
}
