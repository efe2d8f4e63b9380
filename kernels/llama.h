/* SPDX-License-Identifier: Apache-2.0 */
/* llama.h - the forward of Llama-family models over a KV cache that may start from given KV.
 * Owns:    a model owns its mapped weights and a workspace, made at open; the caches are the
 *          caller's. The device must outlive both.
 * Threads: a model and its caches belong to one thread at a time.
 * I1  Logits and KV of a token are the same bits however the tokens before it came in: in one
 *     call, in several, or as KV restored from such a run. Keys and values are rounded to the
 *     cache's dtype when written and always read back from there.
 * I2  forwarded() counts every token that ran through the layers, where that happens.
 *
 * A program that generates:
 *     struct larder_device *device;
 *     struct larder_llama *model;
 *     struct larder_kv_cache *cache;
 *     larder_device_open(&device, "cpu", &(struct larder_device_options){.threads = 0});
 *     larder_llama_open(&model, device, "tests/models/tiny");
 *     larder_llama_describe(model, &desc, 0);           what larder_model_open() is given
 *     larder_llama_cache_open(model, &cache, 4096, 0);  0: the model's own dtype
 *     ... fill rows [0, n) of every layer from the store (kernels/kv_cache.h), cache->count = n
 *     float *logits = ... larder_llama_config(model)->vocab floats
 *     larder_llama_forward(model, cache, logits, LARDER_LOGITS_LAST, tokens + n, count - n);
 *     token = larder_sampler_pick(&sampler, logits, vocab);   kernels/sampler.h
 *     larder_llama_forward(model, cache, logits, LARDER_LOGITS_LAST, &token, 1); and so on
 * At least the prompt's last token must run, for its logits: restore at most count - 1 rows.
 * The tiny model's tokens are bytes: token = byte value, after config->bos (256) at the start of
 * a text; tokens above 256 never occur. It has no end token (eos_count = 0): stop at a newline or
 * at a count.
 */
#ifndef LARDER_KERNELS_LLAMA_H
#define LARDER_KERNELS_LLAMA_H

#include <stddef.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache.h"
#include "kernels/model_config.h"
#include "kernels/rope.h"

struct larder_llama;

/* config.json and the .safetensors files of `directory`. */
int larder_llama_open(struct larder_llama **out, struct larder_device *device,
                      const char *directory);
void larder_llama_close(struct larder_llama *model);

const struct larder_model_config *larder_llama_config(const struct larder_llama *model);

/* The identity that KV of this model is stored under; `kv_dtype` is the cache's, 0 for the
 * weights' own. The first call reads all weights for their digest. */
int larder_llama_describe(struct larder_llama *model, struct larder_model_desc *out,
                          uint32_t kv_dtype);

/* An empty cache for up to `capacity` tokens, at most config->positions_max. */
int larder_llama_cache_open(struct larder_llama *model, struct larder_kv_cache **out,
                            uint32_t capacity, uint32_t kv_dtype);

enum larder_logits {
    LARDER_LOGITS_NONE, /* `logits` is NULL */
    LARDER_LOGITS_LAST, /* vocab floats: of the last token */
    LARDER_LOGITS_ALL,  /* count * vocab floats */
};

/* Runs `count` >= 1 tokens at the positions behind the cache's, and appends their KV. On an error
 * (-EINVAL for a token outside the vocabulary, LARDER_ELIMIT when the cache is too small) the
 * cache's count is as before. */
int larder_llama_forward(struct larder_llama *model, struct larder_kv_cache *cache, float *logits,
                         enum larder_logits which, const uint32_t *tokens, size_t count);

/* Shows each layer's queries as they are computed, to those who study attention: f32 [rows, heads,
 * head_dims], rotated, of the tokens from position `first` on; they lie in the device's memory and
 * hold until the call returns. NULL: to nobody, as after open. */
typedef void (*larder_llama_queries)(void *context, uint32_t layer, uint32_t first,
                                     const struct larder_tensor *q);
void larder_llama_watch(struct larder_llama *model, larder_llama_queries watch, void *context);

/* The model's table of rotations with at least `positions` rows: what its keys are rotated by, and
 * moved by (kernels/rope.h). It holds as long as the model; it may grow with later calls. */
int larder_llama_rope(struct larder_llama *model, const struct larder_rope_table **out,
                      uint32_t positions);

/* Tokens that ran through this model's layers since it was opened. */
uint64_t larder_llama_forwarded(const struct larder_llama *model);

#endif
