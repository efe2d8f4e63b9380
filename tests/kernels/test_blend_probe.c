/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: scores made when a chunk is stored find the tokens that look before their chunk; the method
 * computes those, loads no stored row of them, and mends what merely moved chunks get wrong.
 * Method: made-up facts as the small model was trained on: its answer to a question across two
 * chunks, moved and repaired; scores planted; wrong calls.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "kernels/blend/probe.h"
#include "kernels/blend/select.h"
#include "tests/kernels/blend_scene.h"

#define TINY "tests/models/tiny"

/* Scores as they are planted, highest first, but never of a token that is not moved. */
START_TEST(test_choice)
{
    struct scene scene;
    scene_open(&scene, TINY, LARDER_F32);
    float scores[SCENE_TOKENS_MAX];
    uint32_t moved = 0;
    for (uint32_t i = 0; i < scene.token_count; i++)
        scores[i] = (float)((i * 7919u) % 1009u);
    for (uint32_t i = 0; i < scene.span_count; i++)
        if (scene.spans[i].source == LARDER_BLEND_MOVED)
            moved += (uint32_t)scene.spans[i].count;
    scores[0] = 1e9f; /* of a prefix */
    scores[scene.spans[3].first + 4] = NAN;
    scores[scene.spans[3].first + 5] = -1;
    scene.scores = scores;
    const struct larder_blend_result *result = scene_run(&scene, "probe r=.25");
    uint32_t run = 0;
    float least = INFINITY;
    float most = 0;
    for (uint32_t i = 0; i < scene.span_count; i++)
        for (uint32_t j = 0; j < scene.spans[i].count; j++) {
            uint32_t token = (uint32_t)scene.spans[i].first + j;
            if (scene.spans[i].source != LARDER_BLEND_MOVED)
                continue;
            if (result->layers_run[token] == result->layers) {
                run++;
                least = fminf(least, scores[token]);
            } else {
                ck_assert_uint_eq(result->layers_run[token], 0);
                most = fmaxf(most, scores[token]);
            }
        }
    ck_assert_uint_eq(run, larder_blend_share_of(.25, moved));
    ck_assert(least >= most);
    ck_assert_uint_eq(result->layers_run[0], 0);
    ck_assert_uint_gt(result->layers_run[scene.spans[3].first + 4], 0); /* NaN: as if infinite */
    larder_blend_close(scene.blend);

    result = scene_run(&scene, "probe r=1");
    ck_assert(result->whole);
    ck_assert_int_eq(memcmp(scene.logits, scene.wanted, scene.vocab * sizeof(float)), 0);
    larder_blend_close(scene.blend);

    scene.scores = NULL;
    ck_assert_int_eq(scene_try(&scene, "probe", true), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "needs the scores"));
    scene_close(&scene);
}
END_TEST

#define FACTS 6
static const char *const facts[FACTS] = {
    "* Brialo is a weaver from Tokara.\n",
    "* The same person keeps a green kite and likes soup.\n",
    "* Mulo works as a singer in Hihema.\n",
    "* That person likes rice and keeps a wooden lamp.\n",
    "* Peike, a potter, lives in Pasubo.\n",
    "* This person has always liked apples, and keeps a paper ring at home.\n",
};
/* Of another text, with other people. */
static const char before[] = "* Vage is a painter from Mureisa.\n"
                             "* This person keeps a glass kettle and likes plums.\n";
#define ASKED 3
static const char *const questions[ASKED][2] = {
    {"Q: What does Brialo keep?\nA: ", "a green kite\n"},
    {"Q: What does Mulo keep?\nA: ", "a wooden lamp\n"},
    {"Q: What does Peike keep?\nA: ", "a paper ring\n"},
};

static void add_text(struct scene *scene, const char *text, uint32_t source, uint32_t stored_first,
                     uint32_t piece)
{
    uint32_t first = scene->token_count;
    if (first == 0)
        scene->tokens[scene->token_count++] = 256;
    for (const char *at = text; *at; at++)
        scene->tokens[scene->token_count++] = (unsigned char)*at;
    scene->spans[scene->span_count++] =
        (struct larder_blend_span){first, scene->token_count - first, stored_first, source, piece};
}

/* What the model says behind the prompt that is in the cache, greedily. */
static bool answers(struct scene *scene, const char *answer)
{
    for (const char *at = answer; *at; at++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < scene->vocab; i++)
            if (scene->logits[i] > scene->logits[best])
                best = i;
        if (best != (unsigned char)*at)
            return false;
        ck_assert_int_eq(larder_llama_forward(scene->model, scene->cache, scene->logits,
                                              LARDER_LOGITS_LAST, &best, 1),
                         0);
    }
    return true;
}

/* Questions that are answered behind the chunks, each asked alone. */
static uint32_t answered(struct scene *scene, const char *method)
{
    uint32_t right = 0;
    uint32_t tokens = scene->token_count;
    uint32_t spans = scene->span_count;
    for (uint32_t i = 0; i < ASKED; i++) {
        add_text(scene, questions[i][0], LARDER_BLEND_SUFFIX, 0, FACTS);
        scene_run(scene, method);
        larder_blend_close(scene->blend);
        right += answers(scene, questions[i][1]);
        scene->token_count = tokens;
        scene->span_count = spans;
    }
    return right;
}

START_TEST(test_answer_across_chunks)
{
    struct scene scene = {.fail_at = UINT32_MAX};
    ck_assert_int_eq(larder_device_open(&scene.device, "cpu", NULL), 0);
    ck_assert_int_eq(larder_llama_open(&scene.model, scene.device, TINY), 0);
    scene.vocab = larder_llama_config(scene.model)->vocab;
    scene.logits = calloc(scene.vocab, sizeof(float));
    float scores[SCENE_TOKENS_MAX] = {0};
    uint32_t others[sizeof(before)];
    for (size_t i = 0; i < sizeof(before); i++)
        others[i] = (unsigned char)before[i];

    struct larder_kv_cache *stored[FACTS];
    for (uint32_t i = 0; i < FACTS; i++)
        add_text(&scene, facts[i], i ? LARDER_BLEND_MOVED : LARDER_BLEND_PREFIX, i > 0, i);
    ck_assert_int_eq(larder_llama_cache_open(scene.model, &scene.cache, scene.token_count + 80, 0),
                     0);
    for (uint32_t i = 0; i < FACTS; i++) {
        const struct larder_blend_span *span = &scene.spans[i];
        scene_store(&scene, span, 0);
        stored[i] = scene.stored[i];
        if (i == 0)
            continue;
        ck_assert_int_eq(
            larder_blend_probe(scores + span->first, scene.model,
                               &(struct larder_blend_probe){.alone = stored[i],
                                                            .alone_first = 1,
                                                            .tokens = scene.tokens + span->first,
                                                            .count = (uint32_t)span->count,
                                                            .before = others,
                                                            .before_count = sizeof(before) - 1}),
            0);
    }
    scene.scores = scores;
    ck_assert_uint_eq(answered(&scene, "full"), ASKED);
    ck_assert_uint_lt(answered(&scene, "none"), ASKED);
    ck_assert_uint_lt(answered(&scene, "random r=.15"), ASKED);
    ck_assert_uint_eq(answered(&scene, "probe r=.15"), ASKED);

    /* A few tokens of a follow-up depend on what came before it, most do not. */
    const float *follow_up = scores + scene.spans[3].first;
    float highest = 0;
    float sum = 0;
    for (uint32_t i = 0; i < scene.spans[3].count; i++) {
        ck_assert(follow_up[i] >= 0);
        highest = fmaxf(highest, follow_up[i]);
        sum += follow_up[i];
    }
    ck_assert(highest > 3 * sum / (float)scene.spans[3].count);
    free(scene.logits);
    larder_kv_cache_close(scene.cache);
    for (uint32_t i = 0; i < FACTS; i++)
        larder_kv_cache_close(stored[i]);
    larder_llama_close(scene.model);
    larder_device_close(scene.device);
}
END_TEST

START_TEST(test_wrong_probes)
{
    struct scene scene;
    scene_open(&scene, TINY, 0);
    float scores[SCENE_CHUNK];
    struct larder_blend_probe probe = {.alone = scene.stored[1],
                                       .alone_first = scene.bos,
                                       .tokens = scene.tokens + scene.spans[1].first,
                                       .count = SCENE_CHUNK,
                                       .before = scene.tokens + 1,
                                       .before_count = 50};
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), 0);
    /* Deterministic, and whole: no text before it that makes no difference gives 0 everywhere. */
    float again[SCENE_CHUNK];
    ck_assert_int_eq(larder_blend_probe(again, scene.model, &probe), 0);
    ck_assert_int_eq(memcmp(scores, again, sizeof(scores)), 0);
    probe.before_count = 0;
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), -EINVAL);
    probe.before_count = UINT32_MAX;
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), LARDER_ELIMIT);
    probe.before_count = 5000;
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), LARDER_ELIMIT);
    probe.before_count = 50;
    uint32_t outside = scene.vocab;
    probe.before = &outside;
    probe.before_count = 1;
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), -EINVAL);
    probe.before = scene.tokens;
    larder_mem_fail_at(1);
    ck_assert_int_eq(larder_blend_probe(scores, scene.model, &probe), -ENOMEM);
    larder_mem_fail_at(0);
    scene_close(&scene);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend_probe");
    TCase *all = tcase_create("blend_probe");
    tcase_set_timeout(all, 240);
    tcase_add_test(all, test_choice);
    tcase_add_test(all, test_answer_across_chunks);
    tcase_add_test(all, test_wrong_probes);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
