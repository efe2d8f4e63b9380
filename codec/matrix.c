/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/matrix.h"

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "codec/node.h"

int matrix_fits(const char *stage, uint32_t dims)
{
    if (dims <= MATRIX_DIMS_MAX)
        return 0;
    return larder_fail(LARDER_EUNSUPPORTED,
                       "%s of %u channels; the limit is %u, those of a head: it does not go behind "
                       "join",
                       stage, dims, MATRIX_DIMS_MAX);
}

/* A stripe of columns of so many rows at a time: their sums stay in registers, and what is read of
 * the matrix serves all of them. */
#define STRIPE 32u
#define ROWS   4u

CODEC_VECTOR static void add_stripes(float *restrict out, const float *restrict x,
                                     const float *restrict matrix, uint32_t dims)
{
    for (uint32_t first = 0; first + STRIPE <= dims; first += STRIPE) {
        float sums[ROWS][STRIPE] = {{0}};
        for (uint32_t i = 0; i < dims; i++) {
            const float *column = matrix + (uint64_t)i * dims + first;
            for (uint32_t row = 0; row < ROWS; row++) {
                for (uint32_t lane = 0; lane < STRIPE; lane++)
                    sums[row][lane] = fmaf(x[row * dims + i], column[lane], sums[row][lane]);
            }
        }
        for (uint32_t row = 0; row < ROWS; row++)
            memcpy(out + row * dims + first, sums[row], sizeof(sums[row]));
    }
}

/* Columns from `first` on of one row. */
CODEC_VECTOR static void add_rest(float *restrict out, const float *restrict x,
                                  const float *restrict matrix, uint32_t dims, uint32_t first)
{
    memset(out + first, 0, (dims - first) * sizeof(float));
    for (uint32_t i = 0; i < dims; i++) {
        const float *column = matrix + (uint64_t)i * dims;
        for (uint32_t j = first; j < dims; j++)
            out[j] = fmaf(x[i], column[j], out[j]);
    }
}

void matrix_times_rows(float *restrict out, const float *restrict x, uint64_t rows,
                       const float *restrict matrix, uint32_t dims)
{
    uint64_t striped = rows / ROWS * ROWS;
    for (uint64_t row = 0; row < striped; row += ROWS)
        add_stripes(out + row * dims, x + row * dims, matrix, dims);
    for (uint64_t row = 0; row < rows; row++) {
        uint32_t first = row < striped ? dims / STRIPE * STRIPE : 0;
        add_rest(out + row * dims, x + row * dims, matrix, dims, first);
    }
}
