/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a store that an earlier release made is read by this one: what was durable is exact, what
 *         was removed is gone, with its index or without; a store of a later format is refused
 *         and stays as it is.
 * Method: committed archives of stores (make_golden.c), with lists of what is in them; a real
 *         larderd on a copy of each, asked as engines ask. */
#include <check.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "tests/golden/chains.h"

static const char *const stores[] = {
    "v1-0/clean",
    "v1-0/put",
    "v1-0/remove",
    "v1-1/encrypted",
};
#define STORE_COUNT LARDER_COUNT_OF(stores)

static struct fixture fixture;

static int __attribute__((format(printf, 1, 2))) shell(const char *format, ...)
{
    char command[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    return system(command);
}

static void unpack(const char *store)
{
    bool encrypted = strstr(store, "encrypted");
    fixture_prepare(&fixture, encrypted ? CHAINS_CONFIG_ENCRYPTED : CHAINS_CONFIG);
    if (encrypted)
        ck_assert_int_eq(shell("cp tests/golden/%.4s/test.key %s && chmod 600 %s/test.key", store,
                               fixture.directory, fixture.directory),
                         0);
    ck_assert_int_eq(shell("mkdir -m 0700 %s/store && tar -C %s/store -xzf tests/golden/%s.tar.gz",
                           fixture.directory, fixture.directory, store),
                     0);
}

/* Everything on the list, and nothing that was removed. */
static void compare(const char *store)
{
    char path[256], line[256];
    snprintf(path, sizeof(path), "tests/golden/%s.txt", store);
    FILE *list = fopen(path, "re");
    ck_assert_ptr_nonnull(list);
    unsigned compared = 0;
    while (fgets(line, sizeof(line), list)) {
        struct chain chain;
        uint32_t asked, there;
        char expected[CHAIN_DIGEST_TEXT], digest[CHAIN_DIGEST_TEXT];
        if (line[0] == '#')
            continue;
        ck_assert_int_eq(sscanf(line, "%" SCNu32 "%" SCNu32 "%" SCNu32 "%" SCNu32 "%" SCNu32 "%64s",
                                &chain.tenant, &chain.model, &chain.number, &asked, &there,
                                expected),
                         6);
        int64_t got = chain_get(&fixture, &chain, asked, digest);
        ck_assert_msg(got == there, "%s: %" PRId64 " tokens of the line %s", store, got, line);
        if (there > 0)
            ck_assert_str_eq(digest, expected);
        if (strstr(line, " pinned")) /* who removes it has to say so */
            ck_assert_int_eq(chain_remove(&fixture, &chain, asked), LARDER_EPINNED);
        compared++;
    }
    fclose(list);
    ck_assert_uint_ge(compared, 5);
}

START_TEST(everything_is_there)
{
    const char *store = stores[_i];
    unpack(store);
    fixture_restart(&fixture);
    compare(store);
    /* This release's own start, writes and stop in between. */
    const struct chain more = {1, 1, 1001};
    char digest[CHAIN_DIGEST_TEXT];
    ck_assert_int_eq(chain_put(&fixture, &more, 50), 0);
    ck_assert_int_eq(fixture_terminate(&fixture), 0);
    fixture_restart(&fixture);
    compare(store);
    ck_assert_int_eq(chain_get(&fixture, &more, 50, digest), 50);
    fixture_stop(&fixture);
}
END_TEST

START_TEST(without_its_index)
{
    const char *store = stores[_i];
    unpack(store);
    ck_assert_int_eq(shell("rm -r %s/store/index", fixture.directory), 0);
    fixture_restart(&fixture);
    compare(store);
    fixture_stop(&fixture);
}
END_TEST

static void fingerprint(char out[128])
{
    ck_assert_int_eq(shell("cd %s && find store -type f ! -name lock -print0 | sort -z | "
                           "xargs -0 sha256sum | sha256sum >sum",
                           fixture.directory),
                     0);
    char path[128];
    snprintf(path, sizeof(path), "%s/sum", fixture.directory);
    FILE *file = fopen(path, "re");
    ck_assert_ptr_nonnull(file);
    ck_assert_ptr_nonnull(fgets(out, 128, file));
    fclose(file);
}

/* What a later release may write into `format`. */
START_TEST(a_later_version_is_refused_untouched)
{
    char before[128], after[128];
    const char *const arguments[] = {"--config", fixture.config_path, NULL};
    unpack(stores[_i]);
    ck_assert_int_eq(shell("sed -i '1s/store 1/store 2/' %s/store/format", fixture.directory), 0);
    fingerprint(before);
    ck_assert_int_eq(fixture_run(&fixture, arguments), 4);
    fingerprint(after);
    ck_assert_str_eq(before, after);
    ck_assert_int_eq(shell("sed -i '1s/store 2/store 1/' %s/store/format", fixture.directory), 0);
    fixture_restart(&fixture);
    compare(stores[_i]);
    fixture_stop(&fixture);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("golden");
    TCase *tests = tcase_create("golden");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, everything_is_there, 0, STORE_COUNT);
    tcase_add_loop_test(tests, without_its_index, 0, STORE_COUNT);
    tcase_add_loop_test(tests, a_later_version_is_refused_untouched, 0, STORE_COUNT);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
