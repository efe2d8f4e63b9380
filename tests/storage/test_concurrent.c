/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: many threads may use a store at once: no race, no wrong byte, no callback lost or called
 * twice, and the invariants hold at every moment.
 * Method: threads put, get, remove, look up, list, verify and revoke over the same chains for a
 * while; run under the thread sanitizer in CI. Once more while threads are held up by chance
 * (delays.h); so too a close right behind what was asked for. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "delays.h"
#include "fixture.h"
#include "storage/store.h"

#define THREADS    4
#define CHAINS     24
#define DEPTH      5
#define RUN_TIME_S 1

static struct fixture f;

static uint64_t draw(uint64_t *state, uint64_t limit)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state % limit;
}

static void put_some(uint64_t *state)
{
    uint64_t chain = draw(state, CHAINS) * 100;
    struct block block = {.token_count = 256, .tenant = f.tenant.index};
    for (uint32_t i = 0; i < DEPTH; i++) {
        block.seed = chain + i;
        block.section_bytes = 1000 + (uint32_t)draw(state, 40000);
        int err = fixture_put(&f, &block, draw(state, 4) ? LARDER_CACHED : LARDER_DURABLE);
        must(err == 0 || err == LARDER_EEXISTS || err == -EBUSY || err == -EAGAIN ||
             err == LARDER_ENOPARENT || err == LARDER_ENOTFOUND || err == -ENOSPC);
        if (err < 0 && err != LARDER_EEXISTS)
            return;
        block.parent = block_key(block.seed);
    }
}

static void look_around(uint64_t chain)
{
    struct larder_key keys[DEPTH];
    for (uint64_t i = 0; i < DEPTH; i++)
        keys[i] = block_key(chain + i);
    struct larder_match match;
    must(larder_store_lookup(f.store, &match,
                             &(struct larder_want){.tenant = f.tenant.index,
                                                   .keys = keys,
                                                   .key_count = DEPTH,
                                                   .worst = LARDER_QUALITY_EXACT},
                             &larder_key_root, 256) == 0);
    struct larder_entry_info infos[16];
    uint64_t cursor = 0;
    do {
        uint32_t count;
        must(larder_store_list(f.store, infos, &count, &cursor, 16) == 0);
    } while (cursor != 0);
}

static void any_lease_done(void *context, uint32_t loaded, int err)
{
    (void)err;
    must(loaded <= DEPTH);
    *(_Atomic int *)context += 1;
}

/* Lets go, by force or not, without waiting for what is being read. */
static void lease_and_run(uint64_t chain, uint64_t *state)
{
    struct larder_key keys[DEPTH];
    for (uint64_t i = 0; i < DEPTH; i++)
        keys[i] = block_key(chain + i);
    struct larder_ref refs[DEPTH];
    uint32_t count;
    bool ready;
    struct larder_lease *lease;
    static _Atomic int told; /* outlives every lease */
    int err = larder_store_lease(f.store, &lease, refs, &count, &ready,
                                 &(struct larder_want){.tenant = f.tenant.index,
                                                       .keys = keys,
                                                       .key_count = DEPTH,
                                                       .worst = LARDER_QUALITY_EXACT},
                                 any_lease_done, &told);
    must(err == 0 || err == -EBUSY);
    if (!lease)
        return;
    if (draw(state, 2))
        larder_store_revoke(f.store, lease);
    larder_store_release(f.store, lease);
}

static void *use(void *argument)
{
    uint64_t state = 0x9e3779b97f4a7c15ull * ((uintptr_t)argument + 1);
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += RUN_TIME_S;
    do {
        uint64_t chain = draw(&state, CHAINS) * 100;
        uint64_t removed;
        int err;
        switch (draw(&state, 16)) {
        case 0:
            err = fixture_remove(&f, chain + draw(&state, DEPTH), &removed);
            must(err == 0 || err == LARDER_ENOTFOUND);
            break;
        case 1:
            err = fixture_verify(&f, chain + draw(&state, DEPTH));
            must(err == 0 || err == LARDER_ENOTFOUND);
            break;
        case 2:
        case 3:
            look_around(chain);
            break;
        case 4:
        case 5:
            lease_and_run(chain, &state);
            break;
        case 6:
            err = fixture_when(&f, chain, LARDER_DURABLE);
            must(err == 0 || err == LARDER_ENOTFOUND || err == -EAGAIN);
            break;
        case 7:
            fixture_check(&f);
            break;
        case 8:
        case 9:
        case 10:
        case 11:
            fixture_get_chain(&f, chain, DEPTH, &err);
            must(err == 0 || err == -EBUSY);
            break;
        default:
            put_some(&state);
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec < end.tv_sec);
    return NULL;
}

static void run_with(const char *io)
{
    fixture_begin(&f);
    f.options.io = io;
    f.options.host_bytes = 3 << 20;
    f.options.ssd_bytes = 4 << 20;
    ck_assert_int_eq(fixture_open(&f), 0);
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, use, (void *)i), 0);
    for (uint32_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    fixture_check(&f);
    struct larder_store_stats stats = fixture_stats(&f);
    ck_assert_uint_eq(stats.corrupt, 0);
    ck_assert_uint_eq(stats.io_errors, 0);
    ck_assert_uint_gt(stats.puts, 10);
    fixture_reopen(&f);
    fixture_end(&f);
}

START_TEST(all_at_once_over_threads)
{
    run_with("threads");
}
END_TEST

START_TEST(all_at_once_over_uring)
{
    run_with("auto");
}
END_TEST

START_TEST(all_at_once_held_up)
{
    delays_set(30, 2000);
    run_with("threads");
    delays_set(0, 0);
}
END_TEST

#define FIRSTS 20u

static struct larder_put *reserve(uint64_t seed)
{
    const uint32_t token = block_token(seed, 0);
    const struct larder_put_desc desc = {
        .tenant = f.tenant.index,
        .model = f.model.index,
        .key = block_key(seed),
        .parent = larder_key_root,
        .tokens = &token,
        .token_count = 1,
        .recipe = "raw",
        .section_count_max = 1,
        .payload_bytes_max = LARDER_PAGE_BYTES,
    };
    struct larder_put *put;
    must(larder_store_put_reserve(f.store, &put, &desc) == 0);
    uint64_t offset;
    memset(larder_put_payload(put, &offset), (int)seed, LARDER_PAGE_BYTES);
    larder_put_directory(put)[0] = (struct larder_section){
        .layer_count = 1, .head_count = 1, .offset = offset, .bytes = LARDER_PAGE_BYTES};
    return put;
}

static void *reserve_first(void *argument)
{
    pthread_barrier_wait(argument);
    larder_store_put_abort(f.store, reserve(1 + (uint64_t)(uintptr_t)pthread_self() % 1000000));
    return NULL;
}

/* All of the host tier is one slab, which is being made: nobody is told that there is no room. */
START_TEST(who_comes_while_a_slab_is_made_waits)
{
    fixture_begin(&f);
    f.options.host_bytes = f.options.slab_bytes;
    for (uint32_t round = 0; round < FIRSTS; round++) {
        ck_assert_int_eq(fixture_open(&f), 0);
        pthread_barrier_t start;
        pthread_barrier_init(&start, NULL, THREADS);
        pthread_t threads[THREADS];
        for (uint32_t i = 0; i < THREADS; i++)
            ck_assert_int_eq(pthread_create(&threads[i], NULL, reserve_first, &start), 0);
        for (uint32_t i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&start);
        fixture_close(&f);
    }
    fixture_end(&f);
}
END_TEST

#define CLOSINGS 40u
#define AT_CLOSE 3u

static _Atomic uint32_t told;

static void count_end(void *context, int err)
{
    (void)context;
    must(err == 0);
    told++;
}

static void count_removal(void *context, int err, uint64_t removed)
{
    (void)removed;
    count_end(context, err);
}

/* What was asked for before a close ends before it does, and is there after it. */
START_TEST(a_close_ends_what_was_asked_for)
{
    fixture_begin(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    for (uint64_t i = 1; i <= CLOSINGS; i++) {
        told = 0;
        uint32_t asked = 1;
        struct larder_put *put = reserve(i);
        delays_set(500, 3000);
        /* The storage thread looks around for something to do. */
        larder_store_put_abort(f.store, reserve(1000));
        usleep((useconds_t)(i * 377 % 15000));
        larder_store_put_commit(f.store, put, 1, LARDER_PAGE_BYTES, LARDER_DURABLE, count_end,
                                NULL);
        if (i > AT_CLOSE) {
            const struct larder_key key = block_key(i - AT_CLOSE);
            larder_store_remove(f.store, f.tenant.index, &key, LARDER_KEEP_PINNED, count_removal,
                                NULL);
            asked++;
        }
        fixture_close(&f);
        delays_set(0, 0);
        ck_assert_uint_eq(told, asked);
        ck_assert_int_eq(fixture_open(&f), 0);
        for (uint64_t seed = 1; seed <= i; seed++)
            ck_assert_int_eq(fixture_has(&f, seed), seed + AT_CLOSE > i || i <= AT_CLOSE);
    }
    fixture_end(&f);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("concurrent");
    TCase *tcase = tcase_create("concurrent");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, all_at_once_over_threads);
    tcase_add_test(tcase, all_at_once_over_uring);
    tcase_add_test(tcase, all_at_once_held_up);
    tcase_add_test(tcase, who_comes_while_a_slab_is_made_waits);
    tcase_add_test(tcase, a_close_ends_what_was_asked_for);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
