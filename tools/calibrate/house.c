/* SPDX-License-Identifier: Apache-2.0 */
/* house.c - what the house recipe reads (docs/CODECS.md, "The house recipe").
 *
 *   larder.{k,v}.{mean,forward,back,scale}   bases (basis.h), scaled as said below
 *   larder.tables [table, symbol] u16        frequencies by the ratio of scale to step
 *   larder.kl [place] f32, larder.step [place] i32
 *
 * 1. Each head of K and of V alone is coded with an error of an eighth of its energy, and the model
 *    reads on: what that costs, in nats for a unit of error, scales the head's coefficients. Then
 *    one unit of error costs the same everywhere, and one step serves all. Where there are many,
 *    neighbours of a layer are measured as one.
 * 2. Coefficients of the text at several steps are counted by their tables.
 * 3. The recipe itself is measured at steps an octave apart; between them divergence is a power of
 *    the step.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/rans.h"
#include "codec/steps.h"
#include "tools/calibrate/basis.h"
#include "tools/calibrate/effect.h"

#define ERROR_SHARE   0.125 /* of a head's energy, when it is measured alone */
#define WINDOWS       2     /* for each one that sensitivities are measured on */
#define HEAD_RUNS     128   /* of the model on a window: so many heads are told from each other */
#define PRIOR_COUNT   256   /* symbols of Laplace's distribution that each table begins with */
#define GRID          8     /* steps that are measured */
#define PER_OCTAVE    4     /* steps that are stored */
#define KL_LEAST      0.0001
#define SENSITIVE_MIN (1.0 / 64) /* of the mean: a head is not forgotten for one quiet text */

struct house {
    struct calibration *c;
    struct larder_profile_writer *writer;
    struct basis basis[2];
    struct effect effect;
    struct blocks blocks[GRID];
    void *bytes; /* of the profile so far */
    struct larder_profile *profile;
    uint8_t *kept;    /* the cache of a window */
    uint8_t *decoded; /* K or V of a layer */
    float *rows;
    uint32_t together; /* heads of a layer that are measured as one */
    double *kl;        /* of heads: [K, V][head] */
    double grid_kl[GRID];
    int grid_quarters[GRID];
    uint64_t counts[STEPS_TABLES][RANS_LEVELS_MAX];
};

static uint64_t rows_bytes(const struct house *h, enum larder_kv kv)
{
    const struct larder_kv_cache *cache = h->c->cache;
    return (uint64_t)h->effect.block_count * BLOCK_TOKENS *
           (kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes);
}

/* --- the profile so far ----------------------------------------------------------------------- */

static void close_profile(struct house *h)
{
    larder_profile_close(h->profile);
    larder_free(h->bytes);
    h->profile = NULL;
    h->bytes = NULL;
}

static int open_profile(struct house *h)
{
    close_profile(h);
    uint64_t bytes;
    LARDER_TRY(larder_profile_finish(h->writer, &h->bytes, &bytes));
    return larder_profile_open(&h->profile, h->bytes, bytes);
}

static int put_steps(struct house *h, const float *kl, const int32_t *quarters, uint32_t count)
{
    LARDER_TRY(calibration_put(h->writer, "larder.kl", kl, count, 0, 0, 0));
    return larder_profile_put(h->writer, "larder.step", LARDER_PROFILE_I32, (uint64_t[]){count}, 1,
                              quarters);
}

/* --- tables ----------------------------------------------------------------------------------- */

/* Of a Laplace distribution whose standard deviation is `ratio` steps, the share that rounds to
 * `whole`. */
static double laplace(double ratio, int whole)
{
    double rate = sqrt(2) / ratio;
    if (whole == 0)
        return 1 - exp(-rate / 2);
    return exp(-rate * (abs(whole) - 0.5)) * (1 - exp(-rate)) / 2;
}

/* Symbols within eight standard deviations have a place of their own. */
static int reach_of(double ratio)
{
    return (int)fmin(STEPS_ZERO - 1, 8 * ratio + 2);
}

static int put_tables(struct house *h)
{
    const double unit = 1024; /* of counts, so that shares of one are counts, too */
    uint16_t frequencies[STEPS_TABLES][RANS_LEVELS_MAX] = {{0}};
    for (int table = 0; table < (int)STEPS_TABLES; table++) {
        double ratio = exp2((table - STEPS_TABLE_OF_ONE) / 2.0);
        uint64_t counts[RANS_LEVELS_MAX] = {[STEPS_ESCAPE] = 1};
        for (int whole = 1 - STEPS_ZERO; whole < STEPS_ZERO; whole++) {
            /* Nothing tells one sign from the other. */
            double seen = (double)(h->counts[table][STEPS_ZERO + whole] +
                                   h->counts[table][STEPS_ZERO - whole]) /
                          2;
            double count = unit * (seen + PRIOR_COUNT * laplace(ratio, whole));
            bool own = abs(whole) <= reach_of(ratio);
            counts[own ? STEPS_ZERO + whole : STEPS_ESCAPE] += (uint64_t)count + own;
        }
        counts[STEPS_ESCAPE] += (uint64_t)unit * h->counts[table][STEPS_ESCAPE];
        struct rans_model model;
        rans_model_fit(&model, counts, RANS_LEVELS_MAX);
        memcpy(frequencies[table], model.frequency, sizeof(frequencies[table]));
    }
    return larder_profile_put(h->writer, "larder.tables", LARDER_PROFILE_U16,
                              (uint64_t[]){STEPS_TABLES, RANS_LEVELS_MAX}, 2, frequencies);
}

/* Coefficients of one row at one step. */
static void count_row(struct house *h, const struct basis *b, uint32_t head, const float *row,
                      int quarters)
{
    uint64_t n = b->dims;
    double inverse = exp2(-quarters / 4.0);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t coefficient = head * n + i;
        const float *forward = b->forward + head * n * n + i;
        const float *mean = b->mean + head * n;
        double y = 0;
        for (uint64_t j = 0; j < n; j++)
            y += (double)forward[j * n] * (double)(row[j] - mean[j]);
        double whole = rint(y * inverse);
        uint8_t table = steps_table_of(basis_scale_quarters(b, coefficient), quarters);
        bool own = fabs(whole) < STEPS_ZERO;
        h->counts[table][own ? STEPS_ZERO + (int)whole : STEPS_ESCAPE]++;
    }
}

/* Each row at one of the steps, in turn: rows are many. */
static void count_window(struct house *h)
{
    const struct larder_model_desc *model = &h->c->model;
    uint32_t tokens = h->effect.block_count * BLOCK_TOKENS;
    for (uint32_t layer = 0; layer < model->layers; layer++) {
        for (uint32_t kv = 0; kv < 2; kv++) {
            const struct basis *b = &h->basis[kv];
            calibration_take_rows(h->c, h->rows, layer, (enum larder_kv)kv, 0, tokens);
            for (uint32_t head = 0; head < model->kv_heads; head++) {
                const float *rows = h->rows + (uint64_t)head * tokens * b->dims;
                for (uint32_t token = 1; token < tokens; token++)
                    count_row(h, b, layer * model->kv_heads + head, rows + token * b->dims,
                              h->grid_quarters[token % GRID]);
            }
        }
    }
}

/* --- measuring -------------------------------------------------------------------------------- */

static int pass_layer(struct house *h, struct blocks *blocks, uint32_t layer, enum larder_kv kv)
{
    for (uint32_t block = 0; block < h->effect.block_count; block++) {
        uint64_t bytes;
        struct larder_section_error error;
        LARDER_TRY(blocks_encode(blocks, layer, kv, block, &bytes, &error));
        LARDER_TRY(blocks_decode(blocks, layer, kv, block, bytes));
    }
    return 0;
}

static const uint8_t *kept_rows(const struct house *h, const uint8_t *rows)
{
    return h->kept + (rows - (const uint8_t *)h->c->cache->base);
}

/* Of heads measured as one, a unit of error costs the same in each. */
static void share_cost(struct house *h, enum larder_kv kv, uint32_t first, uint64_t heads,
                       double kl)
{
    const struct basis *b = &h->basis[kv];
    double all = 0;
    for (uint32_t head = first; head < first + heads; head++)
        all += basis_error(b, head, 1);
    for (uint32_t head = first; head < first + heads && all > 0; head++)
        h->kl[(uint64_t)kv * b->heads + head] += kl * basis_error(b, head, 1) / all;
}

static int measure_layer(struct house *h, uint32_t layer, enum larder_kv kv)
{
    const struct larder_kv_cache *cache = h->c->cache;
    uint8_t *rows = larder_kv_cache_rows(cache, layer, kv);
    uint64_t bytes = rows_bytes(h, kv);
    uint64_t head_bytes =
        (kv == LARDER_K ? cache->k_token_bytes : cache->v_token_bytes) / cache->kv_heads;
    LARDER_TRY(pass_layer(h, &h->blocks[0], layer, kv));
    memcpy(h->decoded, rows, bytes);
    for (uint32_t head = 0; head < cache->kv_heads; head += h->together) {
        memcpy(rows, kept_rows(h, rows), bytes);
        uint64_t heads = larder_min_u64(h->together, cache->kv_heads - head);
        for (uint64_t at = head * head_bytes; at < bytes; at += cache->kv_heads * head_bytes)
            memcpy(rows + at, h->decoded + at, heads * head_bytes);
        double kl;
        LARDER_TRY(effect_measure(&h->effect, &kl));
        share_cost(h, kv, layer * cache->kv_heads + head, heads, kl);
    }
    memcpy(rows, kept_rows(h, rows), bytes);
    return 0;
}

static int load_window(struct house *h, uint32_t window, const char *what)
{
    calibration_progress(h->c, what, window, h->effect.window_count);
    LARDER_TRY(effect_load(&h->effect, window));
    memcpy(h->kept, h->c->cache->base, h->c->cache->layer_bytes * h->c->cache->layers);
    return 0;
}

static int measure_heads(struct house *h)
{
    for (uint32_t window = 0; window < h->effect.window_count; window++) {
        LARDER_TRY(load_window(h, window, "what heads cost"));
        for (uint32_t layer = 0; layer < h->c->model.layers; layer++) {
            LARDER_TRY(measure_layer(h, layer, LARDER_K));
            LARDER_TRY(measure_layer(h, layer, LARDER_V));
        }
    }
    return 0;
}

static int measure_grid(struct house *h)
{
    for (uint32_t window = 0; window < h->effect.window_count; window++) {
        LARDER_TRY(load_window(h, window, "what steps cost"));
        count_window(h);
        for (uint32_t i = 0; i < GRID; i++) {
            for (uint32_t layer = 0; layer < h->c->model.layers; layer++) {
                LARDER_TRY(pass_layer(h, &h->blocks[i], layer, LARDER_K));
                LARDER_TRY(pass_layer(h, &h->blocks[i], layer, LARDER_V));
            }
            double kl;
            LARDER_TRY(effect_measure(&h->effect, &kl));
            h->grid_kl[i] += kl / h->effect.window_count;
            memcpy(h->c->cache->base, h->kept, h->c->cache->layer_bytes * h->c->cache->layers);
        }
    }
    return 0;
}

/* --- scales and steps ------------------------------------------------------------------------- */

/* A step of 1 has the error that a head is measured with. */
static void scale_to_error(struct basis *b)
{
    for (uint32_t head = 0; head < b->heads; head++) {
        double all = basis_error(b, head, INFINITY);
        double low = -200; /* octaves of the step */
        double high = 200;
        for (int i = 0; i < 60 && all > 0; i++) {
            double middle = (low + high) / 2;
            if (basis_error(b, head, exp2(middle)) < ERROR_SHARE * all)
                low = middle;
            else
                high = middle;
        }
        if (all > 0)
            basis_scale(b, head, exp2(-low));
    }
}

/* A unit of error costs a nat. */
static void scale_to_cost(struct house *h)
{
    uint32_t heads = h->basis[0].heads;
    double windows = h->effect.window_count;
    double sum = 0;
    for (uint32_t i = 0; i < 2 * heads; i++) {
        double error = basis_error(&h->basis[i / heads], i % heads, 1);
        h->kl[i] = error > 0 ? fmax(0, h->kl[i]) / windows / error : 0;
        sum += h->kl[i];
    }
    double floor = SENSITIVE_MIN * sum / (2 * heads);
    for (uint32_t i = 0; i < 2 * heads && floor > 0; i++)
        basis_scale(&h->basis[i / heads], i % heads, sqrt(fmax(h->kl[i], floor)));
}

static double expected_kl(const struct house *h, int quarters)
{
    double sum = 0;
    for (uint32_t i = 0; i < 2 * h->basis[0].heads; i++)
        sum += basis_error(&h->basis[i / h->basis[0].heads], i % h->basis[0].heads,
                           exp2(quarters / 4.0));
    return sum;
}

/* From one below the finest that one could ask for, an octave apart. */
static void choose_grid(struct house *h)
{
    int quarters = STEPS_QUARTERS_MAX - PER_OCTAVE * GRID;
    while (quarters > -STEPS_QUARTERS_MAX && expected_kl(h, quarters) > KL_LEAST)
        quarters--;
    for (int i = 0; i < GRID; i++)
        h->grid_quarters[i] = quarters + PER_OCTAVE * i;
}

static int open_grid(struct house *h)
{
    float kl[GRID];
    int32_t quarters[GRID];
    for (int i = 0; i < GRID; i++) {
        kl[i] = (float)(i + 1) / GRID;
        quarters[i] = h->grid_quarters[i];
        blocks_close(&h->blocks[i]);
    }
    LARDER_TRY(put_steps(h, kl, quarters, GRID));
    LARDER_TRY(put_tables(h));
    LARDER_TRY(basis_put(&h->basis[LARDER_K], h->writer));
    LARDER_TRY(basis_put(&h->basis[LARDER_V], h->writer));
    LARDER_TRY(open_profile(h));
    for (int i = 0; i < GRID; i++) {
        char recipe[80];
        snprintf(recipe, sizeof(recipe), "sinks tokens=1{rope-off | klt | steps kl=%g}",
                 (double)kl[i]);
        LARDER_TRY(blocks_open(&h->blocks[i], h->c, recipe, h->profile, h->effect.block_count));
    }
    return 0;
}

/* Never falling with the step, and on a straight line of logarithms between what was measured. */
static int put_measured(struct house *h)
{
    enum { COUNT = (GRID - 1) * PER_OCTAVE + 1 };
    float kl[COUNT];
    int32_t quarters[COUNT];
    double most = KL_LEAST / 16;
    for (int i = 0; i < GRID; i++) {
        most = fmax(most, h->grid_kl[i]);
        h->grid_kl[i] = most;
    }
    for (int i = 0; i < COUNT; i++) {
        int from = i / PER_OCTAVE;
        double share = (double)(i % PER_OCTAVE) / PER_OCTAVE;
        double above = h->grid_kl[share > 0 ? from + 1 : from];
        kl[i] = (float)(h->grid_kl[from] * pow(above / h->grid_kl[from], share));
        quarters[i] = h->grid_quarters[0] + i;
    }
    return put_steps(h, kl, quarters, COUNT);
}

/* --- all of it -------------------------------------------------------------------------------- */

static int open_house(struct house *h, struct calibration *c, struct larder_profile_writer *writer)
{
    h->c = c;
    h->writer = writer;
    LARDER_TRY(effect_open(&h->effect, c, c->options->kl_windows * WINDOWS));
    LARDER_TRY(open_profile(h));
    LARDER_TRY(basis_open(&h->basis[LARDER_K], c, LARDER_K, h->profile));
    LARDER_TRY(basis_open(&h->basis[LARDER_V], c, LARDER_V, h->profile));
    uint64_t row = larder_max_u64(c->model.k_dims, c->model.v_dims) * c->model.kv_heads;
    h->kept = larder_alloc(c->cache->layer_bytes * c->cache->layers);
    h->decoded = larder_alloc(larder_max_u64(rows_bytes(h, LARDER_K), rows_bytes(h, LARDER_V)));
    h->rows = larder_alloc((uint64_t)h->effect.block_count * BLOCK_TOKENS * row * sizeof(float));
    h->kl = larder_alloc_zero(2ul * h->basis[0].heads, sizeof(*h->kl));
    uint32_t runs = c->options->head_runs ? c->options->head_runs : HEAD_RUNS;
    h->together = (2 * h->basis[0].heads + runs - 1) / runs;
    if (!h->kept || !h->decoded || !h->rows || !h->kl)
        return larder_fail(-ENOMEM, "no memory for the house recipe");
    return 0;
}

static void close_house(struct house *h)
{
    for (int i = 0; i < GRID; i++)
        blocks_close(&h->blocks[i]);
    larder_free(h->kl);
    larder_free(h->rows);
    larder_free(h->decoded);
    larder_free(h->kept);
    basis_close(&h->basis[LARDER_V]);
    basis_close(&h->basis[LARDER_K]);
    close_profile(h);
    effect_close(&h->effect);
    larder_free(h);
}

static int make_house(struct house *h)
{
    scale_to_error(&h->basis[LARDER_K]);
    scale_to_error(&h->basis[LARDER_V]);
    LARDER_TRY(open_grid(h)); /* all of its steps are 1 */
    LARDER_TRY(measure_heads(h));
    scale_to_cost(h);
    choose_grid(h);
    LARDER_TRY(open_grid(h));
    LARDER_TRY(measure_grid(h));
    LARDER_TRY(put_tables(h));
    return put_measured(h);
}

int calibration_make_house(struct calibration *c, struct larder_profile_writer *writer)
{
    struct house *h = larder_alloc_zero(1, sizeof(*h));
    if (!h)
        return larder_fail(-ENOMEM, "no memory for the house recipe");
    int err = open_house(h, c, writer);
    if (err == 0)
        err = make_house(h);
    close_house(h);
    return err;
}
