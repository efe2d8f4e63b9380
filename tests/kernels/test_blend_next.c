/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what follows a blend: repair that goes on while tokens are generated computes what it says
 * and no more, and where it does nothing the tokens are those of a plain forward.
 * Method: the bits of a forward; rows that changed; attention against a plain definition.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "kernels/blend/queries.h"
#include "kernels/cpu/cpu_math.h"
#include "tests/kernels/blend_scene.h"

#define TINY "tests/models/tiny"

static void next(struct scene *scene, uint32_t token)
{
    uint32_t before = scene->cache->count;
    ck_assert_int_eq(larder_blend_next(scene->blend, scene->logits, token), 0);
    ck_assert_uint_eq(scene->cache->count, before + 1);
}

/* Nothing to refresh, or no leave to: a forward. */
START_TEST(test_plain)
{
    static const char *const methods[] = {"none", "link", "kvshare m=0", "kvshare n=0",
                                          "kvshare r=1"};
    struct scene scene;
    scene_open(&scene, TINY, 0);
    for (size_t i = 0; i < LARDER_COUNT_OF(methods); i++) {
        scene_run(&scene, methods[i]);
        struct larder_kv_cache *plain;
        ck_assert_int_eq(larder_llama_cache_open(scene.model, &plain, scene.cache->capacity, 0), 0);
        memcpy(plain->base, scene.cache->base, plain->layers * plain->layer_bytes);
        plain->count = scene.cache->count;
        for (uint32_t token = 40; token < 44; token++) {
            next(&scene, token);
            ck_assert_int_eq(larder_llama_forward(scene.model, plain, scene.wanted,
                                                  LARDER_LOGITS_LAST, &token, 1),
                             0);
            ck_assert_int_eq(memcmp(scene.logits, scene.wanted, scene.vocab * sizeof(float)), 0);
        }
        ck_assert_uint_eq(larder_blend_result(scene.blend)->refreshed, 0);
        larder_kv_cache_close(plain);
        larder_blend_close(scene.blend);
    }
    scene_close(&scene);
}
END_TEST

static bool changed(const struct larder_kv_cache *a, const struct larder_kv_cache *b, uint32_t row)
{
    return memcmp(scene_row(a, 3, LARDER_V, row), scene_row(b, 3, LARDER_V, row),
                  a->v_token_bytes) != 0;
}

static void count_rows(void *context, uint32_t layer, uint32_t first, const struct larder_tensor *q)
{
    (void)first;
    if (layer == 0)
        *(uint64_t *)context += q->shape[0];
}

/* n tokens a step for m steps, of those that are stored and moved; who watches the model still
 * does. */
START_TEST(test_kvshare)
{
    struct scene scene;
    scene_open(&scene, TINY, LARDER_F32);
    uint64_t seen = 0;
    larder_llama_watch(scene.model, count_rows, &seen);
    const struct larder_blend_result *result = scene_run(&scene, "kvshare r=.1 m=3 n=5");
    ck_assert_uint_eq(seen, result->layer_rows[0]);
    struct larder_kv_cache *before;
    ck_assert_int_eq(
        larder_llama_cache_open(scene.model, &before, scene.cache->capacity, LARDER_F32), 0);
    bool done[SCENE_TOKENS_MAX] = {false};
    for (uint32_t step = 0; step < 5; step++) {
        memcpy(before->base, scene.cache->base, before->layers * before->layer_bytes);
        seen = 0;
        next(&scene, 100 + step);
        uint32_t rows = 0;
        for (uint32_t i = 0; i < scene.span_count; i++)
            for (uint32_t j = 0; j < scene.spans[i].count; j++) {
                uint32_t token = (uint32_t)scene.spans[i].first + j;
                if (!changed(before, scene.cache, token))
                    continue;
                ck_assert_uint_eq(scene.spans[i].source, LARDER_BLEND_MOVED);
                ck_assert_uint_lt(result->layers_run[token], result->layers);
                ck_assert(!done[token]);
                done[token] = true;
                rows++;
            }
        ck_assert_uint_eq(rows, step < 3 ? 5 : 0);
        ck_assert_uint_eq(seen, rows + 1);
    }
    ck_assert_uint_eq(result->refreshed, 15);
    larder_blend_close(scene.blend);

    /* The watch is as it was, after errors too. */
    uint32_t outside = scene.vocab;
    scene_run(&scene, "kvshare");
    uint32_t count = scene.cache->count;
    ck_assert_int_eq(larder_blend_next(scene.blend, scene.logits, outside), -EINVAL);
    for (uint64_t n = 1; n < 30; n++) {
        larder_mem_fail_at(n);
        int err = larder_blend_next(scene.blend, scene.logits, 7);
        larder_mem_fail_at(0);
        if (err == 0)
            break;
        ck_assert_int_eq(err, -ENOMEM);
        ck_assert_uint_eq(scene.cache->count, count);
    }
    ck_assert_uint_eq(scene.cache->count, count + 1);
    while (scene.cache->count < scene.cache->capacity)
        next(&scene, 8);
    ck_assert_int_eq(larder_blend_next(scene.blend, scene.logits, 7), LARDER_ELIMIT);
    larder_blend_close(scene.blend);
    seen = 0;
    scene.cache->count = 0;
    ck_assert_int_eq(
        larder_llama_forward(scene.model, scene.cache, NULL, LARDER_LOGITS_NONE, scene.tokens, 9),
        0);
    ck_assert_uint_eq(seen, 9);
    larder_kv_cache_close(before);
    scene_close(&scene);
}
END_TEST

struct kept {
    uint32_t position;
    uint64_t floats;
    float *q;
};

static void keep_query(void *context, uint32_t layer, uint32_t first, const struct larder_tensor *q)
{
    struct kept *kept = context;
    if (kept->position >= first && kept->position - first < q->shape[0])
        memcpy(kept->q + layer * kept->floats,
               (float *)q->data + (kept->position - first) * kept->floats,
               kept->floats * sizeof(float));
}

/* Weights by the definition, in f64. */
START_TEST(test_attention)
{
    struct scene scene;
    scene_open(&scene, "tests/reference/models/qwen3", 0);
    const struct larder_model_config *c = larder_llama_config(scene.model);
    uint32_t position = 77;
    struct kept kept = {.position = position, .floats = (uint64_t)c->heads * c->head_dims};
    kept.q = calloc(c->layers * kept.floats, sizeof(float));
    struct blend_queries *queries;
    ck_assert_int_eq(blend_queries_open(&queries, scene.model), 0);
    larder_llama_watch(scene.model, keep_query, &kept);
    blend_queries_watch(queries, position);
    scene.cache->count = 0;
    ck_assert_int_eq(
        larder_llama_forward(scene.model, scene.cache, NULL, LARDER_LOGITS_NONE, scene.tokens, 100),
        0);
    blend_queries_unwatch(queries);
    float mass[100];
    ck_assert_int_eq(blend_queries_attention(queries, mass, scene.cache, position + 1), 0);
    double wanted[100] = {0};
    for (uint32_t layer = 0; layer < c->layers; layer++)
        for (uint32_t head = 0; head < c->heads; head++) {
            const float *q = kept.q + layer * kept.floats + head * c->head_dims;
            double weight[100];
            double sum = 0;
            for (uint32_t j = 0; j <= position; j++) {
                const void *k = scene_row(scene.cache, layer, LARDER_K, j);
                uint64_t at = (uint64_t)(head / (c->heads / c->kv_heads)) * c->head_dims;
                double dot = 0;
                for (uint32_t i = 0; i < c->head_dims; i++)
                    dot += (double)q[i] * (double)load_element(k, scene.cache->dtype, at + i);
                weight[j] = exp(dot / sqrt(c->head_dims));
                sum += weight[j];
            }
            for (uint32_t j = 0; j <= position; j++)
                wanted[j] += weight[j] / sum / c->heads / c->layers;
        }
    for (uint32_t j = 0; j <= position; j++)
        ck_assert_double_eq_tol((double)mass[j], wanted[j], 1e-5);
    blend_queries_close(queries);
    free(kept.q);
    scene_close(&scene);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend_next");
    TCase *all = tcase_create("blend_next");
    tcase_set_timeout(all, 240);
    tcase_add_test(all, test_plain);
    tcase_add_test(all, test_kvshare);
    tcase_add_test(all, test_attention);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
