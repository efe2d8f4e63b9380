/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what one tenant does costs the others nothing: at its quota it evicts its own, of the queue
 *       it leaves some, and what it leases of a full host tier it can be made to give.
 * Method: two tenants in a small store; the index's commits are held up where a full queue is
 *         wanted. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "fixture.h"
#include "storage/store.h"

#define MIB (1ull << 20)

static struct fixture f;
static struct larder_tenant_info a;
static struct larder_tenant_info b;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int pass_gate(void *context)
{
    (void)context;
    pthread_mutex_lock(&gate.lock);
    while (gate.closed)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
    return 0;
}

static void set_gate(bool closed)
{
    pthread_mutex_lock(&gate.lock);
    gate.closed = closed;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static void setup(void)
{
    fixture_begin(&f);
    f.options.index_gate = pass_gate;
    ck_assert_int_eq(fixture_open(&f), 0);
    a = f.tenant;
    ck_assert_int_eq(larder_store_tenant(f.store, &b, "b"), 0);
}

static void teardown(void)
{
    fixture_end(&f);
}

static struct larder_store_stats stats_of(const struct larder_tenant_info *tenant)
{
    struct larder_store_stats stats;
    ck_assert_int_eq(larder_store_tenant_stats(f.store, &stats, tenant->index), 0);
    return stats;
}

static void quota(const struct larder_tenant_info *tenant, uint64_t ssd_bytes, uint64_t host_bytes)
{
    const struct larder_quota value = {.ssd_bytes = ssd_bytes, .host_bytes = host_bytes};
    larder_store_set_quota(f.store, tenant->index, &value);
}

static uint32_t found(const struct larder_tenant_info *tenant, uint64_t first, uint32_t count)
{
    int err;
    f.tenant = *tenant;
    uint32_t good = fixture_get_chain(&f, first, count, &err);
    f.tenant = a;
    return good;
}

static int mark(uint64_t seed, uint32_t fields)
{
    const struct larder_mark change = {.fields = fields};
    return fixture_mark(&f, seed, &change);
}

START_TEST(at_its_quota_a_tenant_evicts_its_own)
{
    f.tenant = b;
    for (uint64_t chain = 0; chain < 10; chain++)
        fixture_put_chain(&f, 100000 + chain * 100, 4, 30000, LARDER_DURABLE);
    f.tenant = a;
    quota(&a, 2 * MIB, 0);
    for (uint64_t chain = 0; chain < 60; chain++) {
        fixture_put_chain(&f, chain * 100, 5, 30000, LARDER_DURABLE);
        ck_assert_uint_le(stats_of(&a).record_bytes_ssd, 2 * MIB);
    }
    ck_assert_uint_gt(stats_of(&a).record_bytes_ssd, MIB);
    ck_assert_uint_gt(stats_of(&a).evicted_ssd, 100);
    ck_assert_uint_eq(stats_of(&b).evicted_ssd, 0);
    for (uint64_t chain = 0; chain < 10; chain++)
        ck_assert_uint_eq(found(&b, 100000 + chain * 100, 4), 4);
    uint64_t counts[LARDER_EVENT_END];
    larder_store_event_counts(f.store, counts);
    ck_assert_uint_gt(counts[LARDER_EVENT_EVICTED_QUOTA], 100);
    ck_assert_uint_eq(counts[LARDER_EVENT_EVICTED_SSD], 0);
    ck_assert_uint_eq(stats_of(&a).ssd_bytes_max, 2 * MIB);
    /* Lower, and gone. */
    quota(&a, MIB, 0);
    fixture_put_chain(&f, 50000, 2, 30000, LARDER_DURABLE);
    ck_assert_uint_le(stats_of(&a).record_bytes_ssd, MIB);
    quota(&a, 0, 0);
    for (uint64_t chain = 0; chain < 20; chain++)
        fixture_put_chain(&f, 60000 + chain * 100, 5, 30000, LARDER_DURABLE);
    ck_assert_uint_gt(stats_of(&a).record_bytes_ssd, 2 * MIB);
}
END_TEST

START_TEST(a_quota_all_pinned_refuses_puts)
{
    quota(&a, MIB, 0);
    fixture_put_chain(&f, 1000, 14, 30000, LARDER_DURABLE); /* 14 x 64 KB */
    ck_assert_uint_eq(found(&a, 1000, 14), 14);
    ck_assert_int_eq(mark(1013, LARDER_MARK_PIN), 0);
    struct block block = {
        .seed = 5000, .token_count = 256, .section_bytes = 70000, .tenant = a.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), LARDER_EFULL);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "unpin"));
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "1048576"));
    /* The other tenant is none the worse. */
    block.seed = 6000;
    block.tenant = b.index;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    ck_assert_int_eq(mark(1013, LARDER_MARK_UNPIN), 0);
    block.seed = 5000;
    block.tenant = a.index;
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    ck_assert_uint_le(stats_of(&a).record_bytes_ssd, MIB);
    ck_assert_uint_gt(stats_of(&a).evicted_ssd, 0);
}
END_TEST

START_TEST(slabs_stay_within_the_quota)
{
    quota(&a, 0, 2 * MIB);
    for (uint64_t chain = 0; chain < 10; chain++) {
        fixture_put_chain(&f, chain * 100, 5, 60000, LARDER_DURABLE);
        ck_assert_uint_le(stats_of(&a).slab_bytes_mapped, 2 * MIB);
    }
    for (uint64_t chain = 0; chain < 10; chain++)
        ck_assert_uint_gt(found(&a, chain * 100, 5), 0);
    ck_assert_uint_le(stats_of(&a).slab_bytes_mapped, 2 * MIB);
    /* Below a slab it still has one. */
    quota(&b, 0, 1);
    f.tenant = b;
    fixture_put_chain(&f, 70000, 3, 60000, LARDER_DURABLE);
    ck_assert_uint_eq(stats_of(&b).slab_bytes_mapped, MIB);
}
END_TEST

/* Descriptors of the slabs of a that a chain lies in, as a client has that never lets go. */
static uint32_t keep_slabs(int *fds, uint64_t chain)
{
    struct larder_key keys[3];
    struct larder_ref refs[3];
    struct larder_lease *lease;
    uint32_t count;
    bool ready;
    for (uint64_t i = 0; i < 3; i++)
        keys[i] = block_key(chain + i);
    const struct larder_want want = {
        .tenant = a.index, .keys = keys, .key_count = 3, .worst = LARDER_QUALITY_BLENDED};
    int err = larder_store_lease(f.store, &lease, refs, &count, &ready, &want, NULL, NULL);
    ck_assert_int_eq(err, 0);
    ck_assert(ready);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t bytes;
        err = larder_store_slab_fd(f.store, &fds[i], &bytes, a.index, refs[i].slab_id);
        ck_assert_int_eq(err, 0);
    }
    larder_store_release(f.store, lease);
    return count;
}

static void free_retired(void)
{
    while (larder_store_free_retired(f.store))
        ;
}

/* All slabs go to b, for what it is about to put. */
static void take_all(uint64_t first)
{
    static struct larder_put *puts[16];
    uint32_t count = 0;
    int err = 0;
    for (; err == 0 && count < LARDER_COUNT_OF(puts); count += err == 0) {
        const struct larder_put_desc desc = {.tenant = b.index,
                                             .model = f.model.index,
                                             .key = block_key(first + count),
                                             .recipe = "raw",
                                             .section_count_max = 1,
                                             .payload_bytes_max = 900u << 10};
        err = larder_store_put_reserve(f.store, &puts[count], &desc);
    }
    ck_assert_int_eq(err, -EBUSY);
    while (count > 0)
        larder_store_put_abort(f.store, puts[--count]);
    ck_assert_uint_eq(stats_of(&b).slab_bytes_mapped, f.options.host_bytes);
    ck_assert_uint_eq(stats_of(&a).slab_bytes_mapped, 0);
}

/* Slab after slab of a goes to b, and none is let go of: a gets no more than it may have, b all. */
START_TEST(who_lets_no_slab_go_gets_no_more)
{
    static int fds[1000];
    uint32_t fd_count = 0;
    int err = 0;
    uint64_t round = 0;
    for (;; round++) {
        ck_assert_uint_lt(round, 20);
        struct block block = {.token_count = 256, .section_bytes = 60000, .tenant = a.index};
        for (uint64_t i = 0; i < 3 && err == 0; i++) {
            block.seed = round * 100 + i;
            err = fixture_put(&f, &block, LARDER_DURABLE);
            block.parent = block_key(block.seed);
        }
        if (err < 0)
            break;
        fd_count += keep_slabs(fds + fd_count, round * 100);
        take_all(50000);
        free_retired();
        ck_assert_uint_le(stats_of(&a).slab_bytes_retired, f.options.host_bytes + MIB);
    }
    ck_assert_int_eq(err, -EBUSY);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "let go"));
    ck_assert_uint_eq(stats_of(&a).slab_bytes_retired, f.options.host_bytes + MIB);
    ck_assert_uint_eq(fixture_stats(&f).slab_bytes_retired, f.options.host_bytes + MIB);
    ck_assert_uint_eq(stats_of(&b).slab_bytes_retired, 0);
    /* It is nobody's fault but its own, and nobody's leases go for it. */
    uint32_t from;
    ck_assert(!larder_store_starving(f.store, &from));
    fixture_check(&f);
    for (uint32_t i = 0; i < fd_count; i++)
        close(fds[i]);
    free_retired();
    ck_assert_uint_eq(fixture_stats(&f).slab_bytes_retired, 0);
    fixture_put_chain(&f, 90000, 3, 60000, LARDER_DURABLE);
    ck_assert_uint_eq(found(&a, 90000, 3), 3);
}
END_TEST

#define CHAINS 60

START_TEST(leases_of_one_do_not_starve_another)
{
    static struct larder_lease *leases[CHAINS];
    uint32_t held = 0;
    /* All of the host tier is leased by a. */
    for (uint32_t i = 0; i < CHAINS; i++) {
        struct block block = {
            .seed = 100 + i, .token_count = 256, .section_bytes = 60000, .tenant = a.index};
        int err = fixture_put(&f, &block, LARDER_DURABLE);
        if (err == -EBUSY)
            break;
        ck_assert_int_eq(err, 0);
        struct larder_key key = block_key(block.seed);
        struct larder_ref ref;
        uint32_t ref_count;
        bool ready;
        const struct larder_want want = {
            .tenant = a.index, .keys = &key, .key_count = 1, .worst = LARDER_QUALITY_BLENDED};
        ck_assert_int_eq(
            larder_store_lease(f.store, &leases[held], &ref, &ref_count, &ready, &want, NULL, NULL),
            0);
        ck_assert(ready);
        held++;
    }
    ck_assert_uint_lt(held, CHAINS);
    /* It may not be told that it starves itself. */
    uint32_t from = UINT32_MAX;
    ck_assert(!larder_store_starving(f.store, &from));
    struct block block = {
        .seed = 9000, .token_count = 256, .section_bytes = 60000, .tenant = b.index};
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), -EBUSY);
    ck_assert(larder_store_starving(f.store, &from));
    ck_assert_uint_eq(from, a.index);
    uint32_t revoked = 0;
    while (larder_store_starving(f.store, &from)) {
        ck_assert_uint_lt(revoked, held);
        larder_store_revoke(f.store, leases[revoked++]);
    }
    /* One slab's worth, the oldest, was enough. */
    ck_assert_uint_lt(revoked, held / 2);
    ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), 0);
    ck_assert(!larder_store_starving(f.store, &from));
    fixture_check(&f);
    for (uint32_t i = 0; i < held; i++)
        larder_store_release(f.store, leases[i]);
}
END_TEST

START_TEST(a_flood_leaves_room_in_the_queue)
{
    set_gate(true);
    uint32_t count = 0;
    int err = 0;
    struct block block = {.token_count = 256, .section_bytes = 30000, .tenant = a.index};
    for (; err == 0 && count < 1000; count++) {
        block.seed = 100 + count;
        err = fixture_put(&f, &block, LARDER_CACHED);
    }
    ck_assert_int_eq(err, -EBUSY);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "this tenant"));
    ck_assert_uint_gt(count, 10);
    block.tenant = b.index;
    for (uint64_t i = 0; i < 5; i++) {
        block.seed = 5000 + i;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), 0);
    }
    set_gate(false);
    fixture_settle(&f, 100);
    fixture_check(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quota");
    TCase *cases = tcase_create("quota");
    tcase_set_timeout(cases, 120);
    tcase_add_checked_fixture(cases, setup, teardown);
    tcase_add_test(cases, at_its_quota_a_tenant_evicts_its_own);
    tcase_add_test(cases, a_quota_all_pinned_refuses_puts);
    tcase_add_test(cases, slabs_stay_within_the_quota);
    tcase_add_test(cases, who_lets_no_slab_go_gets_no_more);
    tcase_add_test(cases, leases_of_one_do_not_starve_another);
    tcase_add_test(cases, a_flood_leaves_room_in_the_queue);
    suite_add_tcase(suite, cases);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
