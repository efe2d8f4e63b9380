/* SPDX-License-Identifier: Apache-2.0 */
/* moments.c - means and second moments of keys, values and queries, and what follows from them.
 *
 *   moments.k.mean [layer, kv_head, k_dim]           moments.k [layer, kv_head, k_dim, k_dim]
 *   moments.v.mean, moments.v                        the same of V
 *   moments.q                                        of the queries that read the head
 *   rotatekv.order [layer, kv_heads * k_dims] i32    channels by their signed sum when turned
 *
 * Keys and queries without rotary embedding. The first token of a window is left out of what is
 * known of keys and values: it is the sink that recipes keep as it is, and unlike any other. Sums
 * are kept in f64.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"

/* Of one kind: a first moment and a second one for each layer and KV head. */
struct sums {
    uint32_t dims;
    double *first;
    double *second;
};

struct moments {
    const struct calibration *calibration;
    struct sums k;
    struct sums v;
    struct sums q;
    uint64_t tokens; /* of a layer */
    uint64_t queries;
};

static int open_sums(struct sums *out, const struct calibration *c, uint32_t dims)
{
    uint64_t heads = (uint64_t)c->model.layers * c->model.kv_heads;
    out->dims = dims;
    out->first = larder_alloc_zero(heads * dims, sizeof(double));
    out->second = larder_alloc_zero(heads * dims * dims, sizeof(double));
    return out->first && out->second ? 0 : larder_fail(-ENOMEM, "no memory for moments");
}

static void close_sums(struct sums *sums)
{
    larder_free(sums->second);
    larder_free(sums->first);
}

static void close_moments(void *state)
{
    struct moments *m = state;
    if (!m)
        return;
    close_sums(&m->k);
    close_sums(&m->v);
    close_sums(&m->q);
    larder_free(m);
}

static int open_moments(void **state, const struct calibration *c)
{
    struct moments *m = larder_alloc_zero(1, sizeof(*m));
    if (!m)
        return larder_fail(-ENOMEM, "no memory for moments");
    *state = m;
    m->calibration = c;
    LARDER_TRY(open_sums(&m->k, c, c->model.k_dims));
    LARDER_TRY(open_sums(&m->v, c, c->model.v_dims));
    return open_sums(&m->q, c, c->model.k_dims);
}

/* Half of a second moment, the lower one: the other is its mirror. */
static void add_row(const struct sums *sums, uint64_t head, const float *x)
{
    double *first = sums->first + head * sums->dims;
    double *second = sums->second + head * sums->dims * sums->dims;
    for (uint32_t i = 0; i < sums->dims; i++) {
        double xi = (double)x[i];
        double *row = second + (uint64_t)i * sums->dims;
        first[i] += xi;
        for (uint32_t j = 0; j <= i; j++)
            row[j] += xi * (double)x[j];
    }
}

static void see_moments(void *state, const struct calibration_rows *rows)
{
    struct moments *m = state;
    uint32_t kv_heads = m->calibration->model.kv_heads;
    uint32_t heads = m->calibration->config->heads;
    uint32_t sink = rows->first == 0;
    for (uint32_t head = 0; head < kv_heads; head++) {
        uint64_t place = (uint64_t)rows->layer * kv_heads + head;
        for (uint32_t token = sink; token < rows->tokens; token++) {
            uint64_t row = (uint64_t)head * rows->tokens + token;
            add_row(&m->k, place, rows->k + row * m->k.dims);
            add_row(&m->v, place, rows->v + row * m->v.dims);
        }
    }
    for (uint32_t head = 0; head < heads; head++) {
        uint64_t place = (uint64_t)rows->layer * kv_heads + head / (heads / kv_heads);
        for (uint32_t token = 0; token < rows->tokens; token++)
            add_row(&m->q, place, rows->q + ((uint64_t)head * rows->tokens + token) * m->q.dims);
    }
    if (rows->layer == 0) {
        m->tokens += rows->tokens - sink;
        m->queries += rows->tokens;
    }
}

static int put_moments(struct larder_profile_writer *writer, const struct moments *m,
                       const struct sums *sums, const char *mean_name, const char *name,
                       double count)
{
    const struct larder_model_desc *model = &m->calibration->model;
    uint64_t heads = (uint64_t)model->layers * model->kv_heads;
    uint64_t dims = sums->dims;
    float *out = larder_alloc(heads * dims * dims * sizeof(float));
    if (!out)
        return larder_fail(-ENOMEM, "no memory for moments");
    for (uint64_t i = 0; i < heads * dims; i++)
        out[i] = (float)(sums->first[i] / count);
    int err = calibration_put(writer, mean_name, out, model->layers, model->kv_heads, dims, 0);
    for (uint64_t head = 0; head < heads; head++) {
        const double *from = sums->second + head * dims * dims;
        float *to = out + head * dims * dims;
        for (uint64_t i = 0; i < dims; i++) {
            for (uint64_t j = 0; j < dims; j++)
                to[i * dims + j] = (float)(from[i > j ? i * dims + j : j * dims + i] / count);
        }
    }
    if (err == 0)
        err = calibration_put(writer, name, out, model->layers, model->kv_heads, dims, dims);
    larder_free(out);
    return err;
}

/* --- RotateKV's order --------------------------------------------------------------------------*/

struct channel {
    double sum;
    int32_t index;
};

static int by_sum(const void *a, const void *b)
{
    const struct channel *x = a;
    const struct channel *y = b;
    if (x->sum != y->sum)
        return x->sum < y->sum ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* A Hadamard matrix times x, not normalised. */
static void turn(double *x, uint64_t count)
{
    for (uint64_t step = count / 2; step > 0; step /= 2) {
        for (uint64_t i = 0; i < count; i++) {
            if (i & step)
                continue;
            double sum = x[i] + x[i + step];
            x[i + step] = x[i] - x[i + step];
            x[i] = sum;
        }
    }
}

/* The sum of turned rows is the turned sum of the rows. */
static int put_order(struct larder_profile_writer *writer, const struct moments *m)
{
    const struct larder_model_desc *model = &m->calibration->model;
    uint64_t channels = (uint64_t)model->kv_heads * model->k_dims;
    uint64_t joined = (model->kv_heads < 4 ? model->kv_heads : 4) * (uint64_t)model->k_dims;
    if ((joined & (joined - 1)) != 0 || channels % joined != 0)
        return 0; /* such heads are not turned together */
    double *sums = larder_alloc(channels * sizeof(*sums));
    struct channel *sorted = larder_alloc(channels * sizeof(*sorted));
    int32_t *order = larder_alloc(model->layers * channels * sizeof(*order));
    int err = sums && sorted && order ? 0 : larder_fail(-ENOMEM, "no memory for an order");
    for (uint32_t layer = 0; layer < model->layers && err == 0; layer++) {
        memcpy(sums, m->k.first + layer * channels, channels * sizeof(*sums));
        for (uint64_t i = 0; i < channels; i += joined)
            turn(sums + i, joined);
        for (uint64_t i = 0; i < channels; i++)
            sorted[i] = (struct channel){.sum = sums[i], .index = (int32_t)i};
        qsort(sorted, channels, sizeof(*sorted), by_sum);
        for (uint64_t i = 0; i < channels; i++)
            order[layer * channels + i] = sorted[i].index;
    }
    if (err == 0)
        err = larder_profile_put(writer, "rotatekv.order", LARDER_PROFILE_I32,
                                 (uint64_t[]){model->layers, channels}, 2, order);
    larder_free(order);
    larder_free(sorted);
    larder_free(sums);
    return err;
}

static int finish_moments(void *state, struct larder_profile_writer *writer)
{
    const struct moments *m = state;
    double tokens = (double)m->tokens;
    double readers = (double)(m->calibration->config->heads / m->calibration->model.kv_heads);
    LARDER_TRY(put_moments(writer, m, &m->k, "moments.k.mean", "moments.k", tokens));
    LARDER_TRY(put_moments(writer, m, &m->v, "moments.v.mean", "moments.v", tokens));
    LARDER_TRY(
        put_moments(writer, m, &m->q, "moments.q.mean", "moments.q", (double)m->queries * readers));
    return put_order(writer, m);
}

const struct calibration_part calibration_moments = {
    .name = "moments",
    .open = open_moments,
    .see = see_moments,
    .finish = finish_moments,
    .close = close_moments,
};
