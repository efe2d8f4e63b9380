/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what stands around a quantizer does what it says: what it takes out of the numbers, what
 *         it hands on, what it puts back; inputs of a PUT are asked for when they are missing.
 * Method: f32 planes; the wrapper's part is worked out by slow code here, the inner recipe alone
 *         is run over what that hands on, and both together must be the wrapped recipe's answer,
 *         bit for bit unless said. That bytes are small, survive cuts and flips, and give the
 *         recorded error is in test_numbers.c, for the same recipes. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"
#include "tests/codec/number_scene.h"

static float *floats_of(uint8_t *planes)
{
    return (float *)(void *)planes;
}

/* What `text` alone gives for these numbers of the scene's shape. */
static void run_alone(float *out, const struct scene *like, const char *text, const float *x)
{
    struct scene s;
    scene_open(&s, text, LARDER_F32, like->model.kv_heads, like->model.k_dims,
               like->block.token_count, like->block.position, like->section);
    memcpy(s.planes, x, s.planes_bytes);
    scene_encode(&s);
    ck_assert(!s.error.fell_back);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    memcpy(out, s.decoded, s.planes_bytes);
    scene_close(&s);
}

static void run(struct scene *s)
{
    scene_encode(s);
    ck_assert(!s->error.fell_back);
    ck_assert_int_eq(scene_decode(s, s->encoded, s->encoded_bytes), 0);
    (void)relative_error(s);
}

/* f16 of `x` as leaves store it beside numbers of which `most` is the largest. */
static float stored_f16(float x, float most)
{
    int exponent = 0;
    (void)frexpf(most, &exponent);
    float unit = ldexpf(1, 14 - exponent);
    return float_from_f16(f16_from_float(x * unit)) / unit;
}

/* --- balance and normalize -------------------------------------------------------------------- */

static void check_scaled(const char *name, uint32_t section)
{
    enum { HEADS = 2, DIMS = 24, TOKENS = 50 };
    static const char inner[] = "quant bits=3 axis=token group=0";
    char text[80];
    snprintf(text, sizeof(text), "%s | %s", name, inner);
    bool is_balance = strcmp(name, "balance") == 0;
    struct scene s;
    scene_open(&s, text, LARDER_F32, HEADS, DIMS, TOKENS, 0, section);
    const float *x = floats_of(s.planes);
    float factors[HEADS * DIMS];
    float most = 0;
    for (uint32_t i = 0; i < HEADS * DIMS; i++) {
        float largest = 0;
        for (uint32_t token = 0; token < TOKENS; token++)
            largest = fmaxf(largest, fabsf(x[(i / DIMS * TOKENS + token) * DIMS + i % DIMS]));
        const float *q_max = s.q_max + section / 2 * HEADS * DIMS;
        double ratio = is_balance ? (double)largest / (double)q_max[i] : (double)largest;
        factors[i] = is_balance && section % 2 ? 1 : (float)sqrt(ratio);
        most = fmaxf(most, factors[i]);
    }
    float scaled[HEADS * DIMS * TOKENS];
    float wanted[HEADS * DIMS * TOKENS];
    for (uint32_t i = 0; i < HEADS * DIMS; i++)
        factors[i] = stored_f16(factors[i], most);
    for (uint32_t i = 0; i < s.count; i++)
        scaled[i] = x[i] / factors[i / (TOKENS * DIMS) * DIMS + i % DIMS];
    run_alone(wanted, &s, inner, scaled);
    for (uint32_t i = 0; i < s.count; i++)
        wanted[i] *= factors[i / (TOKENS * DIMS) * DIMS + i % DIMS];
    run(&s);
    ck_assert_mem_eq(s.decoded, wanted, s.planes_bytes);
    scene_close(&s);
}

START_TEST(channels_are_scaled_by_their_factors)
{
    check_scaled("normalize", 0);
    check_scaled("normalize", 3);
    check_scaled("balance", 2);
    check_scaled("balance", 3);
}
END_TEST

/* A channel of zeros, queries that are zero, infinite or no number do no harm. */
START_TEST(factors_of_odd_channels)
{
    struct scene s;
    scene_open(&s, "balance | normalize | quant bits=8 group=0", LARDER_F32, 1, 8, 16, 0, 0);
    static const float odd[] = {0, INFINITY, NAN, -1, 1e-45f, 1};
    memcpy(s.q_max, odd, sizeof(odd));
    float *x = floats_of(s.planes);
    for (uint32_t token = 0; token < 16; token++)
        x[token * 8 + 6] = 0;
    run(&s);
    ck_assert(relative_error(&s) < 0.05);
    for (uint32_t token = 0; token < 16; token++)
        ck_assert(fabsf(element(&s, s.decoded, token * 8 + 6)) < 0.1f);
    scene_close(&s);
}
END_TEST

/* --- inputs ----------------------------------------------------------------------------------- */

START_TEST(missing_inputs_are_named)
{
    static const struct {
        const char *text;
        uint32_t needs;
        const char *message;
    } cases[] = {
        {"kivi2", 0, ""},
        {"balance | quant", LARDER_INPUT_Q_MAX, "larder_put_options.q_max"},
        {"k{sinks{balance | quant}} v{quant}", LARDER_INPUT_Q_MAX, "larder_put_options.q_max"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct scene s;
        scene_open(&s, cases[i].text, LARDER_BF16, 2, 16, 20, 0, 1);
        ck_assert_uint_eq(larder_recipe_needs(s.recipe), cases[i].needs);
        scene_encode(&s);
        /* Decoding asks for nothing. */
        s.block.importance = NULL;
        s.block.q_max = NULL;
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        int err =
            larder_recipe_encode(s.recipe, s.encoded, s.bound, &s.encoded_bytes, &s.error, &s.block,
                                 s.section, s.planes, s.workspace, s.workspace_bytes);
        ck_assert_int_eq(err, cases[i].needs ? -EINVAL : 0);
        if (err < 0)
            ck_assert_ptr_nonnull(strstr(larder_error_message(), cases[i].message));
        scene_close(&s);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("wrappers");
    TCase *tests = tcase_create("wrappers");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, channels_are_scaled_by_their_factors);
    tcase_add_test(tests, factors_of_odd_channels);
    tcase_add_test(tests, missing_inputs_are_named);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
