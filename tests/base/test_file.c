/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a small file is read whole or not, and replaced whole or not.
 * Method: a scratch directory; sizes around the limit, what is no plain file, a directory that
 *         cannot be written. */
#include "base/file.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/larder_base.h"
#include "base/mem.h"

static char directory[128];

static void begin(void)
{
    const char *where = getenv("TMPDIR");
    snprintf(directory, sizeof(directory), "%.80s/larder-file-XXXXXX", where ? where : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(directory));
}

static void end(void)
{
    char command[160];
    snprintf(command, sizeof(command), "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static const char *path_of(const char *name)
{
    static char path[160];
    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

START_TEST(what_is_written_is_read)
{
    void *bytes;
    size_t count;
    struct stat stat_of;
    ck_assert_int_eq(larder_file_read(&bytes, &count, path_of("a"), 10), -ENOENT);
    ck_assert_int_eq(larder_file_replace(directory, "a", "0123456789", 10), 0);
    ck_assert_int_eq(larder_file_read(&bytes, &count, path_of("a"), 10), 0);
    ck_assert_uint_eq(count, 10);
    ck_assert_str_eq((char *)bytes, "0123456789"); /* with its NUL */
    larder_free(bytes);
    ck_assert_int_eq(larder_file_read(&bytes, &count, path_of("a"), 9), LARDER_ELIMIT);
    ck_assert_ptr_null(bytes);
    ck_assert_int_eq(larder_file_replace(directory, "a", "x", 0), 0);
    ck_assert_int_eq(larder_file_read(&bytes, &count, path_of("a"), 9), 0);
    ck_assert_uint_eq(count, 0);
    larder_free(bytes);
    ck_assert_int_eq(stat(path_of("a"), &stat_of), 0);
    ck_assert_uint_eq(stat_of.st_mode & 0777, 0600);
    ck_assert_int_ne(access(path_of("a.new"), F_OK), 0);
}
END_TEST

START_TEST(what_is_no_file_is_refused)
{
    void *bytes;
    size_t count;
    ck_assert_int_lt(larder_file_read(&bytes, &count, directory, 10), 0);
    ck_assert_int_eq(symlink("/etc/passwd", path_of("link")), 0);
    ck_assert_int_eq(larder_file_read(&bytes, &count, path_of("link"), 1 << 20), -ELOOP);
    ck_assert_int_eq(mkfifo(path_of("pipe"), 0600), 0);
    ck_assert_int_lt(larder_file_read(&bytes, &count, path_of("pipe"), 10), 0); /* no hang */
    /* A link in the new file's place is not followed. */
    ck_assert_int_eq(symlink("elsewhere", path_of("b.new")), 0);
    ck_assert_int_lt(larder_file_replace(directory, "b", "x", 1), 0);
    ck_assert_int_ne(access(path_of("elsewhere"), F_OK), 0);
    ck_assert_int_eq(larder_file_replace("/nonexistent", "b", "x", 1), -ENOENT);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("file");
    TCase *tests = tcase_create("file");
    tcase_add_checked_fixture(tests, begin, end);
    tcase_add_test(tests, what_is_written_is_read);
    tcase_add_test(tests, what_is_no_file_is_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
