/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   who asks with a KL is given what was measured to keep it and nothing else, also of what
 *         was computed on lossy KV; a put that is to keep one takes the place of what does not; who
 *         needs which profile is known after a restart and after a rebuild.
 * Method: variants of one block with recipes of known KL, asked for around those numbers. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"

static struct fixture fixture;

static void tell(const char *recipe, const uint8_t *profile, float kl)
{
    ck_assert_int_eq(
        larder_store_set_kl(fixture.store, &fixture.model.fingerprint, recipe, profile, kl), 0);
}

/* Forgets all that it was told. */
static void restart(bool rebuild)
{
    fixture_close(&fixture);
    if (rebuild)
        fixture_remove_index(&fixture);
    fixture_reopen(&fixture);
}

static int put(const struct block *block)
{
    struct block whole = *block;
    whole.token_count = 256;
    whole.tenant = fixture.tenant.index;
    return fixture_put(&fixture, &whole, LARDER_DURABLE);
}

/* The KL that a lookup says of the block; NAN: none is accepted. */
static float ask(uint64_t seed, uint32_t worst, float max_kl)
{
    const struct larder_key key = block_key(seed);
    const struct larder_key root = {{0}};
    struct larder_match match;
    const struct larder_want want = {.tenant = fixture.tenant.index,
                                     .keys = &key,
                                     .key_count = 1,
                                     .worst = worst,
                                     .max_kl = max_kl};
    ck_assert_int_eq(larder_store_lookup(fixture.store, &match, &want, &root, 256), 0);
    return match.count == 1 ? match.kl : NAN;
}

static void put_three(void)
{
    ck_assert_int_eq(put(&(struct block){.seed = 1, .section_bytes = 9000, .recipe = "raw"}), 0);
    ck_assert_int_eq(put(&(struct block){.seed = 1,
                                         .section_bytes = 4000,
                                         .recipe = "four",
                                         .quality = LARDER_QUALITY_LOSSY,
                                         .beside = true}),
                     0);
    ck_assert_int_eq(put(&(struct block){.seed = 1,
                                         .section_bytes = 2000,
                                         .recipe = "two",
                                         .quality = LARDER_QUALITY_LOSSY,
                                         .beside = true}),
                     0);
}

START_TEST(what_keeps_it_is_given)
{
    const uint32_t smallest = LARDER_QUALITY_EXACT | LARDER_QUALITY_SMALLEST;
    put_three();
    ck_assert(ask(1, smallest, 1000) == 0); /* nothing was measured */
    tell("four", NULL, 0.001f);
    tell("two", NULL, 0.04f);
    for (int round = 0; round < 3; round++) {
        ck_assert(ask(1, LARDER_QUALITY_EXACT, 1) == 0); /* the best is exact */
        ck_assert(ask(1, smallest, 0.04f) == 0.04f);
        ck_assert(ask(1, smallest, 0.0399f) == 0.001f);
        ck_assert(ask(1, smallest, 0.0009f) == 0);
        ck_assert(ask(1, smallest, 0) == 0);
        /* A quality that is accepted is so whatever it costs. */
        ck_assert(ask(1, LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST, 0.001f) == 0.04f);
        restart(round == 1);
        ck_assert(ask(1, smallest, 1) == 0);
        tell("four", NULL, 0.001f);
        tell("two", NULL, 0.04f);
    }
    tell("two", NULL, INFINITY);
    ck_assert(ask(1, smallest, 1) == 0.001f);
    ck_assert(isinf(ask(1, LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST, 0)));
}
END_TEST

START_TEST(of_lossy_ones_the_best)
{
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(put(&(struct block){.seed = 1,
                                             .section_bytes = i ? 2000 : 4000,
                                             .recipe = i ? "two" : "four",
                                             .quality = LARDER_QUALITY_LOSSY,
                                             .beside = i > 0}),
                         0);
    tell("four", NULL, 0.02f);
    tell("two", NULL, 0.01f);
    ck_assert(ask(1, LARDER_QUALITY_EXACT, 1) == 0.01f);
    tell("two", NULL, 0.03f);
    ck_assert(ask(1, LARDER_QUALITY_EXACT, 1) == 0.02f);
    ck_assert(isnan(ask(1, LARDER_QUALITY_EXACT, 0.01f)));
}
END_TEST

START_TEST(another_model_or_profile_is_another_measure)
{
    uint8_t mine[32] = {1, 2, 3};
    uint8_t other[32] = {3, 2, 1};
    const struct larder_key stranger = {{9}};
    ck_assert_int_eq(put(&(struct block){.seed = 1,
                                         .section_bytes = 4000,
                                         .recipe = "four",
                                         .profile = mine,
                                         .quality = LARDER_QUALITY_LOSSY}),
                     0);
    ck_assert_int_eq(larder_store_set_kl(fixture.store, &stranger, "four", mine, 0.001f), 0);
    tell("four", other, 0.002f);
    tell("four", NULL, 0.003f);
    ck_assert(isnan(ask(1, LARDER_QUALITY_EXACT, 1)));
    tell("four", mine, 0.004f);
    ck_assert(ask(1, LARDER_QUALITY_EXACT, 1) == 0.004f);
    /* What is said of every model counts where nothing is said of this one. */
    ck_assert_int_eq(larder_store_set_kl(fixture.store, NULL, "five", NULL, 0), 0);
    ck_assert_int_eq(put(&(struct block){.seed = 11,
                                         .section_bytes = 4000,
                                         .recipe = "five",
                                         .quality = LARDER_QUALITY_LOSSY,
                                         .computed_on = LARDER_QUALITY_LOSSY,
                                         .computed_on_kl = 0.5f}),
                     0);
    ck_assert(ask(11, LARDER_QUALITY_EXACT, 0.5f) == 0.5f);
}
END_TEST

START_TEST(what_it_was_computed_on_counts)
{
    ck_assert_int_eq(put(&(struct block){.seed = 1,
                                         .section_bytes = 4000,
                                         .recipe = "four",
                                         .quality = LARDER_QUALITY_LOSSY,
                                         .computed_on = LARDER_QUALITY_LOSSY,
                                         .computed_on_kl = 0.005f}),
                     0);
    ck_assert_int_eq(put(&(struct block){.seed = 11,
                                         .section_bytes = 4000,
                                         .recipe = "four",
                                         .quality = LARDER_QUALITY_LOSSY,
                                         .computed_on = LARDER_QUALITY_LOSSY}),
                     0);
    ck_assert_int_eq(put(&(struct block){.seed = 21,
                                         .section_bytes = 4000,
                                         .recipe = "four",
                                         .quality = LARDER_QUALITY_BLENDED,
                                         .computed_on_kl = 0.005f}),
                     0);
    for (int round = 0; round < 3; round++) {
        tell("four", NULL, 0.001f);
        const float both = ask(1, LARDER_QUALITY_EXACT, 0.0061f);
        ck_assert(both >= 0.006f && both < 0.00605f);
        ck_assert(isnan(ask(1, LARDER_QUALITY_EXACT, 0.0059f)));
        ck_assert(isnan(ask(11, LARDER_QUALITY_EXACT, 1e30f)));
        ck_assert(isinf(ask(11, LARDER_QUALITY_LOSSY, 0)));
        ck_assert(isnan(ask(21, LARDER_QUALITY_LOSSY, 1e30f)));
        restart(round == 1);
    }
}
END_TEST

START_TEST(a_put_that_keeps_it_replaces_what_does_not)
{
    const struct block bad = {
        .seed = 1, .section_bytes = 2000, .recipe = "two", .quality = LARDER_QUALITY_LOSSY};
    struct block good = {
        .seed = 1, .section_bytes = 4000, .recipe = "four", .quality = LARDER_QUALITY_LOSSY};
    tell("two", NULL, 0.04f);
    tell("four", NULL, 0.001f);
    ck_assert_int_eq(put(&bad), 0);
    ck_assert_int_eq(put(&good), LARDER_EEXISTS); /* it is not told to keep anything */
    good.max_kl = 0.04f;
    ck_assert_int_eq(put(&good), LARDER_EEXISTS);
    good.max_kl = 0.01f;
    ck_assert_int_eq(put(&good), 0);
    ck_assert(ask(1, LARDER_QUALITY_EXACT, 0.01f) == 0.001f);
    ck_assert_uint_eq(fixture_stats(&fixture).entries, 1);
    ck_assert_int_eq(put(&good), LARDER_EEXISTS);
    ck_assert_int_eq(put(&bad), LARDER_EEXISTS);
    ck_assert_int_eq(put(&(struct block){.seed = 1, .section_bytes = 9000, .recipe = "raw"}), 0);
    good.max_kl = 0.0001f;
    ck_assert_int_eq(put(&good), LARDER_EEXISTS); /* exact keeps everything */
}
END_TEST

START_TEST(who_needs_a_profile)
{
    uint8_t mine[32] = {7};
    uint8_t other[32] = {8};
    for (uint64_t seed = 1; seed <= 3; seed++)
        ck_assert_int_eq(put(&(struct block){.seed = 10 * seed + 1,
                                             .section_bytes = 4000,
                                             .recipe = "four",
                                             .profile = seed < 3 ? mine : other,
                                             .quality = LARDER_QUALITY_LOSSY}),
                         0);
    for (int round = 0; round < 3; round++) {
        ck_assert_uint_eq(larder_store_profile_uses(fixture.store, mine), 2);
        ck_assert_uint_eq(larder_store_profile_uses(fixture.store, other), 1);
        restart(round == 1);
    }
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&fixture, 31, &removed), 0);
    ck_assert_uint_eq(larder_store_profile_uses(fixture.store, other), 0);
    ck_assert_uint_eq(larder_store_profile_uses(fixture.store, mine), 2);
}
END_TEST

/* A client may put any number of recipes; a profile could go of which nobody knows who needs it. */
START_TEST(what_cannot_be_known_is_not_stored)
{
    char recipe[32];
    uint8_t profile[32] = {1};
    struct larder_put_desc desc = {.tenant = fixture.tenant.index,
                                   .model = fixture.model.index,
                                   .key = block_key(1),
                                   .recipe = recipe,
                                   .quality = LARDER_QUALITY_LOSSY,
                                   .raw_bytes = 100,
                                   .section_count_max = 1,
                                   .payload_bytes_max = 4096};
    struct larder_put *put;
    for (int i = 0; i < 4200; i++) {
        snprintf(recipe, sizeof(recipe), "recipe %d", i);
        ck_assert_int_eq(larder_store_put_reserve(fixture.store, &put, &desc), 0);
        larder_store_put_abort(fixture.store, put);
    }
    memcpy(desc.profile, profile, sizeof(desc.profile));
    ck_assert_int_eq(larder_store_put_reserve(fixture.store, &put, &desc), LARDER_ELIMIT);
    ck_assert_uint_eq(larder_store_profile_uses(fixture.store, profile), 0);
    memset(desc.profile, 0, sizeof(desc.profile));
    ck_assert_int_eq(larder_store_put_reserve(fixture.store, &put, &desc), 0);
    larder_store_put_abort(fixture.store, put);
}
END_TEST

START_TEST(there_is_a_limit)
{
    char name[16];
    uint32_t told = 0;
    int err = 0;
    for (; err == 0; told += err == 0) {
        snprintf(name, sizeof(name), "r%u", told);
        err = larder_store_set_kl(fixture.store, NULL, name, NULL, 1);
        ck_assert_uint_le(told, 2 * LARDER_MEASURES_MAX);
    }
    ck_assert_int_eq(err, LARDER_ELIMIT);
    ck_assert_uint_ge(told, LARDER_MEASURES_MAX);
    /* What is known may still change. */
    ck_assert_int_eq(larder_store_set_kl(fixture.store, NULL, "r7", NULL, 2), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("measures");
    TCase *tcase = tcase_create("measures");
    tcase_set_timeout(tcase, 120);
    fixture_add(tcase, &fixture);
    tcase_add_test(tcase, what_keeps_it_is_given);
    tcase_add_test(tcase, of_lossy_ones_the_best);
    tcase_add_test(tcase, another_model_or_profile_is_another_measure);
    tcase_add_test(tcase, what_it_was_computed_on_counts);
    tcase_add_test(tcase, a_put_that_keeps_it_replaces_what_does_not);
    tcase_add_test(tcase, who_needs_a_profile);
    tcase_add_test(tcase, what_cannot_be_known_is_not_stored);
    tcase_add_test(tcase, there_is_a_limit);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
