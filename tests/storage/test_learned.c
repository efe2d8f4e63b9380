/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what eviction learned, and knows of each entry, is there after a clean restart and after a
 * kill; a file that is damaged, cut short or another's is refused, and the store starts all the
 * same.
 * Method: the policy is asked what it recalls before and after; DIR/learned is changed byte by byte
 * between two lives. */
#include <check.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "fixture.h"
#include "storage/store_priv.h"

enum { BLOCKS = 6, USES = 9 };

static struct fixture f;
static char path[PATH_MAX];

static void setup(void)
{
    fixture_begin(&f);
    snprintf(path, sizeof(path), "%s/learned", f.path);
}

static void teardown(void)
{
    fixture_end(&f);
}

static uint64_t recalled(uint64_t seed)
{
    struct larder_key key = block_key(seed);
    pthread_mutex_lock(&f.store->lock);
    uint32_t id = table_find(&f.store->table, &key);
    uint64_t bits = id && larder_policy_has(f.store->ssd_policy, id)
                        ? larder_policy_recall(f.store->ssd_policy, id)
                        : 0;
    pthread_mutex_unlock(&f.store->lock);
    return bits;
}

/* How often it was used, by what is recalled (policy_value.c). */
static uint32_t uses(uint64_t seed)
{
    return (uint32_t)(recalled(seed) >> 32 & 0xffff);
}

static void put_and_use(void)
{
    fixture_put_chain(&f, 100, BLOCKS, 5000, LARDER_DURABLE);
    fixture_put_chain(&f, 200, BLOCKS, 5000, LARDER_DURABLE);
    int err;
    for (uint32_t i = 0; i < USES; i++)
        ck_assert_uint_eq(fixture_get_chain(&f, 100, BLOCKS, &err), BLOCKS);
    ck_assert_uint_eq(uses(100), USES);
}

/* What was used is known; the rest is there. */
static void check_known(uint32_t wanted)
{
    fixture_check(&f);
    for (uint64_t seed = 100; seed < 100 + BLOCKS; seed++) {
        ck_assert_uint_eq(uses(seed), wanted);
        ck_assert_uint_eq(uses(seed + 100), 0);
        ck_assert(recalled(seed + 100) != 0);
    }
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 100, BLOCKS, &err), BLOCKS);
    ck_assert_uint_eq(fixture_get_chain(&f, 200, BLOCKS, &err), BLOCKS);
}

START_TEST(a_clean_restart_keeps_it)
{
    ck_assert_int_eq(fixture_open(&f), 0);
    put_and_use();
    fixture_reopen(&f);
    check_known(USES);
    /* Also when the index is made anew: generations are in the records. */
    fixture_close(&f);
    fixture_remove_index(&f);
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    ck_assert_uint_eq(uses(100), USES + 1);
}
END_TEST

START_TEST(a_kill_keeps_what_was_saved_last)
{
    fflush(NULL);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        f.options.save_ms = 10;
        must(fixture_open(&f) == 0);
        fixture_put_chain(&f, 100, BLOCKS, 5000, LARDER_DURABLE);
        fixture_put_chain(&f, 200, BLOCKS, 5000, LARDER_DURABLE);
        int err;
        for (uint32_t i = 0; i < USES; i++)
            must(fixture_get_chain(&f, 100, BLOCKS, &err) == BLOCKS);
        /* Two saves that began after the last use. */
        struct stat first, now;
        (void)unlink(path);
        for (int saves = 0; saves < 2; saves++) {
            must(fixture_get_chain(&f, 200, 0, &err) == 0);
            memset(&first, 0, sizeof(first));
            (void)stat(path, &first);
            do {
                usleep(2000);
                pthread_mutex_lock(&f.store->lock);
                f.store->stats.gets++; /* something to save */
                pthread_mutex_unlock(&f.store->lock);
            } while (stat(path, &now) < 0 || now.st_ino == first.st_ino);
        }
        raise(SIGKILL);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(WTERMSIG(status), SIGKILL);
    ck_assert_int_eq(fixture_open(&f), 0);
    check_known(USES);
}
END_TEST

static void change_file(long offset, uint8_t flip)
{
    FILE *file = fopen(path, "r+b");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fseek(file, offset, SEEK_SET), 0);
    int byte = fgetc(file);
    ck_assert_int_ne(byte, EOF);
    ck_assert_int_eq(fseek(file, offset, SEEK_SET), 0);
    fputc(byte ^ flip, file);
    ck_assert_int_eq(fclose(file), 0);
}

START_TEST(damage_is_refused_and_the_store_starts)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    ck_assert_int_eq(fixture_open(&f), 0);
    put_and_use();
    fixture_close(&f);
    struct stat status;
    ck_assert_int_eq(stat(path, &status), 0);
    long size = status.st_size;
    ck_assert_int_gt(size, 30000);
    long offsets[] = {0, 9, 13, 17, 21, 25, 32, 64, 5000, size / 2, size - 100, size - 1};
    for (size_t i = 0; i < sizeof(offsets) / sizeof(*offsets); i++) {
        change_file(offsets[i], (uint8_t)(1u << i % 8));
        ck_assert_int_eq(fixture_open(&f), 0);
        check_known(0);
        fixture_close(&f); /* learned anew, and saved */
    }
    for (long cut = size - 1; cut > 0; cut /= 3) {
        ck_assert_int_eq(truncate(path, cut), 0);
        ck_assert_int_eq(fixture_open(&f), 0);
        check_known(0);
        fixture_close(&f);
    }
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_assert_int_eq(fixture_open(&f), 0);
    check_known(0);
    fixture_close(&f);
    /* By another policy it is not read, and left for the day when it is wanted again. */
    f.options.eviction = "lru";
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(recalled(100), 0);
    fixture_close(&f);
    f.options.eviction = NULL;
    ck_assert_int_eq(fixture_open(&f), 0);
    ck_assert_uint_eq(uses(100), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("learned");
    TCase *tcase = tcase_create("learned");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, a_clean_restart_keeps_it);
    tcase_add_test(tcase, a_kill_keeps_what_was_saved_last);
    tcase_add_test(tcase, damage_is_refused_and_the_store_starts);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
