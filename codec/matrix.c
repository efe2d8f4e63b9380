/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/matrix.h"

#include <string.h>

#include "codec/node.h"

#define STRIPE 64u /* columns whose sums stay in registers */

CODEC_VECTOR void matrix_times_row(float *restrict out, const float *restrict x,
                                   const float *restrict matrix, uint32_t dims)
{
    uint32_t first = 0;
    for (; first + STRIPE <= dims; first += STRIPE) {
        float sums[STRIPE] = {0};
        for (uint32_t i = 0; i < dims; i++) {
            const float *row = matrix + (uint64_t)i * dims + first;
            for (uint32_t lane = 0; lane < STRIPE; lane++)
                sums[lane] += x[i] * row[lane];
        }
        memcpy(out + first, sums, sizeof(sums));
    }
    if (first == dims)
        return;
    memset(out + first, 0, (dims - first) * sizeof(float));
    for (uint32_t i = 0; i < dims; i++) {
        const float *row = matrix + (uint64_t)i * dims;
        for (uint32_t j = first; j < dims; j++)
            out[j] += x[i] * row[j];
    }
}
