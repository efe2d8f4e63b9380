/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a daemon that breaks the protocol in any way never crashes, hangs or misleads a client,
 *         and a good one is used again as soon as it is there.
 * Method: a fake daemon in a thread with one fault at a time (fake.h), and one that answers with
 *         random bytes; after each call the time, the result and the memory are checked. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/larder.h"
#include "tests/client/engine.h"
#include "tests/client/fake.h"

/* Of the client: where a fault is met at once, and where nothing but this ends a call. The first is
 * never waited for; the second leaves a busy machine time for what is no fault. */
#define TIMEOUT_MS      20000u
#define TIMEOUT_HANG_MS 500u
#define PATIENCE_MS     60000
#define COUNT           (3u * FAKE_BLOCK_TOKENS) /* tokens: all blocks are whole */

static struct fake *fake;
static struct larder *larder;
static struct larder_model *model;
static struct engine engine;
static uint32_t tokens[COUNT];
static struct larder_prompt prompt;

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static int open_fds(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static bool hangs(enum fake_fault fault)
{
    return fault == FAKE_GET_SILENT || fault == FAKE_SLOT_HANGS || fault == FAKE_HELLO_SILENT ||
           fault == FAKE_PROFILE_SILENT || fault == FAKE_PROFILE_LATE || fault >= FAKE_FUZZ;
}

static void open_scene(uint32_t threads, enum fake_fault to_come)
{
    for (uint32_t i = 0; i < COUNT; i++)
        tokens[i] = (i * 7 + 1) % 256;
    prompt = (struct larder_prompt){.tokens = tokens, .token_count = COUNT};
    engine_open(&engine, ENGINE_PLAIN, LARDER_BF16);
    fake = fake_start();
    const struct larder_options options = {
        .socket = fake_socket(fake),
        .timeout_ms = hangs(to_come) ? TIMEOUT_HANG_MS : TIMEOUT_MS,
        .threads = threads,
    };
    ck_assert_int_eq(larder_connect(&larder, &options), 0);
    ck_assert_int_eq(larder_model_open(larder, &model, &engine.desc), 0);
}

static void close_scene(void)
{
    larder_model_close(model);
    larder_close(larder);
    fake_stop(fake);
    engine_close(&engine);
}

static int put(struct larder_put_result *result)
{
    engine_prefill(&engine, tokens, COUNT);
    return larder_put(model, result, &prompt, &engine.layout, NULL);
}

static void put_all(void)
{
    struct larder_put_result stored;
    const double start = now_ms();
    int err;
    while ((err = put(&stored)) < 0 && now_ms() - start < PATIENCE_MS)
        ;
    ck_assert_msg(err == 0, "%s", larder_last_error());
}

static int get(struct larder_get_result *result)
{
    engine_scramble(&engine);
    return larder_get(model, result, &prompt, &engine.layout, NULL);
}

/* The client comes back by itself once the daemon is good again. */
static void get_well(void)
{
    struct larder_get_result result;
    const double start = now_ms();
    int err;
    while ((err = get(&result)) < 0 && now_ms() - start < PATIENCE_MS)
        ;
    ck_assert_msg(err == 0, "%s", larder_last_error());
    ck_assert_uint_eq(result.tokens, COUNT);
    ck_assert_int_eq(result.stop_status, LARDER_BLOCK_OK);
    ck_assert(engine_holds(&engine, tokens, 0, COUNT, ENGINE_LAYERS));
}

START_TEST(test_good)
{
    open_scene((uint32_t)_i, FAKE_NONE);
    struct larder_put_result stored;
    ck_assert_msg(put(&stored) == 0, "%s", larder_last_error());
    ck_assert_uint_eq(stored.tokens, COUNT);
    ck_assert_uint_eq(stored.tokens_new, COUNT);
    get_well();
    ck_assert_int_eq(put(&stored), 0);
    ck_assert_uint_eq(stored.tokens_new, 0);
    struct larder_lookup_result found;
    ck_assert_int_eq(larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT), 0);
    ck_assert_uint_eq(found.tokens, COUNT);
    ck_assert_uint_eq(found.blocks, 3);
    struct larder_stat stat;
    ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
    ck_assert_uint_eq(stat.entries, 7);
    ck_assert_int_eq(fake_leases(fake), 0);
    close_scene();
}
END_TEST

/* Neither a hang nor a wait for a timeout that none needed. */
static void check_time(enum fake_fault fault, double start)
{
    const double limit = hangs(fault) ? 10 * TIMEOUT_HANG_MS : TIMEOUT_MS / 2;
    ck_assert_msg(now_ms() - start < limit, "%s took %.0f ms", fake_fault_name(fault),
                  now_ms() - start);
}

/* What a fault in GET must come to, where it is more than "an error, or a shorter prefix". */
static void check_status(enum fake_fault fault, int err, const struct larder_get_result *result)
{
    const uint32_t before_last = COUNT - FAKE_BLOCK_TOKENS;
    switch (fault) {
    case FAKE_GET_SILENT:
        ck_assert_int_eq(err, -ETIMEDOUT);
        break;
    case FAKE_GET_CLOSE:
        ck_assert_int_eq(err, LARDER_EDOWN);
        break;
    case FAKE_GET_ERROR:
        ck_assert_int_eq(err, LARDER_EREADONLY);
        break;
    case FAKE_GET_FULL:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, 0);
        ck_assert_int_eq(result->stop_error, LARDER_EFULL);
        break;
    case FAKE_SLOT_HANGS:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, before_last);
        ck_assert_int_eq(result->stop_status, LARDER_BLOCK_TIMEOUT);
        break;
    case FAKE_SLOT_FAILED:
    case FAKE_HEAD_MAGIC:
    case FAKE_SECTION_LAYER:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, before_last);
        ck_assert_int_eq(result->stop_status, LARDER_BLOCK_CORRUPT);
        ck_assert_int_eq(result->stop_error, LARDER_ECORRUPT);
        break;
    case FAKE_PROFILE_NONE:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, before_last);
        ck_assert_int_eq(result->stop_status, LARDER_BLOCK_NO_PROFILE);
        ck_assert_int_eq(result->stop_error, LARDER_ENOPROFILE);
        break;
    case FAKE_HEAD_KEY:
    case FAKE_HEAD_TOKENS:
    case FAKE_HEAD_POSITION:
    case FAKE_HEAD_MODEL:
    case FAKE_HEAD_QUALITY:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, before_last);
        ck_assert_int_eq(result->stop_status, LARDER_BLOCK_MISMATCH);
        break;
    case FAKE_GET_GENERATION:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, before_last);
        ck_assert_int_eq(result->stop_status, LARDER_BLOCK_MISS);
        ck_assert_int_eq(result->stop_error, LARDER_ESTALE);
        break;
    case FAKE_SLOT_PUBLISHED:
    case FAKE_GET_FLOOD:
        ck_assert_int_eq(err, 0);
        ck_assert_uint_eq(result->tokens, COUNT);
        break;
    case FAKE_GET_TWICE:
        break; /* the second answer may be met later */
    default:
        ck_assert_msg(err < 0 || result->tokens < COUNT, "%s", fake_fault_name(fault));
    }
}

START_TEST(test_get_faults)
{
    const enum fake_fault fault = (enum fake_fault)_i;
    open_scene(1, fault);
    put_all();
    fake_set_fault(fake, fault);
    const double start = now_ms();
    struct larder_get_result result;
    int err = get(&result);
    check_time(fault, start);
    ck_assert_msg(err <= 0 && (err == 0 || larder_last_error()[0] != '\0'), "%s: %d",
                  fake_fault_name(fault), err);
    if (err < 0)
        ck_assert_uint_eq(result.tokens, 0);
    ck_assert_msg(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS), "%s",
                  fake_fault_name(fault));
    check_status(fault, err, &result);
    fake_set_fault(fake, FAKE_NONE);
    get_well();
    close_scene();
}
END_TEST

START_TEST(test_other_faults)
{
    const enum fake_fault fault = (enum fake_fault)_i;
    open_scene(1, fault);
    fake_set_fault(fake, fault);
    const double start = now_ms();
    struct larder_put_result stored;
    struct larder_lookup_result found;
    struct larder_stat stat;
    int stat_err = larder_get_stat(larder, &stat);
    int lookup_err = larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT);
    int put_err = put(&stored);
    ck_assert_msg(stat_err < 0 || lookup_err < 0 || put_err < 0, "%s", fake_fault_name(fault));
    ck_assert_msg(larder_last_error()[0] != '\0', "%s", fake_fault_name(fault));
    if (fault == FAKE_PUT_BUSY) {
        ck_assert_int_eq(put_err, -EBUSY);
        ck_assert_uint_eq(stored.tokens, FAKE_BLOCK_TOKENS);
    }
    if (fault == FAKE_MODEL_OTHER)
        ck_assert_int_eq(lookup_err, LARDER_EMODEL);
    check_time(fault, start);
    fake_set_fault(fake, FAKE_NONE);
    put_all();
    get_well();
    close_scene();
}
END_TEST

START_TEST(test_fuzz)
{
    open_scene(2, FAKE_FUZZ);
    struct larder_put_result stored;
    put_all();
    fake_set_fault(fake, FAKE_FUZZ);
    const double start = now_ms();
    while (now_ms() - start < 3000) {
        struct larder_get_result result;
        if (get(&result) == 0)
            ck_assert(engine_holds(&engine, tokens, 0, result.tokens, ENGINE_LAYERS));
        struct larder_lookup_result found;
        (void)larder_lookup(model, &found, &prompt, LARDER_QUALITY_EXACT);
        struct larder_stat stat;
        (void)larder_get_stat(larder, &stat);
        (void)put(&stored);
    }
    fake_set_fault(fake, FAKE_NONE);
    fake_forget(fake);
    put_all();
    get_well();
    close_scene();
}
END_TEST

/* Memory that changes while it is read. What is read is checked as far as the library's own safety
 * goes; the bytes may be anything. */
START_TEST(test_fuzz_slab)
{
    open_scene(2, FAKE_FUZZ_SLAB);
    const double start = now_ms();
    while (now_ms() - start < 3000) {
        struct larder_get_result result;
        fake_set_fault(fake, FAKE_NONE);
        fake_forget(fake);
        put_all();
        fake_set_fault(fake, FAKE_FUZZ_SLAB);
        for (int i = 0; i < 20; i++)
            (void)get(&result);
    }
    close_scene();
}
END_TEST

/* Descriptors that nobody asked for are closed. */
START_TEST(test_no_leak)
{
    open_scene(1, FAKE_NONE);
    put_all();
    get_well();
    const int before = open_fds();
    for (int i = 0; i < 5; i++) {
        struct larder_get_result result;
        fake_set_fault(fake, FAKE_SLAB_TWO_FDS);
        (void)get(&result);
        fake_set_fault(fake, FAKE_GET_FD);
        (void)get(&result);
        fake_set_fault(fake, FAKE_NONE);
        get_well();
    }
    ck_assert_int_le(open_fds(), before);
    close_scene();
}
END_TEST

/* A profile that comes when its get has ended is nobody's: it is closed, and the connection stays
 * as it is. */
START_TEST(test_late_profile)
{
    open_scene(1, FAKE_PROFILE_LATE);
    put_all();
    get_well();
    fake_set_fault(fake, FAKE_PROFILE_LATE);
    struct larder_stat stat;
    while (larder_get_stat(larder, &stat) < 0) /* on a new connection */
        continue;
    int after_first = 0;
    for (int i = 0; i < 3; i++) {
        struct larder_get_result result;
        const struct larder_get_options options = {.deadline_ms = TIMEOUT_HANG_MS / 5};
        engine_scramble(&engine);
        ck_assert_int_eq(larder_get(model, &result, &prompt, &engine.layout, &options), 0);
        ck_assert_uint_eq(result.tokens, COUNT - FAKE_BLOCK_TOKENS);
        ck_assert_int_eq(result.stop_error, -ETIMEDOUT);
        ck_assert_int_eq(larder_get_stat(larder, &stat), 0);
        ck_assert_uint_eq(stat.entries, 7);
        if (i == 0)
            after_first = open_fds();
    }
    ck_assert_int_eq(open_fds(), after_first);
    close_scene();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hostile");
    TCase *tcase = tcase_create("hostile");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, test_good, 0, 4);
    tcase_add_loop_test(tcase, test_get_faults, FAKE_NONE + 1, FAKE_FAULTS_GET);
    tcase_add_loop_test(tcase, test_other_faults, FAKE_FAULTS_GET + 1, FAKE_FUZZ);
    tcase_add_test(tcase, test_fuzz);
    tcase_add_test(tcase, test_fuzz_slab);
    tcase_add_test(tcase, test_no_leak);
    tcase_add_test(tcase, test_late_profile);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
