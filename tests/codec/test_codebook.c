/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what a profile says of channels' ranges and of levels is what recipes do with numbers;
 *         ranges and levels that make no sense are refused when a recipe is opened.
 * Method: f32 planes; the answer is worked out by slow code here and compared bit for bit; one
 *         fault a profile. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "codec/profile_writer.h"
#include "tests/codec/number_scene.h"

enum { BOOK_HEADS = 2, BOOK_DIMS = 12, BOOK_CHANNELS = BOOK_HEADS * BOOK_DIMS, BOOK_TOKENS = 40 };

/* Of three layers; all numbers of a layer are a little apart from those of the others. */
struct books {
    float low[3][BOOK_CHANNELS];
    float high[3][BOOK_CHANNELS];
    float levels[3][8];
    float norm[3][2];
    struct larder_profile *profile;
    void *bytes;
};

static void books_fill(struct books *b)
{
    for (int layer = 0; layer < 3; layer++) {
        for (int i = 0; i < BOOK_CHANNELS; i++) {
            b->low[layer][i] = -1.5f - 0.1f * (float)(i % 3 + layer);
            b->high[layer][i] = i == 7 ? b->low[layer][i] : 2 + 0.1f * (float)(i % 4);
        }
        for (int i = 0; i < 8; i++)
            b->levels[layer][i] = sinf((float)(2 * i - 7) * (0.2f + 0.01f * (float)layer));
        b->norm[layer][0] = 1.1f;
        b->norm[layer][1] = -0.02f * (float)layer;
    }
}

static int books_open(struct books *b)
{
    const struct larder_model_desc model = {.layers = 3,
                                            .kv_heads = BOOK_HEADS,
                                            .k_dims = BOOK_DIMS,
                                            .v_dims = BOOK_DIMS,
                                            .dtype = LARDER_F32,
                                            .vocab = 10};
    static const char *const names[2][4] = {
        {"kvquant.k.low", "kvquant.k.high", "kvquant.k.lut8", "kvquant.k.norm8"},
        {"kvquant.v.low", "kvquant.v.high", "kvquant.v.lut8", "kvquant.v.norm8"}};
    const float *const data[4] = {b->low[0], b->high[0], b->levels[0], b->norm[0]};
    static const uint64_t counts[4] = {BOOK_CHANNELS, BOOK_CHANNELS, 8, 2};
    struct larder_profile_writer *writer;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(larder_profile_put(writer, names[i / 4][i % 4], LARDER_PROFILE_F32,
                                            (uint64_t[]){3, counts[i % 4]}, 2, data[i % 4]),
                         0);
    uint64_t count;
    ck_assert_int_eq(larder_profile_finish(writer, &b->bytes, &count), 0);
    larder_profile_writer_close(writer);
    return larder_profile_open(&b->profile, b->bytes, count);
}

static void books_close(struct books *b)
{
    larder_profile_close(b->profile);
    larder_free(b->bytes);
}

/* The nearest level of a number between -1 and 1; the lower one of two that are as near. */
static uint32_t nearest(const float *levels, float x)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < 8; i++) {
        if (x > levels[best] / 2 + levels[i] / 2)
            best = i;
    }
    return best;
}

START_TEST(numbers_become_levels_of_a_code_book)
{
    struct books b;
    books_fill(&b);
    ck_assert_int_eq(books_open(&b), 0);
    for (uint32_t i = 0; i < 8; i++) {
        bool by_channel = i & 1;
        bool norm = i & 2;
        uint32_t section = i & 4 ? 5 : 2;
        uint32_t layer = section / 2;
        char text[80];
        snprintf(text, sizeof(text), "codebook bits=3 axis=%s norm=%s",
                 by_channel ? "channel" : "token", norm ? "on" : "off");
        struct scene s;
        scene_open_with(&s, b.profile, text, LARDER_F32, BOOK_HEADS, BOOK_DIMS, BOOK_TOKENS, 0,
                        section);
        ck_assert(larder_recipe_needs_profile(s.recipe));
        const float *x = floats_of(s.planes);
        float most = 0;
        for (uint32_t e = 0; e < s.count; e++)
            most = fmaxf(most, fabsf(x[e]));
        scene_run(&s);
        for (uint32_t e = 0; e < s.count; e++) {
            uint32_t token = e / BOOK_DIMS % BOOK_TOKENS;
            uint32_t channel = e / (BOOK_DIMS * BOOK_TOKENS) * BOOK_DIMS + e % BOOK_DIMS;
            float low = b.low[layer][channel];
            float high = b.high[layer][channel];
            for (uint32_t other = 0; other < BOOK_CHANNELS && !by_channel; other++) {
                float at =
                    x[(other / BOOK_DIMS * BOOK_TOKENS + token) * BOOK_DIMS + other % BOOK_DIMS];
                low = other == 0 ? at : fminf(low, at);
                high = other == 0 ? at : fmaxf(high, at);
            }
            float half = high / 2 - low / 2;
            float middle = high / 2 + low / 2;
            if (!by_channel) {
                half = stored_f16(half, most);
                middle = stored_f16(middle, most);
            }
            uint32_t q = nearest(b.levels[layer], half > 0 ? (x[e] - middle) / half : 0);
            float level = b.levels[layer][q];
            if (norm)
                level = level * b.norm[layer][0] + b.norm[layer][1];
            ck_assert(element(&s, s.decoded, e) == level * half + middle);
        }
        scene_close(&s);
    }
    books_close(&b);
}
END_TEST

START_TEST(what_lies_outside_of_thresholds_is_exact)
{
    struct books b;
    books_fill(&b);
    /* Wide enough that only the loudest channels leave them; that is more than an eighth below. */
    for (int layer = 0; layer < 3; layer++) {
        for (int i = 0; i < BOOK_CHANNELS; i++)
            b.high[layer][i] = b.low[layer][i] + 8;
    }
    ck_assert_int_eq(books_open(&b), 0);
    struct scene s;
    scene_open_with(&s, b.profile, "outliers by=thresholds axis=channel{quant bits=3 group=0}",
                    LARDER_F32, BOOK_HEADS, BOOK_DIMS, BOOK_TOKENS, 0, 3);
    float *x = floats_of(s.planes);
    float filled[BOOK_CHANNELS * BOOK_TOKENS];
    float wanted[BOOK_CHANNELS * BOOK_TOKENS];
    for (int pass = 0; pass < 2; pass++) {
        uint32_t outside = 0;
        for (uint32_t e = 0; e < s.count; e++) {
            uint32_t channel = e / (BOOK_DIMS * BOOK_TOKENS) * BOOK_DIMS + e % BOOK_DIMS;
            x[e] *= pass ? 4 : 0.4f;
            bool is_outside = x[e] < b.low[1][channel] || x[e] > b.high[1][channel];
            outside += is_outside;
            filled[e] = is_outside ? b.low[1][channel] / 2 + b.high[1][channel] / 2 : x[e];
        }
        ck_assert_uint_gt(outside, pass ? s.count / 8 : 0);
        scene_encode(&s);
        ck_assert_int_eq(s.error.fell_back, pass);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        if (pass)
            break;
        run_alone(wanted, &s, "quant bits=3 group=0", filled);
        for (uint32_t e = 0; e < s.count; e++) {
            uint32_t channel = e / (BOOK_DIMS * BOOK_TOKENS) * BOOK_DIMS + e % BOOK_DIMS;
            if (x[e] < b.low[1][channel] || x[e] > b.high[1][channel])
                wanted[e] = x[e];
        }
        ck_assert_mem_eq(s.decoded, wanted, s.planes_bytes);
    }
    scene_close(&s);
    books_close(&b);
}
END_TEST

START_TEST(odd_ranges_and_books_are_refused)
{
    static const char *const texts[] = {"codebook bits=3 axis=channel norm=on",
                                        "outliers by=thresholds axis=channel{quant}"};
    for (int fault = 0; fault < 7; fault++) {
        struct books b;
        books_fill(&b);
        if (fault == 1)
            b.high[2][3] = b.low[2][3] - 1;
        if (fault == 2)
            b.low[0][0] = -1e31f;
        if (fault == 3)
            b.levels[1][4] = b.levels[1][5];
        if (fault == 4)
            b.levels[2][7] = 5;
        if (fault == 5)
            b.norm[0][0] = 1e20f;
        ck_assert_int_eq(books_open(&b), 0);
        for (int i = 0; i < 2; i++) {
            struct larder_recipe *recipe;
            int wanted = fault == 0 || fault == 6 || (i == 1 && fault > 2) ? 0 : LARDER_EFORMAT;
            ck_assert_int_eq(larder_recipe_open(&recipe, texts[i], b.profile), wanted);
            larder_recipe_close(recipe);
        }
        books_close(&b);
    }
    /* Books of 16 levels are not in the profile; without one a recipe can be asked about. */
    struct books b;
    books_fill(&b);
    ck_assert_int_eq(books_open(&b), 0);
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, "codebook bits=4", b.profile),
                     LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "kvquant.k.lut16"));
    books_close(&b);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(larder_recipe_open(&recipe, texts[i], NULL), 0);
        ck_assert(larder_recipe_needs_profile(recipe));
        larder_recipe_close(recipe);
    }
    ck_assert_int_eq(larder_recipe_open(&recipe, "outliers{quant}", NULL), 0);
    ck_assert(!larder_recipe_needs_profile(recipe));
    larder_recipe_close(recipe);
    ck_assert_int_eq(larder_recipe_open(&recipe, "outliers by=thresholds{quant}", NULL), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("codebook");
    TCase *tests = tcase_create("codebook");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, numbers_become_levels_of_a_code_book);
    tcase_add_test(tests, what_lies_outside_of_thresholds_is_exact);
    tcase_add_test(tests, odd_ranges_and_books_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
