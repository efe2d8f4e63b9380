/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is put is found and read back byte for byte, from both tiers and after a restart; what
 * the interface promises of errors, tails, qualities and removal holds.
 * Method: a store over real files with small tiers; entries whose bytes follow from a number. */
#include "storage/store.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"

static struct fixture f;

static void setup(void)
{
    fixture_begin(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
}

static void teardown(void)
{
    fixture_end(&f);
}

static struct block block_of(uint64_t seed, const struct larder_key *parent)
{
    return (struct block){.seed = seed,
                          .parent = *parent,
                          .token_count = 256,
                          .section_bytes = 10000,
                          .tenant = f.tenant.index};
}

START_TEST(put_get_reopen_get)
{
    int err;
    fixture_put_chain(&f, 1, 5, 20000, LARDER_DURABLE);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_host, 5);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_entries, 5);
    ck_assert_uint_eq(fixture_stats(&f).entries_host, 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_ssd, 5);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 7, &err), 5);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_host, 5);
}
END_TEST

START_TEST(cached_becomes_durable)
{
    fixture_put_chain(&f, 1, 3, 5000, LARDER_CACHED);
    fixture_settle(&f, 3);
    struct larder_store_stats stats = fixture_stats(&f);
    ck_assert_uint_eq(stats.entries_durable, 3);
    ck_assert_uint_eq(stats.entries, 3);
}
END_TEST

START_TEST(refuses_what_is_there_or_has_no_parent)
{
    fixture_put_chain(&f, 1, 1, 5000, LARDER_CACHED);
    struct block again = block_of(1, &larder_key_root);
    ck_assert_int_eq(fixture_put(&f, &again, LARDER_CACHED), LARDER_EEXISTS);
    again.quality = LARDER_QUALITY_LOSSY;
    ck_assert_int_eq(fixture_put(&f, &again, LARDER_CACHED), LARDER_EEXISTS);
    struct larder_key nobody = block_key(99);
    struct block orphan = block_of(2, &nobody);
    ck_assert_int_eq(fixture_put(&f, &orphan, LARDER_CACHED), LARDER_ENOPARENT);
    struct block large = block_of(3, &larder_key_root);
    large.section_bytes = 1 << 20;
    ck_assert_int_eq(fixture_put(&f, &large, LARDER_CACHED), LARDER_EFULL);
    ck_assert_int_eq(fixture_when(&f, 99, LARDER_CACHED), LARDER_ENOTFOUND);
}
END_TEST

START_TEST(remove_takes_the_subtree)
{
    uint64_t removed;
    fixture_put_chain(&f, 1, 6, 5000, LARDER_DURABLE);
    ck_assert_int_eq(fixture_remove(&f, 3, &removed), 0);
    ck_assert_uint_eq(removed, 4);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 6, &err), 2);
    ck_assert_int_eq(fixture_remove(&f, 3, &removed), LARDER_ENOTFOUND);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).entries, 2);
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    ck_assert_uint_eq(fixture_stats(&f).entries, 2);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 6, &err), 2);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("store");
    TCase *tcase = tcase_create("store");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, put_get_reopen_get);
    tcase_add_test(tcase, cached_becomes_durable);
    tcase_add_test(tcase, refuses_what_is_there_or_has_no_parent);
    tcase_add_test(tcase, remove_takes_the_subtree);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
