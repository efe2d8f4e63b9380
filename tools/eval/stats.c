/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/stats.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

uint32_t eval_largest(const float *x, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

void eval_log_softmax(float *out, const float *logits, uint32_t count)
{
    assert(count > 0);
    double most = logits[eval_largest(logits, count)];
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - most);
    double shift = most + log(sum);
    for (uint32_t i = 0; i < count; i++)
        out[i] = (float)((double)logits[i] - shift);
}

double eval_kl(const float *log_p, const float *log_q, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)log_p[i]) * ((double)log_p[i] - (double)log_q[i]);
    return sum < 0 ? 0 : sum; /* what is no number stays so */
}

static int compare_floats(const void *a, const void *b)
{
    const float *x = a;
    const float *y = b;
    return (*x > *y) - (*x < *y);
}

void eval_spread_of(struct eval_spread *out, float *values, size_t count)
{
    *out = (struct eval_spread){0};
    if (count == 0)
        return;
    qsort(values, count, sizeof(*values), compare_floats);
    size_t worst = (count + 9) / 10;
    double sum = 0;
    double squares = 0;
    double worst_sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += (double)values[i];
        squares += (double)values[i] * (double)values[i];
        worst_sum += i >= count - worst ? (double)values[i] : 0;
    }
    double n = (double)count;
    out->mean = sum / n;
    out->p99 = (double)values[(count * 99 + 99) / 100 - 1];
    out->worst_decile = worst_sum / (double)worst;
    out->mean_error = sqrt(fmax(squares / n - out->mean * out->mean, 0) / n);
}

/* --- hulls ------------------------------------------------------------------------------------ */

static double height(double kl)
{
    return log(kl > EVAL_KL_LEAST ? kl : EVAL_KL_LEAST);
}

static int compare_points(const void *a, const void *b)
{
    const struct eval_point *x = a;
    const struct eval_point *y = b;
    if (x->bits < y->bits || x->bits > y->bits)
        return x->bits < y->bits ? -1 : 1;
    return (x->kl > y->kl) - (x->kl < y->kl);
}

/* Is `b` on or above the line from `a` to `c`? */
static bool is_above(const struct eval_point *a, const struct eval_point *b,
                     const struct eval_point *c)
{
    double slope = (height(c->kl) - height(a->kl)) / (c->bits - a->bits);
    return height(b->kl) >= height(a->kl) + slope * (b->bits - a->bits);
}

size_t eval_hull(struct eval_point *points, size_t count)
{
    if (count > 0)
        qsort(points, count, sizeof(*points), compare_points);
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (kept > 0 && height(points[i].kl) >= height(points[kept - 1].kl))
            continue; /* larger and no better */
        while (kept >= 2 && is_above(&points[kept - 2], &points[kept - 1], &points[i]))
            kept--;
        points[kept++] = points[i];
    }
    return kept;
}

double eval_hull_bits(const struct eval_point *hull, size_t count, double kl)
{
    double wanted = height(kl);
    for (size_t i = 0; i < count; i++) {
        double here = height(hull[i].kl);
        if (here > wanted)
            continue;
        if (i == 0)
            return hull[0].bits;
        double before = height(hull[i - 1].kl);
        double part = (before - wanted) / (before - here);
        return hull[i - 1].bits + part * (hull[i].bits - hull[i - 1].bits);
    }
    return INFINITY;
}

double eval_hull_kl(const struct eval_point *hull, size_t count, double bits)
{
    if (count == 0 || bits < hull[0].bits)
        return INFINITY;
    for (size_t i = 1; i < count; i++) {
        if (bits > hull[i].bits)
            continue;
        double part = (bits - hull[i - 1].bits) / (hull[i].bits - hull[i - 1].bits);
        double from = height(hull[i - 1].kl);
        return exp(from + part * (height(hull[i].kl) - from));
    }
    return hull[count - 1].kl;
}
