/* SPDX-License-Identifier: Apache-2.0 */
/* stats.h - the figures of larder-eval, from logits to hulls.
 * Threads: pure functions.
 */
#ifndef LARDER_TOOLS_EVAL_STATS_H
#define LARDER_TOOLS_EVAL_STATS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* log(softmax(logits)); `out` may be `logits`. */
void eval_log_softmax(float *out, const float *logits, uint32_t count);
/* KL(p || q) in nats of two distributions given by their logarithms; never negative, 0 when they
 * are the same; no number, or infinite, when one of them is no distribution. */
double eval_kl(const float *log_p, const float *log_q, uint32_t count);
/* Index of the first largest. */
uint32_t eval_largest(const float *x, uint32_t count);

/* Of one figure over many tokens. */
struct eval_spread {
    double mean;
    double p99;          /* the smallest that 99 % do not exceed */
    double worst_decile; /* mean of the highest tenth */
    double mean_error;   /* standard error of the mean, tokens taken as independent */
};
/* Sorts `values`. All 0 when there are none. */
void eval_spread_of(struct eval_spread *out, float *values, size_t count);

/* A recipe's place in the picture. */
struct eval_point {
    double bits;  /* an element */
    double kl;    /* nats */
    size_t index; /* the caller's */
};

/* Sorts the points by bits and leaves those on their lower convex hull, in the plane of bits and
 * the logarithm of KL: what is better than all others at some weighting of the two. KL of 0 counts
 * as EVAL_KL_LEAST. Returns how many are left, from the smallest on; KL falls from one to the
 * next. */
#define EVAL_KL_LEAST 1e-7
size_t eval_hull(struct eval_point *points, size_t count);
/* Bits at which the hull reaches this KL, on the straight line between its points (in the
 * logarithm); infinity when it never gets there, the first point's bits when all are better. */
double eval_hull_bits(const struct eval_point *hull, size_t count, double kl);
/* KL at so many bits; infinity below the first point, the last point's beyond it. */
double eval_hull_kl(const struct eval_point *hull, size_t count, double bits);

#endif
