/* SPDX-License-Identifier: Apache-2.0 */
/* matrix.h - rows times a square matrix, for transforms that have no quicker form at every size.
 * Sums run in one order, each step rounded once, so that every machine gives the same bits.
 */
#ifndef LARDER_CODEC_MATRIX_H
#define LARDER_CODEC_MATRIX_H

#include <stdint.h>

#include "base/limits.h"

/* Of one head: a matrix of joined heads would take more memory than all they hold, and whoever
 * sends a block chooses its recipe and how many heads its model has. */
#define MATRIX_DIMS_MAX LARDER_HEAD_DIMS_MAX

/* LARDER_EUNSUPPORTED with a message for more dims. */
int matrix_fits(const char *stage, uint32_t dims);
/* out[row][j] = sum over i, from the first on, of x[row][i] * matrix[i][j]; out is not x. */
void matrix_times_rows(float *restrict out, const float *restrict x, uint64_t rows,
                       const float *restrict matrix, uint32_t dims);

#endif
