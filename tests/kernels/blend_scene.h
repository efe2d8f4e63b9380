/* SPDX-License-Identifier: Apache-2.0 */
/* blend_scene.h - for tests of blending: chunks of made-up text whose KV was computed apart, the
 * prompt that they make, and the fetch that hands their rows to a blend.
 */
#ifndef LARDER_TESTS_KERNELS_BLEND_SCENE_H
#define LARDER_TESTS_KERNELS_BLEND_SCENE_H

#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kernels/blend/blend.h"
#include "kernels/llama.h"

#define SCENE_CHUNKS     6
#define SCENE_CHUNK      110 /* tokens of the longest */
#define SCENE_SUFFIX     20
#define SCENE_TOKENS_MAX (SCENE_CHUNKS * SCENE_CHUNK + SCENE_SUFFIX + 1)

struct scene {
    struct larder_device *device;
    struct larder_llama *model;
    uint32_t vocab;
    uint32_t bos;                                 /* 1: the model begins texts with one */
    struct larder_kv_cache *stored[SCENE_CHUNKS]; /* each computed alone */
    struct larder_kv_cache *cache;                /* where blends go */
    struct larder_kv_cache *whole;                /* a prefill of the prompt */
    float *wanted;                                /* its last token's logits */
    float *logits;
    uint32_t tokens[SCENE_TOKENS_MAX];
    uint32_t token_count;
    struct larder_blend_span spans[SCENE_CHUNKS + 2];
    uint32_t span_count;
    struct larder_blend *blend; /* the one that runs: rows that it does not read are spoiled */
    uint32_t fetched;           /* layers */
    uint32_t fail_at;           /* layer whose fetch fails */
    const float *scores;        /* what the method "probe" is given */
};

static inline void scene_add(struct scene *scene, uint32_t source, uint32_t count,
                             uint32_t stored_first, uint32_t piece)
{
    uint32_t first = scene->token_count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = first + i;
        scene->tokens[at] = (at * at + 17 * at + 97 * piece) % 256 % scene->vocab;
    }
    if (first == 0 && scene->bos)
        scene->tokens[0] = (uint32_t)larder_llama_config(scene->model)->bos;
    scene->spans[scene->span_count++] =
        (struct larder_blend_span){first, count, stored_first, source, piece};
    scene->token_count += count;
}

/* A chunk's KV as a store has it: computed behind BOS alone. A prefix's: in its place. */
static inline void scene_store(struct scene *scene, const struct larder_blend_span *span,
                               uint32_t dtype)
{
    uint32_t text[SCENE_TOKENS_MAX];
    memcpy(text + span->stored_first, scene->tokens + span->first,
           span->count * sizeof(*scene->tokens));
    for (uint32_t i = 0; i < span->stored_first; i++)
        text[i] = span->source == LARDER_BLEND_PREFIX ? scene->tokens[i] : scene->tokens[0];
    struct larder_kv_cache **cache = &scene->stored[span->piece];
    uint32_t count = (uint32_t)(span->stored_first + span->count);
    ck_assert_int_eq(larder_llama_cache_open(scene->model, cache, count, dtype), 0);
    ck_assert_int_eq(
        larder_llama_forward(scene->model, *cache, NULL, LARDER_LOGITS_NONE, text, count), 0);
}

/* A prefix, three chunks of which one has the same place as when it was stored, a gap that nobody
 * stored, the suffix. */
static inline void scene_open(struct scene *scene, const char *directory, uint32_t dtype)
{
    *scene = (struct scene){.fail_at = UINT32_MAX};
    ck_assert_int_eq(
        larder_device_open(&scene->device, "cpu", &(struct larder_device_options){.threads = 2}),
        0);
    int err = larder_llama_open(&scene->model, scene->device, directory);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    const struct larder_model_config *config = larder_llama_config(scene->model);
    scene->vocab = config->vocab;
    scene->bos = config->bos >= 0 && config->bos < config->vocab;
    uint32_t scale = config->positions_max >= 1024 ? 1 : 4; /* small models: 256 positions */
    scene_add(scene, LARDER_BLEND_PREFIX, 60 / scale, 0, 0);
    scene_add(scene, LARDER_BLEND_MOVED, SCENE_CHUNK / scale, scene->bos, 1);
    scene_add(scene, LARDER_BLEND_MISSING, 32 / scale, 0, 4);
    scene_add(scene, LARDER_BLEND_MOVED, 100 / scale, scene->bos, 2);
    scene_add(scene, LARDER_BLEND_MOVED, 30 / scale, scene->bos + 1, 3);
    scene_add(scene, LARDER_BLEND_SUFFIX, SCENE_SUFFIX, 0, 5);
    for (uint32_t i = 0; i < scene->span_count; i++)
        if (scene->spans[i].source <= LARDER_BLEND_MOVED)
            scene_store(scene, &scene->spans[i], dtype);
    ck_assert_int_eq(
        larder_llama_cache_open(scene->model, &scene->cache, scene->token_count + 8, dtype), 0);
    ck_assert_int_eq(
        larder_llama_cache_open(scene->model, &scene->whole, scene->token_count, dtype), 0);
    scene->wanted = calloc(scene->vocab, sizeof(float));
    scene->logits = calloc(scene->vocab, sizeof(float));
    ck_assert_int_eq(larder_llama_forward(scene->model, scene->whole, scene->wanted,
                                          LARDER_LOGITS_LAST, scene->tokens, scene->token_count),
                     0);
}

static inline void scene_close(struct scene *scene)
{
    free(scene->logits);
    free(scene->wanted);
    larder_kv_cache_close(scene->whole);
    larder_kv_cache_close(scene->cache);
    for (uint32_t i = 0; i < SCENE_CHUNKS; i++)
        larder_kv_cache_close(scene->stored[i]);
    larder_llama_close(scene->model);
    larder_device_close(scene->device);
}

static inline void *scene_row(const struct larder_kv_cache *cache, uint32_t layer, int kv,
                              uint64_t row)
{
    return (char *)larder_kv_cache_rows(cache, layer, (enum larder_kv)kv) +
           row * cache->k_token_bytes;
}

/* A blend's fetch. What the blend says it does not read is spoiled instead, as are the rows that
 * nobody stored: no stale row may have a say. */
static inline int scene_fetch(void *context, uint32_t layer)
{
    struct scene *scene = context;
    ck_assert_uint_eq(layer, scene->fetched);
    scene->fetched++;
    if (layer == scene->fail_at)
        return larder_fail(LARDER_ENOTFOUND, "the chunk of layer %u is gone", layer);
    for (uint32_t i = 0; i < scene->span_count; i++) {
        const struct larder_blend_span *span = &scene->spans[i];
        bool stored = span->source <= LARDER_BLEND_MOVED;
        for (uint64_t j = 0; j < span->count; j++)
            for (int kv = LARDER_K; kv <= LARDER_V; kv++) {
                void *to = scene_row(scene->cache, layer, kv, span->first + j);
                if (stored && larder_blend_reads(scene->blend, layer, (uint32_t)(span->first + j)))
                    memcpy(to,
                           scene_row(scene->stored[span->piece], layer, kv, span->stored_first + j),
                           scene->cache->k_token_bytes);
                else
                    memset(to, 0x5a, scene->cache->k_token_bytes);
            }
    }
    return 0;
}

static inline int scene_try(struct scene *scene, const char *method, bool logits)
{
    scene->fetched = 0;
    int err = larder_blend_open(
        &scene->blend, scene->model, scene->cache,
        &(struct larder_blend_prompt){scene->tokens, scene->spans, scene->token_count,
                                      scene->span_count},
        &(struct larder_blend_options){
            .method = method, .scores = scene->scores, .seed = 7, .logits = logits});
    if (err < 0)
        ck_assert_ptr_null(scene->blend);
    return err;
}

/* Opens and runs; scene->blend is there afterwards. */
static inline const struct larder_blend_result *scene_run(struct scene *scene, const char *method)
{
    int err = scene_try(scene, method, true);
    ck_assert_msg(err == 0, "%s: %s", method, larder_error_message());
    err = larder_blend_run(scene->blend, scene_fetch, scene, scene->logits);
    ck_assert_msg(err == 0, "%s: %s", method, larder_error_message());
    ck_assert_uint_eq(scene->cache->count, scene->token_count);
    ck_assert_uint_eq(scene->fetched, scene->cache->layers);
    return larder_blend_result(scene->blend);
}

#endif
