/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: the forward computes what transformers computes, for every kind of model it takes.
 * Method: logits with an f32 KV cache against the numbers that tests/reference/logits.py wrote,
 * at the widest and at the scalar instruction set; the weights' digest, which the script
 * computes on its own, must be the one that the numbers belong to.
 */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "kernels/llama.h"

#define TOLERANCE 1e-3

static const char *const names[] = {"tiny",         "qwen2",        "qwen3",        "mistral",
                                    "llama-biased", "llama-linear", "llama-llama3", "llama-yarn"};

static json_t *load_expected(const char *name)
{
    char path[256];
    snprintf(path, sizeof(path), "tests/reference/expected/%s.json", name);
    json_error_t error;
    json_t *expected = json_load_file(path, 0, &error);
    ck_assert_msg(expected, "%s: %s", path, error.text);
    return expected;
}

static void check_weights(struct larder_llama *model, const json_t *expected, const char *name)
{
    struct larder_model_desc desc;
    ck_assert_int_eq(larder_llama_describe(model, &desc, LARDER_F32), 0);
    char digest[65];
    larder_hex(digest, desc.weights, sizeof(desc.weights));
    ck_assert_msg(strcmp(digest, json_string_value(json_object_get(expected, "weights"))) == 0,
                  "the numbers of %s belong to other weights; run "
                  "`python3 tests/reference/logits.py %s` where transformers is installed",
                  name, name);
}

static double compare_sequence(struct larder_llama *model, const json_t *sequence)
{
    const json_t *list = json_object_get(sequence, "tokens");
    size_t count = json_array_size(list);
    uint32_t vocab = larder_llama_config(model)->vocab;
    uint32_t *tokens = calloc(count, sizeof(*tokens));
    float *logits = calloc(count * vocab, sizeof(*logits));
    for (size_t i = 0; i < count; i++)
        tokens[i] = (uint32_t)json_integer_value(json_array_get(list, i));

    struct larder_kv_cache *cache;
    ck_assert_int_eq(larder_llama_cache_open(model, &cache, (uint32_t)count, LARDER_F32), 0);
    int err = larder_llama_forward(model, cache, logits, LARDER_LOGITS_ALL, tokens, count);
    ck_assert_msg(err == 0, "%s", larder_error_message());

    double worst = 0;
    size_t i;
    json_t *row;
    json_array_foreach(json_object_get(sequence, "rows"), i, row)
    {
        size_t position = (size_t)json_integer_value(json_object_get(row, "position"));
        const json_t *wanted = json_object_get(row, "logits");
        ck_assert_uint_eq(json_array_size(wanted), vocab);
        for (uint32_t token = 0; token < vocab; token++) {
            double difference = fabs((double)logits[position * vocab + token] -
                                     json_number_value(json_array_get(wanted, token)));
            ck_assert(isfinite(difference));
            worst = fmax(worst, difference);
        }
    }
    larder_kv_cache_close(cache);
    free(logits);
    free(tokens);
    return worst;
}

static void compare_model(const char *name, const char *isa)
{
    json_t *expected = load_expected(name);
    struct larder_device *device;
    struct larder_llama *model;
    ck_assert_int_eq(
        larder_device_open(&device, "cpu", &(struct larder_device_options){.isa = isa}), 0);
    int err =
        larder_llama_open(&model, device, json_string_value(json_object_get(expected, "model")));
    ck_assert_msg(err == 0, "%s", larder_error_message());
    check_weights(model, expected, name);

    double worst = 0;
    size_t i;
    json_t *sequence;
    json_array_foreach(json_object_get(expected, "sequences"), i, sequence) worst =
        fmax(worst, compare_sequence(model, sequence));
    printf("%-13s %-18s largest difference %.2e, limit %.0e\n", name,
           larder_device_describe(device), worst, TOLERANCE);
    ck_assert_double_le(worst, TOLERANCE);
    larder_llama_close(model);
    larder_device_close(device);
    json_decref(expected);
}

START_TEST(test_logits)
{
    compare_model(names[_i], NULL);
}
END_TEST

/* The small ones only: the scalar version needs seconds for the tiny model. */
START_TEST(test_logits_scalar)
{
    compare_model(names[_i], "scalar");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("reference");
    TCase *forward = tcase_create("forward");
    tcase_set_timeout(forward, 120);
    tcase_add_loop_test(forward, test_logits, 0, (int)LARDER_COUNT_OF(names));
    tcase_add_loop_test(forward, test_logits_scalar, 1, (int)LARDER_COUNT_OF(names));
    suite_add_tcase(suite, forward);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
