/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever happened to the files, the store starts; what it then serves is right, byte for
 * byte, or missing; what was removed stays removed; a rebuild finds what the index knew.
 * Method: files of a closed store are cut, flipped, removed; writes that were never committed are
 * made by copying files away under a running store. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/record.h"
#include "fixture.h"
#include "storage/store.h"

static struct fixture f;

/* Every entry, for a comparison across a rebuild. */
static uint32_t list_all(struct larder_entry_info *out, uint32_t count_max)
{
    uint32_t total = 0;
    uint64_t cursor = 0;
    do {
        uint32_t count;
        ck_assert_int_eq(larder_store_list(f.store, out + total, &count, &cursor, 7), 0);
        total += count;
        ck_assert_uint_le(total + 7, count_max);
    } while (cursor != 0);
    return total;
}

static int by_key(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct larder_key));
}

START_TEST(rebuild_equals_index)
{
    static struct larder_entry_info before[256], after[256];
    uint64_t removed;
    for (uint64_t chain = 0; chain < 20; chain++)
        fixture_put_chain(&f, chain * 100, 1 + (uint32_t)chain % 5, 9000 + 777 * (uint32_t)chain,
                          LARDER_DURABLE);
    ck_assert_int_eq(fixture_remove(&f, 401, &removed), 0);
    ck_assert_int_eq(fixture_remove(&f, 800, &removed), 0);
    fixture_put_chain(&f, 800, 3, 12345, LARDER_DURABLE); /* again, after its tombstone */
    fixture_reopen(&f);
    uint32_t count = list_all(before, 256);
    fixture_rebuild(&f);
    ck_assert_uint_eq(list_all(after, 256), count);
    qsort(before, count, sizeof(before[0]), by_key);
    qsort(after, count, sizeof(after[0]), by_key);
    for (uint32_t i = 0; i < count; i++) {
        before[i].model = after[i].model;
        ck_assert_mem_eq(&before[i], &after[i], sizeof(before[i]));
    }
    ck_assert(!fixture_has(&f, 401));
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 800, 3, &err), 3);
    /* And the index that it made is as good. */
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 0);
    ck_assert_uint_eq(fixture_stats(&f).entries, count);
    struct larder_model_info model;
    ck_assert_int_eq(larder_store_model_at(f.store, &model, 0), 0);
    ck_assert_str_eq(model.desc.name, "some");
}
END_TEST

static void flip_in(uint64_t seed, uint64_t offset_in_record)
{
    struct larder_entry_info info = fixture_info(&f, seed);
    fixture_close(&f);
    fixture_flip(&f, info.segment_id, (uint64_t)info.segment_page * 4096 + offset_in_record);
    ck_assert_int_eq(fixture_open(&f), 0);
}

/* Offsets in a record of 256 tokens and two sections of 20,000 bytes: fields of the head, a token,
 * the directory, and both sections. */
static const uint64_t flips[] = {0,    9,    17,   33,   41,   60,    90,    140,   160,
                                 202,  205,  213,  225,  229,  245,   1000,  300,   1282,
                                 1300, 1330, 1340, 1500, 2000, 12000, 21000, 24000, 41000};

START_TEST(a_flipped_byte_is_a_miss)
{
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    flip_in(3, flips[_i]);
    int err;
    uint32_t good = fixture_get_chain(&f, 1, 4, &err);
    if (good == 4) /* padding */
        return;
    ck_assert_uint_eq(good, 2);
    ck_assert_int_eq(err, LARDER_ECORRUPT);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 1);
    /* Gone with what was stored behind it, for good. */
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 2);
    fixture_rebuild(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 2);
    ck_assert(!fixture_has(&f, 4));
    fixture_put_chain(&f, 100, 2, 20000, LARDER_DURABLE);
}
END_TEST

START_TEST(verify_finds_damage)
{
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    flip_in(2, 12000);
    ck_assert_int_eq(fixture_verify(&f, 1), 0);
    ck_assert_int_eq(fixture_verify(&f, 2), LARDER_ECORRUPT);
    ck_assert_int_eq(fixture_verify(&f, 2), LARDER_ENOTFOUND);
    ck_assert_int_eq(fixture_verify(&f, 3), LARDER_ENOTFOUND);
    ck_assert_uint_eq(fixture_stats(&f).entries_host, 0);
}
END_TEST

START_TEST(a_damaged_head_in_a_rebuild_costs_its_subtree_only)
{
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    fixture_put_chain(&f, 101, 4, 20000, LARDER_DURABLE);
    struct larder_entry_info info = fixture_info(&f, 3);
    fixture_close(&f);
    fixture_flip(&f, info.segment_id, (uint64_t)info.segment_page * 4096 + 60);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 2);
    ck_assert_uint_eq(fixture_get_chain(&f, 101, 4, &err), 4);
}
END_TEST

START_TEST(a_truncated_segment_loses_what_was_cut)
{
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    struct larder_entry_info info = fixture_info(&f, 3);
    fixture_close(&f);
    fixture_truncate(&f, info.segment_id, (uint64_t)info.segment_page * 4096 + 8192);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 2);
    ck_assert_int_eq(err, 0);
    fixture_put_chain(&f, 50, 1, 20000, LARDER_DURABLE);
    fixture_close(&f);
    fixture_truncate(&f, info.segment_id, 0);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), 1);
}
END_TEST

START_TEST(a_missing_segment_loses_its_entries)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    fixture_reopen(&f);
    fixture_put_chain(&f, 50, 2, 20000, LARDER_DURABLE);
    struct larder_entry_info info = fixture_info(&f, 1);
    ck_assert_uint_ne(info.segment_id, fixture_info(&f, 50).segment_id);
    fixture_close(&f);
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/%08u.seg", f.path, info.segment_id);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 50, 2, &err), 2);
}
END_TEST

START_TEST(a_damaged_header_costs_nothing)
{
    fixture_put_chain(&f, 1, 4, 20000, LARDER_DURABLE);
    fixture_close(&f);
    fixture_flip(&f, 1, 40);
    ck_assert_int_eq(fixture_open(&f), 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 4);
    fixture_rebuild(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 4, &err), 4);
}
END_TEST

static void copy_file(const char *from, const char *to)
{
    char command[2 * SCRATCH_PATH_BYTES + 64];
    snprintf(command, sizeof(command), "cp -r '%s' '%s'", from, to);
    ck_assert_int_eq(system(command), 0);
}

/* The index of before, the segments of now: what stands behind the committed bytes is a tail. */
static void keep_index_while(void (*change)(void))
{
    char index[SCRATCH_PATH_BYTES + 16], kept[SCRATCH_PATH_BYTES + 16];
    snprintf(index, sizeof(index), "%s/index", f.path);
    snprintf(kept, sizeof(kept), "%s/kept", f.path);
    fixture_commit(&f);
    copy_file(index, kept);
    change();
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(rename(kept, index), 0);
}

static void add_more(void)
{
    uint64_t removed;
    struct block child = {.seed = 3,
                          .parent = block_key(2),
                          .token_count = 256,
                          .section_bytes = 9000,
                          .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &child, LARDER_DURABLE), 0);
    fixture_put_chain(&f, 100, 3, 9000, LARDER_DURABLE);
    ck_assert_int_eq(fixture_remove(&f, 11, &removed), 0);
    fixture_put_chain(&f, 200, 3, 9000, LARDER_DURABLE);
}

START_TEST(a_tail_is_taken_in)
{
    fixture_put_chain(&f, 1, 2, 9000, LARDER_DURABLE);
    fixture_put_chain(&f, 10, 4, 9000, LARDER_DURABLE);
    keep_index_while(add_more);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 7);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 3, &err), 3);
    ck_assert_uint_eq(fixture_get_chain(&f, 10, 4, &err), 1);
    ck_assert_uint_eq(fixture_get_chain(&f, 100, 3, &err), 3);
    ck_assert_uint_eq(fixture_get_chain(&f, 200, 3, &err), 3);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 0);
    ck_assert_uint_eq(fixture_get_chain(&f, 200, 3, &err), 3);
    fixture_rebuild(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 10, 4, &err), 1);
}
END_TEST

/* Commits that are let through. */
static int commits_left;

static int count_down(void *context)
{
    (void)context;
    return commits_left-- > 0 ? 0 : -EIO;
}

/* More than one transaction takes; the parent of a block that was stored before is replaced. */
static void replace_and_add_many(void)
{
    struct block better = {
        .seed = 1, .token_count = 256, .section_bytes = 500, .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &better, LARDER_DURABLE), 0);
    fixture_put_chain(&f, 1000, 600, 200, LARDER_CACHED);
    fixture_settle(&f, 1599);
}

START_TEST(a_start_cut_short_loses_nothing_behind_what_was_replaced)
{
    fixture_close(&f);
    f.options.segment_bytes = 8 << 20;
    f.options.ssd_bytes = 64 << 20;
    f.options.host_bytes = 16 << 20;
    ck_assert_int_eq(fixture_open(&f), 0);
    struct block block = {.seed = 1,
                          .token_count = 256,
                          .section_bytes = 500,
                          .quality = LARDER_QUALITY_LOSSY,
                          .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    block.seed = 2;
    block.parent = block_key(1);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    keep_index_while(replace_and_add_many);
    f.options.index_gate = count_down;
    commits_left = 1;
    ck_assert_int_lt(fixture_open(&f), 0);
    ck_assert_int_lt(commits_left, 0);
    f.options.index_gate = NULL;
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert_uint_eq(fixture_get_chain(&f, 1000, 600, &err), 600);
    ck_assert_int_eq(fixture_info(&f, 1).quality, LARDER_QUALITY_EXACT);
}
END_TEST

/* The tail is block 3, then 100 to 102 of 20 KB each, a tombstone, and 200 to 202. */
static void damage_101(int64_t from_end)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", f.path);
    int fd = open(path, O_RDONLY);
    uint64_t at = 4096;
    struct larder_record record;
    struct larder_key wanted = block_key(101);
    for (;;) {
        ck_assert_int_eq(pread(fd, &record, sizeof(record), (off_t)at), sizeof(record));
        if (memcmp(record.key, wanted.bytes, 32) == 0)
            break;
        /* What was removed has been punched out. */
        at += record.magic == LARDER_RECORD_MAGIC ? record.record_bytes : 4096;
    }
    close(fd);
    fixture_flip(&f, 1, from_end ? at + record.record_bytes - (uint64_t)from_end : at + 100);
}

/* Goes with what is behind it in its chain; what comes later in the file is taken in. */
static void damaged_in_the_tail(int64_t from_end)
{
    fixture_put_chain(&f, 1, 2, 9000, LARDER_DURABLE);
    fixture_put_chain(&f, 10, 4, 9000, LARDER_DURABLE);
    keep_index_while(add_more);
    damage_101(from_end);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 5);
    ck_assert(fixture_has(&f, 3));
    ck_assert(fixture_has(&f, 100));
    ck_assert(!fixture_has(&f, 101));
    ck_assert(!fixture_has(&f, 102));
    ck_assert(!fixture_has(&f, 11));
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 200, 3, &err), 3);
    fixture_rebuild(&f);
    ck_assert(!fixture_has(&f, 101));
    ck_assert_uint_eq(fixture_get_chain(&f, 200, 3, &err), 3);
}

START_TEST(a_bad_section_in_the_tail_costs_its_record)
{
    damaged_in_the_tail(3000);
}
END_TEST

START_TEST(a_bad_head_in_the_tail_costs_its_record)
{
    damaged_in_the_tail(0);
}
END_TEST

/* The last record of marks in the first segment. */
static void damage_last_mark(void)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", f.path);
    int fd = open(path, O_RDONLY);
    uint64_t last = 0;
    struct larder_record record;
    for (uint64_t at = 4096; pread(fd, &record, sizeof(record), (off_t)at) == sizeof(record);) {
        bool there = record.magic == LARDER_RECORD_MAGIC;
        if (there && record.type == LARDER_RECORD_MARK)
            last = at;
        at += there ? record.record_bytes : 4096;
    }
    close(fd);
    ck_assert_uint_gt(last, 0);
    fixture_flip(&f, 1, last + 100);
}

static struct block marked_block(enum larder_quality quality, bool beside)
{
    return (struct block){.seed = 1,
                          .token_count = 256,
                          .section_bytes = 9000,
                          .quality = quality,
                          .beside = beside,
                          .tenant = f.tenant.index};
}

static void put_better(void)
{
    struct block block = marked_block(LARDER_QUALITY_LOSSY, false);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
}

static void put_beside(void)
{
    struct block block = marked_block(LARDER_QUALITY_EXACT, true);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
}

static void pin_and_put_better(void)
{
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(fixture_mark(&f, 1, &pin), 0);
    put_better();
}

static void put_twice(void)
{
    put_better();
    damage_last_mark();
    put_beside();
}

static bool is_pinned(uint64_t seed)
{
    struct larder_entry_info info;
    struct larder_key key = block_key(seed);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    return info.pinned;
}

/* A group that power loss left in parts: a record, without the mark that was written before it. */
START_TEST(a_pin_holds_for_a_record_that_lost_its_mark)
{
    static void (*const changes[])(void) = {put_better, put_beside, pin_and_put_better, put_twice};
    struct block block = marked_block(LARDER_QUALITY_BLENDED, false);
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    if (changes[_i] != pin_and_put_better)
        ck_assert_int_eq(fixture_mark(&f, 1, &pin), 0);
    keep_index_while(changes[_i]);
    damage_last_mark();
    for (int life = 0; life < 3; life++) {
        if (life < 2)
            ck_assert_int_eq(life == 0 ? fixture_open(&f) : (fixture_reopen(&f), 0), 0);
        else
            fixture_rebuild(&f);
        fixture_check(&f);
        ck_assert(is_pinned(1));
        ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, life > 0                   ? 0
                                                                 : changes[_i] == put_twice ? 2
                                                                                            : 1);
    }
}
END_TEST

/* Bytes of segment 1, whose file the store may have open. */
static void segment_bytes(void *bytes, uint32_t count, uint64_t at, bool write_them)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", f.path);
    int fd = open(path, O_RDWR);
    ck_assert_int_ge(fd, 0);
    ssize_t done =
        write_them ? pwrite(fd, bytes, count, (off_t)at) : pread(fd, bytes, count, (off_t)at);
    ck_assert_int_eq(done, count);
    close(fd);
}

/* The same when the index is lost too. What is removed in between takes its mark with it. The first
 * record comes back as a crash finds it, before the index let it go. */
START_TEST(a_rebuild_keeps_the_pin_of_a_record_that_lost_its_mark)
{
    static void (*const changes[])(void) = {put_better, put_beside, pin_and_put_better, put_twice};
    struct block block = marked_block(LARDER_QUALITY_BLENDED, false);
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    bool removes = _i >= 4;
    static uint8_t first[20480];
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    ck_assert_int_eq(fixture_mark(&f, 1, &pin), 0);
    uint64_t first_at = fixture_info(&f, 1).segment_page * 4096ull;
    ck_assert_uint_eq(fixture_info(&f, 1).record_bytes, sizeof(first));
    segment_bytes(first, sizeof(first), first_at, false);
    if (removes) {
        uint64_t removed;
        ck_assert_int_eq(fixture_remove_pinned(&f, 1, &removed), 0);
        fixture_put_chain(&f, 700, 1, 9000, LARDER_DURABLE);
        ck_assert_int_eq(fixture_mark(&f, 700, &pin), 0);
    }
    fixture_commit(&f);
    keep_index_while(changes[_i % 4]);
    damage_last_mark();
    segment_bytes(first, sizeof(first), first_at, true);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    for (int life = 0; life < 3; life++) {
        fixture_check(&f);
        ck_assert_int_eq(is_pinned(1), !removes);
        if (life == 0)
            fixture_reopen(&f);
        else
            fixture_rebuild(&f);
    }
}
END_TEST

static void add_alone(void)
{
    fixture_put_chain(&f, 300, 3, 9000, LARDER_DURABLE);
}

START_TEST(a_segment_nobody_knows_is_a_tail)
{
    fixture_put_chain(&f, 1, 2, 9000, LARDER_DURABLE);
    fixture_reopen(&f);
    keep_index_while(add_alone);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 300, 3, &err), 3);
}
END_TEST

/* A file that was made ahead, and nothing was written to. */
START_TEST(a_blank_segment_is_not_the_newest)
{
    fixture_put_chain(&f, 1, 2, 9000, LARDER_DURABLE);
    keep_index_while(add_alone);
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000002.seg", f.path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
    close(fd);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 3);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 300, 3, &err), 3);
    /* It goes, and its id is not used again. */
    fixture_put_chain(&f, 400, 1, 9000, LARDER_DURABLE);
    struct larder_entry_info info;
    struct larder_key key = block_key(400);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    ck_assert_uint_eq(info.segment_id, 3);
    fixture_close(&f);
    ck_assert_int_ne(access(path, F_OK), 0);
}
END_TEST

/* Power failed before the first sync of all: neither the segment's header nor the index is there,
 * and of two records one is torn behind its head. */
START_TEST(without_a_header_records_are_taken_when_whole)
{
    bool sealed = f.options.key_file != NULL; /* what opens the records is lost with the header */
    fixture_put_chain(&f, 1, 1, 9000, LARDER_DURABLE);
    fixture_put_chain(&f, 50, 1, 9000, LARDER_DURABLE);
    struct larder_entry_info torn = fixture_info(&f, 1);
    fixture_close(&f);
    fixture_flip(&f, torn.segment_id, torn.segment_page * 4096ull + 12000);
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000001.seg", f.path);
    int fd = open(path, O_WRONLY);
    ck_assert_int_ge(fd, 0);
    static const uint8_t zeros[4096];
    ck_assert_int_eq(pwrite(fd, zeros, sizeof(zeros), 0), sizeof(zeros));
    close(fd);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    for (int start = 0; start < 2; start++) {
        int err;
        fixture_check(&f);
        ck_assert(!fixture_has(&f, 1));
        ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), sealed ? 0 : 1);
        ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
        fixture_reopen(&f);
    }
}
END_TEST

/* A newer segment exists only when this tail was given up; what was in it may have been removed
 * since. */
START_TEST(a_tail_of_an_older_segment_is_cut)
{
    fixture_put_chain(&f, 1, 2, 9000, LARDER_DURABLE);
    keep_index_while(add_alone);
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/00000002.seg", f.path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(write(fd, "not blank", 9), 9);
    ck_assert_int_eq(ftruncate(fd, 1 << 20), 0);
    close(fd);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).recovered_from_tail, 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert(!fixture_has(&f, 300));
    /* Not in the file either. */
    fixture_rebuild(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert(!fixture_has(&f, 300));
}
END_TEST

START_TEST(second_open_is_refused)
{
    struct larder_store *second;
    ck_assert_int_eq(larder_store_open(&second, &f.options), LARDER_ELOCKED);
    ck_assert_ptr_null(second);
    fixture_put_chain(&f, 1, 1, 9000, LARDER_DURABLE);
}
END_TEST

START_TEST(an_unknown_version_is_refused_untouched)
{
    fixture_put_chain(&f, 1, 1, 9000, LARDER_DURABLE);
    fixture_close(&f);
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/format", f.path);
    int fd = open(path, O_RDWR);
    ck_assert_int_eq(pwrite(fd, "2", 1, 13), 1);
    ck_assert_int_eq(fixture_open(&f), LARDER_EVERSION);
    ck_assert_int_eq(pwrite(fd, "1", 1, 13), 1);
    close(fd);
    ck_assert_int_eq(fixture_open(&f), 0);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 1, &err), 1);
}
END_TEST

START_TEST(foreign_files_are_left_alone)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/segments/notes.txt", f.path);
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    ck_assert_int_ge(fd, 0);
    close(fd);
    fixture_put_chain(&f, 1, 1, 9000, LARDER_DURABLE);
    fixture_reopen(&f);
    ck_assert_int_eq(access(path, F_OK), 0);
    ck_assert(fixture_has(&f, 1));
}
END_TEST

START_TEST(options_are_checked)
{
    fixture_close(&f);
    struct larder_store_options good = f.options;
    f.options.slab_bytes = 5000;
    ck_assert_int_eq(fixture_open(&f), LARDER_ECONFIG);
    f.options = good;
    f.options.segment_bytes += 1;
    ck_assert_int_eq(fixture_open(&f), LARDER_ECONFIG);
    f.options = good;
    f.options.ssd_bytes = f.options.segment_bytes;
    ck_assert_int_eq(fixture_open(&f), LARDER_ECONFIG);
    f.options = good;
    f.options.host_bytes = f.options.slab_bytes / 2;
    ck_assert_int_eq(fixture_open(&f), LARDER_ECONFIG);
    f.options = good;
    f.options.io = "magic";
    ck_assert_int_lt(fixture_open(&f), 0);
    f.options = good;
    f.options.io = "threads";
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_put_chain(&f, 1, 3, 9000, LARDER_DURABLE);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("recovery");
    TCase *tcase = tcase_create("recovery");
    fixture_add(tcase, &f);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, rebuild_equals_index);
    tcase_add_loop_test(tcase, a_flipped_byte_is_a_miss, 0, sizeof(flips) / sizeof(flips[0]));
    tcase_add_test(tcase, verify_finds_damage);
    tcase_add_test(tcase, a_damaged_head_in_a_rebuild_costs_its_subtree_only);
    tcase_add_test(tcase, a_truncated_segment_loses_what_was_cut);
    tcase_add_test(tcase, a_missing_segment_loses_its_entries);
    tcase_add_test(tcase, a_damaged_header_costs_nothing);
    tcase_add_test(tcase, a_tail_is_taken_in);
    tcase_add_test(tcase, a_start_cut_short_loses_nothing_behind_what_was_replaced);
    tcase_add_test(tcase, a_bad_section_in_the_tail_costs_its_record);
    tcase_add_test(tcase, a_bad_head_in_the_tail_costs_its_record);
    tcase_add_test(tcase, a_blank_segment_is_not_the_newest);
    tcase_add_test(tcase, without_a_header_records_are_taken_when_whole);
    tcase_add_loop_test(tcase, a_pin_holds_for_a_record_that_lost_its_mark, 0, 4);
    tcase_add_loop_test(tcase, a_rebuild_keeps_the_pin_of_a_record_that_lost_its_mark, 0, 6);
    tcase_add_test(tcase, a_segment_nobody_knows_is_a_tail);
    tcase_add_test(tcase, a_tail_of_an_older_segment_is_cut);
    tcase_add_test(tcase, second_open_is_refused);
    tcase_add_test(tcase, an_unknown_version_is_refused_untouched);
    tcase_add_test(tcase, foreign_files_are_left_alone);
    tcase_add_test(tcase, options_are_checked);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
