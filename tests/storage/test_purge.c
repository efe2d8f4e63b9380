/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what a tenant stored before its purge is nobody's any more, in memory, in the index, in old
 * segments and in a rebuild; other tenants do not notice; whoever works for the tenant meanwhile is
 * told so.
 * Method: two tenants; purges of a store at rest, of one with leases and puts under way, and under
 * a load of threads; segments from before it put back. The cut at each step of it is in tests/crash
 * (simulated, swept) and in the suite identity. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/slab.h"
#include "fixture.h"
#include "storage/fsck.h"

static struct larder_tenant_info other;

static void set_up(struct fixture *fixture, int encrypted)
{
    fixture_begin(fixture);
    fixture->options.key_file = encrypted ? fixture_make_key(fixture) : NULL;
    ck_assert_int_eq(fixture_open(fixture), 0);
    ck_assert_int_eq(larder_store_tenant(fixture->store, &other, "b"), 0);
}

static void put_other(struct fixture *fixture, uint64_t first, uint32_t count)
{
    struct block block = {.token_count = 256, .section_bytes = 6000, .tenant = other.index};
    for (uint32_t i = 0; i < count; i++) {
        block.seed = first + i;
        ck_assert_int_eq(fixture_put(fixture, &block, LARDER_DURABLE), 0);
        block.parent = block_key(block.seed);
    }
}

static void expect_gone(struct fixture *fixture, uint64_t first, uint32_t count)
{
    int err;
    ck_assert_uint_eq(fixture_get_chain(fixture, first, count, &err), 0);
    for (uint32_t i = 0; i < count; i++)
        ck_assert(!fixture_has(fixture, first + i));
}

static void run(const struct fixture *fixture, const char *format)
{
    char command[4 * SCRATCH_PATH_BYTES];
    snprintf(command, sizeof(command), format, fixture->path, fixture->path, fixture->path);
    ck_assert_int_eq(system(command), 0);
}

/* `_i`: encrypted or not. */
START_TEST(nothing_comes_back)
{
    struct fixture fixture;
    set_up(&fixture, _i);
    fixture_put_chain(&fixture, 1, 12, 9000, LARDER_DURABLE);
    fixture_put_chain(&fixture, 51, 3, 9000, LARDER_CACHED);
    put_other(&fixture, 101, 5);
    fixture_close(&fixture);
    run(&fixture, "mkdir %s/old && cp -a %s/segments %s/old");
    ck_assert_int_eq(fixture_open(&fixture), 0);
    struct larder_tenant_info before = fixture.tenant, after;
    uint64_t segment_bytes = fixture_stats(&fixture).record_bytes_ssd;

    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(fixture.store, fixture.tenant.index, &removed), 0);
    ck_assert_uint_ge(removed, 12);
    fixture_check(&fixture);
    ck_assert_int_eq(larder_store_tenant(fixture.store, &after, "a"), 0);
    ck_assert_uint_eq(after.index, before.index);
    ck_assert_mem_ne(after.id, before.id, sizeof(after.id));
    ck_assert_mem_ne(after.key, before.key, sizeof(after.key));
    expect_gone(&fixture, 1, 12);
    expect_gone(&fixture, 51, 3);
    ck_assert_uint_lt(fixture_stats(&fixture).record_bytes_ssd, segment_bytes / 2);
    struct larder_store_stats own;
    ck_assert_int_eq(larder_store_tenant_stats(fixture.store, &own, after.index), 0);
    ck_assert_uint_eq(own.entries, 0);
    ck_assert_uint_eq(own.slab_bytes_mapped, 0);

    /* The tenant goes on, and the other one never stopped. */
    fixture_put_chain(&fixture, 201, 4, 9000, LARDER_DURABLE);
    for (uint64_t i = 0; i < 5; i++)
        ck_assert(fixture_has(&fixture, 101 + i));
    for (int how = 0; how < 3; how++) {
        fixture_close(&fixture);
        /* Without the index; then with segments from before the purge too. */
        if (how > 0)
            fixture_remove_index(&fixture);
        if (how == 2)
            run(&fixture, "cp -a %s/old/segments/. %s/segments/");
        ck_assert_int_eq(fixture_open(&fixture), 0);
        expect_gone(&fixture, 1, 12);
        for (uint64_t i = 0; i < 5; i++)
            ck_assert_msg(fixture_has(&fixture, 101 + i), "start %d", how);
        int err;
        ck_assert_uint_eq(fixture_get_chain(&fixture, 201, 4, &err), 4);
    }
    fixture_end(&fixture);
}
END_TEST

/* A purge that was cut short leaves rows of a tenant that does not exist: a start punches what they
 * name, a check leaves every byte as it is. */
START_TEST(a_check_punches_nothing)
{
    struct fixture fixture;
    set_up(&fixture, 0);
    fixture_put_chain(&fixture, 1, 5, 9000, LARDER_DURABLE);
    fixture_close(&fixture);
    run(&fixture, "cd %s && mkdir old && cp -a segments index old");
    ck_assert_int_eq(fixture_open(&fixture), 0);
    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(fixture.store, fixture.tenant.index, &removed), 0);
    fixture_close(&fixture);
    run(&fixture, "cd %s && cp -a old/segments old/index .");
    struct larder_fsck_report report;
    const struct larder_fsck_options options = {.store = fixture.options};
    ck_assert_int_eq(larder_store_fsck(&report, &options), 0);
    const char *same =
        "cd %s/old/segments && for f in *; do cmp $f ../../segments/$f || exit 1; done";
    run(&fixture, same);
    ck_assert_int_eq(fixture_open(&fixture), 0);
    expect_gone(&fixture, 1, 5);
    fixture_end(&fixture);
}
END_TEST

static void ignore_lease(void *context, uint32_t loaded, int err)
{
    (void)loaded;
    (void)err;
    ++*(int *)context;
}

/* Leases end; slabs that a client maps are overwritten; a put that was reserved fails. */
struct committer {
    struct larder_store *store;
    struct larder_put *put;
    int err;
};

static void keep_error(void *context, int err)
{
    *(int *)context = err;
}

static void *commit_later(void *argument)
{
    struct committer *committer = argument;
    usleep(50000);
    struct larder_section *sections = larder_put_directory(committer->put);
    uint64_t offset;
    larder_put_payload(committer->put, &offset);
    sections[0] =
        (struct larder_section){.layer_count = 1, .head_count = 1, .offset = offset, .bytes = 100};
    larder_store_put_commit(committer->store, committer->put, 1, 128, LARDER_CACHED, keep_error,
                            &committer->err);
    return NULL;
}

START_TEST(whoever_is_in_it_is_told)
{
    struct fixture fixture;
    set_up(&fixture, _i);
    fixture_put_chain(&fixture, 1, 4, 9000, LARDER_DURABLE);
    struct larder_key keys[4];
    for (uint64_t i = 0; i < 4; i++)
        keys[i] = block_key(1 + i);
    struct larder_ref refs[4];
    struct larder_lease *lease;
    uint32_t count;
    bool ready;
    const struct larder_want want = {.tenant = fixture.tenant.index,
                                     .keys = keys,
                                     .key_count = 4,
                                     .worst = LARDER_QUALITY_BLENDED};
    int told = 0;
    ck_assert_int_eq(
        larder_store_lease(fixture.store, &lease, refs, &count, &ready, &want, ignore_lease, &told),
        0);
    ck_assert_uint_eq(count, 4);
    /* What a client has: a descriptor and a map of its own. */
    int fd;
    uint64_t bytes;
    ck_assert_int_eq(
        larder_store_slab_fd(fixture.store, &fd, &bytes, fixture.tenant.index, refs[0].slab_id), 0);
    const uint8_t *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    const struct larder_slab *slab = (const void *)map;
    uint64_t data_offset = slab->data_offset;
    struct committer committer = {.store = fixture.store};
    const struct larder_put_desc desc = {.tenant = fixture.tenant.index,
                                         .model = fixture.model.index,
                                         .key = block_key(77),
                                         .recipe = "raw",
                                         .raw_bytes = 100,
                                         .section_count_max = 1,
                                         .payload_bytes_max = 128};
    ck_assert_int_eq(larder_store_put_reserve(fixture.store, &committer.put, &desc), 0);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, commit_later, &committer), 0);

    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(fixture.store, fixture.tenant.index, &removed), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(committer.err, LARDER_ENOPARENT);
    ck_assert_uint_eq(removed, 4);
    ck_assert_uint_ne(atomic_load(&slab->retired), 0);
    for (uint64_t at = data_offset; at < bytes; at++)
        ck_assert_uint_eq(map[at], 0);
    munmap((void *)(uintptr_t)map, bytes);
    larder_store_release(fixture.store, lease);
    fixture_check(&fixture);
    ck_assert_int_eq(larder_store_purge(fixture.store, 99, &removed), LARDER_ENOTFOUND);
    /* Nothing in it: fine too. */
    ck_assert_int_eq(larder_store_purge(fixture.store, fixture.tenant.index, &removed), 0);
    ck_assert_uint_eq(removed, 0);
    fixture_end(&fixture);
}
END_TEST

/* --- under load ------------------------------------------------------------------------------- */

static struct fixture loaded;
static _Atomic bool stops;

static void *load_it(void *argument)
{
    uint32_t tenant = *(uint32_t *)argument;
    uint64_t seed = 1000000ull * (tenant + 1);
    while (!stops) {
        struct block block = {
            .seed = ++seed, .token_count = 64, .section_bytes = 3000, .tenant = tenant};
        int err = fixture_put(&loaded, &block, seed % 3 ? LARDER_CACHED : LARDER_DURABLE);
        bool own = tenant == loaded.tenant.index;
        must(err == 0 || err == -EBUSY || err == -ENOSPC ||
             (own && (err == LARDER_ENOPARENT || err == LARDER_ENOTFOUND)));
        if (own)
            fixture_get_chain(&loaded, seed, 1, &err);
    }
    return NULL;
}

START_TEST(under_load)
{
    set_up(&loaded, _i);
    stops = false;
    pthread_t threads[2];
    uint32_t tenants[2] = {loaded.tenant.index, other.index};
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, load_it, &tenants[i]), 0);
    uint64_t all = 0;
    for (int i = 0; i < 20; i++) {
        usleep(20000);
        uint64_t removed;
        ck_assert_int_eq(larder_store_purge(loaded.store, loaded.tenant.index, &removed), 0);
        all += removed;
        ck_assert_int_eq(larder_store_check(loaded.store), 0);
    }
    stops = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    ck_assert_uint_gt(all, 20);
    uint64_t removed;
    ck_assert_int_eq(larder_store_purge(loaded.store, loaded.tenant.index, &removed), 0);
    struct larder_store_stats own;
    ck_assert_int_eq(larder_store_tenant_stats(loaded.store, &own, loaded.tenant.index), 0);
    ck_assert_uint_eq(own.entries, 0);
    fixture_reopen(&loaded);
    ck_assert_int_eq(larder_store_tenant_stats(loaded.store, &own, loaded.tenant.index), 0);
    ck_assert_uint_eq(own.entries, 0);
    fixture_end(&loaded);
}
END_TEST

int main(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    Suite *suite = suite_create("purge");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 120);
    tcase_add_loop_test(all, nothing_comes_back, 0, 2);
    tcase_add_test(all, a_check_punches_nothing);
    tcase_add_loop_test(all, whoever_is_in_it_is_told, 0, 2);
    tcase_add_loop_test(all, under_load, 0, 2);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
