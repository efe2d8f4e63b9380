/* SPDX-License-Identifier: Apache-2.0 */
/* basis.h - the bases of the house recipe: for each layer and KV head, K and V, coefficients that
 * are uncorrelated and whose errors cost alike.
 * Owns:    its memory.
 * Threads: belongs to one thread.
 *
 * With C the covariance of the head's rows and M the metric of their errors,
 *   M = S S;  S C S = sum over c of variance[c] u[c] u[c]^T;  forward[.][c] = u[c] S;
 *   back[c] = u[c] S^-1
 * so that coefficients are uncorrelated, and the squared error of a row under M is the sum of the
 * squared errors of its coefficients. M is for K the second moment of the queries that read the
 * head, for V W^T W of the part of the output projection that takes it; each scaled to a trace of
 * `dims`, with a tenth of the identity added: directions that no query looked at in a text may be
 * looked at in the next one.
 */
#ifndef LARDER_TOOLS_CALIBRATE_BASIS_H
#define LARDER_TOOLS_CALIBRATE_BASIS_H

#include "codec/profile.h"
#include "tools/calibrate/calibrate.h"

struct basis {
    const struct calibration *calibration;
    enum larder_kv kv;
    uint32_t heads; /* of all layers */
    uint32_t dims;
    float *mean;      /* [head][dim] */
    float *forward;   /* [head][dim][coefficient] */
    float *back;      /* [head][coefficient][dim] */
    double *variance; /* [head][coefficient] */
};

/* `profile` has the moments. */
int basis_open(struct basis *out, const struct calibration *calibration, enum larder_kv kv,
               const struct larder_profile *profile);
void basis_close(struct basis *basis);
/* Coefficients of a head times `factor`. */
void basis_scale(struct basis *basis, uint32_t head, double factor);
/* The squared error of a row when its coefficients are rounded to multiples of `step`: that of a
 * rounded number, or all there is of one that varies less. */
double basis_error(const struct basis *basis, uint32_t head, double step);
/* larder.S.mean, .forward, .back, .scale */
int basis_put(const struct basis *basis, struct larder_profile_writer *writer);
/* Of a coefficient, as larder.S.scale has it. */
int basis_scale_quarters(const struct basis *basis, uint64_t coefficient);

#endif
