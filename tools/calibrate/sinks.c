/* SPDX-License-Identifier: Apache-2.0 */
/* sinks.c - how the first tokens of a chain differ from those behind them.
 *
 *   sinks.k_norm, sinks.v_norm [layer, 16]   length of K and of V at positions 0..15, as a multiple
 *                                            of the mean length behind them
 *
 * RotateKV keeps the tokens in full whose hidden state holds a massive activation. Those stand at
 * the start of a text, and show as keys and values of another length: the metadata's sink_tokens is
 * the number of first tokens among which all lie that are 2 times longer or shorter in some layer.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/calibrate.h"

#define PLACES 17u /* 16 positions, and all behind them */
#define APART  2.0

struct sinks {
    const struct calibration *calibration;
    double *sums; /* [layer][K, V][PLACES] of lengths */
    double *counts;
};

static void close_sinks(void *state)
{
    struct sinks *s = state;
    if (!s)
        return;
    larder_free(s->counts);
    larder_free(s->sums);
    larder_free(s);
}

static int open_sinks(void **state, const struct calibration *c)
{
    struct sinks *s = larder_alloc_zero(1, sizeof(*s));
    if (!s)
        return larder_fail(-ENOMEM, "no memory for sinks");
    *state = s;
    s->calibration = c;
    s->sums = larder_alloc_zero(2ull * c->model.layers * PLACES, sizeof(double));
    s->counts = larder_alloc_zero(2ull * c->model.layers * PLACES, sizeof(double));
    return s->sums && s->counts ? 0 : larder_fail(-ENOMEM, "no memory for sinks");
}

static void add_lengths(struct sinks *s, const struct calibration_rows *rows, uint32_t kv,
                        const float *x, uint32_t dims)
{
    for (uint32_t head = 0; head < s->calibration->model.kv_heads; head++) {
        for (uint32_t token = 0; token < rows->tokens; token++, x += dims) {
            uint32_t place = rows->first + token;
            place = place < PLACES ? place : PLACES - 1;
            double square = 0;
            for (uint32_t dim = 0; dim < dims; dim++)
                square += (double)x[dim] * (double)x[dim];
            uint64_t at = ((uint64_t)rows->layer * 2 + kv) * PLACES + place;
            s->sums[at] += sqrt(square);
            s->counts[at]++;
        }
    }
}

static void see_sinks(void *state, const struct calibration_rows *rows)
{
    struct sinks *s = state;
    add_lengths(s, rows, LARDER_K, rows->k, s->calibration->model.k_dims);
    add_lengths(s, rows, LARDER_V, rows->v, s->calibration->model.v_dims);
}

static int put_sinks(const struct sinks *s, struct larder_profile_writer *writer, uint32_t kv,
                     const char *name, uint32_t *tokens)
{
    uint32_t layers = s->calibration->model.layers;
    float *out = larder_alloc((uint64_t)layers * (PLACES - 1) * sizeof(*out));
    if (!out)
        return larder_fail(-ENOMEM, "no memory for sinks");
    for (uint32_t layer = 0; layer < layers; layer++) {
        const double *sums = s->sums + ((uint64_t)layer * 2 + kv) * PLACES;
        const double *counts = s->counts + ((uint64_t)layer * 2 + kv) * PLACES;
        double usual = counts[PLACES - 1] > 0 ? sums[PLACES - 1] / counts[PLACES - 1] : 0;
        for (uint32_t place = 0; place < PLACES - 1; place++) {
            double ratio = usual > 0 && counts[place] > 0 ? sums[place] / counts[place] / usual : 1;
            out[(uint64_t)layer * (PLACES - 1) + place] = (float)ratio;
            if ((ratio > APART || ratio < 1 / APART) && place + 1 > *tokens)
                *tokens = place + 1;
        }
    }
    int err = calibration_put(writer, name, out, layers, PLACES - 1, 0, 0);
    larder_free(out);
    return err;
}

static int finish_sinks(void *state, struct larder_profile_writer *writer)
{
    const struct sinks *s = state;
    uint32_t tokens = 0;
    LARDER_TRY(put_sinks(s, writer, LARDER_K, "sinks.k_norm", &tokens));
    LARDER_TRY(put_sinks(s, writer, LARDER_V, "sinks.v_norm", &tokens));
    char text[16];
    snprintf(text, sizeof(text), "%u", tokens);
    return larder_profile_put_text(writer, "sink_tokens", text);
}

const struct calibration_part calibration_sinks = {
    .name = "sinks",
    .open = open_sinks,
    .see = see_sinks,
    .finish = finish_sinks,
    .close = close_sinks,
};
