/* SPDX-License-Identifier: Apache-2.0 */
/* costs.c - what each layer's K and V cost when they alone are quantized, as KVTuner asks (Li et
 * al., 2025) and MiKV's tiers do.
 *
 *   sensitivity.kl, sensitivity.mse [layer, 2, 3]   K, V; 2, 4, 8 bits
 *
 * Measured, not estimated: the first blocks of a window go through KIVI's quantizer (groups of 32)
 * in that layer alone, and the model reads on; kl is KL(p_full || p_quantized) in nats a token over
 * the next EFFECT_TOKENS, mse the mean squared error of an element.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"
#include "tools/calibrate/effect.h"

const uint32_t calibration_widths[CALIBRATION_WIDTHS] = {2, 4, 8};

struct costs {
    struct calibration *calibration;
    struct effect effect;
    struct blocks blocks[CALIBRATION_WIDTHS];
    uint32_t block_count;
    uint8_t *kept; /* K or V of a layer, as the cache holds them */
    double *kl;    /* [layer][K, V][width], summed over windows */
    double *error;
};

/* One layer's K or V at one width, and back. */
static int measure(struct costs *s, uint32_t layer, enum larder_kv kv, uint32_t width)
{
    struct calibration *c = s->calibration;
    uint64_t token_bytes = kv == LARDER_K ? c->cache->k_token_bytes : c->cache->v_token_bytes;
    uint64_t bytes = (uint64_t)s->block_count * BLOCK_TOKENS * token_bytes;
    uint8_t *rows = larder_kv_cache_rows(c->cache, layer, kv);
    uint64_t at = ((uint64_t)layer * 2 + kv) * CALIBRATION_WIDTHS + width;
    memcpy(s->kept, rows, bytes);
    int err = 0;
    for (uint32_t block = 0; block < s->block_count && err == 0; block++) {
        struct larder_section_error error;
        uint64_t encoded;
        err = blocks_encode(&s->blocks[width], layer, kv, block, &encoded, &error);
        if (err == 0)
            err = blocks_decode(&s->blocks[width], layer, kv, block, encoded);
        s->error[at] += error.error_energy;
    }
    double kl = 0;
    if (err == 0)
        err = effect_measure(&s->effect, &kl);
    s->kl[at] += kl;
    memcpy(rows, s->kept, bytes);
    return err;
}

static int measure_window(struct costs *s, uint32_t window)
{
    struct calibration *c = s->calibration;
    LARDER_TRY(effect_load(&s->effect, window));
    for (uint32_t layer = 0; layer < c->model.layers; layer++) {
        for (uint32_t kv = 0; kv < 2; kv++) {
            for (uint32_t width = 0; width < CALIBRATION_WIDTHS; width++)
                LARDER_TRY(measure(s, layer, (enum larder_kv)kv, width));
        }
    }
    return 0;
}

static int open_costs(struct costs *s, struct calibration *c)
{
    *s = (struct costs){.calibration = c};
    LARDER_TRY(effect_open(&s->effect, c, c->options->kl_windows));
    s->block_count = s->effect.block_count;
    uint64_t all = (uint64_t)c->model.layers * 2 * CALIBRATION_WIDTHS;
    s->kept = larder_alloc((uint64_t)s->block_count * BLOCK_TOKENS *
                           larder_max_u64(c->cache->k_token_bytes, c->cache->v_token_bytes));
    s->kl = larder_alloc_zero(all, sizeof(*s->kl));
    s->error = larder_alloc_zero(all, sizeof(*s->error));
    if (!s->kept || !s->kl || !s->error)
        return larder_fail(-ENOMEM, "no memory for sensitivities");
    for (uint32_t i = 0; i < CALIBRATION_WIDTHS; i++) {
        char recipe[128];
        snprintf(recipe, sizeof(recipe),
                 "k{quant bits=%u axis=channel group=32} v{quant bits=%u axis=token group=32}",
                 calibration_widths[i], calibration_widths[i]);
        LARDER_TRY(blocks_open(&s->blocks[i], c, recipe, NULL, s->block_count));
    }
    return 0;
}

static void close_costs(struct costs *s)
{
    for (uint32_t i = 0; i < CALIBRATION_WIDTHS; i++)
        blocks_close(&s->blocks[i]);
    larder_free(s->error);
    larder_free(s->kl);
    larder_free(s->kept);
    effect_close(&s->effect);
}

static int put_costs(const struct costs *s, struct calibration_cost **out, uint32_t windows,
                     struct larder_profile_writer *writer)
{
    const struct larder_model_desc *model = &s->calibration->model;
    uint64_t count = (uint64_t)model->layers * 2 * CALIBRATION_WIDTHS;
    struct calibration_cost *costs = larder_alloc(count * sizeof(*costs));
    float *numbers = larder_alloc(2 * count * sizeof(*numbers));
    int err = costs && numbers ? 0 : larder_fail(-ENOMEM, "no memory for sensitivities");
    for (uint64_t i = 0; i < count && err == 0; i++) {
        uint32_t dims = i / CALIBRATION_WIDTHS % 2 ? model->v_dims : model->k_dims;
        double elems = (double)windows * s->block_count * BLOCK_TOKENS * model->kv_heads * dims;
        costs[i].kl = numbers[i] = (float)(s->kl[i] / windows);
        costs[i].mse = numbers[count + i] = (float)(s->error[i] / elems);
    }
    if (err == 0)
        err = calibration_put(writer, "sensitivity.kl", numbers, model->layers, 2,
                              CALIBRATION_WIDTHS, 0);
    if (err == 0)
        err = calibration_put(writer, "sensitivity.mse", numbers + count, model->layers, 2,
                              CALIBRATION_WIDTHS, 0);
    larder_free(numbers);
    if (err < 0) {
        larder_free(costs);
        return err;
    }
    *out = costs;
    return 0;
}

int calibration_measure_costs(struct calibration *c, struct calibration_cost **out,
                              struct larder_profile_writer *writer)
{
    *out = NULL;
    struct costs s;
    int err = open_costs(&s, c);
    uint32_t windows = s.effect.window_count;
    for (uint32_t i = 0; i < windows && err == 0; i++) {
        calibration_progress(c, "sensitivities", i, windows);
        err = measure_window(&s, i);
    }
    if (err == 0)
        err = put_costs(&s, out, windows, writer);
    close_costs(&s);
    return err;
}
