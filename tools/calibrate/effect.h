/* SPDX-License-Identifier: Apache-2.0 */
/* effect.h - how far what a model says next moves when the KV of its prefix is changed.
 * Owns:    logits, and a window's prefix in the calibration's cache until the next load.
 * Threads: belongs to one thread.
 */
#ifndef LARDER_TOOLS_CALIBRATE_EFFECT_H
#define LARDER_TOOLS_CALIBRATE_EFFECT_H

#include "tools/calibrate/blocks.h"
#include "tools/calibrate/calibrate.h"

/* Tokens behind the prefix over which it is measured: later ones read mostly each other. */
#define EFFECT_TOKENS 32u

struct effect {
    struct calibration *calibration;
    uint32_t block_count; /* whole blocks of BLOCK_TOKENS are the prefix */
    uint32_t window_count;
    const uint32_t *next;
    float *full; /* logarithms of probabilities, [EFFECT_TOKENS][vocab] */
    float *logits;
};

/* On at most `windows` windows, spread over the text. */
int effect_open(struct effect *out, struct calibration *calibration, uint32_t windows);
void effect_close(struct effect *effect);

/* Reads window 0 .. window_count - 1: its prefix is in the cache then. */
int effect_load(struct effect *effect, uint32_t window);
/* KL(p_full || p), nats a token, of the predictions over the cache as it is now. */
int effect_measure(struct effect *effect, double *kl);

#endif
