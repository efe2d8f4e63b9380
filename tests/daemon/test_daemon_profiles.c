/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a damaged profile gives way to a whole one, but not while somebody removes it; what an
 *         addition left that was killed is gone after the next start, and nothing else; each model
 *         has its own default, and loses it with its profile alone; recipes that are kept opened
 *         hold a profile until they are forgotten, and not more of them than are used.
 * Method: the profiles of an empty store, with the small model's profile, whose file is damaged,
 *         and profiles of other models made here.
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
#include "codec/codec.h"
#include "codec/profile_writer.h"
#include "daemon/profiles.h"
#include "daemon/recipes.h"

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

/* --- several models --------------------------------------------------------------------------- */

enum { MODELS = 3 };

static struct larder_model_desc model_of(uint8_t number)
{
    return (struct larder_model_desc){.name = "made",
                                      .dtype = LARDER_BF16,
                                      .layers = 1,
                                      .kv_heads = 1,
                                      .k_dims = 32,
                                      .v_dims = 32,
                                      .vocab = 256,
                                      .weights = {number}};
}

/* A profile of that model, with what bfp4-ksort reads, and stores it. */
static struct larder_key add_made(uint8_t number)
{
    const struct larder_model_desc model = model_of(number);
    const uint64_t shape[] = {1, 32};
    int32_t order[32];
    struct larder_profile_writer *writer;
    struct larder_key made;
    void *out;
    uint64_t count;
    bool existed;
    for (int32_t i = 0; i < 32; i++)
        order[i] = 31 - i;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    ck_assert_int_eq(larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32, shape, 2, order),
                     0);
    ck_assert_int_eq(larder_profile_finish(writer, &out, &count), 0);
    larder_profile_writer_close(writer);
    ck_assert_int_eq(larder_sha256(&made, out, count), 0);
    ck_assert_int_eq(profiles_add(profiles, &existed, out, count, made.bytes), 0);
    larder_free(out);
    return made;
}

/* Default of the model, if there is one. */
static bool default_is(uint8_t number, const struct larder_key *wanted)
{
    const struct larder_model_desc model = model_of(number);
    struct larder_key found;
    return profiles_default(profiles, found.bytes, &model) && larder_key_equal(&found, wanted);
}

START_TEST(each_model_has_its_default)
{
    struct larder_key made[MODELS];
    for (uint8_t i = 0; i < MODELS; i++) {
        made[i] = add_made((uint8_t)(i + 1));
        ck_assert(!default_is((uint8_t)(i + 1), &made[i]));
        ck_assert_int_eq(profiles_set_default(profiles, made[i].bytes), 0);
        ck_assert_int_eq(profiles_set_default(profiles, made[i].bytes), 0);
    }
    ck_assert_int_eq(profiles_set_default(profiles, name.bytes), LARDER_ENOPROFILE);
    ck_assert_int_eq(profiles_begin_removal(profiles, name.bytes), LARDER_ENOPROFILE);
    for (int round = 0; round < 2; round++) {
        for (uint8_t i = 0; i < MODELS; i++)
            ck_assert(default_is((uint8_t)(i + 1), &made[i]));
        profiles_close(profiles);
        open_profiles();
    }
    ck_assert_int_eq(profiles_begin_removal(profiles, made[1].bytes), 0);
    ck_assert_int_eq(profiles_end_removal(profiles, made[1].bytes, true), 0);
    for (int round = 0; round < 2; round++) {
        ck_assert(default_is(1, &made[0]));
        ck_assert(!default_is(2, &made[1]));
        ck_assert(default_is(3, &made[2]));
        profiles_close(profiles);
        open_profiles();
    }
}
END_TEST

/* Files that are none of its own are passed over; a damaged list of defaults is none. */
START_TEST(odd_files_are_passed_over)
{
    const struct larder_key made = add_made(1);
    struct profile_info info;
    char other[80];
    ck_assert_int_eq(profiles_set_default(profiles, made.bytes), 0);
    profiles_close(profiles);
    memset(other, 'd', 64);
    strcpy(other + 64, ".safetensors");
    ck_assert_int_eq(larder_file_replace(directory, other, "", 0), 0);
    ck_assert_int_eq(larder_file_replace(directory, "short.safetensors", "x", 1), 0);
    memset(other, 'x', 64);
    ck_assert_int_eq(larder_file_replace(directory, other, "x", 1), 0);
    open_profiles();
    ck_assert(profiles_at(profiles, &info, 0) && info.is_default);
    ck_assert(!profiles_at(profiles, &info, 1));
    profiles_close(profiles);
    char line[130];
    memset(line, '1', sizeof(line));
    ck_assert_int_eq(larder_file_replace(directory, "defaults", line, sizeof(line)), 0);
    open_profiles();
    ck_assert(profiles_at(profiles, &info, 0) && !info.is_default);
    ck_assert(!default_is(1, &made));
    ck_assert_int_eq(profiles_set_default(profiles, made.bytes), 0);
    ck_assert(default_is(1, &made));
}
END_TEST

/* --- recipes that are kept -------------------------------------------------------------------- */

START_TEST(recipes_hold_their_profile)
{
    const struct larder_key made = add_made(1);
    const struct larder_recipe *taken;
    const struct larder_recipe *again;
    const struct larder_recipe *without;
    struct recipes *recipes;
    ck_assert_int_eq(recipes_open(&recipes, profiles, RECIPES_IDLE_BYTES), 0);
    ck_assert_int_eq(recipes_take(recipes, &taken, "bfp4-ksort", name.bytes), LARDER_ENOPROFILE);
    ck_assert_int_eq(recipes_take(recipes, &taken, "nonsense", made.bytes), -EINVAL);
    ck_assert_int_eq(recipes_take(recipes, &taken, "bfp4-ksort", made.bytes), 0);
    ck_assert_int_eq(recipes_take(recipes, &again, "bfp4-ksort", made.bytes), 0);
    ck_assert_int_eq(recipes_take(recipes, &without, "bfp4-ksort", NULL), 0);
    ck_assert_ptr_eq(again, taken);
    ck_assert_ptr_ne(without, taken);
    recipes_give(recipes, taken);
    recipes_give(recipes, without);
    recipes_forget(recipes, made.bytes); /* it is used */
    ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), -EBUSY);
    recipes_give(recipes, again);
    ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), -EBUSY); /* it is kept */
    recipes_forget(recipes, made.bytes);
    ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), 0);
    ck_assert_int_eq(recipes_take(recipes, &taken, "bfp4-ksort", made.bytes), LARDER_ENOPROFILE);
    ck_assert_int_eq(profiles_end_removal(profiles, made.bytes, false), 0);

    /* Others that are used after it: the one that was not used for longest goes. */
    ck_assert_int_eq(recipes_take(recipes, &taken, "bfp4-ksort", made.bytes), 0);
    recipes_give(recipes, taken);
    for (uint32_t i = 1; i <= 100; i++) {
        char text[40];
        snprintf(text, sizeof(text), "lowrank rank=%u{quant levels=%u}", 1 + i % 16, 2 + i);
        ck_assert_int_eq(recipes_take(recipes, &again, text, NULL), 0);
        recipes_give(recipes, again);
    }
    ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), 0);
    ck_assert_int_eq(profiles_end_removal(profiles, made.bytes, true), 0);
    recipes_close(recipes);
}
END_TEST

/* One recipe in many spellings, each with tables of its own: their memory counts, not their number
 * alone. */
START_TEST(recipes_with_tables_go_sooner)
{
    enum { IDLE_BYTES = 32 << 20 };
    const struct larder_key made = add_made(1);
    const struct larder_recipe *taken;
    struct recipes *recipes;
    uint64_t taken_bytes = 0;
    uint32_t count = 0;
    add(0);
    ck_assert_int_eq(recipes_open(&recipes, profiles, IDLE_BYTES), 0);
    ck_assert_int_eq(recipes_take(recipes, &taken, "bfp4-ksort", made.bytes), 0);
    ck_assert_uint_lt(larder_recipe_memory_bytes(taken), 1 << 20);
    recipes_give(recipes, taken);
    for (; taken_bytes <= IDLE_BYTES; count++) {
        ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), -EBUSY);
        char text[64];
        snprintf(text, sizeof(text), "cachegen2%*s", (int)count, "");
        ck_assert_int_eq(recipes_take(recipes, &taken, text, name.bytes), 0);
        taken_bytes += larder_recipe_memory_bytes(taken);
        recipes_give(recipes, taken);
    }
    ck_assert_uint_lt(count, 32);
    ck_assert_int_eq(profiles_begin_removal(profiles, made.bytes), 0);
    ck_assert_int_eq(profiles_end_removal(profiles, made.bytes, true), 0);
    recipes_close(recipes);
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
    tcase_add_test(tcase, each_model_has_its_default);
    tcase_add_test(tcase, odd_files_are_passed_over);
    tcase_add_test(tcase, recipes_hold_their_profile);
    tcase_add_test(tcase, recipes_with_tables_go_sooner);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
