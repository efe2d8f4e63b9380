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
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), 0);
    ck_assert_ptr_nonnull(recipe);
    return recipe;
}

static const struct larder_model_desc uneven = {
    .layers = 3, .kv_heads = 2, .k_dims = 24, .v_dims = 40, .dtype = LARDER_BF16, .vocab = 100};
static const struct larder_block five = {.model = &uneven, .token_count = 5};

START_TEST(good_texts)
{
    static const struct {
        const char *text;
        const char *stored;
        bool is_raw;
        bool lossy;
    } cases[] = {
        {"raw", "raw", true, false},
        {"exact", "exact", false, false},
        {"  exact ", "exact", false, false},
        {"plain", "plain", true, false},
        {"byteplanes", "byteplanes", false, false},
        {"k{exact} v{raw}", "k{exact} v{raw}", false, false},
        {"k{exact}v{raw}", "k{exact} v{raw}", false, false},
        {" k { raw } v { plain } ", "k{raw} v{plain}", true, false},
        {"kivi4", "kivi4", false, true},
        {"k{exact}v{kivi2}", "k{exact} v{kivi2}", false, true},
        {"rope-off|hadamard heads = 2|quant bits=2 axis=token  group=128 clip=0.8",
         "rope-off | hadamard heads=2 | quant bits=2 axis=token group=128 clip=0.8", false, true},
        {"quant|rans", "quant | rans", false, true},
        {"sinks tokens=4 {rope-off | kivi2}", "sinks tokens=4{rope-off | kivi2}", false, true},
        {"layers( 0-9 ){quant bits=4}layers(12) {kivi2} else {quant bits=2}",
         "layers(0-9){quant bits=4} layers(12){kivi2} else{quant bits=2}", false, true},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe = open_recipe(cases[i].text);
        ck_assert_str_eq(larder_recipe_text(recipe), cases[i].stored);
        ck_assert_int_eq(larder_recipe_is_raw(recipe), cases[i].is_raw);
        ck_assert_int_eq((int)larder_recipe_quality(recipe),
                         cases[i].lossy ? LARDER_QUALITY_LOSSY : LARDER_QUALITY_EXACT);
        /* What is stored is read back as itself. */
        struct larder_recipe *again = open_recipe(larder_recipe_text(recipe));
        ck_assert_str_eq(larder_recipe_text(again), cases[i].stored);
        larder_recipe_close(again);
        larder_recipe_close(recipe);
    }
}
END_TEST

#define NAMES "a preset or a stage ('larder recipe ls' names them)"

START_TEST(bad_texts)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"", "recipe '', character 1: found the end, allowed: " NAMES},
        {"kivi7", "recipe 'kivi7', character 1: found 'kivi7', allowed: " NAMES},
        {"raw exact", "recipe 'raw exact', character 5: found 'exact', allowed: the end"},
        {"k{exact} w{raw}", "recipe 'k{exact} w{raw}', character 10: found 'w', allowed: 'v'"},
        {"k{exact}", "recipe 'k{exact}', character 9: found the end, allowed: 'v'"},
        {"k(exact)", "recipe 'k(exact)', character 2: found '(', allowed: '{'"},
        {"k{exact v{raw}", "recipe 'k{exact v{raw}', character 9: found 'v', allowed: '}'"},
        {"exact(3)", "recipe 'exact(3)', character 6: found '(', allowed: the end"},
        {"k{}v{}", "recipe 'k{}v{}', character 3: found '}', allowed: " NAMES},
        {"quant bits=9", "recipe 'quant bits=9', character 12: found '9', allowed: bits=, a whole "
                         "number from 1 to 8"},
        {"quant bits=2.5", "recipe 'quant bits=2.5', character 12: found '2.5', allowed: bits=, a "
                           "whole number from 1 to 8"},
        {"quant axis=head", "recipe 'quant axis=head', character 12: found 'head', allowed: "
                            "axis=, one of: token channel"},
        {"quant bits=2 bits=3",
         "recipe 'quant bits=2 bits=3', character 14: found 'bits', "
         "allowed: bits, levels, axis, group, clip, mode, parts (once each)"},
        {"rope-off x=1 | quant", "recipe 'rope-off x=1 | quant', character 10: found 'x', allowed: "
                                 "the end"},
        {"quant bits=1 mode=sym", "quant: mode=sym has too few levels; sym needs 3, the others 2"},
        {"quant axis=channel group=24", "quant: group=24 with axis=channel; it must be a multiple "
                                        "of 16"},
        {"hadamard", "recipe 'hadamard', character 9: found the end, allowed: '|'"},
        {"quant | quant", "recipe 'quant | quant', character 9: found 'quant', allowed: 'rans'"},
        {"rans", "recipe 'rans', character 1: rans stands behind a quantizer, as in 'quant bits=4 "
                 "| rans'"},
        {"sinks quant", "recipe 'sinks quant', character 7: found 'quant', allowed: tokens (once "
                        "each)"},
        {"hadamard | raw", "recipe 'plain', character 1: plain keeps whole planes; no other stage "
                           "can stand around it"},
        {"layers(3-1){quant} else{quant}", "recipe 'layers(3-1){quant} else{quant}', character 8: "
                                           "found '3-1', allowed: layers as FIRST-LAST"},
        {"layers(0-1){quant}", "recipe 'layers(0-1){quant}', character 19: found the end, "
                               "allowed: 'layers'"},
        {"sinks{sinks{sinks{sinks{sinks{quant}}}}}",
         "recipe 'sinks{sinks{sinks{sinks{sinks{quant}}}}}', character 30: braces are nested more "
         "than 4 deep"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe = (struct larder_recipe *)&recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, cases[i].text, NULL), -EINVAL);
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
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), -EINVAL);
    text[LARDER_RECIPE_BYTES_MAX] = '\0';
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), 0);
    larder_recipe_close(recipe);
    memset(text, 'x', LARDER_RECIPE_BYTES_MAX);
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), -EINVAL);
    /* Short enough as it is given, too long with spaces in their places; too many stages. */
    for (uint32_t i = 0; i < LARDER_RECIPE_BYTES_MAX; i++)
        text[i] = "rope-off|"[i % 9];
    ck_assert_int_eq(larder_recipe_open(&recipe, text, NULL), -EINVAL);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "more than 64 stages"));

    srand(1);
    static const char *const words[] = {
        "k",     "v", "{", "}",      "raw", "exact",     " ",       "\x80", "(",     "k{",
        "quant", "|", "=", " bits=", "2",   "hadamard ", "layers(", ")",    "else{", "sinks{"};
    for (int round = 0; round < 20000; round++) {
        text[0] = '\0';
        for (int i = rand() % 12; i > 0; i--)
            strcat(text, words[(size_t)rand() % LARDER_COUNT_OF(words)]);
        if (larder_recipe_open(&recipe, text, NULL) == 0)
            larder_recipe_close(recipe);
    }
}
END_TEST

START_TEST(no_memory_is_an_error)
{
    struct larder_recipe *recipe;
    larder_mem_fail_at(1);
    ck_assert_int_eq(larder_recipe_open(&recipe, "raw", NULL), -ENOMEM);
    larder_mem_fail_at(0);
}
END_TEST

START_TEST(presets_and_descriptions)
{
    uint32_t count = 0;
    const char *summary = NULL;
    for (const char *name; (name = larder_recipe_preset(count, &summary)); count++) {
        char text[16384];
        ck_assert_ptr_nonnull(summary);
        struct larder_recipe *recipe = open_recipe(name);
        ck_assert_int_eq(larder_recipe_describe(recipe, text, sizeof(text)), 0);
        ck_assert_uint_gt(strlen(text), 10);
        ck_assert_int_eq(larder_recipe_describe(recipe, text, 10), -ENOSPC);
        larder_recipe_close(recipe);
    }
    ck_assert_uint_ge(count, 6);
    ck_assert_ptr_nonnull(larder_recipe_preset(0, NULL));
    /* Two pipes of a stage are told apart. */
    char text[1000];
    struct larder_recipe *pair = open_recipe("residual{quant bits=4}{quant bits=2}");
    ck_assert_int_eq(larder_recipe_describe(pair, text, sizeof(text)), 0);
    ck_assert_ptr_nonnull(strstr(text, "pipe 1:\n      quant bits=4 "));
    ck_assert_ptr_nonnull(strstr(text, "pipe 2:\n      quant bits=2 "));
    larder_recipe_close(pair);
    /* Every name means one thing. */
    for (uint32_t i = 0; larder_recipe_stage(i, &summary); i++) {
        ck_assert_uint_gt(strlen(summary), 10);
        for (uint32_t j = 0; j < count; j++)
            ck_assert_str_ne(larder_recipe_stage(i, NULL), larder_recipe_preset(j, NULL));
    }
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
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound - 1, &bytes, &error, &five, 1, planes,
                                          workspace, need),
                     -EINVAL);
    ck_assert_uint_eq(bytes, 0);
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound, &bytes, &error, &five, 1, planes,
                                          workspace, need - 1),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_encode(recipe, out, bound, &bytes, &error, &five, 1, planes,
                                          workspace + 8, need),
                     -EINVAL);
    ck_assert_int_eq(
        larder_recipe_encode(recipe, out, bound, &bytes, &error, &five, 1, planes, workspace, need),
        0);
    ck_assert_uint_gt(bytes, 0);
    ck_assert_uint_le(bytes, bound);
    ck_assert(error.error_energy == 0);

    ck_assert_int_eq(larder_recipe_decode(recipe, planes, sizeof(planes) - 1, &five, 1, out, bytes,
                                          workspace, need),
                     -EINVAL);
    ck_assert_int_eq(larder_recipe_decode(recipe, planes, sizeof(planes), &five, 1, out, bytes,
                                          workspace, need - 1),
                     -EINVAL);
    ck_assert_int_eq(
        larder_recipe_decode(recipe, planes, sizeof(planes), &five, 1, out, bytes, workspace, need),
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
    ck_assert_int_eq(
        larder_recipe_encode(recipe, out, sizeof(out), &bytes, &error, &five, 1, planes, NULL, 0),
        0);
    ck_assert_uint_eq(bytes, sizeof(planes));
    ck_assert_mem_eq(out, planes, sizeof(planes));
    ck_assert_int_eq(
        larder_recipe_decode(recipe, back, sizeof(back), &five, 1, out, bytes, NULL, 0), 0);
    ck_assert_mem_eq(back, planes, sizeof(planes));
    ck_assert_int_eq(
        larder_recipe_decode(recipe, back, sizeof(back), &five, 1, out, bytes - 1, NULL, 0),
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
    const struct larder_block block = {.model = &huge, .token_count = 4096};
    struct larder_recipe *recipe = open_recipe("exact");
    uint8_t byte = 0;
    uint64_t bytes;
    struct larder_section_error error;
    ck_assert_int_eq(larder_recipe_encode(recipe, &byte, UINT64_MAX, &bytes, &error, &block, 0,
                                          &byte, &byte, UINT64_MAX),
                     LARDER_ELIMIT);
    ck_assert_int_eq(
        larder_recipe_decode(recipe, &byte, 1ull << 34, &block, 0, &byte, 1, &byte, UINT64_MAX),
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
