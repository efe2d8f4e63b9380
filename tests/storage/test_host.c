/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: slots never overlap, generations never repeat, pages come back and join, leases and pins
 * keep what they hold, the budget is kept.
 * Method: random takes, shrinks, leases and drops, every slot's bytes marked as its own and
 * compared before it goes; host_check() throughout. */
#include "storage/host.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

#define SLAB_BYTES (1u << 20)
#define HELD_MAX   400u

static uint64_t random_state = 11;

static uint64_t draw(uint64_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

static void check(const struct host *host)
{
    ck_assert_msg(host_check(host) == 0, "%s", larder_error_message());
}

static int grow(struct host *host, uint32_t tenant)
{
    uint32_t slab_id;
    int err = host_grow_begin(host, tenant, &slab_id);
    if (err < 0)
        return err;
    struct host_slab *slab;
    ck_assert_int_eq(host_slab_make(&slab, tenant, slab_id, SLAB_BYTES), 0);
    return host_grow_end(host, slab);
}

struct held {
    uint32_t id;
    uint64_t bytes;
    uint8_t mark;
    bool leased;
};

static void mark(const struct host *host, struct held *held)
{
    memset(host_record(host, held->id), held->mark, held->bytes);
}

static void compare(const struct host *host, const struct held *held)
{
    const uint8_t *bytes = (const uint8_t *)host_record(host, held->id);
    for (uint64_t i = 0; i < held->bytes; i += 64)
        ck_assert_uint_eq(bytes[i], held->mark);
    ck_assert_uint_eq(bytes[held->bytes - 1], held->mark);
}

START_TEST(random_slots)
{
    struct host host;
    uint64_t generation = 1;
    ck_assert_int_eq(host_open(&host, 4 * SLAB_BYTES, SLAB_BYTES, &generation), 0);
    static struct held held[HELD_MAX];
    uint32_t count = 0;
    uint64_t last = 0;
    for (uint32_t step = 0; step < 20000; step++) {
        uint32_t tenant = (uint32_t)draw(2);
        if (count < HELD_MAX && draw(100) < 55) {
            uint64_t bytes = 1 + draw(draw(20) ? 9000 : 200000);
            struct held *fresh = &held[count];
            int err = host_take(&host, &fresh->id, tenant, bytes);
            if (err == -EAGAIN) {
                ck_assert_int_eq(grow(&host, tenant), 0);
                err = host_take(&host, &fresh->id, tenant, bytes);
            }
            if (err == -ENOBUFS) {
                ck_assert_int_eq(grow(&host, tenant), -ENOBUFS);
                continue;
            }
            ck_assert_int_eq(err, 0);
            const struct larder_slot *shared = host_slot(&host, fresh->id)->shared;
            uint64_t now = atomic_load(&shared->generation);
            ck_assert_uint_gt(now, last);
            last = now;
            ck_assert_uint_eq(host_slot_tenant(&host, fresh->id), tenant);
            fresh->bytes = bytes;
            fresh->mark = (uint8_t)step;
            if (draw(2)) {
                fresh->bytes = 1 + draw(bytes);
                host_shrink(&host, fresh->id, fresh->bytes);
            }
            mark(&host, fresh);
            host_ready(&host, fresh->id);
            host_unpin(&host, fresh->id);
            fresh->leased = draw(3) == 0;
            host_slot(&host, fresh->id)->leases += fresh->leased;
            count++;
        } else if (count > 0) {
            uint32_t victim = (uint32_t)draw(count);
            struct held *old = &held[victim];
            compare(&host, old);
            struct larder_slot *shared = host_slot(&host, old->id)->shared;
            uint64_t before = atomic_load(&shared->generation);
            host_drop(&host, old->id);
            if (old->leased) {
                ck_assert_uint_eq(atomic_load(&shared->generation), before);
                compare(&host, old);
                host_unlease(&host, old->id);
            }
            ck_assert_uint_gt(atomic_load(&shared->generation), before);
            last = atomic_load(&shared->generation);
            held[victim] = held[--count];
        }
        if (step % 200 == 0)
            check(&host);
    }
    while (count > 0) {
        struct held *old = &held[--count];
        compare(&host, old);
        if (old->leased)
            host_unlease(&host, old->id);
        host_drop(&host, old->id);
    }
    check(&host);
    /* All pages came back as one run: the largest record fits again. */
    uint32_t id;
    ck_assert_int_eq(host_take(&host, &id, 0, host_record_bytes_max(&host)), 0);
    host_drop(&host, id);
    host_unpin(&host, id);
    for (uint32_t i = 0; i < host.slab_end; i++)
        host_retire(&host, i);
    ck_assert_uint_eq(host.bytes, 0);
    host_close(&host);
}
END_TEST

/* The first slab of the tenant, as a client gets it. */
static int open_slab(const struct host *host, uint32_t tenant)
{
    int fd;
    ck_assert_int_eq(host_slab_open(host, &fd, tenant, 0), 0);
    return fd;
}

START_TEST(what_is_retired_counts_until_nobody_keeps_it)
{
    struct host host;
    uint64_t generation = 1;
    ck_assert_int_eq(host_open(&host, 4 * SLAB_BYTES, SLAB_BYTES, &generation), 0);
    for (uint32_t tenant = 0; tenant < 3; tenant++)
        ck_assert_int_eq(grow(&host, tenant), 0);
    int none;
    ck_assert_int_eq(host_slab_open(&host, &none, 0, 1), LARDER_ENOTFOUND);
    ck_assert_int_eq(none, -1);
    /* One is open, one mapped without a descriptor, and one was given back. */
    int fd = open_slab(&host, 0);
    int other = open_slab(&host, 1);
    void *map = mmap(NULL, SLAB_BYTES, PROT_READ, MAP_SHARED, other, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    close(other);
    close(open_slab(&host, 2));
    for (uint32_t i = 0; i < 3; i++)
        host_retire(&host, i);
    ck_assert_uint_eq(host.bytes, 0);
    ck_assert_uint_eq(host.retired_count, 2);
    ck_assert_uint_eq(host.tenants[0].retired_count, 1);
    ck_assert_uint_eq(host.tenants[1].retired_count, 1);
    ck_assert_uint_eq(host.tenants[2].retired_count, 0);
    ck_assert_ptr_null(host_take_released(&host));
    ck_assert_uint_eq(atomic_load(&((struct larder_slab *)map)->retired), 1);

    /* A copy made by a fork, or sent on, counts as well. */
    int copy = dup(fd);
    close(fd);
    ck_assert_ptr_null(host_take_released(&host));
    close(copy);
    host_slab_free(host_take_released(&host));
    ck_assert_uint_eq(host.retired_count, 1);
    ck_assert_uint_eq(host.tenants[0].retired_count, 0);
    munmap(map, SLAB_BYTES);
    host_slab_free(host_take_released(&host));
    ck_assert_uint_eq(host.retired_count, 0);
    ck_assert_uint_eq(host.tenants[1].retired_count, 0);
    host_close(&host);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("host");
    TCase *tcase = tcase_create("host");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, random_slots);
    tcase_add_test(tcase, what_is_retired_counts_until_nobody_keeps_it);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
