/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the figures that larder-eval is believed for are right.
 * Method: divergences of distributions whose KL is known by hand; spreads of counted values; hulls
 * of points drawn by hand, and of random ones against the definition: nothing lies below a hull.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "tools/eval/stats.h"

#define NEAR(a, b) ck_assert_double_eq_tol(a, b, 1e-6)

START_TEST(test_kl)
{
    const float p[] = {logf(.5f), logf(.25f), logf(.25f)};
    const float q[] = {logf(.25f), logf(.5f), logf(.25f)};
    NEAR(eval_kl(p, q, 3), .25 * M_LN2);
    ck_assert_double_eq(eval_kl(p, p, 3), 0);
    /* Logits that are no numbers must not look as good as the same distribution. */
    const float broken[] = {NAN, NAN, NAN};
    ck_assert(!isfinite(eval_kl(p, broken, 3)));
    ck_assert(!isfinite(eval_kl(broken, p, 3)));
    ck_assert_uint_eq(eval_largest(p, 3), 0);
    ck_assert_uint_eq(eval_largest(q, 3), 1);
    const float tied[] = {1, 2, 2};
    ck_assert_uint_eq(eval_largest(tied, 3), 1);
}
END_TEST

/* Large logits overflow no exponent, and a shift changes nothing. */
START_TEST(test_softmax)
{
    float logits[] = {1000, 1000.6931f, -1000};
    float out[3];
    eval_log_softmax(out, logits, 3);
    ck_assert_double_eq_tol(exp((double)out[0]), 1 / 3.0, 1e-4);
    ck_assert_double_eq_tol(exp((double)out[1]), 2 / 3.0, 1e-4);
    ck_assert_double_lt((double)out[2], -1900);
    eval_log_softmax(logits, logits, 3);
    for (int i = 0; i < 3; i++)
        ck_assert_float_eq(logits[i], out[i]);
}
END_TEST

START_TEST(test_spread)
{
    float values[200];
    for (int i = 0; i < 200; i++)
        values[i] = (float)(199 - i);
    struct eval_spread spread;
    eval_spread_of(&spread, values, 200);
    NEAR(spread.mean, 99.5);
    NEAR(spread.p99, 197);
    NEAR(spread.worst_decile, 189.5);
    NEAR(spread.mean_error, sqrt((200.0 * 200 - 1) / 12 / 200));
    float one = 3;
    eval_spread_of(&spread, &one, 1);
    NEAR(spread.mean, 3);
    NEAR(spread.p99, 3);
    NEAR(spread.worst_decile, 3);
    NEAR(spread.mean_error, 0);
    eval_spread_of(&spread, values, 0);
    NEAR(spread.mean, 0);
}
END_TEST

START_TEST(test_hull)
{
    struct eval_point points[] = {
        {4, .001, 0},  {2, .1, 1},   {3, .05, 2}, /* above the line from 2 to 4 */
        {5, .002, 3},                             /* larger and worse */
        {6, .0001, 4}, {4, .003, 5},
    };
    size_t count = eval_hull(points, 6);
    ck_assert_uint_eq(count, 3);
    ck_assert_uint_eq(points[0].index, 1);
    ck_assert_uint_eq(points[1].index, 0);
    ck_assert_uint_eq(points[2].index, 4);
    NEAR(eval_hull_bits(points, count, .01), 3);
    NEAR(eval_hull_bits(points, count, .5), 2);
    NEAR(eval_hull_bits(points, count, .001), 4);
    ck_assert(isinf(eval_hull_bits(points, count, .00001)));
    NEAR(eval_hull_kl(points, count, 3), .01);
    NEAR(eval_hull_kl(points, count, 2), .1);
    NEAR(eval_hull_kl(points, count, 9), .0001);
    ck_assert(isinf(eval_hull_kl(points, count, 1.9)));
    ck_assert_uint_eq(eval_hull(points, 0), 0);
    ck_assert(isinf(eval_hull_bits(points, 0, .01)));
    ck_assert(isinf(eval_hull_kl(points, 0, 3)));
}
END_TEST

START_TEST(test_hull_random)
{
    enum { COUNT = 40 };
    srand((unsigned)_i);
    struct eval_point points[COUNT];
    struct eval_point hull[COUNT];
    for (int i = 0; i < COUNT; i++) {
        points[i].bits = 1 + (double)rand() / RAND_MAX * 8;
        points[i].kl = exp(-points[i].bits * (double)rand() / RAND_MAX);
        points[i].index = (size_t)i;
        hull[i] = points[i];
    }
    size_t count = eval_hull(hull, COUNT);
    ck_assert_uint_ge(count, 1);
    for (size_t i = 1; i < count; i++) {
        ck_assert_double_gt(hull[i].bits, hull[i - 1].bits);
        ck_assert_double_lt(hull[i].kl, hull[i - 1].kl);
    }
    for (int i = 0; i < COUNT; i++) {
        ck_assert_double_ge(points[i].bits, hull[0].bits);
        ck_assert_double_ge(points[i].kl, eval_hull_kl(hull, count, points[i].bits) * (1 - 1e-9));
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval_stats");
    TCase *all = tcase_create("all");
    tcase_add_test(all, test_kl);
    tcase_add_test(all, test_softmax);
    tcase_add_test(all, test_spread);
    tcase_add_test(all, test_hull);
    tcase_add_loop_test(all, test_hull_random, 0, 50);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
