/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   every code has a name and a text, and the message is the thread's last.
 * Method: the table against expected values; messages that are too long, made of the old message,
 *         and of two threads. */
#include "base/error.h"

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

START_TEST(codes_have_names_and_texts)
{
    static const struct {
        int code;
        const char *name;
    } codes[] = {
#define LARDER_ERROR_ROW(name, value, text) {value, #name},
        LARDER_ERRORS(LARDER_ERROR_ROW)
#undef LARDER_ERROR_ROW
    };
    int last = -1000;
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        ck_assert_int_eq(codes[i].code, --last); /* without gaps: a code is never used again */
        ck_assert_str_eq(larder_error_name(codes[i].code), codes[i].name);
        ck_assert_uint_gt(strlen(larder_error_text(codes[i].code)), 5);
    }
    ck_assert_str_eq(larder_error_name(LARDER_ECORRUPT), "LARDER_ECORRUPT");
    ck_assert_str_eq(larder_error_text(LARDER_ECORRUPT), "stored checksum does not match");
}
END_TEST

START_TEST(system_codes)
{
    ck_assert_str_eq(larder_error_name(-ENOSPC), "ENOSPC");
    ck_assert_str_eq(larder_error_text(-ENOENT), "No such file or directory");
    ck_assert_str_eq(larder_error_text(0), "success");
    ck_assert_str_eq(larder_error_name(-99999), "?");
    ck_assert_ptr_nonnull(larder_error_text(-99999));
}
END_TEST

START_TEST(fail_keeps_message_and_returns_code)
{
    ck_assert_int_eq(larder_fail(-EINVAL, "segment_bytes=%d; try %s", 3000, "4096"), -EINVAL);
    ck_assert_str_eq(larder_error_message(), "segment_bytes=3000; try 4096");
    /* The old message may be part of the new one. */
    ck_assert_int_eq(larder_fail(LARDER_EFORMAT, "store: %s", larder_error_message()),
                     LARDER_EFORMAT);
    ck_assert_str_eq(larder_error_message(), "store: segment_bytes=3000; try 4096");
}
END_TEST

START_TEST(a_long_message_is_cut)
{
    static char text[2 * LARDER_MESSAGE_BYTES_MAX];
    memset(text, 'x', sizeof(text) - 1);
    larder_fail(-EIO, "%s", text);
    ck_assert_uint_eq(strlen(larder_error_message()), LARDER_MESSAGE_BYTES_MAX - 1);
}
END_TEST

static void *fail_elsewhere(void *message_before)
{
    *(size_t *)message_before = strlen(larder_error_message());
    larder_fail(-EIO, "of the other thread");
    return NULL;
}

START_TEST(messages_are_per_thread)
{
    larder_fail(-EINVAL, "mine");
    pthread_t thread;
    size_t length_there = 1;
    ck_assert_int_eq(pthread_create(&thread, NULL, fail_elsewhere, &length_there), 0);
    pthread_join(thread, NULL);
    ck_assert_uint_eq(length_there, 0);
    ck_assert_str_eq(larder_error_message(), "mine");
}
END_TEST

static int try_it(int code)
{
    LARDER_TRY(code);
    return 7;
}

START_TEST(try_returns_errors_only)
{
    ck_assert_int_eq(try_it(-EIO), -EIO);
    ck_assert_int_eq(try_it(0), 7);
    ck_assert_int_eq(try_it(3), 7);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("error");
    TCase *tests = tcase_create("error");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, codes_have_names_and_texts);
    tcase_add_test(tests, system_codes);
    tcase_add_test(tests, fail_keeps_message_and_returns_code);
    tcase_add_test(tests, a_long_message_is_cut);
    tcase_add_test(tests, messages_are_per_thread);
    tcase_add_test(tests, try_returns_errors_only);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
