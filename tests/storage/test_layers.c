/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: some layers of a record are read and verified alone; more of them can be had later, in any
 * order, without a byte that was published being touched; what fails in one section leaves those
 * before it; what nobody wants any more is not read; what is prefetched is there.
 * Method: records of many small sections over the simulated disk; slots as clients see them,
 * through the slab's descriptor. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/slab.h"
#include "fixture.h"
#include "sim_disk.h"
#include "storage/store.h"

#define LAYERS   8u
#define SECTIONS (2 * LAYERS)

static struct fixture f;
static struct sim_disk *disk;
static char *slabs[16]; /* by id */

static void unmap_slabs(void)
{
    for (uint32_t i = 0; i < LARDER_COUNT_OF(slabs); i++) {
        if (slabs[i])
            munmap(slabs[i], f.options.slab_bytes);
        slabs[i] = NULL;
    }
}

static void reopen(void)
{
    unmap_slabs();
    fixture_reopen(&f);
}

static void setup(void)
{
    fixture_begin(&f);
    f.options.slab_bytes = 2 << 20;
    f.options.segment_bytes = 4 << 20;
    disk = fixture_use_disk(&f);
    reopen();
}

static void teardown(void)
{
    unmap_slabs();
    fixture_end(&f);
}

/* --- records ---------------------------------------------------------------------------------- */

static uint8_t byte_of(uint64_t seed, uint32_t section, uint64_t index)
{
    return (uint8_t)(seed * 31 + section * 7 + index + index / 256);
}

struct told {
    sem_t over;
    int err;
    uint32_t loaded;
};

static void tell_put(void *context, int err)
{
    struct told *told = context;
    told->err = err;
    sem_post(&told->over);
}

static void tell_lease(void *context, uint32_t loaded, int err)
{
    struct told *told = context;
    told->loaded = loaded;
    told->err = err;
    sem_post(&told->over);
}

/* A root block of LAYERS layers whose sections are of these sizes. */
static void put(uint64_t seed, const uint32_t *section_bytes)
{
    static const uint32_t tokens[] = {1, 2, 3};
    struct larder_put_desc desc = {.tenant = f.tenant.index,
                                   .model = f.model.index,
                                   .key = block_key(seed),
                                   .tokens = tokens,
                                   .token_count = LARDER_COUNT_OF(tokens),
                                   .recipe = "raw",
                                   .raw_bytes = 1,
                                   .section_count_max = SECTIONS};
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < SECTIONS; i++)
        bytes += larder_round_up(section_bytes[i], 64);
    desc.payload_bytes_max = bytes;
    struct larder_put *handle;
    ck_assert_int_eq(larder_store_put_reserve(f.store, &handle, &desc), 0);
    uint64_t offset;
    uint8_t *payload = larder_put_payload(handle, &offset);
    struct larder_section *sections = larder_put_directory(handle);
    uint64_t at = 0;
    for (uint32_t i = 0; i < SECTIONS; i++) {
        for (uint32_t j = 0; j < section_bytes[i]; j++)
            payload[at + j] = byte_of(seed, i, j);
        sections[i] = (struct larder_section){.layer_first = (uint16_t)(i / 2),
                                              .layer_count = 1,
                                              .head_count = 2,
                                              .kind = i % 2,
                                              .offset = offset + at,
                                              .bytes = section_bytes[i]};
        at += larder_round_up(section_bytes[i], 64);
    }
    struct told told;
    sem_init(&told.over, 0, 0);
    larder_store_put_commit(f.store, handle, SECTIONS, at, LARDER_DURABLE, tell_put, &told);
    sem_wait(&told.over);
    ck_assert_int_eq(told.err, 0);
}

static void put_equal(uint64_t seed, uint32_t section_bytes)
{
    uint32_t all[SECTIONS];
    for (uint32_t i = 0; i < SECTIONS; i++)
        all[i] = section_bytes;
    put(seed, all);
}

/* --- slots ------------------------------------------------------------------------------------ */

static const struct larder_slot *slot_of(const struct larder_ref *ref)
{
    ck_assert_uint_lt(ref->slab_id, LARDER_COUNT_OF(slabs));
    if (!slabs[ref->slab_id]) {
        int fd;
        uint64_t bytes;
        ck_assert_int_eq(larder_store_slab_fd(f.store, &fd, &bytes, f.tenant.index, ref->slab_id),
                         0);
        void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
        ck_assert_ptr_ne(map, MAP_FAILED);
        close(fd);
        slabs[ref->slab_id] = map;
    }
    const char *table = slabs[ref->slab_id] + LARDER_PAGE_BYTES;
    return (const struct larder_slot *)(const void *)table + ref->slot;
}

/* What is published is what was put. */
static void check_published(uint64_t seed, const struct larder_ref *ref, uint32_t *first,
                            uint32_t *end)
{
    const struct larder_slot *slot = slot_of(ref);
    *end = atomic_load(&slot->published_sections);
    *first = atomic_load(&slot->first_section);
    const char *record = slabs[ref->slab_id] + slot->offset;
    if (*end == 0)
        return;
    const struct larder_section *sections = larder_record_directory((const void *)record);
    for (uint32_t i = *first; i < *end; i++) {
        uint64_t wrong = 0;
        for (uint64_t j = 0; j < sections[i].bytes; j++)
            wrong += (uint8_t)record[sections[i].offset + j] != byte_of(seed, i, j);
        ck_assert_uint_eq(wrong, 0);
    }
}

struct held {
    struct larder_lease *lease;
    struct larder_ref ref;
    struct told told;
    bool ready;
};

/* Not waited for. */
static void begin(struct held *held, uint64_t seed, uint32_t layer_first, uint32_t layer_count)
{
    struct larder_key key = block_key(seed);
    uint32_t count;
    sem_init(&held->told.over, 0, 0);
    ck_assert_int_eq(larder_store_lease(f.store, &held->lease, &held->ref, &count, &held->ready,
                                        &(struct larder_want){.tenant = f.tenant.index,
                                                              .keys = &key,
                                                              .key_count = 1,
                                                              .layer_first = layer_first,
                                                              .layer_count = layer_count},
                                        tell_lease, &held->told),
                     0);
    ck_assert_uint_eq(count, 1);
}

/* What `done` was told; ready: 0. */
static int await(struct held *held)
{
    if (held->ready)
        return 0;
    sem_wait(&held->told.over);
    return held->told.err;
}

static int get(uint64_t seed, uint32_t layer_first, uint32_t layer_count, uint32_t *first,
               uint32_t *end)
{
    struct held held;
    begin(&held, seed, layer_first, layer_count);
    int err = await(&held);
    check_published(seed, &held.ref, first, end);
    larder_store_release(f.store, held.lease);
    return err;
}

/* --- layers ----------------------------------------------------------------------------------- */

START_TEST(only_what_is_asked_for_is_read)
{
    uint32_t first;
    uint32_t end;
    put_equal(1, 20000);
    reopen();
    ck_assert_int_eq(get(1, 3, 2, &first, &end), 0);
    ck_assert_uint_eq(first, 6);
    ck_assert_uint_eq(end, 10);
    /* The head's page, and 80,000 bytes with the pages around them. */
    ck_assert_uint_le(fixture_stats(&f).bytes_read, 23 * LARDER_PAGE_BYTES);
    fixture_check(&f);
    /* Again: it is there. */
    struct held held;
    begin(&held, 1, 3, 2);
    ck_assert(held.ready);
    larder_store_release(f.store, held.lease);
    /* More behind, then more before: each page once. */
    ck_assert_int_eq(get(1, 3, 4, &first, &end), 0);
    ck_assert_uint_eq(first, 6);
    ck_assert_uint_eq(end, 14);
    ck_assert_int_eq(get(1, 1, 1, &first, &end), 0);
    ck_assert_uint_eq(first, 2);
    ck_assert_uint_eq(end, 14);
    ck_assert_int_eq(get(1, 0, 0, &first, &end), 0);
    ck_assert_uint_eq(first, 0);
    ck_assert_uint_eq(end, SECTIONS);
    ck_assert_uint_le(fixture_stats(&f).bytes_read, SECTIONS * 20000 + 3 * LARDER_PAGE_BYTES);
    fixture_check(&f);
}
END_TEST

/* Ranges by chance over sections of sizes by chance, some of nothing, some several to a page; often
 * several leases at once. */
START_TEST(any_ranges_in_any_order)
{
    unsigned state = (unsigned)_i;
    uint32_t bytes[SECTIONS];
    for (uint32_t i = 0; i < SECTIONS; i++)
        bytes[i] = rand_r(&state) % 3 == 0 ? (uint32_t)rand_r(&state) % 200
                                           : (uint32_t)rand_r(&state) % 9000;
    put(1, bytes);
    reopen();
    for (int round = 0; round < 6; round++) {
        struct held held[3];
        uint32_t layer[3];
        uint32_t count[3];
        const int leases = 1 + rand_r(&state) % 3;
        for (int i = 0; i < leases; i++) {
            layer[i] = (uint32_t)rand_r(&state) % LAYERS;
            count[i] = (uint32_t)rand_r(&state) % (LAYERS - layer[i] + 1);
            begin(&held[i], 1, layer[i], count[i]);
        }
        for (int i = 0; i < leases; i++) {
            uint32_t first;
            uint32_t end;
            ck_assert_int_eq(await(&held[i]), 0);
            check_published(1, &held[i].ref, &first, &end);
            ck_assert_uint_le(first, 2 * layer[i]);
            ck_assert_uint_ge(end, 2 * (count[i] ? layer[i] + count[i] : LAYERS));
            larder_store_release(f.store, held[i].lease);
        }
        fixture_check(&f);
    }
    uint32_t first;
    uint32_t end;
    ck_assert_int_eq(get(1, 0, 0, &first, &end), 0);
    ck_assert_uint_eq(end - first, SECTIONS);
}
END_TEST

/* A slot of some layers is no copy: on SSD the entry cannot go and leave it behind. */
START_TEST(some_layers_are_no_copy)
{
    uint32_t first;
    uint32_t end;
    put_equal(1, 20000);
    f.options.host_bytes = 64 << 20;
    f.options.eviction = "lru"; /* it goes once enough has come behind it */
    reopen();
    ck_assert_int_eq(get(1, 3, 2, &first, &end), 0);
    for (uint64_t seed = 100; fixture_has(&f, 1); seed++) {
        ck_assert_uint_lt(seed, 200);
        put_equal(seed, 20000);
        fixture_check(&f);
    }
}
END_TEST

/* --- faults ----------------------------------------------------------------------------------- */

/* Sections of 1 MiB, a request each: the third one cannot be read. */
START_TEST(a_failed_section_leaves_those_before_it)
{
    uint32_t bytes[SECTIONS] = {0};
    for (uint32_t i = 0; i < 6; i++)
        bytes[i] = 1 << 18;
    put(1, bytes);
    reopen();
    struct larder_entry_info info;
    struct larder_key key = block_key(1);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    const uint64_t from = (uint64_t)info.segment_page * LARDER_PAGE_BYTES;
    /* In layers 0 and 1, that is sections 0 to 3, all is well; section 4 lies behind 1 MiB. */
    sim_disk_set_faults(disk, &(struct sim_faults){.error_op = SIM_ANY_OP,
                                                   .bad_from = from + (5 << 18),
                                                   .bad_end = from + (5 << 18) + 4096});
    struct held held;
    uint32_t first;
    uint32_t end;
    begin(&held, 1, 0, 0);
    ck_assert_int_eq(await(&held), -EIO);
    ck_assert_uint_eq(held.told.loaded, 0);
    check_published(1, &held.ref, &first, &end);
    ck_assert_uint_eq(first, 0);
    ck_assert_uint_ge(end, 3);
    ck_assert_uint_le(end, 5);
    ck_assert_int_eq(atomic_load(&slot_of(&held.ref)->failed), -EIO);
    larder_store_release(f.store, held.lease);
    fixture_check(&f);
    /* The layers that can be read are good alone. */
    ck_assert_int_eq(get(1, 0, 2, &first, &end), 0);
    ck_assert_uint_eq(end, 4);
    sim_disk_set_faults(disk, &(struct sim_faults){.error_op = SIM_ANY_OP});
    ck_assert_int_eq(get(1, 0, 0, &first, &end), 0);
    ck_assert_uint_eq(end, SECTIONS);
}
END_TEST

START_TEST(a_damaged_section_is_met_by_who_reads_it)
{
    uint32_t first;
    uint32_t end;
    put_equal(1, 20000);
    reopen();
    struct larder_entry_info info;
    struct larder_key key = block_key(1);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    char name[64];
    uint64_t bytes;
    ck_assert(sim_disk_file(disk, 0, name, &bytes));
    /* In layer 4's K. */
    ck_assert(sim_disk_flip_bit(disk, name,
                                (uint64_t)info.segment_page * LARDER_PAGE_BYTES + 9 * 20032, 3));
    ck_assert_int_eq(get(1, 0, 2, &first, &end), 0);
    ck_assert_int_eq(get(1, 6, 2, &first, &end), LARDER_ECORRUPT); /* what is between is read too */
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 1);
    while (fixture_has(&f, 1))
        sched_yield();
}
END_TEST

/* --- neighbours ------------------------------------------------------------------------------- */

/* Small records of a chain lie side by side: far fewer requests than records. */
START_TEST(neighbours_are_read_together)
{
    struct sim_stats before;
    struct sim_stats after;
    int err;
    fixture_put_chain(&f, 1, 40, 10000, LARDER_DURABLE);
    reopen();
    sim_disk_stats(disk, &before);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 40, &err), 40);
    sim_disk_stats(disk, &after);
    ck_assert_uint_ge(after.reads - before.reads, 1);
    ck_assert_uint_le(after.reads - before.reads, 10);
}
END_TEST

/* One of them cannot be read, or is damaged: those before it are good, and it alone is to blame. */
START_TEST(one_bad_neighbour)
{
    int err;
    fixture_put_chain(&f, 1, 12, 10000, LARDER_DURABLE);
    reopen();
    struct larder_entry_info info;
    struct larder_key key = block_key(8);
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    const uint64_t from = (uint64_t)info.segment_page * LARDER_PAGE_BYTES;
    sim_disk_set_faults(disk, &(struct sim_faults){.error_op = SIM_ANY_OP,
                                                   .bad_from = from + 8192,
                                                   .bad_end = from + 8193});
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 12, &err), 7);
    ck_assert_int_eq(err, -EIO);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 0);
    sim_disk_set_faults(disk, &(struct sim_faults){.error_op = SIM_ANY_OP});
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 12, &err), 12);
    reopen();
    char name[64];
    uint64_t bytes;
    ck_assert(sim_disk_file(disk, 0, name, &bytes));
    ck_assert(sim_disk_flip_bit(disk, name, from + 8192, 1));
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 12, &err), 7);
    ck_assert_int_eq(err, LARDER_ECORRUPT);
    ck_assert_uint_eq(fixture_stats(&f).corrupt, 1);
}
END_TEST

/* --- wanted or not ---------------------------------------------------------------------------- */

/* Of a lease that is let go at once little is read; and who wants it then still gets it. */
START_TEST(what_nobody_wants_is_not_read)
{
    uint32_t bytes[SECTIONS] = {[0] = 1 << 20, [1] = 500000};
    put(1, bytes);
    reopen();
    uint32_t first;
    uint32_t end;
    for (int i = 0; i < 60; i++) {
        struct held held;
        begin(&held, 1, 0, (uint32_t)i % 3);
        if (i % 2)
            larder_store_revoke(f.store, held.lease);
        larder_store_release(f.store, held.lease);
        if (i % 5 == 0)
            ck_assert_int_eq(get(1, 0, 0, &first, &end), 0);
        fixture_check(&f);
    }
    ck_assert_int_eq(get(1, 0, 0, &first, &end), 0);
    ck_assert_uint_eq(end, SECTIONS);
}
END_TEST

START_TEST(what_is_prefetched_is_there)
{
    uint32_t coming;
    struct larder_key keys[] = {block_key(1), block_key(2), block_key(3)};
    fixture_put_chain(&f, 1, 3, 20000, LARDER_DURABLE);
    reopen();
    struct larder_want want = {.tenant = f.tenant.index, .keys = keys, .key_count = 3};
    ck_assert_int_eq(larder_store_prefetch(f.store, &coming, &want), 0);
    ck_assert_uint_eq(coming, 3);
    while (fixture_stats(&f).bytes_read < 3 * 40000)
        sched_yield();
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 3, &err), 3);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_ssd, 0);
    ck_assert_uint_eq(fixture_stats(&f).blocks_hit_host, 3);
    ck_assert_uint_eq(fixture_stats(&f).gets, 1);
    /* Nothing stored is nothing coming. */
    keys[0] = block_key(77);
    want.key_count = 1;
    ck_assert_int_eq(larder_store_prefetch(f.store, &coming, &want), 0);
    ck_assert_uint_eq(coming, 0);
}
END_TEST

/* More than the tier holds: its start comes, and nothing fails. */
START_TEST(a_prefetch_takes_what_fits)
{
    struct larder_key keys[100];
    for (uint64_t i = 0; i < 100; i++)
        keys[i] = block_key(1 + i);
    fixture_put_chain(&f, 1, 100, 40000, LARDER_DURABLE);
    reopen();
    uint32_t coming;
    struct larder_want want = {.tenant = f.tenant.index, .keys = keys, .key_count = 100};
    ck_assert_int_eq(larder_store_prefetch(f.store, &coming, &want), 0);
    ck_assert_uint_gt(coming, 20);
    ck_assert_uint_lt(coming, 100);
    int err;
    ck_assert_uint_ge(fixture_get_chain(&f, 1, 20, &err), 20);
}
END_TEST

static Suite *layers_suite(void)
{
    Suite *suite = suite_create("layers");
    TCase *tcase = tcase_create("layers");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, only_what_is_asked_for_is_read);
    tcase_add_loop_test(tcase, any_ranges_in_any_order, 1, 31);
    tcase_add_test(tcase, some_layers_are_no_copy);
    tcase_add_test(tcase, a_failed_section_leaves_those_before_it);
    tcase_add_test(tcase, a_damaged_section_is_met_by_who_reads_it);
    tcase_add_test(tcase, neighbours_are_read_together);
    tcase_add_test(tcase, one_bad_neighbour);
    tcase_add_test(tcase, what_nobody_wants_is_not_read);
    tcase_add_test(tcase, what_is_prefetched_is_there);
    tcase_add_test(tcase, a_prefetch_takes_what_fits);
    suite_add_tcase(suite, tcase);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(layers_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
