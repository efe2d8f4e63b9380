/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: gc begins by itself when there are too many files of which little is live, empties them,
 *       ends, and then lets the store be for a while; not before, and not without need.
 * Method: the daemon's part alone, over a store on a simulated disk, under a clock of the test and
 *         with a small number for "too many". */
#include <check.h>
#include <poll.h>
#include <stdlib.h>

#include "daemon/larderd.h"
#include "tests/storage/fixture.h"
#include "tests/storage/sim_disk.h"

#define SEGMENT_BYTES (1u << 20)
#define BLOCKS        100u
#define KEPT_OF       10u
/* More than between two looks at whether gc is due. */
#define TICK_MS 20000u

static struct fixture f;
static struct sim_disk *disk;
static struct larderd larderd;
static uint64_t now_ms;

/* Ten segments full. */
static void setup(void)
{
    fixture_begin(&f);
    disk = sim_disk_create(1);
    f.options.io_override = sim_disk_open_io(disk);
    ck_assert_int_eq(fixture_open(&f), 0);
    for (uint64_t i = 0; i < BLOCKS; i++)
        fixture_put_chain(&f, 1000 + i * 1000, 1, 50000, LARDER_DURABLE);
    fixture_commit(&f);
    larderd = (struct larderd){.store = f.store};
    larderd.config.segment_bytes = SEGMENT_BYTES;
    larderd.config.scrub_rate_bytes = 1ull << 30;
    ck_assert_int_eq(completions_open(&larderd.completions), 0);
    ck_assert_int_eq(workers_open(&larderd.workers, 1), 0);
    ck_assert_int_eq(scrub_open(&larderd.gc, &larderd, SCRUB_MOVE), 0);
    now_ms = TICK_MS;
}

static void teardown(void)
{
    workers_close(larderd.workers);
    completions_close(larderd.completions);
    fixture_end(&f);
    sim_disk_destroy(disk);
}

/* A tenth is left: the holes give their space back, not their files. */
static void remove_most(void)
{
    for (uint64_t i = 0; i < BLOCKS; i++) {
        uint64_t removed;
        if (i % KEPT_OF != 0)
            ck_assert_int_eq(fixture_remove(&f, 1000 + i * 1000, &removed), 0);
    }
    fixture_commit(&f);
}

static void tick(void)
{
    struct pollfd ready = {.fd = completions_fd(larderd.completions), .events = POLLIN};
    now_ms += TICK_MS;
    scrub_tick(&larderd.gc, now_ms);
    if (poll(&ready, 1, 10) > 0)
        completions_drain(larderd.completions);
}

static void tick_until_over(void)
{
    for (int i = 0; i < 3000 && larderd.gc.state.running; i++)
        tick();
    ck_assert(!larderd.gc.state.running);
}

START_TEST(begins_by_itself_and_ends)
{
    remove_most();
    ck_assert_uint_ge(fixture_stats(&f).segments, BLOCKS / 10);
    for (int i = 0; i < 5; i++)
        tick();
    ck_assert_msg(!larderd.gc.state.running && larderd.gc.state.started_s == 0,
                  "ten files are not too many");
    larderd.gc.segments_max = 5;
    tick();
    ck_assert_uint_ne(larderd.gc.state.started_s, 0);
    tick_until_over();
    ck_assert_uint_eq(larderd.gc.state.passes, 1);
    ck_assert(!larderd.gc.state.cancelled);
    ck_assert_uint_eq(larderd.gc.state.failed + larderd.gc.state.bad, 0);
    ck_assert_uint_ge(larderd.gc.moved, BLOCKS / KEPT_OF - 2);
    /* The files go when the index has learned where their records are. */
    fixture_commit(&f);
    for (int i = 0; i < 1000 && fixture_stats(&f).segments > 4; i++)
        poll(NULL, 0, 10);
    ck_assert_uint_le(fixture_stats(&f).segments, 4);
    int err;
    for (uint64_t i = 0; i < BLOCKS; i += KEPT_OF)
        ck_assert_uint_eq(fixture_get_chain(&f, 1000 + i * 1000, 1, &err), 1);
    /* Whatever there is, it does not begin again at once. */
    larderd.gc.segments_max = 0;
    for (int i = 0; i < 5; i++)
        tick();
    ck_assert_uint_eq(larderd.gc.state.passes, 1);
    ck_assert(!larderd.gc.state.running);
}
END_TEST

/* Too many files, but what is in them lives: there is nothing to gain. */
START_TEST(does_not_begin_without_need)
{
    larderd.gc.segments_max = 5;
    ck_assert_uint_gt(fixture_stats(&f).segments, larderd.gc.segments_max);
    for (int i = 0; i < 5; i++)
        tick();
    ck_assert_uint_eq(larderd.gc.state.started_s, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_gc");
    TCase *tcase = tcase_create("daemon_gc");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, begins_by_itself_and_ends);
    tcase_add_test(tcase, does_not_begin_without_need);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
