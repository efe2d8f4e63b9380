/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a record that nobody used goes when a smaller one of its key is durable, and not before;
 * what was used, pinned or is being read stays or goes on undisturbed; ages outlive a restart.
 * Method: a store under a clock of the test. */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/record.h"
#include "fixture.h"

#define HOUR_S 3600u

static struct fixture fixture;
static uint64_t clock_ms;

static uint64_t read_clock(void *context)
{
    (void)context;
    return clock_ms;
}

static void begin(void)
{
    fixture_begin(&fixture);
    clock_ms = 1700000000000ull;
    fixture.options.now_ms = read_clock;
    ck_assert_msg(fixture_open(&fixture) == 0, "%s", larder_error_message());
}

static void end(void)
{
    fixture_end(&fixture);
}

static void pass_s(uint64_t seconds)
{
    clock_ms += seconds * 1000;
}

/* Block `seed` behind the one before it, unless it is the first of ten. */
static struct block block_of(uint64_t seed, bool small)
{
    struct block block = {.seed = seed,
                          .token_count = 256,
                          .section_bytes = small ? 2000 : 9000,
                          .quality = small ? LARDER_QUALITY_LOSSY : LARDER_QUALITY_EXACT,
                          .recipe = small ? "kivi2" : "raw",
                          .beside = small,
                          .tenant = fixture.tenant.index};
    if (seed % 10 != 1)
        block.parent = block_key(seed - 1);
    return block;
}

static void put_large(uint64_t seed)
{
    const struct block block = block_of(seed, false);
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), 0);
}

static void put_small(uint64_t seed, uint32_t idle_s, enum larder_wait wait)
{
    struct block block = block_of(seed, true);
    block.idle_s = idle_s;
    ck_assert_int_eq(fixture_put(&fixture, &block, wait), 0);
}

static int demote(uint64_t seed, uint64_t idle_s)
{
    struct larder_entry_info all[LARDER_VARIANTS_MAX];
    struct larder_key key = block_key(seed);
    uint32_t count;
    uint32_t kept = 7;
    larder_store_variants(fixture.store, all, &count, &key);
    for (uint32_t i = 0; i < count; i++) {
        if (larder_store_is_recipe(&all[i], "kivi2"))
            kept = all[i].variant;
    }
    return fixture_demote(&fixture, seed, kept, idle_s);
}

static struct larder_entry_info find(uint64_t seed)
{
    struct larder_entry_info info = {.variants = 0};
    struct larder_key key = block_key(seed);
    if (larder_store_find(fixture.store, &info, &key) < 0)
        memset(&info, 0, sizeof(info));
    return info;
}

static uint32_t chain_at(uint64_t first, uint32_t count, uint32_t worst)
{
    struct larder_record heads[8];
    int err;
    ck_assert_uint_le(count, 8);
    return fixture_get_variants(&fixture, heads, first, count, worst, &err);
}

START_TEST(the_larger_goes_and_the_chain_stays)
{
    for (uint64_t seed = 1; seed <= 3; seed++)
        put_large(seed);
    pass_s(HOUR_S);
    put_small(2, HOUR_S, LARDER_DURABLE);
    ck_assert_uint_eq(find(2).variants, 2);
    ck_assert_uint_eq(chain_at(1, 3, LARDER_QUALITY_EXACT), 3);
    pass_s(HOUR_S); /* they were used just now */
    ck_assert_int_eq(demote(2, HOUR_S), 0);
    ck_assert_int_eq(demote(2, HOUR_S), LARDER_ENOTFOUND);
    for (int round = 0; round < 3; round++) {
        const struct larder_entry_info info = find(2);
        ck_assert_uint_eq(info.variants, 1);
        ck_assert_uint_eq(info.children, 1);
        ck_assert_uint_eq(info.quality, LARDER_QUALITY_LOSSY);
        ck_assert_str_eq(info.recipe, "kivi2");
        ck_assert_uint_eq(chain_at(1, 3, LARDER_QUALITY_LOSSY), 3);
        ck_assert_uint_eq(chain_at(1, 3, LARDER_QUALITY_EXACT), 1);
        fixture_check(&fixture);
        fixture_close(&fixture);
        if (round == 1)
            fixture_remove_index(&fixture);
        fixture_reopen(&fixture);
    }
    /* Its engine puts it again as it was. */
    put_large(2);
    ck_assert_uint_eq(chain_at(1, 3, LARDER_QUALITY_EXACT), 3);
    ck_assert_uint_eq(find(2).variants, 1);
}
END_TEST

START_TEST(what_must_not_go_stays)
{
    struct larder_key key = block_key(1);
    put_large(1);
    put_large(2);
    pass_s(HOUR_S);
    ck_assert_int_eq(demote(9, 0), LARDER_ENOTFOUND);
    ck_assert_int_eq(demote(1, 0), LARDER_ENOTFOUND);
    put_small(1, HOUR_S, LARDER_DURABLE);
    ck_assert_uint_eq(chain_at(1, 1, LARDER_QUALITY_EXACT), 1);
    ck_assert_int_eq(demote(1, 1), -EBUSY);
    pass_s(10);
    /* Of the smaller one, too. */
    ck_assert_uint_eq(chain_at(1, 1, LARDER_QUALITY_LOSSY | LARDER_QUALITY_SMALLEST), 1);
    ck_assert_int_eq(demote(1, 5), -EBUSY);
    pass_s(10);
    const struct larder_mark pin = {.fields = LARDER_MARK_PIN};
    ck_assert_int_eq(fixture_mark(&fixture, 2, &pin), 0);
    ck_assert_int_eq(demote(1, 5), LARDER_EPINNED);
    const struct larder_mark unpin = {.fields = LARDER_MARK_UNPIN};
    ck_assert_int_eq(fixture_mark(&fixture, 2, &unpin), 0);
    ck_assert_int_eq(demote(1, 5), 0);
    ck_assert_uint_eq(find(1).variants, 1);
    struct larder_entry_info all[LARDER_VARIANTS_MAX];
    uint32_t count;
    larder_store_variants(fixture.store, all, &count, &key);
    ck_assert_uint_eq(count, 1);
    ck_assert(larder_store_is_recipe(&all[0], "kivi2"));
    ck_assert(!larder_store_is_recipe(&all[0], "kivi4"));
    uint64_t events[LARDER_EVENT_END];
    larder_store_event_counts(fixture.store, events);
    ck_assert_uint_eq(events[LARDER_EVENT_DEMOTED], 1);
    ck_assert_uint_eq(fixture_stats(&fixture).removed, 0);
}
END_TEST

static uint64_t generation_of(uint64_t seed)
{
    struct larder_record head;
    int err;
    ck_assert_uint_eq(fixture_get_variants(&fixture, &head, seed, 1, LARDER_QUALITY_EXACT, &err),
                      1);
    return head.generation;
}

/* What was removed while a smaller record of it was made does not come back as that: neither alone
 * nor beside what was put since, of which it was not made. */
START_TEST(what_has_gone_stays_gone)
{
    uint64_t removed;
    put_large(1);
    struct block block = block_of(1, true);
    block.made_of = generation_of(1);
    block.idle_s = HOUR_S;
    ck_assert_int_eq(fixture_remove(&fixture, 1, &removed), 0);
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), LARDER_ENOTFOUND);
    ck_assert_uint_eq(find(1).variants, 0);
    put_large(1);
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), LARDER_ENOTFOUND);
    ck_assert_uint_eq(find(1).variants, 1);
    block.made_of = generation_of(1);
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), 0);
    ck_assert_uint_eq(find(1).variants, 2);
}
END_TEST

static void never(void *context, uint32_t loaded, int err)
{
    (void)context;
    (void)loaded;
    (void)err;
    abort();
}

START_TEST(a_reader_goes_on)
{
    struct larder_lease *lease;
    struct larder_ref ref;
    uint32_t count;
    bool ready;
    put_large(1);
    put_small(1, HOUR_S, LARDER_DURABLE);
    const struct larder_key key = block_key(1);
    const struct larder_want want = {
        .tenant = fixture.tenant.index, .keys = &key, .key_count = 1, .worst = 0};
    ck_assert_int_eq(
        larder_store_lease(fixture.store, &lease, &ref, &count, &ready, &want, never, NULL), 0);
    ck_assert(ready && count == 1);
    pass_s(HOUR_S);
    ck_assert_int_eq(demote(1, HOUR_S), 0);
    ck_assert(record_is(larder_store_ref_record(fixture.store, fixture.tenant.index, &ref), 1));
    larder_store_release(fixture.store, lease);
    ck_assert_uint_eq(chain_at(1, 1, LARDER_QUALITY_LOSSY), 1);
}
END_TEST

static void *purge(void *argument)
{
    uint64_t removed = 0;
    int *err = argument;
    *err = larder_store_purge(fixture.store, fixture.tenant.index, &removed);
    must(*err < 0 || removed == 2);
    return NULL;
}

/* A reader of this process is not cut off by a purge: that waits, and nothing new begins. */
START_TEST(a_purge_waits_for_own_readers)
{
    struct larder_lease *lease;
    struct larder_ref ref;
    uint32_t count;
    bool ready;
    pthread_t thread;
    int err = 1;
    put_large(1);
    put_large(2);
    const struct larder_key key = block_key(1);
    const struct larder_want want = {
        .tenant = fixture.tenant.index, .keys = &key, .key_count = 1, .peek = true, .own = true};
    ck_assert_int_eq(
        larder_store_lease(fixture.store, &lease, &ref, &count, &ready, &want, never, NULL), 0);
    ck_assert(ready && count == 1);
    const struct larder_record *record =
        larder_store_ref_record(fixture.store, fixture.tenant.index, &ref);
    ck_assert_int_eq(pthread_create(&thread, NULL, purge, &err), 0);
    while (find(1).variants > 0)
        poll(NULL, 0, 1);
    struct block block = block_of(1, true);
    block.idle_s = 1;
    ck_assert_int_eq(fixture_put(&fixture, &block, LARDER_DURABLE), -EBUSY);
    for (int i = 0; i < 20; i++) {
        ck_assert(record_is(record, 1));
        poll(NULL, 0, 2);
    }
    larder_store_release(fixture.store, lease);
    pthread_join(thread, NULL);
    ck_assert_int_eq(err, 0);
    ck_assert_uint_eq(find(2).variants, 0);
}
END_TEST

START_TEST(ages)
{
    put_large(1);
    put_large(2);
    ck_assert_uint_eq(find(1).idle_s, 0);
    pass_s(100);
    ck_assert_uint_eq(find(1).idle_s, 100);
    put_small(1, 100, LARDER_DURABLE);
    ck_assert_uint_eq(find(1).idle_s, 100);
    pass_s(10);
    ck_assert_int_eq(demote(1, 110), 0);
    ck_assert_uint_eq(find(1).idle_s, 110);
    ck_assert_uint_eq(chain_at(1, 1, LARDER_QUALITY_LOSSY), 1);
    ck_assert_uint_eq(find(1).idle_s, 0);
    ck_assert_uint_eq(find(2).idle_s, 110);
    pass_s(50);
    /* The time in which nothing ran does not count; the policy's clock stands at its last request.
     */
    fixture_close(&fixture);
    pass_s(1000);
    fixture_reopen(&fixture);
    ck_assert_uint_eq(find(1).idle_s, 0);
    ck_assert_uint_ge(find(2).idle_s, 109);
    ck_assert_uint_le(find(2).idle_s, 111);
    fixture_close(&fixture);
    fixture.options.eviction = "lru";
    pass_s(1000);
    fixture_reopen(&fixture);
    ck_assert_uint_eq(find(2).idle_s, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("demote");
    TCase *tests = tcase_create("demote");
    tcase_set_timeout(tests, 60);
    tcase_add_checked_fixture(tests, begin, end);
    tcase_add_test(tests, the_larger_goes_and_the_chain_stays);
    tcase_add_test(tests, what_must_not_go_stays);
    tcase_add_test(tests, what_has_gone_stays_gone);
    tcase_add_test(tests, a_reader_goes_on);
    tcase_add_test(tests, a_purge_waits_for_own_readers);
    tcase_add_test(tests, ages);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
