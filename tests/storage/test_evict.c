/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: full tiers make room without ever leaving a hole in a chain, never take what is leased or
 * being written, and give SSD space back; tenants do not starve each other.
 * Method: far more is put and read than either tier holds, in an order drawn from a seed, with the
 * invariants of the whole store checked in between. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "base/slab.h"
#include "fixture.h"
#include "storage/store.h"

static struct fixture f;
static uint64_t random_state = 88172645463325252ull;

static uint64_t draw(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

/* By recency: what was put last must be there. */
static void by_recency(void)
{
    fixture_close(&f);
    f.options.eviction = "lru";
    ck_assert_int_eq(fixture_open(&f), 0);
}

START_TEST(host_tier_turns_over)
{
    by_recency();
    /* 40 x 5 blocks of 80 KB: 16 MB through 4 MiB of host tier. */
    for (uint64_t chain = 0; chain < 40; chain++) {
        fixture_put_chain(&f, chain * 100, 5, 40000, LARDER_DURABLE);
        fixture_check(&f);
    }
    struct larder_store_stats stats = fixture_stats(&f);
    ck_assert_uint_le(stats.slab_bytes_mapped, f.options.host_bytes);
    ck_assert_uint_gt(stats.evicted_host, 100);
    int err;
    for (uint64_t chain = 30; chain < 40; chain++)
        ck_assert_uint_eq(fixture_get_chain(&f, chain * 100, 5, &err), 5);
    fixture_check(&f);
}
END_TEST

START_TEST(ssd_evicts_leaves_first_and_gives_space_back)
{
    for (uint64_t chain = 0; chain < 60; chain++) {
        fixture_put_chain(&f, chain * 100, 6, 60000, LARDER_DURABLE);
        fixture_check(&f);
        struct larder_store_stats stats = fixture_stats(&f);
        ck_assert_uint_le(stats.segment_bytes, f.options.ssd_bytes);
    }
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 50);
    /* What is left of any chain is a leading run of it, and whole. */
    int err;
    uint32_t left = 0;
    for (uint64_t chain = 0; chain < 60; chain++) {
        uint32_t good = fixture_get_chain(&f, chain * 100, 6, &err);
        for (uint32_t i = 0; i < 6; i++)
            ck_assert_int_eq(fixture_has(&f, chain * 100 + i), i < good);
        left += good;
    }
    ck_assert_uint_gt(left, 60);
    ck_assert_uint_eq(fixture_get_chain(&f, 5900, 6, &err), 6);
    fixture_reopen(&f);
    fixture_check(&f);
    uint64_t entries = fixture_stats(&f).entries;
    ck_assert_uint_eq(entries, left);
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).entries, entries);
}
END_TEST

static uint64_t percent_of_ssd(uint32_t percent)
{
    return f.options.ssd_bytes / 100 * percent;
}

/* What is in use once nothing moves any more, with the next segment whole. */
static uint64_t settled_use(uint64_t wanted)
{
    uint64_t use = UINT64_MAX;
    for (int i = 0; i < 1000 && use > wanted; i++) {
        usleep(10000);
        use = fixture_stats(&f).segment_bytes;
    }
    return use;
}

START_TEST(room_is_made_before_it_is_needed)
{
    for (uint64_t chain = 0; chain < 100; chain++) {
        fixture_put_chain(&f, chain * 100, 3, 60000, LARDER_DURABLE);
        ck_assert_uint_le(fixture_stats(&f).segment_bytes, f.options.ssd_bytes);
    }
    struct larder_store_stats stats = fixture_stats(&f);
    ck_assert_uint_gt(stats.evicted_ssd, 50);
    ck_assert_uint_eq(stats.puts_refused, 0);
    /* Between the marks; the next segment may be there, or be wanted yet. */
    ck_assert_uint_le(settled_use(percent_of_ssd(95)), percent_of_ssd(95));
    ck_assert_uint_ge(fixture_stats(&f).segment_bytes,
                      percent_of_ssd(90) - 2 * f.options.segment_bytes);
    /* Lower ones are met although nothing is put. */
    f.options.ssd_high = 50;
    f.options.ssd_low = 40;
    fixture_reopen(&f);
    fixture_check(&f);
    fixture_put_chain(&f, 20000, 1, 1000, LARDER_DURABLE);
    ck_assert_uint_le(settled_use(percent_of_ssd(40)), percent_of_ssd(40));
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 20000, 1, &err), 1);
}
END_TEST

/* It is pinned: nothing may go, and puts are taken all the same. */
START_TEST(room_that_cannot_be_made_is_let_be)
{
    f.options.ssd_high = 20;
    f.options.ssd_low = 10;
    fixture_reopen(&f);
    struct block block = {.token_count = 256,
                          .section_bytes = 60000,
                          .tenant = f.tenant.index,
                          .mark = {.fields = LARDER_MARK_PIN, .pin_s = 3600}};
    for (block.seed = 1; block.seed <= 30; block.seed++)
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    fixture_commit(&f);
    ck_assert_uint_eq(fixture_stats(&f).evicted_ssd, 0);
    ck_assert_uint_gt(fixture_stats(&f).segment_bytes, percent_of_ssd(20));
    fixture_check(&f);
}
END_TEST

START_TEST(the_next_segment_is_there_before_this_one_is_full)
{
    /* Seven of eight records that one takes. */
    for (uint64_t seed = 1; seed <= 7; seed++)
        fixture_put_chain(&f, seed * 100, 1, 60000, LARDER_DURABLE);
    fixture_commit(&f);
    struct larder_store_stats stats = fixture_stats(&f);
    for (int i = 0; i < 500 && stats.segment_bytes == f.options.segment_bytes; i++) {
        usleep(10000);
        stats = fixture_stats(&f);
    }
    ck_assert_uint_eq(stats.segments, 1);
    ck_assert_uint_eq(stats.segment_bytes, 2 * f.options.segment_bytes);
    /* A clean end leaves no blank file; what follows has room there. */
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).segments, 1);
    for (uint64_t seed = 8; seed <= 30; seed++)
        fixture_put_chain(&f, seed * 100, 1, 60000, LARDER_DURABLE);
    fixture_check(&f);
}
END_TEST

START_TEST(use_keeps_an_entry)
{
    fixture_put_chain(&f, 1, 3, 60000, LARDER_DURABLE);
    int err;
    for (uint64_t chain = 1; chain < 50; chain++) {
        fixture_put_chain(&f, chain * 100, 4, 60000, LARDER_DURABLE);
        ck_assert_uint_eq(fixture_get_chain(&f, 1, 3, &err), 3);
    }
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 10);
}
END_TEST

static void never(void *context, uint32_t loaded, int err)
{
    (void)context;
    (void)loaded;
    (void)err;
    ck_abort_msg("called");
}

START_TEST(leased_slots_stay_and_generations_rise)
{
    by_recency();
    fixture_put_chain(&f, 1, 4, 60000, LARDER_DURABLE);
    struct larder_key keys[4];
    for (uint64_t i = 0; i < 4; i++)
        keys[i] = block_key(1 + i);
    struct larder_ref refs[4];
    uint32_t count;
    bool ready;
    struct larder_lease *lease;
    ck_assert_int_eq(larder_store_lease(f.store, &lease, refs, &count, &ready,
                                        &(struct larder_want){.tenant = f.tenant.index,
                                                              .keys = keys,
                                                              .key_count = 4,
                                                              .worst = LARDER_QUALITY_EXACT},
                                        never, NULL),
                     0);
    ck_assert(ready);
    ck_assert_uint_eq(count, 4);
    for (uint64_t chain = 1; chain < 20; chain++)
        fixture_put_chain(&f, chain * 100, 4, 60000, LARDER_DURABLE);
    fixture_check(&f);
    for (uint32_t i = 0; i < 4; i++) {
        const struct larder_record *record =
            larder_store_ref_record(f.store, f.tenant.index, &refs[i]);
        ck_assert(record_is(record, 1 + i));
    }
    int fd;
    uint64_t bytes;
    ck_assert_int_eq(larder_store_slab_fd(f.store, &fd, &bytes, f.tenant.index, refs[0].slab_id),
                     0);
    ck_assert_uint_eq(bytes, f.options.slab_bytes);
    close(fd);
    ck_assert_int_eq(larder_store_slab_fd(f.store, &fd, &bytes, f.tenant.index, 999),
                     LARDER_ENOTFOUND);
    /* The slot as a client sees it: through a mapping of its own. */
    ck_assert_int_eq(larder_store_slab_fd(f.store, &fd, &bytes, f.tenant.index, refs[0].slab_id),
                     0);
    const uint8_t *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert(map != MAP_FAILED);
    ck_assert(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    ck_assert_int_lt(ftruncate(fd, 0), 0);
    const struct larder_slab *slab = (const void *)map;
    ck_assert_uint_eq(slab->magic, LARDER_SLAB_MAGIC);
    const struct larder_slot *slot =
        (const struct larder_slot *)(const void *)(map + 4096) + refs[0].slot;
    ck_assert_uint_eq(atomic_load(&slot->generation), refs[0].generation);
    ck_assert_uint_eq(atomic_load(&slot->published_sections), 2);
    ck_assert(record_is((const void *)(map + slot->offset), 1));
    larder_store_revoke(f.store, lease);
    for (uint64_t chain = 30; chain < 50; chain++)
        fixture_put_chain(&f, chain * 100, 4, 60000, LARDER_DURABLE);
    ck_assert_uint_gt(atomic_load(&slot->generation), refs[0].generation);
    munmap((void *)(uintptr_t)map, bytes);
    close(fd);
    larder_store_release(f.store, lease);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 4700, 4, &err), 4);
}
END_TEST

START_TEST(full_of_leases_is_busy)
{
    struct larder_lease *leases[64];
    uint32_t held = 0;
    for (uint64_t chain = 0; chain < 64; chain++) {
        struct block block = {.seed = chain + 1,
                              .token_count = 256,
                              .section_bytes = 60000,
                              .tenant = f.tenant.index};
        int err = fixture_put(&f, &block, LARDER_DURABLE);
        if (err == -EBUSY)
            break;
        ck_assert_int_eq(err, 0);
        struct larder_key key = block_key(chain + 1);
        struct larder_ref ref;
        uint32_t count;
        bool ready;
        ck_assert_int_eq(larder_store_lease(f.store, &leases[held], &ref, &count, &ready,
                                            &(struct larder_want){.tenant = f.tenant.index,
                                                                  .keys = &key,
                                                                  .key_count = 1,
                                                                  .worst = LARDER_QUALITY_EXACT},
                                            never, NULL),
                         0);
        held++;
    }
    ck_assert_uint_gt(held, 20);
    ck_assert_uint_lt(held, 64);
    ck_assert_uint_gt(fixture_stats(&f).puts_refused, 0);
    fixture_check(&f);
    for (uint32_t i = 0; i < held; i++)
        larder_store_release(f.store, leases[i]);
    fixture_put_chain(&f, 1000, 1, 60000, LARDER_DURABLE);
}
END_TEST

START_TEST(tenants_take_idle_slabs_from_each_other)
{
    struct larder_tenant_info other;
    ck_assert_int_eq(larder_store_tenant(f.store, &other, "b"), 0);
    for (uint64_t chain = 0; chain < 10; chain++)
        fixture_put_chain(&f, chain * 100, 5, 60000, LARDER_DURABLE);
    ck_assert_uint_eq(fixture_stats(&f).slab_bytes_mapped, f.options.host_bytes);
    struct larder_tenant_info own = f.tenant;
    f.tenant = other;
    fixture_put_chain(&f, 5000, 5, 60000, LARDER_DURABLE);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 5000, 5, &err), 5);
    /* Nobody finds what belongs to another. */
    ck_assert_uint_eq(fixture_get_chain(&f, 900, 5, &err), 0);
    f.tenant = own;
    ck_assert_uint_eq(fixture_get_chain(&f, 900, 5, &err), 5);
    ck_assert_uint_eq(fixture_get_chain(&f, 5000, 5, &err), 0);
}
END_TEST

/* A full SSD is not written for what will not return; what a caller waits for always is; and what
 * turns out to return is written when it leaves memory. */
static uint64_t fake_now_ms;

static uint64_t fake_clock(void *context)
{
    (void)context;
    return fake_now_ms;
}

static void by_fake_clock(void)
{
    fixture_close(&f);
    fake_now_ms = 1700000000000ull;
    f.options.now_ms = fake_clock;
    f.options.ssd_bytes = 4 << 20;
    f.options.host_bytes = 1 << 20;
    ck_assert_int_eq(fixture_open(&f), 0);
}

static void put_in_time(const struct block *block, enum larder_wait wait)
{
    int err;
    do {
        err = fixture_put(&f, block, wait);
        if (err == -EBUSY)
            usleep(1000);
    } while (err == -EBUSY);
    ck_assert_msg(err == 0 || err == LARDER_ENOPARENT, "%s", larder_error_message());
}

/* Chains that fill most of the SSD and come back every twelve seconds; after each something that
 * never does. */
enum { CHAINS = 100, CHAIN_BLOCKS = 5 };

static void converse_and_scan(uint32_t rounds, enum larder_wait wait, uint64_t *scan)
{
    int err;
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint64_t chain = 0; chain < CHAINS; chain++) {
            fake_now_ms += 100;
            struct block block = {
                .token_count = 256, .section_bytes = 3000, .tenant = f.tenant.index};
            uint32_t got = fixture_get_chain(&f, chain * 100 + 1, CHAIN_BLOCKS, &err);
            for (uint32_t i = 0; i < CHAIN_BLOCKS; i++) {
                block.seed = chain * 100 + 1 + i;
                if (i >= got)
                    put_in_time(&block, wait);
                block.parent = block_key(block.seed);
            }
            fake_now_ms += 100;
            block.parent = larder_key_root;
            block.seed = 1000000 + (*scan)++;
            block.section_bytes = 3000;
            put_in_time(&block, wait);
        }
        fixture_check(&f);
    }
}

START_TEST(a_full_ssd_is_written_for_what_deserves_it)
{
    by_fake_clock();
    uint64_t scan = 0;
    struct larder_store_stats stats = {0};
    for (uint32_t i = 0; i < 15 && (stats.bytes_not_admitted == 0 || stats.bytes_demoted == 0);
         i++) {
        converse_and_scan(3, LARDER_CACHED, &scan);
        stats = fixture_stats(&f);
    }
    ck_assert_uint_gt(stats.bytes_not_admitted, 0);
    uint64_t events[LARDER_EVENT_END];
    larder_store_event_counts(f.store, events);
    ck_assert_uint_gt(events[LARDER_EVENT_NOT_ADMITTED], 0);
    ck_assert_uint_gt(stats.bytes_demoted, 0);
    ck_assert_uint_gt(stats.bytes_hit_ssd, 0);
    const struct block last = {.seed = 9000000, .token_count = 256, .section_bytes = 1000};
    put_in_time(&last, LARDER_DURABLE);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 9000000, 1, &err), 1);
    ck_assert_uint_gt(fixture_stats(&f).bytes_hit_host, stats.bytes_hit_host);
}
END_TEST

/* An entry that was not written is whole in memory, and is written when somebody waits for that. */
START_TEST(what_was_not_admitted_becomes_durable_when_asked)
{
    by_fake_clock();
    uint64_t scan = 0;
    struct larder_entry_info info = {.durable = 1};
    uint64_t seed = 0;
    for (uint32_t i = 0; i < 15 && info.durable; i++) {
        converse_and_scan(3, LARDER_CACHED, &scan);
        const struct block last = {.seed = 1, .token_count = 256, .section_bytes = 1000};
        fixture_put(&f, &last, LARDER_DURABLE); /* behind all that is queued */
        for (seed = 1000000 + scan; seed > 1000000 && info.durable; seed--) {
            struct larder_key key = block_key(seed - 1);
            if (larder_store_find(f.store, &info, &key) < 0)
                info.durable = 1;
        }
    }
    ck_assert(!info.durable && info.in_host);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, seed, 1, &err), 1);
    ck_assert_int_eq(fixture_when(&f, seed, LARDER_DURABLE), 0);
    struct larder_key key = block_key(seed);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    ck_assert(info.durable);
}
END_TEST

START_TEST(what_is_waited_for_is_written_whatever_it_is_worth)
{
    by_fake_clock();
    uint64_t scan = 0;
    converse_and_scan(2, LARDER_DURABLE, &scan);
    ck_assert_uint_eq(fixture_stats(&f).bytes_not_admitted, 0);
    fixture_close(&f);
    f.options.admits_all = true;
    ck_assert_int_eq(fixture_open(&f), 0);
    converse_and_scan(3, LARDER_CACHED, &scan);
    ck_assert_uint_eq(fixture_stats(&f).bytes_not_admitted, 0);
}
END_TEST

/* Everything at once, small and large, single thread: the same for a seed. */
START_TEST(random_use)
{
    random_state = 88172645463325252ull + (unsigned)_i;
    int err;
    uint64_t removed;
    for (uint32_t step = 0; step < 400; step++) {
        uint64_t chain = draw(50) * 100;
        uint32_t depth = 1 + (uint32_t)draw(6);
        switch (draw(10)) {
        case 0:
            err = fixture_remove(&f, chain + draw(6), &removed);
            ck_assert(err == 0 || err == LARDER_ENOTFOUND);
            break;
        case 1:
            fixture_reopen(&f);
            break;
        case 2:
            err = fixture_verify(&f, chain + draw(6));
            ck_assert(err == 0 || err == LARDER_ENOTFOUND);
            break;
        case 3:
        case 4:
        case 5:
            fixture_get_chain(&f, chain, depth, &err);
            ck_assert_int_eq(err, 0);
            break;
        default: {
            struct block block = {.token_count = 256, .tenant = f.tenant.index};
            for (uint32_t i = 0; i < depth; i++) {
                block.seed = chain + i;
                block.section_bytes = 1000 + (uint32_t)draw(60000);
                err = fixture_put(&f, &block, draw(2) ? LARDER_DURABLE : LARDER_CACHED);
                /* Its parent may have been evicted between the two. */
                ck_assert(err == 0 || err == LARDER_EEXISTS || err == -EBUSY ||
                          err == LARDER_ENOPARENT || err == -ENOSPC || err == LARDER_ENOTFOUND);
                if (err < 0 && err != LARDER_EEXISTS)
                    break;
                block.parent = block_key(block.seed);
            }
        }
        }
        fixture_check(&f);
    }
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
    ck_assert_uint_eq(fixture_stats(&f).io_errors, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("evict");
    TCase *tcase = tcase_create("evict");
    fixture_add(tcase, &f);
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, host_tier_turns_over);
    tcase_add_test(tcase, ssd_evicts_leaves_first_and_gives_space_back);
    tcase_add_test(tcase, room_is_made_before_it_is_needed);
    tcase_add_test(tcase, room_that_cannot_be_made_is_let_be);
    tcase_add_test(tcase, the_next_segment_is_there_before_this_one_is_full);
    tcase_add_test(tcase, use_keeps_an_entry);
    tcase_add_test(tcase, leased_slots_stay_and_generations_rise);
    tcase_add_test(tcase, full_of_leases_is_busy);
    tcase_add_test(tcase, tenants_take_idle_slabs_from_each_other);
    tcase_add_test(tcase, a_full_ssd_is_written_for_what_deserves_it);
    tcase_add_test(tcase, what_is_waited_for_is_written_whatever_it_is_worth);
    tcase_add_test(tcase, what_was_not_admitted_becomes_durable_when_asked);
    tcase_add_loop_test(tcase, random_use, 0, 4);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
