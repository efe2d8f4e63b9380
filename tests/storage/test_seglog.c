/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: segment ids are never used twice, tombstones outlive older segments, a full disk leaves
 * nothing behind, foreign and odd files are left alone.
 * Method: the segment log alone over a simulated disk. */
#include "storage/seglog.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "sim_disk.h"

#define SEGMENT_BYTES (1u << 20)

static struct sim_disk *disk;
static struct larder_io *io;
static struct seglog segments;
static uint8_t store_id[16] = {1, 2, 3};
static uint32_t gone[16];
static uint32_t gone_count;

/* As the keeper and the storage thread do together. */
static void remove_dead(void)
{
    struct segment *dead[16];
    uint32_t count = seglog_dead(&segments, dead, LARDER_COUNT_OF(dead));
    for (uint32_t i = 0; i < count; i++) {
        gone[gone_count++] = dead[i]->id;
        ck_assert_int_eq(seglog_remove_file(&segments, dead[i]), 0);
        seglog_forget(&segments, dead[i]);
    }
}

static void setup(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    disk = sim_disk_create(1);
    io = sim_disk_open_io(disk);
    gone_count = 0;
    ck_assert_int_eq(seglog_open(&segments, io, store_id, SEGMENT_BYTES), 0);
}

static void teardown(void)
{
    seglog_close(&segments);
    io->ops->close(io);
    sim_disk_destroy(disk);
}

/* As the writer does with the first group of a segment. */
static void make_segment(uint64_t live_bytes, uint64_t tombstone_bytes)
{
    if (segments.open)
        seglog_seal(&segments);
    ck_assert_int_eq(seglog_create(&segments), 0);
    struct segment *segment = segments.open;
    ck_assert_int_eq(
        larder_io_run(io, LARDER_IO_WRITE, segment->file, segments.page, 0, SEGMENT_HEADER_BYTES),
        0);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_SYNC, segment->file, NULL, 0, 0), 0);
    segment->end_bytes += live_bytes + tombstone_bytes;
    segment->live_bytes = live_bytes;
    segment->tombstone_bytes = tombstone_bytes;
}

START_TEST(tombstones_outlive_older_segments)
{
    make_segment(8192, 0);
    make_segment(0, 4096);
    make_segment(0, 0);
    make_segment(4096, 0);
    remove_dead();
    ck_assert_uint_eq(gone_count, 1);
    ck_assert_uint_eq(gone[0], 3);
    seglog_find(&segments, 1)->live_bytes = 0;
    seglog_find(&segments, 1)->users = 1;
    remove_dead();
    ck_assert_uint_eq(gone_count, 1);
    seglog_find(&segments, 1)->users = 0;
    remove_dead();
    ck_assert_uint_eq(gone_count, 3);
    ck_assert_uint_eq(gone[1], 1);
    ck_assert_uint_eq(gone[2], 2);
    ck_assert_ptr_null(seglog_find(&segments, 1));
    ck_assert_ptr_nonnull(seglog_find(&segments, 4));
    make_segment(0, 0);
    ck_assert_uint_eq(segments.open->id, 5);
}
END_TEST

START_TEST(sealed_files_are_cut)
{
    make_segment(8192, 0);
    ck_assert_uint_eq(seglog_usage(&segments), SEGMENT_BYTES);
    seglog_seal(&segments);
    char name[64];
    uint64_t bytes;
    ck_assert(sim_disk_file(disk, 0, name, &bytes));
    ck_assert_str_eq(name, "00000001.seg");
    ck_assert_uint_eq(bytes, SEGMENT_HEADER_BYTES + 8192);
    ck_assert_uint_eq(seglog_usage(&segments), SEGMENT_HEADER_BYTES + 8192);
    seglog_close(&segments);
    ck_assert_int_eq(seglog_open(&segments, io, store_id, SEGMENT_BYTES), 0);
    ck_assert_uint_eq(segments.count, 1);
    ck_assert_ptr_null(segments.open);
    seglog_saw(&segments, 7);
    make_segment(0, 0);
    ck_assert_uint_eq(segments.open->id, 8);
}
END_TEST

START_TEST(a_full_disk_leaves_nothing_behind)
{
    make_segment(8192, 0);
    struct sim_faults faults = {.capacity_bytes = 65536};
    seglog_seal(&segments);
    sim_disk_set_faults(disk, &faults);
    ck_assert_int_eq(seglog_create(&segments), -ENOSPC);
    ck_assert_ptr_null(segments.open);
    ck_assert_uint_eq(segments.count, 1);
    char name[64];
    uint64_t bytes;
    ck_assert(!sim_disk_file(disk, 1, name, &bytes));
}
END_TEST

START_TEST(files_of_others_are_left_alone)
{
    make_segment(8192, 0);
    seglog_close(&segments);
    uint8_t other_id[16] = {9};
    ck_assert_int_eq(seglog_open(&segments, io, other_id, SEGMENT_BYTES), 0);
    ck_assert_uint_eq(segments.count, 0);
    make_segment(0, 0);
    ck_assert_uint_eq(segments.open->id, 2);
    char name[64];
    uint64_t bytes;
    ck_assert(sim_disk_file(disk, 1, name, &bytes));
}
END_TEST

START_TEST(a_damaged_header_is_no_other_version)
{
    make_segment(8192, 0);
    seglog_close(&segments);
    ck_assert(sim_disk_flip_bit(disk, "00000001.seg", 8, 1));
    ck_assert_int_eq(seglog_open(&segments, io, store_id, SEGMENT_BYTES), 0);
    ck_assert_uint_eq(segments.count, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("seglog");
    TCase *tcase = tcase_create("seglog");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, tombstones_outlive_older_segments);
    tcase_add_test(tcase, sealed_files_are_cut);
    tcase_add_test(tcase, a_full_disk_leaves_nothing_behind);
    tcase_add_test(tcase, files_of_others_are_left_alone);
    tcase_add_test(tcase, a_damaged_header_is_no_other_version);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
