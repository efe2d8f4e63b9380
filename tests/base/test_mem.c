/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the one place that allocates does it, and fails exactly where a test says.
 * Method: each function with the failure set on it, before it and behind it; threads that count. */
#include "base/mem.h"

#include <check.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

START_TEST(what_is_given)
{
    char *text = larder_strdup("larder");
    ck_assert_str_eq(text, "larder");
    text = larder_realloc(text, 100);
    ck_assert_str_eq(text, "larder");
    larder_free(text);

    uint8_t *zeros = larder_alloc_zero(10, 10);
    for (int i = 0; i < 100; i++)
        ck_assert_uint_eq(zeros[i], 0);
    larder_free(zeros);
    larder_free(NULL);

    for (size_t align = 1; align <= 8192; align *= 2) {
        uint8_t *at = larder_alloc_aligned(align, 3);
        ck_assert_uint_eq((uintptr_t)at % align, 0);
        at[2] = 1;
        larder_free(at);
    }
}
END_TEST

START_TEST(what_cannot_be_given)
{
    ck_assert_ptr_null(larder_alloc_aligned(64, SIZE_MAX));
    ck_assert_ptr_null(larder_alloc_aligned(64, SIZE_MAX - 63));
}
END_TEST

/* Allocation `n` of five, one of each kind. */
static void *allocate(int n, void *old)
{
    switch (n) {
    case 1:
        return larder_alloc(8);
    case 2:
        return larder_alloc_zero(2, 4);
    case 3:
        return larder_realloc(old, 16);
    case 4:
        return larder_alloc_aligned(64, 8);
    default:
        return larder_strdup("text");
    }
}

START_TEST(the_nth_fails_once)
{
    for (int fail = 1; fail <= 5; fail++) {
        uint64_t before = larder_mem_count();
        void *old = larder_alloc(8);
        larder_mem_fail_at((uint64_t)fail);
        for (int n = 1; n <= 5; n++) {
            void *memory = allocate(n, old);
            ck_assert_int_eq(memory == NULL, n == fail);
            if (n == 3 && memory)
                old = NULL; /* moved; a realloc that failed leaves it */
            larder_free(memory);
        }
        larder_free(old);
        void *after = larder_alloc(1);
        ck_assert_ptr_nonnull(after);
        larder_free(after);
        ck_assert_uint_eq(larder_mem_count() - before, 7);
    }
    larder_mem_fail_at(1);
    larder_mem_fail_at(0);
    void *memory = larder_alloc(1);
    ck_assert_ptr_nonnull(memory);
    larder_free(memory);
}
END_TEST

static void *allocate_many(void *failures)
{
    for (int i = 0; i < 10000; i++) {
        void *memory = larder_alloc(16);
        if (!memory)
            ++*(int *)failures;
        larder_free(memory);
    }
    return NULL;
}

START_TEST(threads_share_the_count)
{
    uint64_t before = larder_mem_count();
    pthread_t threads[4];
    int failures[4] = {0};
    larder_mem_fail_at(20000);
    for (int i = 0; i < 4; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, allocate_many, &failures[i]), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    larder_mem_fail_at(0);
    ck_assert_uint_eq(larder_mem_count() - before, 40000);
    ck_assert_int_eq(failures[0] + failures[1] + failures[2] + failures[3], 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("mem");
    TCase *tests = tcase_create("mem");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, what_is_given);
    tcase_add_test(tests, what_cannot_be_given);
    tcase_add_test(tests, the_nth_fails_once);
    tcase_add_test(tests, threads_share_the_count);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
