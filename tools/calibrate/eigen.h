/* SPDX-License-Identifier: Apache-2.0 */
/* eigen.h - eigenvalues and eigenvectors of small symmetric matrices.
 * Threads: pure functions over the caller's memory.
 */
#ifndef LARDER_TOOLS_CALIBRATE_EIGEN_H
#define LARDER_TOOLS_CALIBRATE_EIGEN_H

#include <stdint.h>

/* Of the symmetric matrix a[n][n], which is used up: values falling, vectors[i] the unit vector of
 * values[i], its largest component positive. Cyclic Jacobi rotations: the same bits everywhere. */
void eigen_symmetric(double *values, double *vectors, double *a, uint32_t n);

#endif
