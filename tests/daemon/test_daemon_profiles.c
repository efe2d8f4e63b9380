/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a damaged profile gives way to a whole one, but not while somebody removes it; what an
 *         addition left that was killed is gone after the next start, and nothing else.
 * Method: the profiles of an empty store, with the small model's profile, whose file is damaged.
 */
#include <check.h>
#include <errno.h>
#include <ftw.h>
#include <linux/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/file.h"
#include "base/key.h"
#include "base/limits.h"
#include "base/mem.h"
#include "daemon/profiles.h"

static char store[PATH_MAX / 2];
static char directory[PATH_MAX / 2 + 16];
static char file[80]; /* of the profile, in it */
static struct profiles *profiles;
static struct larder_key name;
static void *bytes;
static size_t byte_count;

static void open_profiles(void)
{
    ck_assert_int_eq(profiles_open(&profiles, store), 0);
}

static void setup(void)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(store, sizeof(store), "%s/larder-profiles-XXXXXX", tmp ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(store));
    snprintf(directory, sizeof(directory), "%s/profiles", store);
    ck_assert_int_eq(larder_file_read(&bytes, &byte_count, "tests/models/tiny/profile.safetensors",
                                      LARDER_PROFILE_BYTES_MAX),
                     0);
    ck_assert_int_eq(larder_sha256(&name, bytes, byte_count), 0);
    larder_hex(file, name.bytes, sizeof(name.bytes));
    strcat(file, ".safetensors");
    open_profiles();
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *ftw)
{
    (void)stat;
    (void)type;
    (void)ftw;
    return remove(path);
}

static void teardown(void)
{
    profiles_close(profiles);
    larder_free(bytes);
    ck_assert_int_eq(nftw(store, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

static void add(int expected)
{
    bool existed;
    ck_assert_int_eq(profiles_add(profiles, &existed, bytes, byte_count, name.bytes), expected);
    ck_assert(!existed || expected < 0);
}

/* Stored, with one byte wrong, and not read since. */
static void store_damaged(void)
{
    char *wrong = larder_alloc(byte_count);
    ck_assert_ptr_nonnull(wrong);
    memcpy(wrong, bytes, byte_count);
    wrong[byte_count - 1] = (char)(wrong[byte_count - 1] ^ 1);
    add(0);
    profiles_close(profiles);
    ck_assert_int_eq(larder_file_replace(directory, file, wrong, byte_count), 0);
    larder_free(wrong);
    open_profiles();
}

static void expect_hold(int expected)
{
    const struct larder_profile *profile;
    ck_assert_int_eq(profiles_hold(profiles, &profile, name.bytes), expected);
    if (expected == 0)
        profiles_let_go(profiles, name.bytes);
}

START_TEST(a_damaged_one_gives_way)
{
    store_damaged();
    expect_hold(LARDER_ENOPROFILE);
    add(0);
    expect_hold(0);
    profiles_close(profiles);
    open_profiles();
    expect_hold(0);
}
END_TEST

START_TEST(a_damaged_one_that_leaves_stays_until_then)
{
    struct profile_info info;
    for (int goes = 0; goes < 2; goes++) {
        store_damaged();
        ck_assert_int_eq(profiles_begin_removal(profiles, name.bytes), 0);
        add(-EBUSY);
        ck_assert_int_eq(profiles_begin_removal(profiles, name.bytes), -EBUSY);
        ck_assert_int_eq(profiles_end_removal(profiles, name.bytes, goes), 0);
        ck_assert_int_eq(profiles_at(profiles, &info, 0), !goes);
        add(0);
        expect_hold(0);
        ck_assert_int_eq(profiles_begin_removal(profiles, name.bytes), 0);
        ck_assert_int_eq(profiles_end_removal(profiles, name.bytes, true), 0);
        ck_assert(!profiles_at(profiles, &info, 0));
    }
}
END_TEST

static bool is_there(const char *format, const char *of)
{
    char path[2 * PATH_MAX], entry[PATH_MAX];
    snprintf(entry, sizeof(entry), format, of);
    snprintf(path, sizeof(path), "%s/%s", directory, entry);
    return access(path, F_OK) == 0;
}

static void put_file(const char *format, const char *of)
{
    char entry[PATH_MAX];
    snprintf(entry, sizeof(entry), format, of);
    ck_assert_int_eq(larder_file_replace(directory, entry, "unfinished", 10), 0);
}

START_TEST(what_was_not_finished_goes)
{
    char folder[2 * PATH_MAX], other[80];
    struct profile_info info;
    add(0);
    profiles_close(profiles);
    memset(other, 'a', 64);
    strcpy(other + 64, ".safetensors");
    put_file("%s.new", file);
    put_file("%s.new", other);
    put_file("%s.newer", other);
    put_file("b%s.new", other);
    memset(other, 'c', 64);
    snprintf(folder, sizeof(folder), "%s/%s.new", directory, other);
    ck_assert_int_eq(mkdir(folder, 0700), 0);
    open_profiles();
    ck_assert(!is_there("%s.new", file));
    ck_assert(is_there("%s.new", other));
    memset(other, 'a', 64);
    ck_assert(!is_there("%s.new", other));
    ck_assert(is_there("%s.newer", other));
    ck_assert(is_there("b%s.new", other));
    ck_assert(profiles_at(profiles, &info, 0));
    ck_assert(!profiles_at(profiles, &info, 1));
    expect_hold(0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("daemon_profiles");
    TCase *tcase = tcase_create("profiles");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_damaged_one_gives_way);
    tcase_add_test(tcase, a_damaged_one_that_leaves_stays_until_then);
    tcase_add_test(tcase, what_was_not_finished_goes);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
