/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is pinned stays, with all before it, through eviction, expiry, removal by request,
 *       restarts, and an index made anew; what is over is a miss at once and never comes back;
 *       clocks that jump end nothing early; a mark outlives neither its entry nor a newer mark.
 * Method: a small store under clocks of the test; the index is removed between lives; far more is
 *       put than fits, so that whatever may go does. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"
#include "storage/index.h"
#include "storage/mark.h"
#include "storage/store.h"

#define YEAR_S (365ull * 24 * 3600)

static struct fixture f;
static struct larder_clock_reading now;

static void read_now(void *context, struct larder_clock_reading *out)
{
    (void)context;
    *out = now;
}

static void pass(uint64_t seconds)
{
    now.wall_s += seconds;
    now.elapsed_s += seconds;
}

static void setup(void)
{
    now = (struct larder_clock_reading){.wall_s = 30 * YEAR_S, .elapsed_s = 1000, .boot = 7};
    fixture_begin(&f);
    f.options.clock = read_now;
    /* So that a flood takes all that may go. */
    f.options.eviction = "lru";
    ck_assert_int_eq(fixture_open(&f), 0);
}

static void teardown(void)
{
    fixture_end(&f);
}

static void mark(uint64_t seed, struct larder_mark change)
{
    int err = fixture_mark(&f, seed, &change);
    ck_assert_msg(err == 0, "%s", larder_error_text(err));
}

static void pin(uint64_t seed, uint64_t seconds)
{
    mark(seed, (struct larder_mark){.fields = LARDER_MARK_PIN, .pin_s = seconds});
}

static void unpin(uint64_t seed)
{
    mark(seed, (struct larder_mark){.fields = LARDER_MARK_UNPIN});
}

static void ttl(uint64_t seed, uint64_t seconds)
{
    mark(seed, (struct larder_mark){.fields = LARDER_MARK_TTL, .ttl_s = seconds});
}

/* Expires what is due, and waits until it is gone from disk. */
static void expire(void)
{
    larder_store_expire(f.store);
    fixture_put_chain(&f, 999000, 1, 1000, LARDER_DURABLE);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 999000, &removed), 0);
    fixture_check(&f);
}

/* More than SSD holds. */
static void flood(uint64_t first)
{
    for (uint64_t chain = 0; chain < 60; chain++)
        fixture_put_chain(&f, first + chain * 100, 6, 30000, LARDER_DURABLE);
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 50);
}

static uint64_t expired_count(void)
{
    uint64_t counts[LARDER_EVENT_END];
    larder_store_event_counts(f.store, counts);
    return counts[LARDER_EVENT_EXPIRED];
}

static uint32_t found(uint64_t first, uint32_t count)
{
    int err;
    return fixture_get_chain(&f, first, count, &err);
}

/* --- pins ------------------------------------------------------------------------------------- */

START_TEST(a_pin_holds_its_chain)
{
    fixture_put_chain(&f, 1000, 5, 20000, LARDER_DURABLE);
    pin(1002, 0);
    ck_assert(fixture_info(&f, 1002).pinned);
    ck_assert(fixture_info(&f, 1001).held && !fixture_info(&f, 1001).pinned);
    ck_assert(!fixture_info(&f, 1003).held);
    uint64_t held = fixture_stats(&f).record_bytes_held;
    ck_assert_uint_eq(held, 3 * fixture_info(&f, 1000).record_bytes);
    flood(2000);
    ck_assert_uint_eq(found(1000, 5), 3);
    ck_assert_uint_eq(fixture_stats(&f).record_bytes_held, held);
    unpin(1002);
    ck_assert_uint_eq(fixture_stats(&f).record_bytes_held, 0);
    flood(20000);
    ck_assert_uint_eq(found(1000, 5), 0);
}
END_TEST

START_TEST(two_pins_hold_what_they_share)
{
    struct block block = {.token_count = 256, .section_bytes = 9000, .tenant = f.tenant.index};
    fixture_put_chain(&f, 1000, 2, 9000, LARDER_DURABLE);
    for (uint64_t i = 0; i < 3; i++) {
        block.seed = 1010 + i;
        block.parent = block_key(1001);
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
        pin(1010 + i, 0);
    }
    pin(1000, 0);
    unpin(1010);
    fixture_check(&f);
    unpin(1012);
    ck_assert(fixture_info(&f, 1001).held);
    unpin(1011);
    fixture_check(&f);
    ck_assert(!fixture_info(&f, 1001).held);
    ck_assert(fixture_info(&f, 1000).held);
    unpin(1000);
    unpin(1000); /* twice is no error */
    ck_assert_uint_eq(fixture_stats(&f).record_bytes_held, 0);
}
END_TEST

START_TEST(a_pin_survives_restart_and_rebuild)
{
    fixture_put_chain(&f, 1000, 3, 20000, LARDER_DURABLE);
    fixture_put_chain(&f, 1100, 3, 20000, LARDER_DURABLE);
    pin(1002, 0);
    pin(1102, 0);
    unpin(1102);
    for (int life = 0; life < 3; life++) {
        ck_assert(fixture_info(&f, 1002).pinned);
        ck_assert(fixture_info(&f, 1000).held);
        ck_assert(!fixture_info(&f, 1102).pinned);
        if (life == 0)
            fixture_reopen(&f);
        else
            fixture_rebuild(&f);
        fixture_check(&f);
    }
    flood(2000);
    ck_assert_uint_eq(found(1000, 3), 3);
    ck_assert_uint_eq(found(1100, 3), 0);
    fixture_rebuild(&f);
    ck_assert_uint_eq(found(1000, 3), 3);
    ck_assert(fixture_info(&f, 1002).pinned);
}
END_TEST

START_TEST(removal_is_refused_unless_forced)
{
    uint64_t removed;
    fixture_put_chain(&f, 1000, 4, 20000, LARDER_DURABLE);
    pin(1002, 0);
    for (uint64_t i = 0; i < 3; i++)
        ck_assert_int_eq(fixture_remove(&f, 1000 + i, &removed), LARDER_EPINNED);
    ck_assert_int_eq(fixture_remove(&f, 1003, &removed), 0);
    ck_assert_int_eq(fixture_remove_pinned(&f, 1001, &removed), 0);
    ck_assert_uint_eq(removed, 2);
    ck_assert(!fixture_info(&f, 1000).held);
    fixture_rebuild(&f);
    ck_assert_uint_eq(found(1000, 3), 1);
    ck_assert_uint_eq(fixture_stats(&f).record_bytes_held, 0);
}
END_TEST

START_TEST(a_mark_does_not_outlive_its_entry)
{
    uint64_t removed;
    fixture_put_chain(&f, 1000, 2, 20000, LARDER_DURABLE);
    fixture_put_chain(&f, 1100, 2, 20000, LARDER_DURABLE);
    pin(1001, 0);
    ttl(1101, 1000);
    ck_assert_int_eq(fixture_remove_pinned(&f, 1001, &removed), 0);
    flood(2000); /* evicts 1101, which is not pinned */
    ck_assert_uint_eq(found(1100, 2), 0);
    fixture_put_chain(&f, 1100, 2, 20000, LARDER_DURABLE);
    struct block again = {.seed = 1001, .token_count = 256, .section_bytes = 20000};
    again.tenant = f.tenant.index;
    if (found(1000, 1) == 0)
        fixture_put_chain(&f, 1000, 1, 20000, LARDER_DURABLE);
    again.parent = block_key(1000);
    ck_assert_int_eq(fixture_put(&f, &again, LARDER_DURABLE), 0);
    for (int life = 0; life < 2; life++) {
        ck_assert(!fixture_info(&f, 1001).held);
        ck_assert_uint_eq(fixture_info(&f, 1101).expires_s, 0);
        if (life == 0)
            fixture_reopen(&f);
        fixture_rebuild(&f);
    }
}
END_TEST

START_TEST(a_better_record_keeps_the_mark)
{
    struct block block = {.seed = 1000,
                          .token_count = 256,
                          .section_bytes = 9000,
                          .quality = LARDER_QUALITY_LOSSY,
                          .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    pin(1000, 0);
    mark(1000, (struct larder_mark){.fields = LARDER_MARK_PRIORITY, .priority = -3});
    block.quality = LARDER_QUALITY_EXACT;
    block.section_bytes = 20000;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    for (int life = 0; life < 3; life++) {
        ck_assert_int_eq(fixture_info(&f, 1000).quality, LARDER_QUALITY_EXACT);
        ck_assert(fixture_info(&f, 1000).pinned);
        ck_assert_int_eq(fixture_info(&f, 1000).priority, -3);
        fixture_check(&f);
        if (life == 0)
            fixture_reopen(&f);
        else
            fixture_rebuild(&f);
    }
}
END_TEST

/* Two changes of what is not on SSD yet, asked for where nothing can be written between them. */
static int marks_done;

static void on_marked(void *context, int err)
{
    (void)context;
    must(err == 0);
    __atomic_add_fetch(&marks_done, 1, __ATOMIC_RELEASE);
}

static void mark_from_the_storage_thread(void *context, int err)
{
    const struct larder_mark *changes = context;
    must(err == 0);
    struct block block = {
        .seed = 1000, .token_count = 256, .section_bytes = 9000, .tenant = f.tenant.index};
    struct larder_key key = block_key(1000);
    must(fixture_put(&f, &block, LARDER_CACHED) == 0);
    for (int i = 0; i < 2; i++)
        larder_store_mark(f.store, f.tenant.index, &key, &changes[i], on_marked, NULL);
}

static void wait_for_marks(int count)
{
    for (int i = 0; i < 1000 && __atomic_load_n(&marks_done, __ATOMIC_ACQUIRE) < count; i++)
        usleep(10000);
    ck_assert_int_eq(__atomic_load_n(&marks_done, __ATOMIC_ACQUIRE), count);
}

START_TEST(the_newest_of_two_marks_holds)
{
    static const struct larder_mark changes[2][2] = {
        {{.fields = LARDER_MARK_TTL, .ttl_s = YEAR_S}, {.fields = LARDER_MARK_PIN}},
        {{.fields = LARDER_MARK_PIN}, {.fields = LARDER_MARK_UNPIN}}};
    bool pinned = _i == 0;
    marks_done = 0;
    struct block block = {
        .seed = 1, .token_count = 256, .section_bytes = 9000, .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    struct larder_key key = block_key(1);
    larder_store_mark(f.store, f.tenant.index, &key, &changes[_i][0], mark_from_the_storage_thread,
                      (void *)changes[_i]);
    wait_for_marks(2);
    ck_assert_int_eq(fixture_info(&f, 1000).pinned, pinned);
    fixture_commit(&f);
    fixture_reopen(&f);
    ck_assert_int_eq(fixture_info(&f, 1000).pinned, pinned);
    fixture_rebuild(&f);
    ck_assert_int_eq(fixture_info(&f, 1000).pinned, pinned);
}
END_TEST

static int count_entry(void *context, const struct larder_key *key, uint32_t variant,
                       const struct index_entry *entry)
{
    (void)key, (void)variant, (void)entry;
    (void)context;
    return 0;
}

static int count_segment(void *context, uint32_t id, const struct index_segment *segment)
{
    (void)context, (void)id, (void)segment;
    return 0;
}

static int count_mark(void *context, const struct larder_key *key, const struct index_mark *row)
{
    (void)key, (void)row;
    (*(uint64_t *)context)++;
    return 0;
}

static int count_model(void *context, const struct larder_key *fingerprint,
                       const struct larder_model_desc *desc)
{
    (void)context, (void)fingerprint, (void)desc;
    return 0;
}

/* Of a closed store. */
static uint64_t rows_of_marks(void)
{
    uint64_t count = 0;
    uint64_t generation;
    const struct index_visitor visitor = {.context = &count,
                                          .entry = count_entry,
                                          .segment = count_segment,
                                          .mark = count_mark,
                                          .model = count_model};
    char path[SCRATCH_PATH_BYTES + 16];
    snprintf(path, sizeof(path), "%s/index", f.path);
    struct larder_index *index;
    ck_assert_int_eq(larder_index_open_to_read(&index, path), 0);
    ck_assert_int_eq(larder_index_load(index, &visitor, &generation), 0);
    larder_index_close(index);
    return count;
}

START_TEST(rows_of_marks_go_with_their_entries)
{
    struct block block = {.token_count = 256,
                          .section_bytes = 60000,
                          .tenant = f.tenant.index,
                          .mark = {.fields = LARDER_MARK_TTL, .ttl_s = YEAR_S}};
    for (block.seed = 1; block.seed <= 400; block.seed++)
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 100);
    uint64_t entries = fixture_stats(&f).entries;
    fixture_close(&f);
    ck_assert_uint_eq(rows_of_marks(), entries);
    ck_assert_int_eq(fixture_open(&f), 0);
    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(f.store, f.tenant.index, &removed), 0);
    ck_assert_uint_eq(removed, entries);
    fixture_close(&f);
    ck_assert_uint_eq(rows_of_marks(), 0);
    ck_assert_int_eq(fixture_open(&f), 0);
}
END_TEST

static int floods;
static bool flood_ends;

static void mark_again(void *context, int err)
{
    struct larder_key key = block_key(5000);
    static const struct larder_mark change = {.fields = LARDER_MARK_TTL, .ttl_s = YEAR_S};
    must(err == 0);
    if (__atomic_load_n(&flood_ends, __ATOMIC_ACQUIRE))
        __atomic_sub_fetch(&floods, 1, __ATOMIC_RELEASE);
    else
        larder_store_mark(f.store, *(const uint32_t *)context, &key, &change, mark_again, context);
}

START_TEST(marks_of_another_do_not_hold_a_purge_up)
{
    struct larder_tenant_info other;
    ck_assert_int_eq(larder_store_tenant(f.store, &other, "b"), 0);
    struct block block = {
        .seed = 5000, .token_count = 256, .section_bytes = 9000, .tenant = other.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_put_chain(&f, 1, 5, 9000, LARDER_DURABLE);
    floods = 8;
    flood_ends = false;
    for (int i = 0; i < 8; i++)
        mark_again(&other.index, 0);
    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(f.store, f.tenant.index, &removed), 0);
    ck_assert_uint_eq(removed, 5);
    __atomic_store_n(&flood_ends, true, __ATOMIC_RELEASE);
    for (int i = 0; i < 1000 && __atomic_load_n(&floods, __ATOMIC_ACQUIRE) > 0; i++)
        usleep(10000);
    ck_assert_int_eq(__atomic_load_n(&floods, __ATOMIC_ACQUIRE), 0);
    ck_assert(fixture_has(&f, 5000));
}
END_TEST

/* Marks of another tenant, a thousand at any time, each asked for again when it is done. */
#define FLOOD     1000
#define FLOOD_END 60000 /* without a share they would all go first */

static int flooded;
static void flood_one(uint32_t *tenant);

static void flood_again(void *context, int err)
{
    must(err == 0);
    if (__atomic_add_fetch(&flooded, 1, __ATOMIC_RELAXED) < FLOOD_END)
        flood_one(context);
    else
        __atomic_sub_fetch(&floods, 1, __ATOMIC_RELEASE);
}

static void flood_one(uint32_t *tenant)
{
    struct larder_key key = block_key(5000);
    static const struct larder_mark change = {.fields = LARDER_MARK_TTL, .ttl_s = YEAR_S};
    larder_store_mark(f.store, *tenant, &key, &change, flood_again, tenant);
}

START_TEST(marks_of_another_have_their_share)
{
    struct larder_tenant_info other;
    ck_assert_int_eq(larder_store_tenant(f.store, &other, "b"), 0);
    struct block block = {
        .seed = 5000, .token_count = 256, .section_bytes = 9000, .tenant = other.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_put_chain(&f, 1, 1, 9000, LARDER_DURABLE);
    floods = FLOOD;
    flooded = 0;
    for (int i = 0; i < FLOOD; i++)
        flood_one(&other.index);
    /* Each behind a few groups, of some hundred marks. */
    fixture_put_chain(&f, 100, 1, 9000, LARDER_DURABLE);
    ttl(1, 5000);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 100, &removed), 0);
    ck_assert_int_lt(__atomic_load_n(&flooded, __ATOMIC_RELAXED), FLOOD_END / 2);
    while (__atomic_load_n(&floods, __ATOMIC_ACQUIRE) > 0)
        usleep(10000);
}
END_TEST

START_TEST(a_pin_is_of_all_variants)
{
    struct block block = {.seed = 1000,
                          .token_count = 256,
                          .section_bytes = 9000,
                          .quality = LARDER_QUALITY_LOSSY,
                          .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    pin(1000, 0);
    block.quality = LARDER_QUALITY_EXACT;
    block.section_bytes = 20000;
    block.beside = true;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_check(&f); /* the better one leads now */
    flood(2000);
    for (int life = 0; life < 3; life++) {
        ck_assert(fixture_info(&f, 1000).pinned);
        ck_assert_int_eq(fixture_info(&f, 1000).quality, LARDER_QUALITY_EXACT);
        fixture_check(&f);
        if (life == 0)
            fixture_reopen(&f);
        else
            fixture_rebuild(&f);
    }
}
END_TEST

START_TEST(segments_of_marks_go_but_not_the_marks)
{
    fixture_put_chain(&f, 1000, 2, 20000, LARDER_DURABLE);
    pin(1001, 0);
    /* Marks that are made and taken away, in every segment; a mark that holds, in an old one. */
    for (uint64_t chain = 0; chain < 100; chain++) {
        fixture_put_chain(&f, 2000 + chain * 100, 6, 30000, LARDER_DURABLE);
        ttl(2000 + chain * 100, 5000);
        pin(2005 + chain * 100, 0);
        unpin(2005 + chain * 100);
        ck_assert_uint_le(fixture_stats(&f).segment_bytes, f.options.ssd_bytes);
    }
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 100);
    fixture_check(&f);
    fixture_rebuild(&f);
    ck_assert_uint_eq(found(1000, 2), 2);
    ck_assert(fixture_info(&f, 1001).pinned);
    /* The pinned ones gone, nothing keeps their segment. */
    uint64_t removed;
    ck_assert_int_eq(fixture_remove_pinned(&f, 1000, &removed), 0);
    flood(50000);
    fixture_rebuild(&f);
    ck_assert_uint_eq(found(1000, 2), 0);
}
END_TEST

/* --- expiry ----------------------------------------------------------------------------------- */

START_TEST(what_is_over_is_a_miss_at_once_and_gone_soon)
{
    fixture_put_chain(&f, 1000, 5, 9000, LARDER_DURABLE);
    ttl(1002, 100);
    pass(99);
    ck_assert_uint_eq(found(1000, 5), 5);
    pass(1);
    ck_assert_uint_eq(found(1000, 5), 2);
    ck_assert(!fixture_has(&f, 1002));
    expire();
    ck_assert_uint_eq(expired_count(), 3);
    ck_assert(!fixture_has(&f, 1004));
    /* The clock goes back, and the index is lost: they do not come back. */
    now.wall_s -= 1000;
    now.boot = 8;
    fixture_rebuild(&f);
    ck_assert_uint_eq(found(1000, 5), 2);
}
END_TEST

START_TEST(a_rebuild_knows_what_is_over)
{
    fixture_put_chain(&f, 1000, 5, 9000, LARDER_DURABLE);
    ttl(1003, 100);
    ttl(1001, 50);
    ttl(1001, 0); /* not any more */
    fixture_close(&f);
    pass(200);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(found(1000, 5), 3);
    expire();
    ck_assert_uint_eq(expired_count(), 2);
}
END_TEST

START_TEST(many_expire_as_one)
{
    struct block block = {.token_count = 256, .section_bytes = 2000, .tenant = f.tenant.index};
    block.mark = (struct larder_mark){.fields = LARDER_MARK_TTL, .ttl_s = 60};
    for (uint64_t i = 0; i < 20; i++) {
        block.seed = 1000 + i;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
        block.parent = block_key(block.seed);
    }
    uint64_t groups = fixture_stats(&f).synced_groups;
    pass(61);
    ck_assert_uint_eq(found(1000, 20), 0);
    larder_store_expire(f.store);
    expire();
    ck_assert_uint_eq(fixture_stats(&f).entries, 0);
    ck_assert_uint_eq(expired_count(), 20);
    /* One tombstone for all; the rest is what expire() itself puts and removes. */
    ck_assert_uint_le(fixture_stats(&f).synced_groups, groups + 3);
}
END_TEST

START_TEST(a_pin_stands_over_expiry)
{
    fixture_put_chain(&f, 1000, 3, 9000, LARDER_DURABLE);
    ttl(1001, 100);
    pin(1002, 300);
    pass(200);
    expire();
    ck_assert_uint_eq(found(1000, 3), 3);
    pass(101);
    expire(); /* the pin is over: looked at, then what it held */
    expire();
    ck_assert_uint_eq(found(1000, 3), 1);
    fixture_put_chain(&f, 2000, 3, 9000, LARDER_DURABLE);
    ttl(2001, 100);
    pin(2002, 0);
    pass(200);
    ck_assert_uint_eq(found(2000, 3), 3);
    unpin(2002);
    ck_assert_uint_eq(found(2000, 3), 1);
    expire();
    ck_assert(!fixture_has(&f, 2002));
}
END_TEST

START_TEST(a_mark_made_with_a_put)
{
    struct block block = {
        .seed = 1000,
        .token_count = 256,
        .section_bytes = 9000,
        .tenant = f.tenant.index,
        .mark = {.fields = LARDER_MARK_PIN | LARDER_MARK_TTL | LARDER_MARK_PRIORITY,
                 .priority = 5,
                 .ttl_s = 100,
                 .pin_s = 50,
                 .priority_s = 20}};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    ck_assert_int_eq(fixture_info(&f, 1000).priority, 5);
    fixture_rebuild(&f);
    struct larder_entry_info info = fixture_info(&f, 1000);
    ck_assert(info.pinned);
    ck_assert_uint_eq(info.expires_s, now.wall_s + 100);
    ck_assert_uint_eq(info.pin_expires_s, now.wall_s + 50);
    pass(21);
    ck_assert_int_eq(fixture_info(&f, 1000).priority, 0);
    pass(30);
    ck_assert(!fixture_info(&f, 1000).pinned);
    larder_store_expire(f.store);
    pass(50);
    ck_assert(!fixture_has(&f, 1000));
}
END_TEST

/* --- clocks ----------------------------------------------------------------------------------- */

START_TEST(jumps_of_the_wall_clock_end_nothing)
{
    fixture_put_chain(&f, 1000, 1, 9000, LARDER_DURABLE);
    ttl(1000, 100);
    now.wall_s = _i ? now.wall_s + 10 * YEAR_S : now.wall_s - 10 * YEAR_S;
    expire();
    ck_assert_uint_eq(found(1000, 1), 1);
    /* Nor over a restart, or a rebuild, in the same boot. */
    fixture_reopen(&f);
    expire();
    ck_assert_uint_eq(found(1000, 1), 1);
    fixture_rebuild(&f);
    ck_assert_uint_eq(fixture_info(&f, 1000).expires_s, now.wall_s + 100);
    /* Nor keep they what is over. */
    now.elapsed_s += 101;
    ck_assert_uint_eq(found(1000, 1), 0);
    fixture_reopen(&f);
    ck_assert_uint_eq(found(1000, 1), 0);
}
END_TEST

START_TEST(after_a_reboot_the_wall_clock_counts)
{
    fixture_put_chain(&f, 1000, 1, 9000, LARDER_DURABLE);
    fixture_put_chain(&f, 2000, 1, 9000, LARDER_DURABLE);
    ttl(1000, 100);
    ttl(2000, 1000);
    fixture_close(&f);
    now = (struct larder_clock_reading){
        .wall_s = now.wall_s + 500, .elapsed_s = 3, .boot = _i ? 0 : 8};
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(found(1000, 1), 0);
    ck_assert_uint_eq(found(2000, 1), 1);
}
END_TEST

/* --- what is refused -------------------------------------------------------------------------- */

START_TEST(what_cannot_be_asked)
{
    static const struct {
        struct larder_mark mark;
        int err;
    } cases[] = {
        {{.fields = LARDER_MARK_PIN | LARDER_MARK_UNPIN}, -EINVAL},
        {{.fields = 16}, -EINVAL},
        {{.fields = LARDER_MARK_PRIORITY, .priority = 9}, LARDER_ELIMIT},
        {{.fields = LARDER_MARK_PRIORITY, .priority = INT32_MIN}, LARDER_ELIMIT},
        {{.fields = LARDER_MARK_TTL, .ttl_s = UINT64_MAX}, LARDER_ELIMIT},
        {{.fields = LARDER_MARK_PIN, .pin_s = LARDER_MARK_SECONDS_MAX + 1}, LARDER_ELIMIT},
    };
    fixture_put_chain(&f, 1000, 1, 9000, LARDER_DURABLE);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        ck_assert_int_eq(fixture_mark(&f, 1000, &cases[i].mark), cases[i].err);
    const struct larder_mark good = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(fixture_mark(&f, 1001, &good), LARDER_ENOTFOUND);
    struct larder_tenant_info other;
    ck_assert_int_eq(larder_store_tenant(f.store, &other, "b"), 0);
    struct larder_tenant_info mine = f.tenant;
    f.tenant = other;
    ck_assert_int_eq(fixture_mark(&f, 1000, &good), LARDER_ENOTFOUND);
    f.tenant = mine;
    ck_assert(!fixture_info(&f, 1000).held);
}
END_TEST

/* --- the side table --------------------------------------------------------------------------- */

START_TEST(many_marks)
{
    struct marks marks = {0};
    static uint64_t due[5000];
    static uint32_t home[5000];
    uint32_t counts[40] = {0};
    uint64_t state = 1;
    for (int round = 0; round < 60000; round++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t entry = 1 + (uint32_t)(state >> 40) % 4999;
        struct mark *one = marks_find(&marks, entry);
        ck_assert_int_eq(one != NULL, due[entry] != 0);
        if (one && (state >> 33) % 3 == 0) {
            marks_remove(&marks, one);
            due[entry] = 0;
            counts[home[entry]]--;
            home[entry] = 0;
            continue;
        }
        if (!one)
            one = marks_add(&marks, entry);
        else
            counts[home[entry]]--;
        /* Numbers of segments far apart share buckets. */
        home[entry] = (uint32_t)(state >> 12) % 40;
        counts[home[entry]]++;
        marks_settle(&marks, one, home[entry] << 20);
        due[entry] = 1 + (state >> 20) % 1000;
        marks_schedule(&marks, one, due[entry]);
        if (round % 1000 == 0)
            ck_assert_msg(marks_check(&marks) == 0, "%s", larder_error_message());
    }
    uint64_t last = 0;
    for (struct mark *one; (one = marks_due(&marks, 2000));) {
        ck_assert_uint_ge(one->due_s, last);
        ck_assert_uint_eq(one->due_s, due[one->entry]);
        last = one->due_s;
        marks_schedule(&marks, one, 0);
    }
    uint32_t at = 0;
    while (marks_next(&marks, &at))
        ck_assert_uint_ne(due[marks.items[at].entry], 0);
    for (uint32_t segment = 1; segment < 40; segment++) {
        ck_assert_uint_eq(marks_count_of(&marks, segment << 20), counts[segment]);
        const struct mark *one = marks_first_of(&marks, segment << 20);
        for (; one; one = marks_next_of(&marks, one), counts[segment]--)
            ck_assert_uint_eq(home[one->entry], segment);
        ck_assert_uint_eq(counts[segment], 0);
    }
    ck_assert_uint_eq(marks_count_of(&marks, 40u << 20), 0);
    ck_assert_int_eq(marks_check(&marks), 0);
    marks_close(&marks);
}
END_TEST

static bool slow_build(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return true;
#else
    return false;
#endif
}

static uint64_t thread_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (uint64_t)time.tv_sec * 1000000 + (uint64_t)time.tv_nsec / 1000;
}

static uint64_t longest_us;

static void look_at_clock(uint64_t since_us)
{
    uint64_t us = thread_us() - since_us;
    longest_us = us > longest_us ? us : longest_us;
}

/* What is done under the store's lock, each by itself, in the processor's time. */
START_TEST(many_marks_hold_nobody_up)
{
    const uint32_t count = 100000, segments = 1000;
    struct marks marks = {0};
    for (uint32_t entry = 1; entry <= count; entry++) {
        uint64_t since_us = thread_us();
        struct mark *one = marks_add(&marks, entry);
        marks_settle(&marks, one, 1 + entry % segments);
        look_at_clock(since_us);
    }
    uint64_t since_us = thread_us();
    uint32_t sum = 0;
    for (uint32_t segment = 1; segment <= segments; segment++)
        sum += marks_count_of(&marks, segment);
    look_at_clock(since_us);
    ck_assert_uint_eq(sum, count);
    /* All into one segment, and the last of them out of it again. */
    for (uint32_t entry = 1; entry <= count; entry++)
        marks_settle(&marks, marks_find(&marks, entry), 5000);
    since_us = thread_us();
    ck_assert_uint_eq(marks_count_of(&marks, 5000), count);
    marks_settle(&marks, marks_find(&marks, 1), 0);
    marks_remove(&marks, marks_find(&marks, count));
    look_at_clock(since_us);
    ck_assert_uint_eq(marks_count_of(&marks, 5000), count - 2);
    ck_assert_int_eq(marks_check(&marks), 0);
    marks_close(&marks);
    printf("longest with %u marks: %llu us\n", count, (unsigned long long)longest_us);
    ck_assert_uint_lt(longest_us, slow_build() ? 50000 : 5000);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("marks");
    TCase *cases = tcase_create("marks");
    tcase_set_timeout(cases, 120);
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, a_pin_holds_its_chain);
    tcase_add_test(cases, two_pins_hold_what_they_share);
    tcase_add_test(cases, a_pin_survives_restart_and_rebuild);
    tcase_add_test(cases, removal_is_refused_unless_forced);
    tcase_add_test(cases, a_mark_does_not_outlive_its_entry);
    tcase_add_test(cases, a_better_record_keeps_the_mark);
    tcase_add_loop_test(cases, the_newest_of_two_marks_holds, 0, 2);
    tcase_add_test(cases, rows_of_marks_go_with_their_entries);
    tcase_add_test(cases, marks_of_another_do_not_hold_a_purge_up);
    tcase_add_test(cases, marks_of_another_have_their_share);
    tcase_add_test(cases, a_pin_is_of_all_variants);
    tcase_add_test(cases, segments_of_marks_go_but_not_the_marks);
    tcase_add_test(cases, what_is_over_is_a_miss_at_once_and_gone_soon);
    tcase_add_test(cases, a_rebuild_knows_what_is_over);
    tcase_add_test(cases, many_expire_as_one);
    tcase_add_test(cases, a_pin_stands_over_expiry);
    tcase_add_test(cases, a_mark_made_with_a_put);
    tcase_add_loop_test(cases, jumps_of_the_wall_clock_end_nothing, 0, 2);
    tcase_add_loop_test(cases, after_a_reboot_the_wall_clock_counts, 0, 2);
    tcase_add_test(cases, what_cannot_be_asked);
    suite_add_tcase(suite, cases);
    TCase *table = tcase_create("side table");
    tcase_add_test(table, many_marks);
    tcase_add_test(table, many_marks_hold_nobody_up);
    suite_add_tcase(suite, table);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
