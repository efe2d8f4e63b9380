/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a log line is whole, of the right level, and bounded.
 * Method: stderr is a pipe while one call logs; what came through is compared. */
#include "base/log.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

static char caught[8192];

/* stderr of one call, NUL-terminated. */
#define CATCH(call)                                                                                \
    do {                                                                                           \
        int ends_[2];                                                                              \
        ck_assert_int_eq(pipe2(ends_, O_NONBLOCK), 0);                                             \
        int saved_ = dup(STDERR_FILENO);                                                           \
        dup2(ends_[1], STDERR_FILENO);                                                             \
        call;                                                                                      \
        dup2(saved_, STDERR_FILENO);                                                               \
        ssize_t got_ = read(ends_[0], caught, sizeof(caught) - 1);                                 \
        caught[got_ > 0 ? got_ : 0] = '\0';                                                        \
        close(saved_);                                                                             \
        close(ends_[0]);                                                                           \
        close(ends_[1]);                                                                           \
    } while (0)

static void setup(void)
{
    unsetenv("JOURNAL_STREAM");
    larder_log_set_level(LARDER_LOG_INFO);
}

static void check_caught(const char *pattern)
{
    regex_t regex;
    ck_assert_int_eq(regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB), 0);
    ck_assert_msg(regexec(&regex, caught, 0, NULL, 0) == 0, "'%s' is not like '%s'", caught,
                  pattern);
    regfree(&regex);
}

START_TEST(lines)
{
    CATCH(larder_log(LARDER_LOG_INFO, "started in %d ms", 12));
    check_caught("^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z info  started in 12 ms\n$");
    CATCH(larder_log(LARDER_LOG_ERROR, "lost"));
    check_caught("Z error lost\n$");
}
END_TEST

START_TEST(levels)
{
    CATCH(larder_log(LARDER_LOG_DEBUG, "no"));
    ck_assert_str_eq(caught, "");
    larder_log_set_level(LARDER_LOG_DEBUG);
    CATCH(larder_log(LARDER_LOG_DEBUG, "yes"));
    check_caught("debug yes\n$");
    larder_log_set_level(LARDER_LOG_ERROR);
    CATCH(larder_log(LARDER_LOG_WARN, "no"));
    ck_assert_str_eq(caught, "");
    CATCH(larder_log(LARDER_LOG_ERROR, "yes"));
    check_caught("error yes\n$");
}
END_TEST

/* Names stderr as it is now as the journal's stream. */
static void stderr_is_the_journal(void)
{
    struct stat status;
    char stream[64];
    ck_assert_int_eq(fstat(STDERR_FILENO, &status), 0);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
}

START_TEST(journal_prefixes)
{
    static const char *const wanted[] = {"<3>90 % full\n", "<4>90 % full\n", "<6>90 % full\n",
                                         "<7>90 % full\n"};
    larder_log_set_level(LARDER_LOG_DEBUG);
    for (int level = LARDER_LOG_ERROR; level <= LARDER_LOG_DEBUG; level++) {
        CATCH(stderr_is_the_journal(); larder_log((enum larder_log_level)level, "%d %% full", 90));
        ck_assert_str_eq(caught, wanted[level]);
    }
    /* What stays of a stream that stderr is no more. */
    CATCH(larder_log(LARDER_LOG_WARN, "elsewhere"));
    check_caught("Z warn  elsewhere\n$");
    setenv("JOURNAL_STREAM", "8:1", 1);
    CATCH(larder_log(LARDER_LOG_WARN, "elsewhere"));
    check_caught("Z warn  elsewhere\n$");
    unsetenv("JOURNAL_STREAM");
}
END_TEST

START_TEST(a_long_line_is_cut_and_ends)
{
    static char text[3000];
    memset(text, 'y', sizeof(text) - 1);
    CATCH(larder_log(LARDER_LOG_INFO, "%s", text));
    size_t length = strlen(caught);
    ck_assert_uint_le(length, 1024);
    ck_assert_uint_ge(length, 1000);
    ck_assert_int_eq(caught[length - 1], '\n');
    ck_assert_int_eq(caught[length - 2], 'y');
}
END_TEST

START_TEST(a_closed_stderr_is_ignored)
{
    signal(SIGPIPE, SIG_IGN);
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    int saved = dup(STDERR_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    larder_log(LARDER_LOG_INFO, "into nothing");
    dup2(saved, STDERR_FILENO);
    close(ends[1]);
    close(saved);
}
END_TEST

START_TEST(names_of_levels)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    for (int i = 0; i < 4; i++) {
        enum larder_log_level level = LARDER_LOG_ERROR;
        ck_assert_int_eq(larder_log_parse_level(&level, names[i]), 0);
        ck_assert_int_eq((int)level, i);
    }
    enum larder_log_level level;
    ck_assert_int_eq(larder_log_parse_level(&level, "loud"), -EINVAL);
    ck_assert_str_eq(larder_error_message(),
                     "log level 'loud' is not one of error, warn, info, debug");
    ck_assert_int_eq(larder_log_parse_level(&level, ""), -EINVAL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("log");
    TCase *tests = tcase_create("log");
    tcase_add_checked_fixture(tests, setup, NULL);
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, lines);
    tcase_add_test(tests, levels);
    tcase_add_test(tests, journal_prefixes);
    tcase_add_test(tests, a_long_line_is_cut_and_ends);
    tcase_add_test(tests, a_closed_stderr_is_ignored);
    tcase_add_test(tests, names_of_levels);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
