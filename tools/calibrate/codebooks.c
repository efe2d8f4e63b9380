/* SPDX-License-Identifier: Apache-2.0 */
/* codebooks.c - KVQuant's calibration (Hooper et al., NeurIPS 2024), without Fisher weights: those
 * come from tests/reference/fisher.py, which replaces the code books in a profile.
 *
 *   kvquant.k.low, kvquant.k.high [layer, kv_heads * k_dims]   .5 % and 99.5 % of a channel of K
 *   kvquant.SIDE.lutN  [layer, N]   N = 4, 8, 16 levels in [-1, 1], ascending, for K and for V
 *   kvquant.SIDE.normN [layer, 2]   scale and offset of the levels that give back mean and spread
 *
 * K without rotary embedding is normalised by its channel's two thresholds, V by the smallest and
 * largest of its token, over all heads, once .5 % at each end are taken off; what lies outside is
 * left out. The levels are k-means of what is left: Lloyd's iteration over a fine histogram, from
 * its quantiles. Q-Norm: mean and spread of quantized numbers are those of the numbers.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"

#define TAIL_SHARE     .005
#define KEPT_BYTES_MAX (1ull << 30)
#define KEPT_MAX       8192u /* tokens: 41 lie behind each threshold */
#define BINS           8192u
#define ITERATIONS     50u

struct codebooks {
    const struct calibration *calibration;
    uint64_t channels; /* of K in a layer */
    uint64_t kept_max; /* tokens */
    uint64_t stride;   /* every so many tokens one is kept */
    uint64_t *seen;    /* tokens, by layer */
    uint64_t *kept;
    float *k;           /* [layer][channel][kept_max] */
    uint64_t *v_counts; /* [layer][BINS] of normalised V */
    float *row;         /* V of a token */
};

static void close_codebooks(void *state)
{
    struct codebooks *b = state;
    if (!b)
        return;
    larder_free(b->row);
    larder_free(b->v_counts);
    larder_free(b->k);
    larder_free(b->kept);
    larder_free(b->seen);
    larder_free(b);
}

static int open_codebooks(void **state, const struct calibration *c)
{
    struct codebooks *b = larder_alloc_zero(1, sizeof(*b));
    if (!b)
        return larder_fail(-ENOMEM, "no memory for code books");
    *state = b;
    b->calibration = c;
    b->channels = (uint64_t)c->model.kv_heads * c->model.k_dims;
    uint64_t room = KEPT_BYTES_MAX / (c->model.layers * b->channels * sizeof(float));
    uint64_t all = (uint64_t)c->window_count * c->options->window_tokens;
    b->kept_max = larder_min_u64(larder_min_u64(room, KEPT_MAX), all);
    b->stride = (all + b->kept_max - 1) / b->kept_max;
    b->seen = larder_alloc_zero(c->model.layers, sizeof(*b->seen));
    b->kept = larder_alloc_zero(c->model.layers, sizeof(*b->kept));
    b->k = larder_alloc(c->model.layers * b->channels * b->kept_max * sizeof(*b->k));
    b->v_counts = larder_alloc_zero((uint64_t)c->model.layers * BINS, sizeof(*b->v_counts));
    b->row = larder_alloc(2ull * c->model.kv_heads * c->model.v_dims * sizeof(*b->row));
    if (!b->seen || !b->kept || !b->k || !b->v_counts || !b->row)
        return larder_fail(-ENOMEM, "no memory for code books");
    return 0;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a;
    float y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static float quantile(const float *sorted, uint64_t count, double share)
{
    double at = share * (double)(count - 1);
    uint64_t below = (uint64_t)at;
    uint64_t above = below + 1 < count ? below + 1 : below;
    double part = at - (double)below;
    return (float)((double)sorted[below] * (1 - part) + (double)sorted[above] * part);
}

static uint32_t bin_of(double x)
{
    double bin = (x + 1) * (BINS / 2.0);
    return bin < 0 ? 0 : bin >= BINS ? BINS - 1 : (uint32_t)bin;
}

static double bin_value(uint32_t bin)
{
    return (bin + 0.5) / (BINS / 2.0) - 1;
}

/* One layer's V of one token, over all heads. */
static void count_v(struct codebooks *b, const struct calibration_rows *rows, uint32_t token)
{
    const struct larder_model_desc *model = &b->calibration->model;
    uint64_t count = (uint64_t)model->kv_heads * model->v_dims;
    float *x = b->row;
    float *sorted = b->row + count;
    for (uint32_t head = 0; head < model->kv_heads; head++)
        memcpy(x + (uint64_t)head * model->v_dims,
               rows->v + ((uint64_t)head * rows->tokens + token) * model->v_dims,
               model->v_dims * sizeof(*x));
    memcpy(sorted, x, count * sizeof(*x));
    qsort(sorted, count, sizeof(*sorted), by_value);
    uint64_t off = (uint64_t)ceil(TAIL_SHARE * (double)count);
    if (2 * off >= count)
        return;
    double low = (double)sorted[off];
    double high = (double)sorted[count - 1 - off];
    uint64_t *counts = b->v_counts + (uint64_t)rows->layer * BINS;
    for (uint64_t i = off; i < count - off && high > low; i++)
        counts[bin_of(2 * ((double)sorted[i] - low) / (high - low) - 1)]++;
}

static void see_codebooks(void *state, const struct calibration_rows *rows)
{
    struct codebooks *b = state;
    const struct larder_model_desc *model = &b->calibration->model;
    for (uint32_t token = 0; token < rows->tokens; token++) {
        if (b->seen[rows->layer]++ % b->stride != 0)
            continue;
        uint64_t at = b->kept[rows->layer]++;
        float *k = b->k + rows->layer * b->channels * b->kept_max;
        for (uint32_t head = 0; head < model->kv_heads; head++) {
            const float *row = rows->k + ((uint64_t)head * rows->tokens + token) * model->k_dims;
            for (uint32_t dim = 0; dim < model->k_dims; dim++)
                k[((uint64_t)head * model->k_dims + dim) * b->kept_max + at] = row[dim];
        }
        count_v(b, rows, token);
    }
}

/* --- levels ----------------------------------------------------------------------------------- */

/* Quantiles; where one number is more than a level's share, the bins beside it, so that all differ
 * and stay in order. */
static void start_levels(double *levels, uint32_t count, const uint64_t *counts, uint64_t all)
{
    uint64_t sum = 0;
    uint32_t bin = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t wanted = (2 * i + 1) * all / (2ull * count);
        while (bin + (count - i) < BINS && sum + counts[bin] <= wanted)
            sum += counts[bin++];
        levels[i] = bin_value(bin);
        sum += counts[bin++];
    }
}

/* Borders lie halfway between levels. */
static void find_levels(double *levels, uint32_t count, const uint64_t *counts, uint64_t all)
{
    start_levels(levels, count, counts, all);
    for (uint32_t iteration = 0; iteration < ITERATIONS; iteration++) {
        uint32_t bin = 0;
        for (uint32_t i = 0; i < count; i++) {
            double border = i + 1 < count ? (levels[i] + levels[i + 1]) / 2 : 2;
            double sum = 0;
            double weight = 0;
            for (; bin < BINS && bin_value(bin) <= border; bin++) {
                sum += (double)counts[bin] * bin_value(bin);
                weight += (double)counts[bin];
            }
            if (weight > 0)
                levels[i] = sum / weight;
        }
    }
}

/* Mean and spread of the numbers, and of the levels they become. */
static void find_norm(float out[2], const double *levels, uint32_t count, const uint64_t *counts)
{
    double weight = 0;
    double sums[2] = {0};
    double squares[2] = {0};
    uint32_t level = 0;
    for (uint32_t bin = 0; bin < BINS; bin++) {
        double x = bin_value(bin);
        while (level + 1 < count && x > (levels[level] + levels[level + 1]) / 2)
            level++;
        double n = (double)counts[bin];
        weight += n;
        sums[0] += n * x;
        squares[0] += n * x * x;
        sums[1] += n * levels[level];
        squares[1] += n * levels[level] * levels[level];
    }
    double mean[2];
    double spread[2];
    for (int i = 0; i < 2; i++) {
        mean[i] = weight > 0 ? sums[i] / weight : 0;
        spread[i] = weight > 0 ? sqrt(fmax(0, squares[i] / weight - mean[i] * mean[i])) : 0;
    }
    double scale = spread[1] > 0 ? spread[0] / spread[1] : 1;
    out[0] = (float)scale;
    out[1] = (float)(mean[0] - mean[1] * scale);
}

static int put_levels(struct codebooks *b, struct larder_profile_writer *writer, const char *side,
                      const uint64_t *all_counts)
{
    uint32_t layers = b->calibration->model.layers;
    float *out = larder_alloc((uint64_t)layers * 16 * sizeof(*out));
    float *norms = larder_alloc((uint64_t)layers * 2 * sizeof(*norms));
    int err = out && norms ? 0 : larder_fail(-ENOMEM, "no memory for code books");
    for (uint32_t count = 4; count <= 16 && err == 0; count *= 2) {
        for (uint32_t layer = 0; layer < layers; layer++) {
            const uint64_t *counts = all_counts + (uint64_t)layer * BINS;
            uint64_t all = 0;
            for (uint32_t bin = 0; bin < BINS; bin++)
                all += counts[bin];
            double levels[16];
            find_levels(levels, count, counts, all);
            find_norm(norms + 2ul * layer, levels, count, counts);
            for (uint32_t i = 0; i < count; i++)
                out[(uint64_t)layer * count + i] = (float)levels[i];
        }
        char name[32];
        snprintf(name, sizeof(name), "kvquant.%s.lut%u", side, count);
        err = calibration_put(writer, name, out, layers, count, 0, 0);
        snprintf(name, sizeof(name), "kvquant.%s.norm%u", side, count);
        if (err == 0)
            err = calibration_put(writer, name, norms, layers, 2, 0, 0);
    }
    larder_free(norms);
    larder_free(out);
    return err;
}

/* Sorts each channel's numbers, sets its thresholds, counts what lies between them. */
static void count_k(struct codebooks *b, float *low, float *high, uint64_t *counts)
{
    for (uint64_t i = 0; i < b->calibration->model.layers * b->channels; i++) {
        uint64_t layer = i / b->channels;
        uint64_t kept = b->kept[layer];
        float *x = b->k + i * b->kept_max;
        qsort(x, kept, sizeof(*x), by_value);
        low[i] = quantile(x, kept, TAIL_SHARE);
        high[i] = quantile(x, kept, 1 - TAIL_SHARE);
        double middle = ((double)low[i] + (double)high[i]) / 2;
        double half = ((double)high[i] - (double)low[i]) / 2;
        for (uint64_t j = 0; j < kept && half > 0; j++) {
            if (x[j] >= low[i] && x[j] <= high[i])
                counts[layer * BINS + bin_of(((double)x[j] - middle) / half)]++;
        }
    }
}

static int finish_codebooks(void *state, struct larder_profile_writer *writer)
{
    struct codebooks *b = state;
    uint64_t layers = b->calibration->model.layers;
    float *low = larder_alloc(layers * b->channels * sizeof(*low));
    float *high = larder_alloc(layers * b->channels * sizeof(*high));
    uint64_t *counts = larder_alloc_zero(layers * BINS, sizeof(*counts));
    int err = low && high && counts ? 0 : larder_fail(-ENOMEM, "no memory for code books");
    if (err == 0) {
        count_k(b, low, high, counts);
        err = calibration_put(writer, "kvquant.k.low", low, layers, b->channels, 0, 0);
    }
    if (err == 0)
        err = calibration_put(writer, "kvquant.k.high", high, layers, b->channels, 0, 0);
    if (err == 0)
        err = put_levels(b, writer, "k", counts);
    if (err == 0)
        err = put_levels(b, writer, "v", b->v_counts);
    if (err == 0)
        err = larder_profile_put_text(writer, "kvquant_weights", "none");
    larder_free(counts);
    larder_free(high);
    larder_free(low);
    return err;
}

const struct calibration_part calibration_codebooks = {
    .name = "code books",
    .open = open_codebooks,
    .see = see_codebooks,
    .finish = finish_codebooks,
    .close = close_codebooks,
};
