/* SPDX-License-Identifier: Apache-2.0 */
/* matrix.h - a row times a square matrix, for transforms that have no quicker form at every size.
 * The sums run in one order on every machine.
 */
#ifndef LARDER_CODEC_MATRIX_H
#define LARDER_CODEC_MATRIX_H

#include <stdint.h>

/* out[j] = sum over i, from the first on, of x[i] * matrix[i][j]; out is not x. */
void matrix_times_row(float *restrict out, const float *restrict x, const float *restrict matrix,
                      uint32_t dims);

#endif
