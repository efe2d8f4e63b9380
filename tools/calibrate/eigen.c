/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/calibrate/eigen.h"

#include <math.h>
#include <string.h>

/* Each sweep squares what is left beside the diagonal; ten are plenty for any matrix. */
#define SWEEPS_MAX 30u

static double off_diagonal(const double *a, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < i; j++)
            sum += a[(uint64_t)i * n + j] * a[(uint64_t)i * n + j];
    }
    return sum;
}

static void turn_pair(double *x, double *y, uint64_t stride, uint32_t n, double c, double s)
{
    for (uint32_t i = 0; i < n; i++, x += stride, y += stride) {
        double low = *x;
        double high = *y;
        *x = c * low - s * high;
        *y = s * low + c * high;
    }
}

/* The rotation of axes p and q that makes a[p][q] zero. */
static void rotate(double *a, double *vectors, uint32_t n, uint32_t p, uint32_t q)
{
    double beside = a[(uint64_t)p * n + q];
    if (beside == 0)
        return;
    double theta = (a[(uint64_t)q * n + q] - a[(uint64_t)p * n + p]) / (2 * beside);
    double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
    double c = 1 / sqrt(t * t + 1);
    double s = t * c;
    turn_pair(a + p, a + q, n, n, c, s);
    turn_pair(a + (uint64_t)p * n, a + (uint64_t)q * n, 1, n, c, s);
    turn_pair(vectors + (uint64_t)p * n, vectors + (uint64_t)q * n, 1, n, c, s);
}

static void make_largest_positive(double *vector, uint32_t n)
{
    double most = 0;
    for (uint32_t i = 0; i < n; i++)
        most = fabs(vector[i]) > fabs(most) ? vector[i] : most;
    for (uint32_t i = 0; i < n && most < 0; i++)
        vector[i] = -vector[i];
}

static void swap_rows(double *a, double *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double kept = a[i];
        a[i] = b[i];
        b[i] = kept;
    }
}

void eigen_symmetric(double *values, double *vectors, double *a, uint32_t n)
{
    memset(vectors, 0, (uint64_t)n * n * sizeof(*vectors));
    double all = 0;
    for (uint32_t i = 0; i < n; i++) {
        vectors[(uint64_t)i * n + i] = 1;
        all += a[(uint64_t)i * n + i] * a[(uint64_t)i * n + i];
    }
    for (uint32_t sweep = 0; sweep < SWEEPS_MAX && off_diagonal(a, n) > 1e-28 * all; sweep++) {
        for (uint32_t p = 0; p < n; p++) {
            for (uint32_t q = p + 1; q < n; q++)
                rotate(a, vectors, n, p, q);
        }
    }
    for (uint32_t i = 0; i < n; i++)
        values[i] = a[(uint64_t)i * n + i];
    for (uint32_t i = 0; i < n; i++) {
        uint32_t best = i;
        for (uint32_t j = i + 1; j < n; j++)
            best = values[j] > values[best] ? j : best;
        double value = values[best];
        values[best] = values[i];
        values[i] = value;
        if (best != i)
            swap_rows(vectors + (uint64_t)i * n, vectors + (uint64_t)best * n, n);
        make_largest_positive(vectors + (uint64_t)i * n, n);
    }
}
