/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the text of a recipe is read as its grammar says, errors name place, finding and choice,
 *         and sections cover a model's planes exactly once.
 * Method: good and bad texts against the expected stored text or message; all sections of models of
 *         uneven shape; wrong capacities and workspaces. */
#include "codec/codec.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"

static struct larder_recipe *open_recipe(const char *text)
{
    struct larder_recipe *recipe = NULL;
    ck_assert_int_eq(larder_recipe_open(&recipe, text), 0);
    ck_assert_ptr_nonnull(recipe);
    return recipe;
}

static const struct larder_model_desc uneven = {
    .layers = 3, .kv_heads = 2, .k_dims = 24, .v_dims = 40, .dtype = LARDER_BF16, .vocab = 100};

START_TEST(good_texts)
{
    static const struct {
        const char *text;
        const char *stored;
        bool is_raw;
    } cases[] = {
        {"raw", "raw", true},
        {"exact", "exact", false},
        {"  exact ", "exact", false},
        {"plain", "plain", true},
        {"byteplanes", "byteplanes", false},
        {"k{exact} v{raw}", "k{exact} v{raw}", false},
        {"k{exact}v{raw}", "k{exact} v{raw}", false},
        {" k { raw } v { plain } ", "k{raw} v{plain}", true},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe = open_recipe(cases[i].text);
        ck_assert_str_eq(larder_recipe_text(recipe), cases[i].stored);
        ck_assert_int_eq(larder_recipe_is_raw(recipe), cases[i].is_raw);
        ck_assert_int_eq((int)larder_recipe_quality(recipe), LARDER_QUALITY_EXACT);
        /* What is stored is read back as itself. */
        struct larder_recipe *again = open_recipe(larder_recipe_text(recipe));
        ck_assert_str_eq(larder_recipe_text(again), cases[i].stored);
        larder_recipe_close(again);
        larder_recipe_close(recipe);
    }
}
END_TEST

START_TEST(bad_texts)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"", "recipe '', character 1: found the end, allowed: raw, exact, plain, byteplanes"},
        {"kivi2", "recipe 'kivi2', character 1: found 'kivi2', allowed: raw, exact, plain, "
                  "byteplanes"},
        {"raw exact", "recipe 'raw exact', character 5: found 'exact', allowed: the end"},
        {"k{exact} w{raw}", "recipe 'k{exact} w{raw}', character 10: found 'w', allowed: 'v'"},
        {"k{exact}", "recipe 'k{exact}', character 9: found the end, allowed: 'v'"},
        {"k(exact)", "recipe 'k(exact)', character 2: found '(', allowed: '{'"},
        {"k{exact v{raw}", "recipe 'k{exact v{raw}', character 9: found 'v', allowed: '}'"},
        {"exact(3)", "recipe 'exact(3)', character 6: found '(', allowed: the end"},
        {"k{}v{}",
         "recipe 'k{}v{}', character 3: found '}', allowed: raw, exact, plain, byteplanes"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe = (struct larder_recipe *)&recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, cases[i].text), -EINVAL);
        ck_assert_ptr_null(recipe);
        ck_assert_str_eq(larder_error_message(), cases[i].message);
    }
}
END_TEST

START_TEST(long_and_wild_texts)
{
    static char text[LARDER_RECIPE_BYTES_MAX + 2];
    struct larder_recipe *recipe;
    memset(text, ' ', sizeof(text) - 1);
    memcpy(text, "raw", 3);
    ck_assert_int_eq(larder_recipe_open(&recipe, text), -EINVAL);
    text[LARDER_RECIPE_BYTES_MAX - 1] = '\0';
    ck_assert_int_eq(larder_recipe_open(&recipe, text), 0);
    larder_recipe_close(recipe);
    memset(text, 'x', LARDER_RECIPE_BYTES_MAX - 1);
    ck_assert_int_eq(larder_recipe_open(&recipe, text), -EINVAL);

    srand(1);
    static const char *const words[] = {"k", "v", "{", "}", "raw", "exact", " ", "\x80", "(", "k{"};
    for (int round = 0; round < 20000; round++) {
        text[0] = '\0';
        for (int i = rand() % 12; i > 0; i--)
            strcat(text, words[(size_t)rand() % LARDER_COUNT_OF(words)]);
        if (larder_recipe_open(&recipe, text) == 0)
            larder_recipe_close(recipe);
    }
}
END_TEST

START_TEST(no_memory_is_an_error)
{
    struct larder_recipe *recipe;
    larder_mem_fail_at(1);
    ck_assert_int_eq(larder_recipe_open(&recipe, "raw"), -ENOMEM);
    larder_mem_fail_at(0);
}
END_TEST

START_TEST(presets_and_descriptions)
{
    uint32_t count = 0;
    const char *summary = NULL;
    for (const char *name; (name = larder_recipe_preset(count, &summary)); count++) {
        char text[400];
        ck_assert_ptr_nonnull(summary);
        struct larder_recipe *recipe = open_recipe(name);
        ck_assert_int_eq(larder_recipe_describe(recipe, text, sizeof(text)), 0);
        ck_assert_uint_gt(strlen(text), 10);
        ck_assert_int_eq(larder_recipe_describe(recipe, text, 10), -ENOSPC);
        larder_recipe_close(recipe);
    }
    ck_assert_uint_eq(count, 2);
    ck_assert_ptr_nonnull(larder_recipe_preset(0, NULL));
}
END_TEST

START_TEST(sections_cover_the_model)
{
    struct larder_recipe *recipe = open_recipe("k{exact} v{raw}");
    uint32_t count = larder_recipe_section_count(recipe, &uneven);
    ck_assert_uint_eq(count, 6);
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct larder_slice slice;
        larder_recipe_slice(recipe, &slice, &uneven, i);
        ck_assert_uint_eq(slice.layer_first, i / 2);
        ck_assert_uint_eq(slice.layer_count, 1);
        ck_assert_uint_eq(slice.head_first, 0);
        ck_assert_uint_eq(slice.head_count, 2);
        ck_assert_uint_eq(slice.kind, i % 2);
        uint64_t raw = larder_slice_raw_bytes(&uneven, &slice, 7);
        ck_assert_uint_eq(raw, 2u * 7 * (i % 2 ? 40 : 24) * 2);
        ck_assert_uint_ge(larder_recipe_bound(recipe, &uneven, i, 7), raw);
        ck_assert_uint_le(larder_recipe_bound(recipe, &uneven, i, 7), raw + 32);
        total += raw;
    }
    ck_assert_uint_eq(total, 3u * 2 * 7 * (24 + 40) * 2);
    larder_recipe_close(recipe);
}
END_TEST

START_TEST(capacities_are_checked)
{
    struct larder_recipe *recipe = open_recipe("exact");
    uint64_t bound = larder_recipe_bound(recipe, &uneven, 1, 5);
    uint64_t need = larder_recipe_workspace_bytes(recipe, &uneven, 5);
    uint8_t planes[2 * 5 * 40 * 2] = {1, 2, 3};
    uint8_t out[900];
    ck_assert_uint_le(bound, sizeof(out));
    uint8_t *workspace = larder_alloc_aligned(64, need + 64);
    uint64_t bytes = 1;
    struct larder_section_error error;
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound - 1, &bytes, &error, &uneven, 1,
                                          planes, 5, workspace, need),
                     -EINVAL);
    ck_assert_uint_eq(bytes, 0);
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound, &bytes, &error, &uneven, 1, planes, 5,
                                          workspace, need - 1),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound, &bytes, &error, &uneven, 1, planes, 5,
                                          workspace + 8, need),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound, &bytes, &error, &uneven, 1, planes, 5,
                                          workspace, need),
                     0);
    ck_assert_uint_gt(bytes, 0);
    ck_assert_uint_le(bytes, bound);
    ck_assert(error.error_energy == 0);

    ck_assert_int_eq(larder_recipe_decode(recipe, planes, sizeof(planes) - 1, &uneven, 1, out,
                                          bytes, 5, workspace, need),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_decode(recipe, planes, sizeof(planes), &uneven, 1, out, bytes, 5,
                                          workspace, need - 1),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_decode(recipe, planes, sizeof(planes), &uneven, 1, out, bytes, 5,
                                          workspace, need),
                     0);
    larder_free(workspace);
    larder_recipe_close(recipe);
}
END_TEST

START_TEST(raw_is_the_planes)
{
    struct larder_recipe *recipe = open_recipe("raw");
    ck_assert_uint_eq(larder_recipe_workspace_bytes(recipe, &uneven, 5), 0);
    uint8_t planes[2 * 5 * 40 * 2];
    uint8_t out[sizeof(planes)];
    uint8_t back[sizeof(planes)];
    for (size_t i = 0; i < sizeof(planes); i++)
        planes[i] = (uint8_t)(i * 7);
    uint64_t bytes;
    struct larder_section_error error;
    ck_assert_int_eq(larder_recipe_encode(recipe, out, sizeof(out), &bytes, &error, &uneven, 1,
                                          planes, 5, NULL, 0),
                     0);
    ck_assert_uint_eq(bytes, sizeof(planes));
    ck_assert_mem_eq(out, planes, sizeof(planes));
    ck_assert_int_eq(
        larder_recipe_decode(recipe, back, sizeof(back), &uneven, 1, out, bytes, 5, NULL, 0), 0);
    ck_assert_mem_eq(back, planes, sizeof(planes));
    ck_assert_int_eq(
        larder_recipe_decode(recipe, back, sizeof(back), &uneven, 1, out, bytes - 1, 5, NULL, 0),
        LARDER_ECORRUPT);
    larder_recipe_close(recipe);
}
END_TEST

START_TEST(a_section_beyond_any_record_is_refused)
{
    const struct larder_model_desc huge = {.layers = 1,
                                           .kv_heads = 1024,
                                           .k_dims = 1024,
                                           .v_dims = 1024,
                                           .dtype = LARDER_F32,
                                           .vocab = 1};
    struct larder_recipe *recipe = open_recipe("exact");
    uint8_t byte = 0;
    uint64_t bytes;
    struct larder_section_error error;
    ck_assert_int_eq(larder_recipe_encode(recipe, &byte, UINT64_MAX, &bytes, &error, &huge, 0,
                                          &byte, 4096, &byte, UINT64_MAX),
                     LARDER_ELIMIT);
    ck_assert_int_eq(larder_recipe_decode(recipe, &byte, 1ull << 34, &huge, 0, &byte, 1, 4096,
                                          &byte, UINT64_MAX),
                     LARDER_ELIMIT);
    larder_recipe_close(recipe);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recipe");
    TCase *tests = tcase_create("recipe");
    tcase_add_test(tests, good_texts);
    tcase_add_test(tests, bad_texts);
    tcase_add_test(tests, long_and_wild_texts);
    tcase_add_test(tests, no_memory_is_an_error);
    tcase_add_test(tests, presets_and_descriptions);
    tcase_add_test(tests, sections_cover_the_model);
    tcase_add_test(tests, capacities_are_checked);
    tcase_add_test(tests, raw_is_the_planes);
    tcase_add_test(tests, a_section_beyond_any_record_is_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
