/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: tombstones and marks behind an entry that nobody drops do not fill a store: what lives in
 * front of them is moved by the store itself, and nothing of others has to go.
 * Method: a small store with a pinned block in its first segment; then small blocks are put and
 * removed, or marked, until their tombstones would have filled the disk. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fixture.h"
#include "sim_disk.h"
#include "storage/store.h"

#define PINNED 1000u
#define OTHERS 2000u
#define SMALL  100000u
#define MARKED 50000u
#define CHAINS 10u
#define LONG   90u
/* At once: their tombstones are apart, their commits are not. */
#define AT_ONCE 32u
#define ROUNDS  130u /* 4,160 pages of tombstones: more than 16 MiB */

static struct fixture f;
static struct sim_disk *disk;

static void pin(uint64_t seed)
{
    const struct larder_mark change = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(fixture_mark(&f, seed, &change), 0);
}

/* In the first segment a chain that is pinned; 3 MiB that belong to nobody in particular. */
static void setup(void)
{
    fixture_begin(&f);
    disk = fixture_use_disk(&f);
    fixture_reopen(&f);
    fixture_put_chain(&f, PINNED, 2, 20000, LARDER_DURABLE);
    pin(PINNED + 1);
    fixture_put_chain(&f, OTHERS, 30, 50000, LARDER_DURABLE);
}

static void teardown(void)
{
    fixture_end(&f);
}

/* --- many at once ----------------------------------------------------------------------------- */

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told = PTHREAD_COND_INITIALIZER;
static uint32_t under_way;
static int first_err;

static void one_is_over(void *context, int err)
{
    (void)context;
    pthread_mutex_lock(&mutex);
    first_err = first_err < 0 ? first_err : err;
    under_way--;
    pthread_cond_signal(&told);
    pthread_mutex_unlock(&mutex);
}

static void one_is_removed(void *context, int err, uint64_t removed)
{
    must(err < 0 || removed == 1);
    one_is_over(context, err);
}

static void begin_all(uint32_t count)
{
    under_way = count;
    first_err = 0;
}

static void wait_for_all(void)
{
    pthread_mutex_lock(&mutex);
    while (under_way > 0)
        pthread_cond_wait(&told, &mutex);
    pthread_mutex_unlock(&mutex);
    ck_assert_int_eq(first_err, 0);
}

static void put_and_remove(uint64_t first)
{
    for (uint32_t i = 0; i < AT_ONCE; i++)
        fixture_put_chain(&f, first + i, 1, 64, i + 1 < AT_ONCE ? LARDER_CACHED : LARDER_DURABLE);
    begin_all(AT_ONCE);
    for (uint32_t i = 0; i < AT_ONCE; i++) {
        struct larder_key key = block_key(first + i);
        larder_store_remove(f.store, f.tenant.index, &key, LARDER_KEEP_PINNED, one_is_removed,
                            NULL);
    }
    wait_for_all();
}

/* --- what holds in every life ----------------------------------------------------------------- */

static void all_is_there(void)
{
    int err;
    fixture_check(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, PINNED, 2, &err), 2);
    uint32_t good = fixture_get_chain(&f, OTHERS, 30, &err);
    ck_assert_msg(good == 30, "%u, %d, %llu evicted", good, err,
                  (unsigned long long)fixture_stats(&f).evicted_ssd);
    ck_assert_int_eq(fixture_verify(&f, PINNED), 0);
    struct larder_entry_info info;
    struct larder_key key = block_key(PINNED + 1);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    ck_assert(info.pinned);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
    for (uint64_t i = 0; i < ROUNDS * AT_ONCE; i += 7)
        ck_assert(!fixture_has(&f, SMALL + i));
}

static void all_is_there_in_every_life(void)
{
    all_is_there();
    fixture_reopen(&f);
    all_is_there();
    fixture_close(&f);
    fixture_remove_index(&f);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    all_is_there();
}

static void wait_until_small(uint64_t bytes)
{
    for (int i = 0; i < 1000 && fixture_stats(&f).segment_bytes > bytes; i++)
        usleep(10000);
    ck_assert_uint_le(fixture_stats(&f).segment_bytes, bytes);
}

START_TEST(tombstones_behind_a_pinned_block_go)
{
    for (uint32_t round = 0; round < ROUNDS; round++) {
        put_and_remove(SMALL + round * AT_ONCE);
        ck_assert_uint_le(fixture_stats(&f).segment_bytes, f.options.ssd_bytes);
    }
    ck_assert_uint_eq(fixture_stats(&f).evicted_ssd, 0);
    /* Of what lives, 3 MiB, a quarter, besides a segment that is open. */
    wait_until_small(7 << 20);
    all_is_there_in_every_life();
}
END_TEST

/* One after the other, each in a page of its own: the last one holds. */
static void mark_again_and_again(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct larder_mark change = {.fields = LARDER_MARK_PRIORITY,
                                           .priority = (int)(i % 8)};
        ck_assert_int_eq(fixture_mark(&f, OTHERS + 29, &change), 0);
        usleep(300); /* a sync takes as long, but on this disk */
    }
}

START_TEST(marks_behind_a_pinned_block_go)
{
    mark_again_and_again(ROUNDS * AT_ONCE);
    ck_assert_uint_eq(fixture_stats(&f).evicted_ssd, 0);
    wait_until_small(7 << 20);
    all_is_there_in_every_life();
}
END_TEST

static void mark_all(void)
{
    const struct larder_mark change = {.fields = LARDER_MARK_PRIORITY, .priority = 5};
    begin_all(CHAINS * LONG);
    for (uint32_t i = 0; i < CHAINS * LONG; i++) {
        struct larder_key key = block_key(MARKED + i / LONG * 1000 + i % LONG);
        larder_store_mark(f.store, f.tenant.index, &key, &change, one_is_over, NULL);
    }
    wait_for_all();
}

static void all_are_marked(void)
{
    for (uint32_t i = 0; i < CHAINS * LONG; i++) {
        struct larder_entry_info info;
        struct larder_key key = block_key(MARKED + i / LONG * 1000 + i % LONG);
        ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
        ck_assert_int_eq(info.priority, 5);
    }
}

/* Their records share pages, so they stand in one segment, and more of them than move at once. */
START_TEST(many_marks_of_one_segment_move)
{
    f.options.ssd_bytes = 32 << 20;
    fixture_reopen(&f);
    for (uint32_t chain = 0; chain < CHAINS; chain++)
        fixture_put_chain(&f, MARKED + chain * 1000, LONG, 64, LARDER_DURABLE);
    mark_all();
    mark_again_and_again(ROUNDS * AT_ONCE);
    ck_assert_uint_eq(fixture_stats(&f).evicted_ssd, 0);
    ck_assert_uint_gt(fixture_stats(&f).cleared, CHAINS * LONG);
    wait_until_small(16 << 20);
    all_are_marked();
    all_is_there_in_every_life();
    all_are_marked();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("clear");
    TCase *tcase = tcase_create("clear");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 240);
    tcase_add_test(tcase, tombstones_behind_a_pinned_block_go);
    tcase_add_test(tcase, marks_behind_a_pinned_block_go);
    tcase_add_test(tcase, many_marks_of_one_segment_move);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
