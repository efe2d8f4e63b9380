/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is left of almost empty segments is moved, and their files go, without an entry being
 * lost, changed or brought back, in this life and the next, with the index and without.
 * Method: eight records to a segment, of which most are removed; then every entry is moved that may
 * be, while others read, remove and put. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "fixture.h"
#include "storage/store.h"

#define SEEDS 40u /* chains of one block: five segments */

static struct fixture f;

static bool stays(uint64_t seed)
{
    return seed % 8 == 0;
}

/* Of each eight that lie side by side seven are removed. */
static void thin_out(void)
{
    uint64_t removed;
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        fixture_put_chain(&f, seed * 100, 1, 60000, LARDER_DURABLE);
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        if (!stays(seed))
            ck_assert_int_eq(fixture_remove(&f, seed * 100, &removed), 0);
    fixture_commit(&f);
}

static void all_are_as_they_should(void)
{
    int err;
    fixture_check(&f);
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        ck_assert_int_eq(fixture_has(&f, seed * 100), stays(seed));
        if (!stays(seed))
            continue;
        ck_assert_int_eq(fixture_verify(&f, seed * 100), 0);
        ck_assert_uint_eq(fixture_get_chain(&f, seed * 100, 1, &err), 1);
    }
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
}

START_TEST(almost_empty_segments_go)
{
    thin_out();
    uint64_t before = fixture_stats(&f).segments;
    ck_assert_uint_ge(before, 5);
    uint64_t moved = 0;
    for (uint64_t seed = 8; seed <= SEEDS; seed += 8) {
        struct larder_entry_info was = fixture_info(&f, seed * 100);
        int err = fixture_move(&f, seed * 100, 50);
        struct larder_entry_info now = fixture_info(&f, seed * 100);
        /* The last may lie in the open one. */
        ck_assert_msg(err == 0 || err == -EALREADY, "%d", err);
        ck_assert_int_eq(err == 0, now.segment_id > was.segment_id);
        moved += err == 0;
    }
    ck_assert_uint_ge(moved, 4);
    fixture_commit(&f);
    all_are_as_they_should();
    uint64_t segments = fixture_stats(&f).segments;
    for (int i = 0; i < 500 && segments + 3 > before; i++) {
        usleep(10000);
        segments = fixture_stats(&f).segments;
    }
    ck_assert_uint_le(segments + 3, before);
    fixture_reopen(&f);
    all_are_as_they_should();
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    all_are_as_they_should();
}
END_TEST

START_TEST(what_need_not_move_stays)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        fixture_put_chain(&f, seed * 100, 1, 60000, LARDER_DURABLE);
    fixture_commit(&f);
    /* A full segment; the open one; nothing; only in memory. */
    ck_assert_int_eq(fixture_move(&f, 100, 50), -EALREADY);
    ck_assert_int_eq(fixture_move(&f, 2000, 100), -EALREADY);
    ck_assert_int_eq(fixture_move(&f, 7700, 50), LARDER_ENOTFOUND);
    struct larder_entry_info was = fixture_info(&f, 100);
    ck_assert_int_eq(fixture_move(&f, 100, 101), 0);
    ck_assert_uint_gt(fixture_info(&f, 100).segment_id, was.segment_id);
}
END_TEST

/* The old place is damaged: it is found before it is moved, and dropped like any other. */
START_TEST(damage_is_not_moved)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        fixture_put_chain(&f, seed * 100, 1, 60000, LARDER_DURABLE);
    struct larder_entry_info info = fixture_info(&f, 100);
    fixture_close(&f);
    fixture_flip(&f, info.segment_id, info.segment_page * 4096ull + 50000);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_put_chain(&f, 9000, 1, 1000, LARDER_DURABLE);
    ck_assert_int_eq(fixture_move(&f, 100, 101), LARDER_ECORRUPT);
    ck_assert(!fixture_has(&f, 100));
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 1);
}
END_TEST

/* A better record is on its way, and has no place yet: to move it would find it damaged. */
START_TEST(what_a_put_replaces_is_not_moved)
{
    int err;
    for (uint64_t seed = 100; seed < 20000; seed += 100) {
        struct block block = {.seed = seed,
                              .token_count = 256,
                              .section_bytes = 20000,
                              .quality = LARDER_QUALITY_LOSSY,
                              .tenant = f.tenant.index};
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
        block.quality = LARDER_QUALITY_EXACT;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), 0);
        err = fixture_move(&f, seed, 101);
        ck_assert_msg(err == 0 || err == -EALREADY || err == LARDER_ENOTFOUND, "%d", err);
        ck_assert_int_eq(fixture_when(&f, seed, LARDER_DURABLE), 0);
        ck_assert_int_eq(fixture_verify(&f, seed), 0);
        ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
        uint64_t removed;
        if (seed > 1000)
            ck_assert_int_eq(fixture_remove(&f, seed, &removed), 0);
    }
    for (uint64_t seed = 100; seed <= 1000; seed += 100)
        ck_assert_uint_eq(fixture_get_chain(&f, seed, 1, &err), 1);
}
END_TEST

static bool stop;

static void *move_all_the_time(void *argument)
{
    (void)argument;
    for (uint64_t i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        int err = fixture_move(&f, (i % 30 + 1) * 100 + i % 3, 101);
        must(err == 0 || err == -EALREADY || err == LARDER_ENOTFOUND || err == -ENOSPC);
    }
    return NULL;
}

START_TEST(everything_may_happen_meanwhile)
{
    pthread_t mover;
    __atomic_store_n(&stop, false, __ATOMIC_RELAXED);
    ck_assert_int_eq(pthread_create(&mover, NULL, move_all_the_time, NULL), 0);
    uint64_t removed;
    int err;
    for (uint64_t round = 0; round < 8; round++) {
        for (uint64_t chain = 1; chain <= 30; chain++) {
            struct block block = {.token_count = 256,
                                  .section_bytes = 20000 + 1000 * (uint32_t)chain,
                                  .tenant = f.tenant.index};
            for (block.seed = chain * 100; block.seed < chain * 100 + 3; block.seed++) {
                err = fixture_put(&f, &block, LARDER_DURABLE);
                ck_assert(err == 0 || err == LARDER_EEXISTS || err == LARDER_ENOPARENT);
                block.parent = block_key(block.seed);
            }
            fixture_get_chain(&f, (31 - chain) * 100, 3, &err);
            ck_assert_int_eq(err, 0);
            if ((chain + round) % 4 == 0)
                fixture_remove(&f, chain * 100 + 1, &removed);
        }
        fixture_check(&f);
    }
    __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
    pthread_join(mover, NULL);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
    bool there[90];
    for (uint32_t i = 0; i < 90; i++)
        there[i] = fixture_has(&f, (i / 3 + 1) * 100ull + i % 3);
    fixture_reopen(&f);
    fixture_check(&f);
    for (uint32_t i = 0; i < 90; i++)
        ck_assert_int_eq(fixture_has(&f, (i / 3 + 1) * 100ull + i % 3), there[i]);
    for (uint64_t chain = 1; chain <= 30; chain++) {
        fixture_get_chain(&f, chain * 100, 3, &err);
        ck_assert_int_eq(err, 0);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("move");
    TCase *tcase = tcase_create("move");
    fixture_add(tcase, &f);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, almost_empty_segments_go);
    tcase_add_test(tcase, what_need_not_move_stays);
    tcase_add_test(tcase, damage_is_not_moved);
    tcase_add_test(tcase, what_a_put_replaces_is_not_moved);
    tcase_add_test(tcase, everything_may_happen_meanwhile);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
