/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a profile gives back what was put into it, and every file that is none is refused.
 * Method: profiles made by the writer; one fault each; the bytes cut and changed everywhere; every
 * allocation made to fail once.
 */
#include "codec/profile.h"

#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "codec/profile_writer.h"

static const struct larder_model_desc model = {
    .weights = {0xab, 1, 2, 3, [31] = 0xff},
    .layers = 2,
    .kv_heads = 3,
    .k_dims = 4,
    .v_dims = 5,
    .dtype = LARDER_BF16,
    .vocab = 256,
};

static const float numbers[6] = {0, 1, -2, 3.5f, 1e-30f, 1e30f};
static const uint8_t bytes3[3] = {7, 8, 9};
static const uint16_t halves[4] = {1, 2, 3, 65535};
static const int32_t words[2] = {-5, 1 << 30};

struct made {
    void *bytes;
    uint64_t count;
};

static int put_all(struct larder_profile_writer *writer)
{
    LARDER_TRY(larder_profile_put(writer, "u8", LARDER_PROFILE_U8, (uint64_t[]){3}, 1, bytes3));
    LARDER_TRY(
        larder_profile_put(writer, "f32", LARDER_PROFILE_F32, (uint64_t[]){2, 3}, 2, numbers));
    LARDER_TRY(
        larder_profile_put(writer, "u16", LARDER_PROFILE_U16, (uint64_t[]){2, 1, 2}, 3, halves));
    LARDER_TRY(larder_profile_put(writer, "i32", LARDER_PROFILE_I32, (uint64_t[]){2}, 1, words));
    return larder_profile_put_text(writer, "tokens", "12345");
}

static int make(struct made *out)
{
    struct larder_profile_writer *writer;
    *out = (struct made){0};
    LARDER_TRY(larder_profile_writer_open(&writer, &model));
    int err = put_all(writer);
    if (err == 0)
        err = larder_profile_finish(writer, &out->bytes, &out->count);
    larder_profile_writer_close(writer);
    return err;
}

static struct larder_profile *open_made(const struct made *made)
{
    struct larder_profile *profile;
    int err = larder_profile_open(&profile, made->bytes, made->count);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    return profile;
}

START_TEST(test_round_trip)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    struct larder_profile *profile = open_made(&made);
    uint8_t name[32];
    struct larder_key key;
    larder_profile_name(profile, name);
    ck_assert_int_eq(larder_sha256(&key, made.bytes, made.count), 0);
    ck_assert_mem_eq(name, key.bytes, 32);

    ck_assert_mem_eq(larder_profile_model(profile)->weights, model.weights, 32);
    ck_assert_uint_eq(larder_profile_model(profile)->v_dims, 5);
    ck_assert_str_eq(larder_profile_text(profile, "tokens"), "12345");
    ck_assert_ptr_null(larder_profile_text(profile, "nothing"));

    const void *at;
    uint64_t shape[3] = {2, 0};
    ck_assert_int_eq(larder_profile_find(profile, &at, "f32", LARDER_PROFILE_F32, shape, 2), 0);
    ck_assert_uint_eq(shape[1], 3);
    ck_assert_mem_eq(at, numbers, sizeof(numbers));
    shape[0] = 3;
    ck_assert_int_eq(larder_profile_find(profile, &at, "u8", LARDER_PROFILE_U8, shape, 1), 0);
    ck_assert_mem_eq(at, bytes3, sizeof(bytes3));
    memset(shape, 0, sizeof(shape));
    ck_assert_int_eq(larder_profile_find(profile, &at, "u16", LARDER_PROFILE_U16, shape, 3), 0);
    ck_assert_mem_eq(at, halves, sizeof(halves));
    ck_assert_uint_eq(shape[2], 2);
    shape[0] = 2;
    ck_assert_int_eq(larder_profile_find(profile, &at, "i32", LARDER_PROFILE_I32, shape, 1), 0);
    ck_assert_mem_eq(at, words, sizeof(words));
    ck_assert(larder_profile_has(profile, "i32") && !larder_profile_has(profile, "i33"));
    larder_profile_close(profile);
    larder_free(made.bytes);
}
END_TEST

START_TEST(test_lookups_that_fail)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    struct larder_profile *profile = open_made(&made);
    const void *at;
    uint64_t shape[2] = {2, 3};
    ck_assert_int_eq(larder_profile_find(profile, &at, "gone", LARDER_PROFILE_F32, shape, 2),
                     LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "gone"));
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "larder calibrate"));
    ck_assert_ptr_null(at);
    ck_assert_int_eq(larder_profile_find(profile, &at, "f32", LARDER_PROFILE_I32, shape, 2),
                     LARDER_EFORMAT);
    ck_assert_int_eq(larder_profile_find(profile, &at, "f32", LARDER_PROFILE_F32, shape, 1),
                     LARDER_EFORMAT);
    ck_assert_int_eq(
        larder_profile_find(profile, &at, "f32", LARDER_PROFILE_F32, (uint64_t[]){3, 2}, 2),
        LARDER_EFORMAT);
    larder_profile_close(profile);
    larder_free(made.bytes);

    struct larder_profile_writer *writer;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    const float bad[2] = {1, NAN};
    ck_assert_int_eq(larder_profile_put(writer, "bad", LARDER_PROFILE_F32, (uint64_t[]){2}, 1, bad),
                     0);
    ck_assert_int_eq(
        larder_profile_put(writer, "empty", LARDER_PROFILE_F32, (uint64_t[]){0}, 1, NULL), 0);
    ck_assert_int_eq(larder_profile_put_text(writer, "key", "a \"quote\""), -EINVAL);
    ck_assert_int_eq(larder_profile_put(writer, "large", LARDER_PROFILE_F32,
                                        (uint64_t[]){1ull << 40, 1ull << 40}, 2, bad),
                     LARDER_ELIMIT);
    ck_assert_int_eq(larder_profile_finish(writer, &made.bytes, &made.count), 0);
    larder_profile_writer_close(writer);
    profile = open_made(&made);
    shape[0] = 2;
    ck_assert_int_eq(larder_profile_find(profile, &at, "bad", LARDER_PROFILE_F32, shape, 1),
                     LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "finite"));
    shape[0] = 0;
    ck_assert_int_eq(larder_profile_find(profile, &at, "empty", LARDER_PROFILE_F32, shape, 1),
                     LARDER_EFORMAT);
    larder_profile_close(profile);
    larder_free(made.bytes);
}
END_TEST

/* Order of puts makes no difference; what is put again replaces; a copy is the same file. */
START_TEST(test_writer)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    struct larder_profile_writer *writer;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    ck_assert_int_eq(larder_profile_put_text(writer, "tokens", "1"), 0);
    ck_assert_int_eq(
        larder_profile_put(writer, "i32", LARDER_PROFILE_U8, (uint64_t[]){3}, 1, bytes3), 0);
    ck_assert_int_eq(put_all(writer), 0);
    struct made again;
    ck_assert_int_eq(larder_profile_finish(writer, &again.bytes, &again.count), 0);
    larder_profile_writer_close(writer);
    ck_assert_uint_eq(again.count, made.count);
    ck_assert_mem_eq(again.bytes, made.bytes, made.count);
    larder_free(again.bytes);

    struct larder_profile *profile = open_made(&made);
    ck_assert_int_eq(larder_profile_writer_open_copy(&writer, profile), 0);
    ck_assert_int_eq(larder_profile_finish(writer, &again.bytes, &again.count), 0);
    larder_profile_writer_close(writer);
    ck_assert_uint_eq(again.count, made.count);
    ck_assert_mem_eq(again.bytes, made.bytes, made.count);
    larder_free(again.bytes);
    larder_profile_close(profile);
    larder_free(made.bytes);
}
END_TEST

START_TEST(test_other_models)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    struct larder_profile *profile = open_made(&made);
    ck_assert_int_eq(larder_profile_fits(profile, &model), 0);
    struct larder_model_desc other = model;
    other.dtype = LARDER_F32;
    ck_assert_int_eq(larder_profile_fits(profile, &other), 0);
    other.weights[5]++;
    ck_assert_int_eq(larder_profile_fits(profile, &other), LARDER_EMODEL);
    other = model;
    other.v_dims++;
    ck_assert_int_eq(larder_profile_fits(profile, &other), LARDER_EMODEL);
    larder_profile_close(profile);
    larder_free(made.bytes);
}
END_TEST

static void check_refused(const char *key, const char *value, int expected)
{
    struct larder_profile_writer *writer;
    struct made made;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    ck_assert_int_eq(larder_profile_put_text(writer, key, value), 0);
    ck_assert_int_eq(larder_profile_finish(writer, &made.bytes, &made.count), 0);
    larder_profile_writer_close(writer);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, made.bytes, made.count), expected);
    ck_assert_ptr_null(profile);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), key));
    larder_free(made.bytes);
}

START_TEST(test_bad_metadata)
{
    check_refused("weights", "abc", LARDER_EFORMAT);
    check_refused("weights", "ZZ00000000000000000000000000000000000000000000000000000000000000",
                  LARDER_EFORMAT);
    check_refused("layers", "0", LARDER_EFORMAT);
    check_refused("layers", "", LARDER_EFORMAT);
    check_refused("layers", "-1", LARDER_EFORMAT);
    check_refused("kv_heads", "1e3", LARDER_EFORMAT);
    check_refused("k_dims", "99999999999999999999", LARDER_EFORMAT);
    check_refused("v_dims", "4 ", LARDER_EFORMAT);

    struct larder_profile *profile;
    static _Alignas(8) const char bare[] = "\2\0\0\0\0\0\0\0{}";
    ck_assert_int_eq(larder_profile_open(&profile, bare, sizeof(bare) - 1), LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "is this a profile"));
    ck_assert_int_eq(larder_profile_open(&profile, bare, 0), LARDER_EFORMAT);
    ck_assert_int_eq(larder_profile_open(&profile, bare, 1ull << 40), LARDER_EFORMAT);
}
END_TEST

START_TEST(test_other_version)
{
    struct larder_profile_writer *writer;
    struct made made;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    ck_assert_int_eq(larder_profile_put_text(writer, "larder_profile", "2"), 0);
    ck_assert_int_eq(larder_profile_finish(writer, &made.bytes, &made.count), 0);
    larder_profile_writer_close(writer);
    struct larder_profile *profile;
    ck_assert_int_eq(larder_profile_open(&profile, made.bytes, made.count), LARDER_EVERSION);
    larder_free(made.bytes);
}
END_TEST

/* Cut anywhere it is refused; with a byte changed it is refused, or is another profile. */
START_TEST(test_damage)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    uint8_t *bytes = larder_alloc_aligned(64, made.count);
    struct larder_profile *profile;
    for (uint64_t cut = 0; cut < made.count; cut++) {
        uint8_t *part = larder_alloc_aligned(8, cut ? cut : 1);
        memcpy(part, made.bytes, cut);
        ck_assert_int_eq(larder_profile_open(&profile, part, cut), LARDER_EFORMAT);
        larder_free(part);
    }
    for (uint64_t at = 0; at < made.count; at++) {
        memcpy(bytes, made.bytes, made.count);
        bytes[at] ^= 1;
        int err = larder_profile_open(&profile, bytes, made.count);
        ck_assert(err == 0 || err == LARDER_EFORMAT || err == LARDER_EVERSION);
        larder_profile_close(profile);
    }
    larder_free(bytes);
    larder_free(made.bytes);
}
END_TEST

/* The writer and the reader give -ENOMEM for each allocation of theirs that fails. */
START_TEST(test_no_memory)
{
    struct made made;
    for (uint64_t nth = 1;; nth++) {
        larder_mem_fail_at(nth);
        int err = make(&made);
        struct larder_profile *profile = NULL;
        if (err == 0)
            err = larder_profile_open(&profile, made.bytes, made.count);
        larder_mem_fail_at(0);
        larder_profile_close(profile);
        larder_free(made.bytes);
        if (err == 0)
            break;
        ck_assert_int_eq(err, -ENOMEM);
        ck_assert_uint_lt(nth, 1000);
    }
}
END_TEST

/* What needs no profile does not name one. */
START_TEST(test_recipe_without)
{
    struct made made;
    ck_assert_int_eq(make(&made), 0);
    struct larder_profile *profile = open_made(&made);
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, "kivi4", profile), 0);
    uint8_t name[32];
    const uint8_t none[32] = {0};
    ck_assert(!larder_recipe_needs_profile(recipe));
    ck_assert(!larder_recipe_profile_name(recipe, name));
    ck_assert_mem_eq(name, none, 32);
    struct larder_model_desc other = model;
    other.weights[0]++;
    ck_assert_int_eq(larder_recipe_fits(recipe, &other), 0);
    larder_recipe_close(recipe);
    larder_profile_close(profile);
    larder_free(made.bytes);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("profile");
    TCase *tests = tcase_create("profile");
    tcase_add_test(tests, test_round_trip);
    tcase_add_test(tests, test_lookups_that_fail);
    tcase_add_test(tests, test_writer);
    tcase_add_test(tests, test_other_models);
    tcase_add_test(tests, test_bad_metadata);
    tcase_add_test(tests, test_other_version);
    tcase_add_test(tests, test_damage);
    tcase_add_test(tests, test_no_memory);
    tcase_add_test(tests, test_recipe_without);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
