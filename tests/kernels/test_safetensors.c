/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: weights are found, and every file that does not hold what it says is refused.
 * Method: small files written here, one fault each; a good file cut at every byte and with every
 * byte of its header changed; one model in one file and in two has the same digest.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/safetensors.h"
#include "tests/kernels/temp_model.h"

#define GOOD                                                                                       \
    "{\"__metadata__\":{\"format\":\"pt\"},"                                                       \
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"                          \
    "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[12,16]},"                             \
    "\"c\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[16,32]},"                            \
    "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[16,16]}}  "
#define GOOD_DATA 32

START_TEST(test_good)
{
    struct temp_model model;
    temp_model_open(&model);
    temp_model_weights(&model, "model.safetensors", GOOD, GOOD_DATA);
    struct larder_weights *weights;
    int err = larder_weights_open(&weights, model.directory);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    ck_assert_uint_eq(larder_weights_count(weights), 4);
    ck_assert_str_eq(larder_weights_at(weights, 0)->name, "a");
    ck_assert_str_eq(larder_weights_at(weights, 3)->name, "none");
    const struct larder_weight *b = larder_weights_find(weights, "b");
    ck_assert_uint_eq(b->dtype, LARDER_BF16);
    ck_assert_uint_eq(b->rank, 2);
    ck_assert_uint_eq(b->shape[0], 2);
    ck_assert_uint_eq(b->shape[1], 3);
    ck_assert_uint_eq(b->bytes, 12);
    ck_assert_uint_eq(((const unsigned char *)b->data)[11], 11);
    const struct larder_weight *c = larder_weights_find(weights, "c");
    ck_assert_uint_eq(c->dtype, 0);
    ck_assert_str_eq(c->dtype_name, "I64");
    ck_assert_uint_eq(larder_weights_find(weights, "a")->rank, 0);
    ck_assert_uint_eq(larder_weights_find(weights, "none")->bytes, 0);
    ck_assert_ptr_null(larder_weights_find(weights, "__metadata__"));
    ck_assert_ptr_null(larder_weights_find(weights, "zz"));
    larder_weights_close(weights);
    temp_model_close(&model);
}
END_TEST

#define TENSOR(dtype, shape, offsets)                                                              \
    "\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets

static const struct {
    const char *header;
    size_t data_bytes;
    const char *message; /* a part of it */
} bad[] = {
    {"", 0, "header"},
    {"[]", 0, "not a JSON object"},
    {"{", 0, "header"},
    {"{} x", 0, "header"},
    {"{}", 4, "tensors fill 0"},
    {"{\"a\":7}", 0, "no dtype"},
    {"{\"a\":{}}", 0, "no dtype"},
    {"{\"a\":{" TENSOR("F8_X", "[4]", "[0,4]") "}}", 4, "unknown"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4]") "},\"a\":{" TENSOR("F32", "[1]", "[0,4]") "}}", 4,
     "duplicate"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4]") "},\"b\":{" TENSOR("F32", "[1]", "[0,4]") "}}", 4,
     "overlaps"},
    {"{\"a\":{" TENSOR("F32", "[2]", "[0,8]") "},\"b\":{" TENSOR("F32", "[1]", "[4,8]") "}}", 8,
     "overlaps"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4]") "},\"b\":{" TENSOR("F32", "[1]", "[8,12]") "}}", 12,
     "nothing fills"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[4,8]") "}}", 8, "nothing fills"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4]") "}}", 8, "tensors fill 4"},
    {"{\"a\":{" TENSOR("F32", "[2]", "[0,8]") "}}", 4, "not within"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[4,0]") "}}", 4, "not within"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,9223372036854775807]") "}}", 4, "not within"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,18446744073709551616]") "}}", 4, "too big"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[-4,0]") "}}", 4, "below 0"},
    {"{\"a\":{" TENSOR("F32", "[-1]", "[0,4]") "}}", 4, "below 0"},
    {"{\"a\":{" TENSOR("F32", "[1.0]", "[0,4]") "}}", 4, "not an integer"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4.0]") "}}", 4, "not an integer"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4e0]") "}}", 4, "not an integer"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,1e999]") "}}", 4, "header"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,NaN]") "}}", 4, "header"},
    {"{\"a\":{" TENSOR("F32", "[Infinity]", "[0,4]") "}}", 4, "header"},
    {"{\"a\":{" TENSOR("F32", "[null]", "[0,4]") "}}", 4, "not an integer"},
    {"{\"a\":{" TENSOR("F32", "4", "[0,4]") "}}", 4, "shape"},
    {"{\"a\":{" TENSOR("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}}", 4, "shape"},
    {"{\"a\":{" TENSOR("F32", "[4294967296,4294967296]", "[0,4]") "}}", 4, "2^64"},
    {"{\"a\":{" TENSOR("F32", "[4611686018427387905]", "[0,4]") "}}", 4, "span"},
    {"{\"a\":{" TENSOR("F32", "[2]", "[0,4]") "}}", 4, "span 4"},
    {"{\"a\":{" TENSOR("BF16", "[1]", "[0,4]") "}}", 4, "span 4"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0]") "}}", 4, "pair"},
    {"{\"a\":{" TENSOR("F32", "[1]", "[0,4,8]") "}}", 4, "pair"},
    {"{\"a\\u0000b\":{" TENSOR("F32", "[1]", "[0,4]") "}}", 4, "header"},
};

START_TEST(test_bad)
{
    struct temp_model model;
    temp_model_open(&model);
    temp_model_weights(&model, "x", bad[_i].header, bad[_i].data_bytes);
    struct larder_weights *weights;
    ck_assert_int_eq(larder_weights_open_file(&weights, temp_model_path(&model, "x")),
                     LARDER_EFORMAT);
    ck_assert_ptr_null(weights);
    ck_assert_msg(strstr(larder_error_message(), bad[_i].message), "case %d: '%s' lacks '%s'", _i,
                  larder_error_message(), bad[_i].message);
    temp_model_close(&model);
}
END_TEST

START_TEST(test_header_length)
{
    struct temp_model model;
    temp_model_open(&model);
    static const uint64_t lengths[] = {3, 100000000, 100000001, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < LARDER_COUNT_OF(lengths); i++) {
        unsigned char file[10] = {[8] = '{', [9] = '}'};
        memcpy(file, &lengths[i], 8);
        temp_model_write(&model, "x", file, sizeof(file));
        struct larder_weights *weights;
        ck_assert_int_eq(larder_weights_open_file(&weights, temp_model_path(&model, "x")),
                         LARDER_EFORMAT);
    }
    temp_model_close(&model);
}
END_TEST

/* A file that ends early is refused wherever that is; a header with one byte changed is taken or
 * refused, and what is taken lies within the file. */
START_TEST(test_cut_and_changed)
{
    struct temp_model model;
    temp_model_open(&model);
    uint64_t length = strlen(GOOD);
    size_t bytes = 8 + length + GOOD_DATA;
    unsigned char *file = calloc(1, bytes);
    memcpy(file, &length, 8);
    memcpy(file + 8, GOOD, length);
    struct larder_weights *weights;
    for (size_t cut = 0; cut < bytes; cut++) {
        temp_model_write(&model, "x", file, cut);
        ck_assert_int_eq(larder_weights_open_file(&weights, temp_model_path(&model, "x")),
                         LARDER_EFORMAT);
    }
    for (size_t at = 0; at < 8 + length; at++)
        for (int flip = 1; flip < 256; flip *= 4) {
            file[at] = (unsigned char)(file[at] ^ flip);
            temp_model_write(&model, "x", file, bytes);
            int err = larder_weights_open_file(&weights, temp_model_path(&model, "x"));
            ck_assert(err == 0 || err == LARDER_EFORMAT);
            uint64_t sum = 0;
            for (size_t i = 0; err == 0 && i < larder_weights_count(weights); i++)
                sum += larder_weights_at(weights, i)->bytes;
            ck_assert(err < 0 || sum == GOOD_DATA);
            larder_weights_close(weights);
            file[at] = (unsigned char)(file[at] ^ flip);
        }
    free(file);
    temp_model_close(&model);
}
END_TEST

#define PART_1 "{\"a\":{" TENSOR("U8", "[4]", "[0,4]") "}}"
#define PART_2 "{\"b\":{" TENSOR("U8", "[4]", "[0,4]") "}}"
#define WHOLE  "{\"b\":{" TENSOR("U8", "[4]", "[4,8]") "},\"a\":{" TENSOR("U8", "[4]", "[0,4]") "}}"

static int open_with_index(struct temp_model *model, struct larder_weights **weights,
                           const char *index)
{
    temp_model_write(model, "model.safetensors.index.json", index, strlen(index));
    return larder_weights_open(weights, model->directory);
}

START_TEST(test_sharded)
{
    struct temp_model model;
    temp_model_open(&model);
    struct larder_weights *weights;
    ck_assert_int_eq(larder_weights_open(&weights, model.directory), -ENOENT);
    temp_model_weights(&model, "1.safetensors", PART_1, 4);
    temp_model_weights(&model, "2.safetensors", PART_2, 4);

    ck_assert_int_eq(open_with_index(&model, &weights, "[]"), LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights, "{}"), LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights, "{\"weight_map\":{}}"), LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights, "{\"weight_map\":{\"a\":1}}"),
                     LARDER_EFORMAT);
    ck_assert_int_eq(
        open_with_index(&model, &weights, "{\"weight_map\":{\"a\":\"../1.safetensors\"}}"),
        LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights, "{\"weight_map\":{\"a\":\"..\"}}"),
                     LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights, "{\"weight_map\":{\"a\":\"0\"}}"), -ENOENT);
    ck_assert_int_eq(
        open_with_index(&model, &weights, "{\"weight_map\":{\"z\":\"1.safetensors\"}}"),
        LARDER_EFORMAT);
    ck_assert_int_eq(open_with_index(&model, &weights,
                                     "{\"weight_map\":{\"a\":\"1.safetensors\","
                                     "\"b\":\"2.safetensors\"}}"),
                     0);
    ck_assert_uint_eq(larder_weights_count(weights), 2);
    uint8_t sharded[32];
    ck_assert_int_eq(larder_weights_digest(sharded, weights), 0);
    larder_weights_close(weights);

    /* The data of both shards is 0, 1, 2, 3; the whole file's goes on to 7: another digest. */
    temp_model_weights(&model, "model.safetensors", WHOLE, 8);
    uint8_t whole[32];
    ck_assert_int_eq(larder_weights_open(&weights, model.directory), 0);
    ck_assert_int_eq(larder_weights_digest(whole, weights), 0);
    ck_assert_int_ne(memcmp(whole, sharded, 32), 0);
    larder_weights_close(weights);

    uint64_t length = strlen(WHOLE);
    unsigned char file[8 + sizeof(WHOLE) + 8];
    memcpy(file, &length, 8);
    memcpy(file + 8, WHOLE, length);
    memcpy(file + 8 + length, "\0\1\2\3\0\1\2\3", 8);
    temp_model_write(&model, "model.safetensors", file, 8 + length + 8);
    ck_assert_int_eq(larder_weights_open(&weights, model.directory), 0);
    ck_assert_int_eq(larder_weights_digest(whole, weights), 0);
    ck_assert_int_eq(memcmp(whole, sharded, 32), 0);
    larder_weights_close(weights);
    temp_model_close(&model);
}
END_TEST

START_TEST(test_two_files_one_name)
{
    struct temp_model model;
    temp_model_open(&model);
    temp_model_weights(&model, "1.safetensors", PART_1, 4);
    temp_model_weights(&model, "2.safetensors", PART_1, 4);
    struct larder_weights *weights;
    ck_assert_int_eq(open_with_index(&model, &weights,
                                     "{\"weight_map\":{\"a\":\"1.safetensors\","
                                     "\"b\":\"2.safetensors\"}}"),
                     LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "two files"));
    temp_model_close(&model);
}
END_TEST

START_TEST(test_not_a_file)
{
    struct larder_weights *weights;
    ck_assert_int_eq(larder_weights_open_file(&weights, "/tmp"), LARDER_EFORMAT);
    ck_assert_int_eq(larder_weights_open_file(&weights, "/dev/zero"), LARDER_EFORMAT);
    ck_assert_int_eq(larder_weights_open_file(&weights, "/nowhere/at/all"), -ENOENT);
}
END_TEST

START_TEST(test_no_memory)
{
    struct temp_model model;
    temp_model_open(&model);
    temp_model_weights(&model, "model.safetensors", GOOD, GOOD_DATA);
    struct larder_weights *weights;
    int err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        larder_mem_fail_at(n);
        err = larder_weights_open(&weights, model.directory);
        ck_assert(err == 0 || err == -ENOMEM);
        ck_assert_uint_lt(n, 30);
    }
    larder_mem_fail_at(0);
    larder_weights_close(weights);
    temp_model_close(&model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("safetensors");
    TCase *all = tcase_create("safetensors");
    tcase_set_timeout(all, 60);
    tcase_add_test(all, test_good);
    tcase_add_loop_test(all, test_bad, 0, (int)LARDER_COUNT_OF(bad));
    tcase_add_test(all, test_header_length);
    tcase_add_test(all, test_cut_and_changed);
    tcase_add_test(all, test_sharded);
    tcase_add_test(all, test_two_files_one_name);
    tcase_add_test(all, test_not_a_file);
    tcase_add_test(all, test_no_memory);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
