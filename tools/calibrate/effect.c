/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/calibrate/effect.h"

#include <errno.h>
#include <math.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

int effect_open(struct effect *out, struct calibration *c, uint32_t windows)
{
    *out = (struct effect){.calibration = c};
    uint32_t room = c->options->window_tokens;
    if (room < BLOCK_TOKENS + EFFECT_TOKENS + 1)
        return larder_fail(-EINVAL, "a window of %u tokens; sensitivities need %u, say --window",
                           room, BLOCK_TOKENS + EFFECT_TOKENS + 1);
    out->block_count = (room - 1 - EFFECT_TOKENS) / BLOCK_TOKENS;
    out->window_count = windows < c->window_count ? windows : c->window_count;
    uint64_t logits = (uint64_t)EFFECT_TOKENS * c->config->vocab;
    out->full = larder_alloc(logits * sizeof(*out->full));
    out->logits = larder_alloc(logits * sizeof(*out->logits));
    if (out->full && out->logits)
        return 0;
    effect_close(out);
    return larder_fail(-ENOMEM, "no memory for sensitivities");
}

void effect_close(struct effect *effect)
{
    larder_free(effect->logits);
    larder_free(effect->full);
    effect->logits = NULL;
    effect->full = NULL;
}

static void log_probabilities(float *x, uint32_t vocab)
{
    for (uint32_t token = 0; token < EFFECT_TOKENS; token++, x += vocab) {
        float top = x[0];
        for (uint32_t i = 1; i < vocab; i++)
            top = x[i] > top ? x[i] : top;
        double sum = 0;
        for (uint32_t i = 0; i < vocab; i++)
            sum += exp((double)(x[i] - top));
        double all = (double)top + log(sum);
        for (uint32_t i = 0; i < vocab; i++)
            x[i] = (float)((double)x[i] - all);
    }
}

static int read_on(struct effect *effect, float *out)
{
    struct calibration *c = effect->calibration;
    c->cache->count = effect->block_count * BLOCK_TOKENS;
    LARDER_TRY(larder_llama_forward(c->llama, c->cache, out, LARDER_LOGITS_ALL, effect->next,
                                    EFFECT_TOKENS));
    log_probabilities(out, c->config->vocab);
    return 0;
}

int effect_load(struct effect *effect, uint32_t window)
{
    struct calibration *c = effect->calibration;
    uint32_t place = (uint32_t)((uint64_t)window * c->window_count / effect->window_count);
    const uint32_t *tokens;
    calibration_window(c, place, &tokens);
    c->cache->count = 0;
    uint32_t prefix = effect->block_count * BLOCK_TOKENS;
    bool starts = c->config->bos >= 0;
    if (starts)
        LARDER_TRY(larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE,
                                        &(uint32_t){(uint32_t)c->config->bos}, 1));
    LARDER_TRY(larder_llama_forward(c->llama, c->cache, NULL, LARDER_LOGITS_NONE, tokens,
                                    prefix - starts));
    effect->next = tokens + prefix - starts;
    return read_on(effect, effect->full);
}

int effect_measure(struct effect *effect, double *kl)
{
    LARDER_TRY(read_on(effect, effect->logits));
    double sum = 0;
    for (uint64_t i = 0; i < (uint64_t)EFFECT_TOKENS * effect->calibration->config->vocab; i++)
        sum += exp((double)effect->full[i]) * ((double)effect->full[i] - (double)effect->logits[i]);
    *kl = sum / EFFECT_TOKENS;
    if (!isfinite(*kl))
        return larder_fail(-ERANGE, "the model's logits are no numbers behind what was rounded, or "
                                    "before");
    return 0;
}
