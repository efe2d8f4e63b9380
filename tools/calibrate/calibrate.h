/* SPDX-License-Identifier: Apache-2.0 */
/* calibrate.h - what `larder calibrate` does: a model reads a text, parts look on and write what
 * they learned into a profile (docs/CODECS.md, "Profiles", has every tensor with its source).
 * Owns:    the device, the model and its cache.
 * Threads: belongs to one thread.
 * The same model, text and options give the same bytes on every machine.
 */
#ifndef LARDER_TOOLS_CALIBRATE_CALIBRATE_H
#define LARDER_TOOLS_CALIBRATE_CALIBRATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "codec/profile_writer.h"
#include "kernels/kv_cache.h"
#include "kernels/llama.h"

struct calibration_options {
    const char *model;      /* a directory */
    const uint32_t *tokens; /* what the model reads */
    uint64_t token_count;
    uint32_t window_tokens; /* read in one piece */
    uint32_t threads;       /* 0: as many as there are cores */
    uint32_t kl_windows;    /* sensitivities are measured on so many; 0: not at all */
    uint32_t head_runs;     /* of the model on a window, to measure heads; 0: the usual limit */
    double budget_bits;     /* an element, of the bit map; 0: none is made */
    void (*progress)(void *context, const char *what, uint64_t done, uint64_t all);
    void *context;
};

struct calibration {
    const struct calibration_options *options;
    struct larder_device *device;
    struct larder_llama *llama;
    const struct larder_model_config *config;
    struct larder_model_desc model;
    struct larder_kv_cache *cache;
    struct larder_rope_table *rope;
    uint8_t digest[32]; /* of the tokens, u32 LE */
    uint32_t window_count;
};

int calibration_open(struct calibration **out, const struct calibration_options *options);
void calibration_close(struct calibration *calibration);

/* Tokens of a window behind the model's start token. They stay the caller's. */
uint32_t calibration_window(const struct calibration *calibration, uint32_t window,
                            const uint32_t **tokens);

/* Rows of one layer as the model computed them: f32, without rotary embedding. */
struct calibration_rows {
    uint32_t window;
    uint32_t layer;
    uint32_t first; /* position in the window */
    uint32_t tokens;
    const float *k; /* [kv_head][token][dim] */
    const float *v;
    const float *q; /* [head][token][dim] */
};

/* A part looks at all rows of all windows, then writes its tensors. */
struct calibration_part {
    const char *name;
    int (*open)(void **state, const struct calibration *calibration);
    void (*see)(void *state, const struct calibration_rows *rows);
    int (*finish)(void *state, struct larder_profile_writer *writer);
    void (*close)(void *state); /* NULL, too */
};

extern const struct calibration_part calibration_moments;
extern const struct calibration_part calibration_codebooks;
extern const struct calibration_part calibration_sinks;

/* Runs all windows past all parts, and puts into the writer what they learned. */
int calibration_read(struct calibration *calibration, struct larder_profile_writer *writer);

/* bfp.order: K's channels by the rows of W_k. */
int calibration_sort_weights(const struct calibration *calibration,
                             struct larder_profile_writer *writer);

#define CALIBRATION_WIDTHS 3u
extern const uint32_t calibration_widths[CALIBRATION_WIDTHS]; /* 2, 4, 8 bits */

/* What it costs to quantize K or V of one layer alone. */
struct calibration_cost {
    float kl;  /* nats a token */
    float mse; /* of an element */
};
/* costs: [layer][K, V][width], the caller's to larder_free(). */
int calibration_measure_costs(struct calibration *calibration, struct calibration_cost **costs,
                              struct larder_profile_writer *writer);

/* The choice of widths (indexes) for K and V of each layer whose costs add up to least, with at
 * most budget_bits an element: exact, by dynamic programming. Layers in runs of `run` are alike.
 * -EINVAL when the budget is below the smallest width. */
int calibration_choose_bits(uint8_t *choice, double *kl, const struct calibration_cost *costs,
                            uint32_t layers, uint32_t run, double budget_bits);
/* The recipe that says so: kivi presets by layers. -ENOSPC when there is no room. */
int calibration_bits_recipe(char *out, size_t out_bytes, const uint8_t *choice, uint32_t layers);

/* What the house recipe reads (codec/klt.c, codec/steps.c): larder.*, from the moments and the
 * model's weights, and from measuring. */
int calibration_make_house(struct calibration *calibration, struct larder_profile_writer *writer);

/* blend.check_layer: where CacheBlend looks which tokens to compute again. A model of one layer has
 * none. */
int calibration_choose_check_layer(struct calibration *calibration,
                                   struct larder_profile_writer *writer);

/* map.cachegenN: bins of each layer, and where differences to anchors gain. */
int calibration_choose_cachegen(struct calibration *calibration,
                                struct larder_profile_writer *writer);

/* rans.PIPE.*: frequency tables for the symbols of these recipes, which may read what the writer
 * has by now. */
int calibration_count_symbols(struct calibration *calibration, const char *const *recipes,
                              uint32_t recipe_count, struct larder_profile_writer *writer);

/* Helpers. */

/* The first whole blocks of a window, run through the model into the cache, and their number. */
int calibration_fill_cache(struct calibration *calibration, uint32_t window, uint32_t *block_count);

/* Rows of the cache as f32 [head][token][dim], keys without rotary embedding. */
void calibration_take_rows(const struct calibration *calibration, float *out, uint32_t layer,
                           enum larder_kv kv, uint32_t first, uint32_t tokens);
void calibration_progress(const struct calibration *calibration, const char *what, uint64_t done,
                          uint64_t all);
/* "NAME" as f32 of [layers, a, b, c]; dimensions of 0 at the end are left out. */
int calibration_put(struct larder_profile_writer *writer, const char *name, const float *data,
                    uint64_t layers, uint64_t a, uint64_t b, uint64_t c);

#endif
