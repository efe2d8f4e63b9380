/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/calibrate/basis.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/node.h"
#include "codec/steps.h"
#include "kernels/safetensors.h"
#include "tools/calibrate/eigen.h"

#define METRIC_FLOOR 0.1 /* of the identity in a metric of mean eigenvalue 1 */

static double *matrix_room(uint32_t dims)
{
    return larder_alloc((uint64_t)dims * dims * sizeof(double));
}

/* One head's work. */
struct solver {
    uint32_t dims;
    double *metric;
    double *covariance;
    double *vectors;
    double *root;    /* S */
    double *inverse; /* S^-1 */
    double *scratch;
    double *values; /* [dims] */
};

static void close_solver(struct solver *s)
{
    larder_free(s->values);
    larder_free(s->scratch);
    larder_free(s->inverse);
    larder_free(s->root);
    larder_free(s->vectors);
    larder_free(s->covariance);
    larder_free(s->metric);
}

/* To be closed when it fails, too. */
static int open_solver(struct solver *out, uint32_t dims)
{
    *out = (struct solver){
        .dims = dims,
        .metric = matrix_room(dims),
        .covariance = matrix_room(dims),
        .vectors = matrix_room(dims),
        .root = matrix_room(dims),
        .inverse = matrix_room(dims),
        .scratch = matrix_room(dims),
        .values = larder_alloc(dims * sizeof(double)),
    };
    if (out->metric && out->covariance && out->vectors && out->root && out->inverse &&
        out->scratch && out->values)
        return 0;
    return larder_fail(-ENOMEM, "no memory for a basis");
}

static void multiply(double *out, const double *a, const double *b, uint32_t n)
{
    memset(out, 0, (uint64_t)n * n * sizeof(*out));
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t k = 0; k < n; k++) {
            double factor = a[i * n + k];
            for (uint64_t j = 0; j < n; j++)
                out[i * n + j] += factor * b[k * n + j];
        }
    }
}

/* out = sum over c of f(values[c]) v[c] v[c]^T, f a power */
static void from_vectors(double *out, const double *values, const double *vectors, uint32_t n,
                         double power)
{
    memset(out, 0, (uint64_t)n * n * sizeof(*out));
    for (uint64_t c = 0; c < n; c++) {
        double factor = pow(values[c], power);
        const double *v = vectors + c * n;
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j < n; j++)
                out[i * n + j] += factor * v[i] * v[j];
        }
    }
}

static void normalise_metric(double *metric, uint32_t n)
{
    double trace = 0;
    for (uint64_t i = 0; i < n; i++)
        trace += metric[i * n + i];
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++)
            metric[i * n + j] = trace > 0 ? metric[i * n + j] * n / trace : 0;
        metric[i * n + i] += METRIC_FLOOR + (trace > 0 ? 0 : 1);
    }
}

/* From the solver's metric and covariance; both are used up. */
static void solve(struct solver *s, float *forward, float *back, double *variance)
{
    uint32_t n = s->dims;
    normalise_metric(s->metric, n);
    eigen_symmetric(s->values, s->vectors, s->metric, n);
    /* What rounding left below the floor is the floor. */
    for (uint32_t i = 0; i < n; i++)
        s->values[i] = s->values[i] > METRIC_FLOOR ? s->values[i] : METRIC_FLOOR;
    from_vectors(s->root, s->values, s->vectors, n, 0.5);
    from_vectors(s->inverse, s->values, s->vectors, n, -0.5);
    multiply(s->scratch, s->root, s->covariance, n);
    multiply(s->covariance, s->scratch, s->root, n);
    eigen_symmetric(variance, s->vectors, s->covariance, n);
    multiply(s->scratch, s->vectors, s->root, n);
    multiply(s->metric, s->vectors, s->inverse, n);
    for (uint64_t c = 0; c < n; c++) {
        for (uint64_t i = 0; i < n; i++) {
            forward[i * n + c] = (float)s->scratch[c * n + i];
            back[c * n + i] = (float)s->metric[c * n + i];
        }
    }
    for (uint32_t i = 0; i < n; i++)
        variance[i] = variance[i] > 0 ? variance[i] : 0;
}

/* --- what is known of a head ------------------------------------------------------------------ */

static int find_moment(const float **out, const struct basis *b,
                       const struct larder_profile *profile, const char *name, uint32_t rank)
{
    const struct larder_model_desc *model = &b->calibration->model;
    uint64_t shape[] = {model->layers, model->kv_heads, b->dims, b->dims};
    const void *found;
    LARDER_TRY(larder_profile_find(profile, &found, name, LARDER_PROFILE_F32, shape, rank));
    *out = found;
    return 0;
}

static void take_covariance(double *out, const float *second, const float *mean, uint32_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++)
            out[i * n + j] = (double)second[i * n + j] - (double)mean[i] * (double)mean[j];
    }
}

/* W^T W over the query heads that read KV head `head`: how much of an error of V reaches the
 * residual stream. */
static int take_projection(double *out, const struct basis *b, const struct larder_weights *weights,
                           uint32_t head)
{
    const struct calibration *c = b->calibration;
    uint32_t n = b->dims;
    uint32_t readers = c->config->heads / c->model.kv_heads;
    char name[64];
    snprintf(name, sizeof(name), "model.layers.%u.self_attn.o_proj.weight",
             head / c->model.kv_heads);
    const struct larder_weight *w = larder_weights_find(weights, name);
    uint64_t columns = (uint64_t)c->config->heads * n;
    if (!w || w->rank != 2 || w->shape[1] != columns || w->dtype == 0)
        return larder_fail(LARDER_EFORMAT, "%s: no tensor %s of %llu columns", c->options->model,
                           name, (unsigned long long)columns);
    uint64_t elem_bytes = larder_dtype_bytes(w->dtype);
    float *row = larder_alloc(n * sizeof(*row));
    if (!row)
        return larder_fail(-ENOMEM, "no memory for a basis");
    memset(out, 0, (uint64_t)n * n * sizeof(*out));
    for (uint64_t i = 0; i < w->shape[0]; i++) {
        for (uint32_t reader = 0; reader < readers; reader++) {
            uint64_t first = ((uint64_t)head % c->model.kv_heads * readers + reader) * n;
            codec_load_elems(row, (const uint8_t *)w->data + (i * columns + first) * elem_bytes, n,
                             w->dtype);
            for (uint64_t j = 0; j < n; j++) {
                for (uint64_t k = 0; k < n; k++)
                    out[j * n + k] += (double)row[j] * (double)row[k];
            }
        }
    }
    larder_free(row);
    return 0;
}

static int solve_heads(struct basis *b, struct solver *s, const struct larder_profile *profile,
                       const struct larder_weights *weights)
{
    bool is_k = b->kv == LARDER_K;
    uint64_t n = b->dims;
    const float *mean;
    const float *second;
    const float *queries = NULL;
    LARDER_TRY(find_moment(&mean, b, profile, is_k ? "moments.k.mean" : "moments.v.mean", 3));
    LARDER_TRY(find_moment(&second, b, profile, is_k ? "moments.k" : "moments.v", 4));
    if (is_k)
        LARDER_TRY(find_moment(&queries, b, profile, "moments.q", 4));
    memcpy(b->mean, mean, b->heads * n * sizeof(*mean));
    for (uint32_t head = 0; head < b->heads; head++) {
        calibration_progress(b->calibration, is_k ? "bases of K" : "bases of V", head, b->heads);
        take_covariance(s->covariance, second + head * n * n, mean + head * n, b->dims);
        for (uint64_t i = 0; i < n * n && is_k; i++)
            s->metric[i] = (double)queries[head * n * n + i];
        if (!is_k)
            LARDER_TRY(take_projection(s->metric, b, weights, head));
        solve(s, b->forward + head * n * n, b->back + head * n * n, b->variance + head * n);
    }
    return 0;
}

int basis_open(struct basis *out, const struct calibration *c, enum larder_kv kv,
               const struct larder_profile *profile)
{
    uint32_t dims = kv == LARDER_K ? c->model.k_dims : c->model.v_dims;
    uint64_t heads = (uint64_t)c->model.layers * c->model.kv_heads;
    *out = (struct basis){
        .calibration = c,
        .kv = kv,
        .heads = (uint32_t)heads,
        .dims = dims,
        .mean = larder_alloc(heads * dims * sizeof(float)),
        .forward = larder_alloc(heads * dims * dims * sizeof(float)),
        .back = larder_alloc(heads * dims * dims * sizeof(float)),
        .variance = larder_alloc(heads * dims * sizeof(double)),
    };
    struct larder_weights *weights = NULL;
    struct solver solver = {0};
    int err = out->mean && out->forward && out->back && out->variance
                  ? 0
                  : larder_fail(-ENOMEM, "no memory for a basis");
    if (err == 0)
        err = open_solver(&solver, dims);
    if (err == 0)
        err = larder_weights_open(&weights, c->options->model);
    if (err == 0)
        err = solve_heads(out, &solver, profile, weights);
    larder_weights_close(weights);
    close_solver(&solver);
    if (err < 0)
        basis_close(out);
    return err;
}

void basis_close(struct basis *b)
{
    larder_free(b->variance);
    larder_free(b->back);
    larder_free(b->forward);
    larder_free(b->mean);
    *b = (struct basis){0};
}

void basis_scale(struct basis *b, uint32_t head, double factor)
{
    uint64_t n = b->dims;
    for (uint64_t i = head * n * n; i < (head + 1) * n * n; i++) {
        b->forward[i] = (float)((double)b->forward[i] * factor);
        b->back[i] = (float)((double)b->back[i] / factor);
    }
    for (uint64_t i = head * n; i < (head + 1) * n; i++)
        b->variance[i] *= factor * factor;
}

double basis_error(const struct basis *b, uint32_t head, double step)
{
    double sum = 0;
    for (uint32_t i = 0; i < b->dims; i++)
        sum += fmin(b->variance[(uint64_t)head * b->dims + i], step * step / 12);
    return sum;
}

int basis_scale_quarters(const struct basis *b, uint64_t coefficient)
{
    double quarters = round(2 * log2(b->variance[coefficient] + 1e-60));
    return (int)fmax(-STEPS_QUARTERS_MAX, fmin(STEPS_QUARTERS_MAX, quarters));
}

int basis_put(const struct basis *b, struct larder_profile_writer *writer)
{
    const struct larder_model_desc *model = &b->calibration->model;
    uint64_t layers = model->layers;
    uint64_t kv_heads = model->kv_heads;
    char side = b->kv == LARDER_K ? 'k' : 'v';
    char name[32];
    snprintf(name, sizeof(name), "larder.%c.mean", side);
    LARDER_TRY(calibration_put(writer, name, b->mean, layers, kv_heads, b->dims, 0));
    snprintf(name, sizeof(name), "larder.%c.forward", side);
    LARDER_TRY(calibration_put(writer, name, b->forward, layers, kv_heads, b->dims, b->dims));
    snprintf(name, sizeof(name), "larder.%c.back", side);
    LARDER_TRY(calibration_put(writer, name, b->back, layers, kv_heads, b->dims, b->dims));
    uint64_t count = (uint64_t)b->heads * b->dims;
    int32_t *scale = larder_alloc(count * sizeof(*scale));
    if (!scale)
        return larder_fail(-ENOMEM, "no memory for a basis");
    for (uint64_t i = 0; i < count; i++)
        scale[i] = basis_scale_quarters(b, i);
    snprintf(name, sizeof(name), "larder.%c.scale", side);
    int err = larder_profile_put(writer, name, LARDER_PROFILE_I32,
                                 (uint64_t[]){layers, kv_heads, b->dims}, 3, scale);
    larder_free(scale);
    return err;
}
