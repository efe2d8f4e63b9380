/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: rows of blending are means over samples with their standard errors, differences are taken
 * sample by sample, and each promise is held or failed by the numbers it speaks of.
 * Method: made-up answers, and plain definitions beside them.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools/eval/blend_claims.h"
#include "tools/eval/blend_methods.h"
#include "tools/eval/blend_rows.h"

#define SAMPLES 4u
#define TRIALS  64u

static const struct eval_blend_recipe raw = {.text = "raw"};
static const struct eval_blend_recipe lossy = {.text = "kivi4"};

static struct eval_blend_trial trials[TRIALS];
static struct eval_answers answers[TRIALS + 1][SAMPLES];
static struct eval_blend_work work;

static void start_work(uint32_t people)
{
    memset(trials, 0, sizeof(trials));
    memset(answers, 0, sizeof(answers));
    work = (struct eval_blend_work){.people = people,
                                    .samples = SAMPLES,
                                    .turns = 2,
                                    .trials = trials,
                                    .check_layer = 3,
                                    .references = answers[TRIALS]};
}

/* Answers that are right so often, at such a divergence, plus what tells samples apart. */
static void fill_answers(struct eval_answers *out, double cross, double kl, double share)
{
    for (uint32_t i = 0; i < SAMPLES; i++) {
        out[i] = (struct eval_answers){.share = share, .blend_s = .5 * share + i};
        for (int kind = 0; kind < EVAL_KINDS; kind++) {
            out[i].asked[kind] = 100;
            out[i].bytes[kind] = 50;
            out[i].kl[kind] = 50 * kl * (kind == EVAL_CROSS ? 2 : 0) * (i + 1) / 2.5;
        }
        out[i].right[EVAL_DIRECT] = 99;
        out[i].right[EVAL_CROSS] = (uint32_t)lround(100 * cross) + i % 2;
        out[i].turn_kind[0] = EVAL_CROSS;
        out[i].turn_kind[1] = (uint8_t)(i % 2 ? EVAL_CROSS : EVAL_DIRECT);
        out[i].turn_right[0] = i != 2;
        out[i].turn_right[1] = 1;
    }
}

static void add(const char *family, const char *text, const struct eval_blend_recipe *chunks,
                double cross, double kl, double share)
{
    ck_assert_uint_lt(work.trial_count, TRIALS);
    struct eval_blend_trial *trial = &trials[work.trial_count];
    trial->family = family;
    trial->chunks = chunks;
    eval_blend_fill(trial->method, text, work.check_layer);
    trial->answers = answers[work.trial_count++];
    fill_answers(trial->answers, cross, kl, share);
}

START_TEST(check_layers_are_filled_in)
{
    char text[EVAL_BLEND_TEXT_MAX];
    eval_blend_fill(text, "cacheblend r=0% score=k", 3);
    ck_assert_str_eq(text, "cacheblend r=0 layer=3 score=k");
    eval_blend_fill(text, "cacheblend r=0% score=k", -1);
    ck_assert_str_eq(text, "cacheblend r=0 score=k");
    eval_blend_fill(text, "none", 3);
    ck_assert_str_eq(text, "none");
}
END_TEST

START_TEST(rows_are_means_over_samples)
{
    start_work(6);
    fill_answers(answers[TRIALS], .9, 0, 1);
    add("none", "none", &raw, .2, .1, 0);
    add("cacheblend", "cacheblend r=.15%", &raw, .8, .01, .5);
    strcpy(trials[0].error, "");
    strcpy(trials[1].error, "not this one");
    struct eval_blend_rows rows = {0};
    ck_assert_int_eq(eval_blend_rows_add(&rows, &work), 0);
    ck_assert_uint_eq(rows.count, 2);
    const struct eval_blend_row *prefill = &rows.list[0];
    const struct eval_blend_row *none = &rows.list[1];
    ck_assert_str_eq(eval_blend_row_method(prefill), "prefill");
    ck_assert_str_eq(eval_blend_row_method(none), "none");
    ck_assert_str_eq(eval_blend_row_chunks(none), "raw");
    ck_assert_double_eq_tol(eval_blend_row_chance(none), 1.0 / 6, 1e-12);
    ck_assert_uint_eq(none->asked[EVAL_CROSS], 400);
    ck_assert_double_eq_tol(none->right[EVAL_CROSS].value, .205, 1e-12);
    /* .20 .21 .20 .21: variance .005^2 * 4 / 3 */
    ck_assert_double_eq_tol(none->right[EVAL_CROSS].error, .005 * sqrt(4.0 / 3) / 2, 1e-12);
    ck_assert_double_eq_tol(none->right[EVAL_DIRECT].value, .99, 1e-12);
    ck_assert_double_eq_tol(none->right[EVAL_DIRECT].error, 0, 1e-9);
    ck_assert_double_eq_tol(none->kl_of[EVAL_CROSS].value, .2, 1e-12);
    ck_assert_double_eq_tol(none->kl_of[EVAL_DIRECT].value, 0, 1e-12);
    /* .04 .08 .12 .16 */
    ck_assert_double_eq_tol(none->kl.value, .1, 1e-12);
    ck_assert_double_eq_tol(none->kl.error, .04 * sqrt(5.0 / 3) / 2, 1e-12);
    ck_assert_uint_eq(none->turn_asked[EVAL_CROSS], 6);
    ck_assert_uint_eq(none->turn_asked[EVAL_DIRECT], 2);
    ck_assert_double_eq_tol(none->turn_right[EVAL_CROSS], 5.0 / 6, 1e-12);
    ck_assert_uint_eq(none->turns[0].asked, 4);
    ck_assert_double_eq_tol(none->turns[0].right, .75, 1e-12);
    ck_assert_uint_eq(none->turns[1].asked, 2);
    ck_assert_double_eq_tol(none->share, 0, 1e-12);
    ck_assert_double_eq_tol(none->time, 6.0 / 8, 1e-12);
    /* The samples differ in the same way: their difference does not. */
    struct eval_mean gain = eval_blend_right_difference(prefill, none, EVAL_CROSS);
    ck_assert_double_eq_tol(gain.value, .7, 1e-12);
    ck_assert_double_eq_tol(gain.error, 0, 1e-8);
    struct eval_mean rise = eval_blend_kl_difference(none, prefill);
    ck_assert_double_eq_tol(rise.value, .1, 1e-12);
    ck_assert_double_eq_tol(rise.error, none->kl.error, 1e-12);
    eval_blend_rows_close(&rows);
}
END_TEST

static enum eval_verdict verdict(const struct eval_claim_list *claims, const char *name)
{
    for (uint32_t i = 0; i < claims->count; i++)
        if (strcmp(claims->list[i].name, name) == 0)
            return claims->list[i].verdict;
    ck_abort_msg("no claim '%s'", name);
    return EVAL_UNKNOWN;
}

static void make_claims(struct eval_claim_list *out)
{
    struct eval_blend_rows rows = {0};
    ck_assert_int_eq(eval_blend_rows_add(&rows, &work), 0);
    eval_blend_claims_make(out, &rows, work.check_layer);
    eval_blend_rows_close(&rows);
}

/* All of the main family, KL falling from r=0 on, and what it is compared with. */
static void add_all(double at_15, double kl_at_30, double random, double own_share)
{
    fill_answers(answers[TRIALS], .9, 0, 1);
    add("none", "none", &raw, .2, .1, 0);
    add("cacheblend", "cacheblend r=0%", &raw, .2, .1, .5);
    add("cacheblend", "cacheblend r=.05%", &raw, .5, .08, .5);
    add("cacheblend", "cacheblend r=.1%", &raw, .6, .06, .5);
    add("cacheblend", "cacheblend r=.15%", &raw, at_15, .04, .6);
    add("cacheblend", "cacheblend r=.3%", &raw, .89, kl_at_30, .7);
    add("cacheblend", "cacheblend r=.5%", &raw, .9, .01, .8);
    add("cacheblend", "cacheblend r=1%", &raw, .9, 0, 1);
    add("random", "random r=.15", &raw, .3, .07, .15);
    add("random", "random r=.6", &raw, random, .05, .61);
    add("check layer", "cacheblend r=.15 layer=1", &raw, .4, .05, .28);
    add("probe", "probe r=.15", &raw, .84, .01, own_share);
    add("cacheblend", "cacheblend r=.15%", &lossy, at_15 - .04, .04, .6);
}

START_TEST(promises_are_judged_by_numbers)
{
    struct eval_claim_list claims;
    start_work(6);
    add_all(.85, .02, .6, .2);
    make_claims(&claims);
    ck_assert_int_eq(verdict(&claims, "none_is_a_guess"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "regained_at_.15"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "regained_at_.30"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "direct_kept"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "kl_falls"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "beats_r_0"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "beats_random"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "beats_random_at_share"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "lossy_chunks"), EVAL_FAILS);
    ck_assert_int_eq(verdict(&claims, "own_lossy_chunks"), EVAL_UNKNOWN);
    ck_assert_int_eq(verdict(&claims, "own_beats_cacheblend"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "own_share"), EVAL_HOLDS);

    start_work(6);
    add_all(.70, .05, .8, .31);
    trials[8].answers[0].right[EVAL_DIRECT] = 50;
    make_claims(&claims);
    ck_assert_int_eq(verdict(&claims, "regained_at_.15"), EVAL_FAILS);
    ck_assert_int_eq(verdict(&claims, "regained_at_.30"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "direct_kept"), EVAL_FAILS);
    ck_assert_int_eq(verdict(&claims, "kl_falls"), EVAL_FAILS);
    ck_assert_int_eq(verdict(&claims, "beats_random"), EVAL_HOLDS);
    ck_assert_int_eq(verdict(&claims, "beats_random_at_share"), EVAL_FAILS);
    /* It computes more than the other, so nothing can be said. */
    ck_assert_int_eq(verdict(&claims, "own_beats_cacheblend"), EVAL_UNKNOWN);
    ck_assert_int_eq(verdict(&claims, "own_share"), EVAL_UNKNOWN);

    /* With other numbers of people nothing is promised. */
    start_work(4);
    add_all(.85, .02, .6, .2);
    make_claims(&claims);
    for (uint32_t i = 0; i < claims.count; i++)
        ck_assert_int_eq(claims.list[i].verdict, EVAL_UNKNOWN);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval_blend_rows");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, check_layers_are_filled_in);
    tcase_add_test(tcase, rows_are_means_over_samples);
    tcase_add_test(tcase, promises_are_judged_by_numbers);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
