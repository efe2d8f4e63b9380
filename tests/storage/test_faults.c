/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: errors of the disk do what store.h promises: a failed read is tried again and else told; a
 * failed write fails its PUTs and nothing else; a failed sync makes the store read-only for good; a
 * full disk refuses or evicts; a disk that brings wrong pages is never believed.
 * Method: a store over the simulated disk, with single faults placed. */
#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "fixture.h"
#include "sim_disk.h"
#include "storage/store.h"

static struct fixture f;
static struct sim_disk *disk;

static void setup(void)
{
    fixture_begin(&f);
    disk = fixture_use_disk(&f);
    fixture_reopen(&f);
}

static void teardown(void)
{
    fixture_end(&f);
}

static void set_faults(struct sim_faults faults)
{
    sim_disk_set_faults(disk, &faults);
}

static struct block block_of(uint64_t seed)
{
    return (struct block){
        .seed = seed, .token_count = 256, .section_bytes = 20000, .tenant = f.tenant.index};
}

START_TEST(one_failed_read_is_tried_again)
{
    int err;
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    fixture_reopen(&f);
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_READ});
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 4);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
}
END_TEST

START_TEST(short_transfers_are_continued)
{
    int err;
    set_faults((struct sim_faults){.short_permille = 300});
    fixture_put_chain(&f, 1, 4, 60000, LARDER_DURABLE);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 4);
}
END_TEST

START_TEST(a_failed_write_fails_its_put_only)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_WRITE});
    struct block block = block_of(50);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), -EIO);
    fixture_check(&f);
    int err;
    /* It stays in the host tier, and may be asked to be durable again. */
    ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), 1);
    ck_assert_int_eq(fixture_when(&f, 50, LARDER_DURABLE), 0);
    /* A child whose parent is not durable takes it along. */
    fixture_put_chain(&f, 60, 2, 20000, LARDER_DURABLE);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), 1);
    ck_assert_uint_eq(fixture_get_chain(&f, 60, 2, &err), 2);
}
END_TEST

START_TEST(a_durable_child_takes_its_parent_along)
{
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_WRITE});
    struct block block = block_of(1);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), -EIO);
    block.seed = 2;
    block.parent = block_key(1);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_check(&f);
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
}
END_TEST

/* Blocks of a page or two behind the root, until one fails. */
static uint32_t put_small(uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct block block = {.seed = 1000ull * (first + i),
                                    .token_count = 16,
                                    .section_bytes = 1000,
                                    .tenant = f.tenant.index};
        if (fixture_put(&f, &block, LARDER_DURABLE) < 0)
            return i;
    }
    return count;
}

START_TEST(small_records_are_written_over_zeros)
{
    uint64_t before = fixture_stats(&f).bytes_written;
    ck_assert_uint_eq(put_small(1, 6), 6);
    uint64_t few = fixture_stats(&f).bytes_written - before;
    ck_assert_uint_lt(few, 20u * LARDER_PAGE_BYTES);
    ck_assert_uint_eq(put_small(7, 34), 34);
    ck_assert_uint_gt(fixture_stats(&f).bytes_written - before, 64u * LARDER_PAGE_BYTES);
    fixture_reopen(&f);
    for (uint64_t i = 0; i < 40; i++) {
        int err;
        ck_assert_uint_eq(fixture_get_chain(&f, 1000 * (i + 1), 1, &err), 1);
    }

    /* Nobody gains by it when groups are large. */
    before = fixture_stats(&f).bytes_written;
    fixture_put_chain(&f, 50001, 16, 20000, LARDER_DURABLE);
    ck_assert_uint_lt(fixture_stats(&f).bytes_written - before, 16u * 50000);
}
END_TEST

/* Power fails at each step on the way, also between zeros and what is written over them. */
START_TEST(what_is_written_over_zeros_survives)
{
    bool failed = true;
    for (uint64_t step = 1; failed; step++) {
        fixture_end(&f);
        fixture_begin(&f);
        f.disk = disk = sim_disk_create(step);
        fixture_reopen(&f);
        sim_disk_fail_power_at(disk, sim_disk_steps(disk) + step);
        uint32_t stored = put_small(1, 14);
        failed = sim_disk_power_failed(disk);
        fixture_close(&f);
        sim_disk_crash(disk);
        fixture_reopen(&f);
        for (uint64_t i = 0; i < stored; i++) {
            int err;
            ck_assert_uint_eq(fixture_get_chain(&f, 1000 * (i + 1), 1, &err), 1);
        }
        fixture_check(&f);
        ck_assert_uint_lt(step, 500);
    }
}
END_TEST

START_TEST(a_failed_sync_ends_writing)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_SYNC});
    struct block block = block_of(50);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), LARDER_EREADONLY);
    set_faults((struct sim_faults){0});
    ck_assert_uint_eq(fixture_stats(&f).read_only, 1);
    block.seed = 51;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), LARDER_EREADONLY);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), LARDER_EREADONLY);
    ck_assert_int_eq(fixture_when(&f, 50, LARDER_DURABLE), LARDER_EREADONLY);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).read_only, 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    fixture_put_chain(&f, 60, 2, 20000, LARDER_DURABLE);
}
END_TEST

static int refuse(void *context)
{
    return *(int *)context;
}

START_TEST(a_failed_commit_of_the_index_ends_writing)
{
    static int answer;
    answer = 0;
    f.options.index_gate = refuse;
    f.options.index_gate_context = &answer;
    fixture_reopen(&f);
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    fixture_commit(&f);
    answer = -EIO;
    /* Synced: it is in the segment's tail, whatever becomes of the index. */
    struct block block = block_of(50);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    for (int i = 0; i < 1000 && !fixture_stats(&f).read_only; i++)
        usleep(10000);
    ck_assert_uint_eq(fixture_stats(&f).read_only, 1);
    answer = 0;
    block.seed = 51;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), LARDER_EREADONLY);
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 1);
    ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), 1);
}
END_TEST

/* LMDB's own allocations, as they fail. */
static atomic_int index_puts_that_fail;

int __wrap_mdb_put(void *txn, unsigned database, void *key, void *value, unsigned flags);
int __real_mdb_put(void *txn, unsigned database, void *key, void *value, unsigned flags);

int __wrap_mdb_put(void *txn, unsigned database, void *key, void *value, unsigned flags)
{
    if (atomic_load(&index_puts_that_fail) > 0) {
        atomic_fetch_sub(&index_puts_that_fail, 1);
        return ENOMEM;
    }
    return __real_mdb_put(txn, database, key, value, flags);
}

/* The transaction is given up and made again; it ended writing. */
START_TEST(an_index_without_memory_is_tried_again)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    fixture_commit(&f);
    atomic_store(&index_puts_that_fail, 3);
    fixture_put_chain(&f, 10, 2, 20000, LARDER_DURABLE);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), 0);
    ck_assert_uint_eq(removed, 2);
    ck_assert_int_eq(atomic_load(&index_puts_that_fail), 0);
    fixture_commit(&f);
    ck_assert_uint_eq(fixture_stats(&f).read_only, 0);
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 10, 2, &err), 2);
    ck_assert(!fixture_has(&f, 1));
}
END_TEST

START_TEST(a_full_disk_evicts)
{
    /* The disk is smaller than ssd_bytes says. */
    set_faults((struct sim_faults){.capacity_bytes = 4 << 20});
    uint32_t stored = 0;
    for (uint64_t seed = 1; seed < 100; seed++) {
        struct block block = block_of(seed * 10);
        block.section_bytes = 60000;
        int err = fixture_put(&f, &block, LARDER_DURABLE);
        ck_assert_msg(err == 0 || err == -ENOSPC || err == -EBUSY, "%d", err);
        stored += err == 0;
        fixture_check(&f);
    }
    ck_assert_uint_gt(stored, 60);
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 20);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 990, 1, &err), 1);
    fixture_reopen(&f);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 990, 1, &err), 1);
}
END_TEST

START_TEST(a_disk_without_room_refuses_and_serves)
{
    fixture_put_chain(&f, 1, 1, 20000, LARDER_DURABLE);
    /* Not even one segment more, whatever is evicted. */
    set_faults((struct sim_faults){.capacity_bytes = 600 << 10});
    uint32_t refused = 0;
    for (uint64_t seed = 2; seed < 40; seed++) {
        struct block block = block_of(seed * 10);
        int err = fixture_put(&f, &block, LARDER_CACHED);
        ck_assert(err == 0 || err == -EBUSY);
        err = fixture_when(&f, seed * 10, LARDER_DURABLE);
        refused += err == -ENOSPC;
        fixture_check(&f);
    }
    ck_assert_uint_gt(refused, 5);
    ck_assert_uint_eq(fixture_stats(&f).read_only, 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 390, 1, &err), 1);
    set_faults((struct sim_faults){0});
    fixture_put_chain(&f, 5000, 2, 20000, LARDER_DURABLE);
    fixture_check(&f);
}
END_TEST

START_TEST(wrong_pages_are_never_believed)
{
    fixture_put_chain(&f, 1, 5, 30000, LARDER_DURABLE);
    fixture_put_chain(&f, 100, 5, 30000, LARDER_DURABLE);
    fixture_reopen(&f);
    set_faults((struct sim_faults){.misdirect_permille = 300, .stale_permille = 100});
    int err;
    /* The fixture compares every byte of what is said to be good. */
    for (int i = 0; i < 20; i++) {
        fixture_get_chain(&f, 1, 5, &err);
        fixture_get_chain(&f, 100, 5, &err);
    }
    set_faults((struct sim_faults){0});
    fixture_check(&f);
    fixture_put_chain(&f, 500, 5, 30000, LARDER_DURABLE);
    ck_assert_uint_eq(fixture_get_chain(&f, 500, 5, &err), 5);
}
END_TEST

/* A step that answers -ENOMEM or works, whichever allocation it is that fails. */
START_TEST(no_memory_is_an_error_and_nothing_else)
{
    fixture_put_chain(&f, 1, 3, 20000, LARDER_DURABLE);
    for (uint64_t n = 1; n < 40; n++) {
        struct block block = block_of(1000 + n);
        block.parent = block_key(3);
        larder_mem_fail_at(n);
        int err = fixture_put(&f, &block, n % 2 ? LARDER_DURABLE : LARDER_CACHED);
        larder_mem_fail_at(0);
        ck_assert_msg(err == 0 || err == -ENOMEM || err == -EBUSY, "%d", err);
        larder_mem_fail_at(n);
        uint32_t good = fixture_get_chain(&f, 1, 3, &err);
        larder_mem_fail_at(0);
        ck_assert(good == 3 || err < 0);
        larder_mem_fail_at(n);
        uint64_t removed;
        err = fixture_remove(&f, 1000 + n, &removed);
        larder_mem_fail_at(0);
        ck_assert(err == 0 || err == -ENOMEM || err == LARDER_ENOTFOUND);
        fixture_check(&f);
    }
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 3, &err), 3);
}
END_TEST

START_TEST(no_memory_at_open_leaks_nothing)
{
    fixture_put_chain(&f, 1, 3, 20000, LARDER_DURABLE);
    fixture_close(&f);
    for (uint64_t n = 1; n < 60; n++) {
        f.options.io_override = sim_disk_open_io(disk);
        larder_mem_fail_at(n);
        int err = larder_store_open(&f.store, &f.options);
        larder_mem_fail_at(0);
        if (err == 0)
            fixture_close(&f);
        ck_assert_ptr_null(f.store);
    }
    fixture_reopen(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 3, &err), 3);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("faults");
    TCase *tcase = tcase_create("faults");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, one_failed_read_is_tried_again);
    tcase_add_test(tcase, short_transfers_are_continued);
    tcase_add_test(tcase, a_failed_write_fails_its_put_only);
    tcase_add_test(tcase, a_durable_child_takes_its_parent_along);
    tcase_add_test(tcase, small_records_are_written_over_zeros);
    tcase_add_test(tcase, what_is_written_over_zeros_survives);
    tcase_add_test(tcase, a_failed_sync_ends_writing);
    tcase_add_test(tcase, a_failed_commit_of_the_index_ends_writing);
    tcase_add_test(tcase, an_index_without_memory_is_tried_again);
    tcase_add_test(tcase, a_full_disk_evicts);
    tcase_add_test(tcase, a_disk_without_room_refuses_and_serves);
    tcase_add_test(tcase, wrong_pages_are_never_believed);
    tcase_add_test(tcase, no_memory_is_an_error_and_nothing_else);
    tcase_add_test(tcase, no_memory_at_open_leaks_nothing);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
