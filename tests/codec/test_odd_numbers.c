/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   zeros, constants, subnormal and huge numbers, one token, odd shapes come back about as
 *         they were through every wrapper; what is no number comes back as it was; scores may be
 *         anything.
 * Method: 8 bits or the numbers themselves inside, so that only the wrapper can spoil them. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tests/codec/number_scene.h"

/* Numbers of which a test fills its planes. */
static float odd_number(int kind, uint64_t index)
{
    switch (kind) {
    case 0:
        return 0;
    case 1:
        return -7.25f;
    case 2: /* subnormal ones, of both signs */
        return (float)(index % 19) * (index % 2 ? 1e-45f : -3e-41f);
    case 3: /* as large as there are, and nothing between */
        return index % 3 ? 3.3e38f : -3.3e38f;
    case 4: /* one loud number in silence */
        return index == 37 ? 1e30f : 0;
    default:
        return 1 + (float)(index % 11) / 11;
    }
}

static const char *const all_wrappers[] = {
    "normalize | quant bits=8",
    "balance | quant bits=8",
    "join | quant bits=8 group=100",
    "residual{quant bits=4}{quant bits=4}",
    "lowrank rank=2{quant bits=8}",
    "outliers share=.1 axis=channel fill=mean{quant bits=8 axis=channel group=16}",
    "outliers share=.1 axis=token{quant bits=8 group=0}",
    "split share=.3{keep}{quant bits=8}",
    "split by=class share=.3{quant bits=8 axis=channel group=0}{quant bits=8}",
    "balance | split by=class heads=each share=.4{keep}{normalize | quant bits=8 parts=2}",
    "lowrank{outliers share=.02 axis=token fill=mean{quant bits=8 axis=token group=64}}",
};

/* Tokens and dims of one, odd, not a power of two. */
START_TEST(odd_numbers_in_odd_shapes)
{
    static const uint32_t shapes[][3] = {{2, 7, 1}, {3, 1, 20}, {1, 13, 33}, {2, 96, 5}};
    for (size_t i = 0; i < LARDER_COUNT_OF(all_wrappers) * LARDER_COUNT_OF(shapes); i++) {
        const uint32_t *shape = shapes[i % LARDER_COUNT_OF(shapes)];
        const char *text = all_wrappers[i / LARDER_COUNT_OF(shapes)];
        for (int kind = 0; kind < 6; kind++) {
            struct scene s;
            scene_open(&s, text, LARDER_F32, shape[0], shape[1], shape[2], 0, 2 + i % 2);
            float most = 0;
            for (uint64_t e = 0; e < s.count; e++) {
                floats_of(s.planes)[e] = odd_number(kind, e);
                most = fmaxf(most, fabsf(floats_of(s.planes)[e]));
            }
            scene_encode(&s);
            ck_assert_msg(scene_decode(&s, s.encoded, s.encoded_bytes) == 0, "%s: %s", text,
                          larder_error_message());
            for (uint64_t e = 0; e < s.count; e++) {
                float was = odd_number(kind, e);
                float is = element(&s, s.decoded, e);
                /* Subnormal numbers may be flushed to zero, by scales that are too small. */
                float off_max = kind == 2 ? 1e-37f : most * 0.02f;
                ck_assert_msg(fabsf(is / 2 - was / 2) <= off_max, "%s, %u x %u x %u, %d: %g is %g",
                              text, shape[0], shape[1], shape[2], kind, (double)was, (double)is);
            }
            scene_close(&s);
        }
    }
}
END_TEST

START_TEST(what_is_no_number_is_kept_exact)
{
    static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x7fc00001, 0xffffffff};
    for (size_t i = 0; i < LARDER_COUNT_OF(all_wrappers) * LARDER_COUNT_OF(odd); i++) {
        struct scene s;
        scene_open(&s, all_wrappers[i / LARDER_COUNT_OF(odd)], LARDER_F32, 2, 24, 40, 0, 1);
        memcpy(s.planes + 4 * (i * 31 % s.count), &odd[i % LARDER_COUNT_OF(odd)], 4);
        scene_encode(&s);
        ck_assert(s.error.fell_back);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        ck_assert_mem_eq(s.decoded, s.planes, s.planes_bytes);
        scene_close(&s);
    }
}
END_TEST

/* Scores may be anything: what is no number is the least important. */
START_TEST(odd_scores)
{
    struct scene s;
    scene_open(&s, "split by=class share=.25{keep}{quant bits=1 group=0 clip=.1}", LARDER_F32, 1, 8,
               16, 0, 0);
    static const float odd[16] = {NAN, -INFINITY, 3, INFINITY, -1, 0, -0.0f, 2,
                                  3,   3,         1, NAN,      -2, 1, 1,     1};
    memcpy(s.importance, odd, sizeof(odd));
    scene_run(&s);
    for (uint32_t token = 0; token < 16; token++) {
        bool same = memcmp(s.decoded + token * 32, s.planes + token * 32, 32) == 0;
        ck_assert_int_eq(same, token == 2 || token == 3 || token == 8 || token == 9);
    }
    scene_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("odd_numbers");
    TCase *tests = tcase_create("odd_numbers");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, odd_numbers_in_odd_shapes);
    tcase_add_test(tests, what_is_no_number_is_kept_exact);
    tcase_add_test(tests, odd_scores);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
