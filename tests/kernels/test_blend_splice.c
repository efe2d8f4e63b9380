/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: an edited prompt computes its new tokens only, and what was moved behind an edit is what a
 * prefill makes wherever that can be: in layer 0, and everywhere where all is computed.
 * Method: random edits of a cached prompt against a plain definition; blends of what they give.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "kernels/blend/select.h"
#include "kernels/blend/splice.h"
#include "tests/kernels/blend_scene.h"

#define TINY "tests/models/tiny"
#define OLD  300u

static uint32_t old[OLD];
static uint32_t fresh[OLD];

static void make_tokens(void)
{
    for (uint32_t i = 0; i < OLD; i++) {
        old[i] = i ? (i * i + 7 * i) % 256 : 256;
        fresh[i] = (i * 37 + 11) % 256;
    }
}

/* Random edits: tokens and spans against lists made token by token. */
START_TEST(test_edits)
{
    make_tokens();
    for (unsigned seed = 0; seed < 3000; seed++) {
        srand(seed);
        struct larder_blend_edit edits[4];
        uint32_t count = (uint32_t)rand() % 5;
        uint32_t at = 0;
        uint32_t want[2 * OLD];
        int64_t origin[2 * OLD]; /* place in the old prompt, or -1 */
        uint32_t total = 0;
        uint32_t taken = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint32_t first = at + (uint32_t)rand() % 60;
            uint32_t removed = (uint32_t)rand() % 3 ? (uint32_t)rand() % 12 : 0;
            uint32_t added = (uint32_t)rand() % 3 ? (uint32_t)rand() % 12 : 0;
            edits[i] = (struct larder_blend_edit){first, removed, added, fresh + i};
            for (; taken < first; taken++) {
                want[total] = old[taken];
                origin[total++] = taken;
            }
            for (uint32_t j = 0; j < added; j++) {
                want[total] = fresh[i + j];
                origin[total++] = -1;
            }
            taken += removed;
            at = first + removed;
        }
        for (; taken < OLD; taken++) {
            want[total] = old[taken];
            origin[total++] = taken;
        }
        struct larder_blend_prompt prompt;
        ck_assert_int_eq(larder_blend_splice(&prompt, old, OLD, edits, count), 0);
        ck_assert_uint_eq(prompt.token_count, total);
        ck_assert_int_eq(memcmp(prompt.tokens, want, total * sizeof(*want)), 0);
        ck_assert_int_eq(larder_blend_check_spans(prompt.spans, prompt.span_count, total, 4096), 0);
        bool same_so_far = true;
        for (uint32_t i = 0; i < prompt.span_count; i++) {
            const struct larder_blend_span *span = &prompt.spans[i];
            for (uint64_t j = 0; j < span->count; j++) {
                int64_t from = origin[span->first + j];
                same_so_far = same_so_far && from == (int64_t)(span->first + j);
                uint32_t source = same_so_far ? LARDER_BLEND_PREFIX
                                  : from < 0  ? LARDER_BLEND_MISSING
                                              : LARDER_BLEND_MOVED;
                ck_assert_uint_eq(span->source, source);
                if (from >= 0)
                    ck_assert_uint_eq(span->stored_first + j, (uint64_t)from);
                ck_assert_int_eq(span->piece > 0, from < 0);
            }
        }
        larder_blend_splice_free(&prompt);
    }
}
END_TEST

START_TEST(test_wrong_edits)
{
    make_tokens();
    static const struct {
        struct larder_blend_edit edits[2];
        uint32_t count;
        int code;
    } cases[] = {
        {{{301, 0, 1, fresh}}, 1, -EINVAL},
        {{{300, 1, 0, NULL}}, 1, -EINVAL},
        {{{10, UINT32_MAX, 0, NULL}}, 1, -EINVAL},
        {{{20, 5, 0, NULL}, {24, 1, 0, NULL}}, 2, -EINVAL},
        {{{20, 5, 0, NULL}, {2, 1, 0, NULL}}, 2, -EINVAL},
        {{{0, 300, 0, NULL}}, 1, -EINVAL},
        {{{0, 0, 1u << 23, fresh}}, 1, LARDER_ELIMIT},
        {{{300, 0, 5, fresh}}, 1, 0},
        {{{0, 300, 5, fresh}}, 1, 0},
        {{{20, 5, 0, NULL}, {25, 1, 2, fresh}}, 2, 0},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_blend_prompt prompt;
        ck_assert_int_eq(larder_blend_splice(&prompt, old, OLD, cases[i].edits, cases[i].count),
                         cases[i].code);
        larder_blend_splice_free(&prompt);
    }
    for (uint64_t n = 1; n <= 2; n++) {
        struct larder_blend_prompt prompt;
        larder_mem_fail_at(n);
        ck_assert_int_eq(larder_blend_splice(&prompt, old, OLD, cases[7].edits, 1), -ENOMEM);
        ck_assert_ptr_null(prompt.tokens);
    }
    larder_mem_fail_at(0);
}
END_TEST

/* A cached prompt with a replaced, an inserted and a deleted span, blended. */
START_TEST(test_blended)
{
    make_tokens();
    static const struct larder_blend_edit edits[] = {
        {40, 3, 5, fresh}, {100, 0, 20, fresh + 30}, {200, 17, 0, NULL}};
    struct scene scene = {.fail_at = UINT32_MAX};
    ck_assert_int_eq(larder_device_open(&scene.device, "cpu", NULL), 0);
    ck_assert_int_eq(larder_llama_open(&scene.model, scene.device, TINY), 0);
    scene.vocab = larder_llama_config(scene.model)->vocab;
    scene.wanted = calloc(scene.vocab, sizeof(float));
    scene.logits = calloc(scene.vocab, sizeof(float));
    struct larder_blend_prompt prompt;
    ck_assert_int_eq(larder_blend_splice(&prompt, old, OLD, edits, 3), 0);
    ck_assert_uint_eq(prompt.token_count, OLD + 5);
    ck_assert_uint_le(prompt.span_count, LARDER_COUNT_OF(scene.spans));
    memcpy(scene.tokens, prompt.tokens, prompt.token_count * sizeof(*scene.tokens));
    memcpy(scene.spans, prompt.spans, prompt.span_count * sizeof(*scene.spans));
    scene.token_count = prompt.token_count;
    scene.span_count = prompt.span_count;
    ck_assert_int_eq(larder_llama_cache_open(scene.model, &scene.stored[0], OLD, LARDER_F32), 0);
    ck_assert_int_eq(larder_llama_cache_open(scene.model, &scene.cache, OLD + 9, LARDER_F32), 0);
    ck_assert_int_eq(larder_llama_cache_open(scene.model, &scene.whole, OLD + 9, LARDER_F32), 0);
    ck_assert_int_eq(
        larder_llama_forward(scene.model, scene.stored[0], NULL, LARDER_LOGITS_NONE, old, OLD), 0);
    ck_assert_int_eq(larder_llama_forward(scene.model, scene.whole, scene.wanted,
                                          LARDER_LOGITS_LAST, prompt.tokens, prompt.token_count),
                     0);

    /* New tokens only, unless the last one's logits are wanted. */
    ck_assert_int_eq(scene_try(&scene, "none", false), 0);
    ck_assert_int_eq(larder_blend_run(scene.blend, scene_fetch, &scene, NULL), 0);
    const struct larder_blend_result *result = larder_blend_result(scene.blend);
    for (uint32_t layer = 0; layer < result->layers; layer++)
        ck_assert_uint_eq(result->layer_rows[layer], 25);
    for (uint32_t token = 0; token < prompt.token_count; token++) {
        const float *k = scene_row(scene.cache, 0, LARDER_K, token);
        const float *wanted = scene_row(scene.whole, 0, LARDER_K, token);
        double length = 0;
        for (uint32_t i = 0; i < scene.cache->k_token_bytes / sizeof(float); i++)
            length += (double)wanted[i] * (double)wanted[i];
        for (uint32_t i = 0; i < scene.cache->k_token_bytes / sizeof(float); i++)
            ck_assert_double_le(fabs((double)k[i] - (double)wanted[i]), 4e-6 * sqrt(length));
    }
    larder_blend_close(scene.blend);

    result = scene_run(&scene, "full");
    ck_assert(result->whole);
    ck_assert_int_eq(memcmp(scene.logits, scene.wanted, scene.vocab * sizeof(float)), 0);
    larder_blend_close(scene.blend);
    larder_blend_splice_free(&prompt);
    scene_close(&scene);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend_splice");
    TCase *all = tcase_create("blend_splice");
    tcase_set_timeout(all, 240);
    tcase_add_test(all, test_edits);
    tcase_add_test(all, test_wrong_edits);
    tcase_add_test(all, test_blended);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
