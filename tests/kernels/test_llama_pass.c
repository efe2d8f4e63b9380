/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a pass over scattered rows gives a row the bits that a forward gives it, sees no later key,
 * and leaves alone what it was not asked to compute.
 * Method: rows of a prefilled cache are spoiled and computed again; values planted in rows behind;
 * calls that cannot be carried out.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/llama.h"
#include "kernels/llama_pass.h"

#define TINY  "tests/models/tiny"
#define COUNT 900 /* three chunks of the pass */

static struct larder_device *device;
static struct larder_llama *model;
static uint32_t tokens[COUNT];
static uint32_t positions[COUNT];
static uint32_t row_tokens[COUNT];
static float logits[COUNT * 272];
static float wanted[COUNT * 272];

static struct larder_kv_cache *open_cache(uint32_t dtype)
{
    struct larder_kv_cache *cache;
    ck_assert_int_eq(larder_llama_cache_open(model, &cache, COUNT + 3, dtype), 0);
    return cache;
}

static void set_up(void)
{
    ck_assert_int_eq(
        larder_device_open(&device, "cpu", &(struct larder_device_options){.threads = 2}), 0);
    ck_assert_int_eq(larder_llama_open(&model, device, TINY), 0);
    ck_assert_uint_le(larder_llama_config(model)->vocab, 272);
    for (uint32_t i = 0; i < COUNT; i++)
        tokens[i] = (i * i + 31 * i + 5) % 256;
}

static void tear_down(void)
{
    larder_llama_close(model);
    larder_device_close(device);
}

static void *row_at(const struct larder_kv_cache *cache, uint32_t layer, int kv, uint32_t row)
{
    return (char *)larder_kv_cache_rows(cache, layer, (enum larder_kv)kv) +
           row * cache->k_token_bytes;
}

static void check_same_row(const struct larder_kv_cache *a, const struct larder_kv_cache *b,
                           uint32_t row)
{
    for (uint32_t layer = 0; layer < a->layers; layer++)
        for (int kv = LARDER_K; kv <= LARDER_V; kv++)
            ck_assert_msg(
                memcmp(row_at(a, layer, kv, row), row_at(b, layer, kv, row), a->k_token_bytes) == 0,
                "layer %u, %c, row %u", layer, "KV"[kv], row);
}

static void copy_cache(struct larder_kv_cache *to, const struct larder_kv_cache *from)
{
    memcpy(to->base, from->base, from->layers * from->layer_bytes);
}

/* A pass over the rows that `chosen` names; returns how many. */
static uint32_t open_pass(struct larder_llama_pass **pass, struct larder_kv_cache *cache,
                          bool (*chosen)(uint32_t row))
{
    uint32_t count = 0;
    for (uint32_t row = 0; row < COUNT; row++) {
        if (!chosen(row))
            continue;
        positions[count] = row;
        row_tokens[count++] = tokens[row];
    }
    ck_assert_int_eq(
        larder_llama_pass_open(pass, model, cache,
                               &(struct larder_llama_rows){row_tokens, positions, count}),
        0);
    ck_assert_uint_eq(larder_llama_pass_rows(*pass), count);
    return count;
}

static bool is_any(uint32_t row)
{
    return row < COUNT;
}

/* Single rows and runs, a run across the border of two chunks of keys, the last row. */
static bool is_scattered(uint32_t row)
{
    return row % 7 == 3 || (row >= 60 && row < 70) || (row >= 400 && row < 800) || row == COUNT - 1;
}

static void spoil(struct larder_kv_cache *cache, uint32_t row, float value)
{
    for (uint32_t layer = 0; layer < cache->layers; layer++)
        for (int kv = LARDER_K; kv <= LARDER_V; kv++) {
            struct larder_tensor to =
                larder_kv_cache_tensor(cache, layer, (enum larder_kv)kv, row, 1);
            float planted[1024];
            for (uint32_t i = 0; i < to.shape[1] * to.shape[2]; i++)
                planted[i] = value;
            struct larder_tensor from =
                larder_cube(planted, LARDER_F32, 1, to.shape[1], to.shape[2]);
            ck_assert_int_eq(device->ops->convert(device, &to, &from), 0);
        }
}

/* All rows, and rows here and there among stored ones, in each dtype. */
START_TEST(test_same_bits)
{
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F32};
    struct larder_kv_cache *whole = open_cache(dtypes[_i % 2]);
    struct larder_kv_cache *cache = open_cache(dtypes[_i % 2]);
    uint32_t vocab = larder_llama_config(model)->vocab;
    ck_assert_int_eq(larder_llama_forward(model, whole, wanted, LARDER_LOGITS_ALL, tokens, COUNT),
                     0);
    bool (*chosen)(uint32_t) = _i < 2 ? is_any : is_scattered;
    copy_cache(cache, whole);
    for (uint32_t row = 0; row < COUNT; row++)
        if (chosen(row))
            spoil(cache, row, 1e4f);
    struct larder_llama_pass *pass;
    uint32_t count = open_pass(&pass, cache, chosen);
    uint64_t before = larder_llama_forwarded(model);
    for (uint32_t layer = 0; layer < cache->layers; layer++) {
        ck_assert_uint_eq(larder_llama_pass_next(pass), layer);
        if (layer % 2)
            ck_assert_int_eq(larder_llama_pass_project(pass), 0);
        ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    }
    ck_assert_uint_eq(larder_llama_forwarded(model) - before, count);
    ck_assert_int_eq(larder_llama_pass_logits(pass, logits, 0, count), 0);
    for (uint32_t i = 0; i < count; i++)
        ck_assert_int_eq(memcmp(logits + i * (size_t)vocab, wanted + positions[i] * (size_t)vocab,
                                vocab * sizeof(float)),
                         0);
    for (uint32_t row = 0; row < COUNT; row++)
        check_same_row(cache, whole, row);
    ck_assert_uint_eq(cache->count, 0); /* the caller's */
    larder_llama_pass_close(pass);
    larder_kv_cache_close(cache);
    larder_kv_cache_close(whole);
}
END_TEST

static bool is_early(uint32_t row)
{
    return row % 13 == 5 && row < 500;
}

/* What stands behind a row, at any distance, does not change it. */
START_TEST(test_no_later_key)
{
    struct larder_kv_cache *whole = open_cache(LARDER_F32);
    struct larder_kv_cache *cache = open_cache(LARDER_F32);
    ck_assert_int_eq(larder_llama_forward(model, whole, NULL, LARDER_LOGITS_NONE, tokens, COUNT),
                     0);
    copy_cache(cache, whole);
    /* Behind every row that runs, among keys that later rows would rightly see. */
    for (uint32_t row = 497; row < COUNT; row++)
        spoil(cache, row, 3e4f);
    struct larder_llama_pass *pass;
    open_pass(&pass, cache, is_early);
    for (uint32_t layer = 0; layer < cache->layers; layer++)
        ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    for (uint32_t row = 0; row < 497; row++)
        check_same_row(cache, whole, row);
    larder_llama_pass_close(pass);

    /* A value planted in row 100 reaches the rows behind it and none before. */
    copy_cache(cache, whole);
    spoil(cache, 100, 50);
    open_pass(&pass, cache, is_early);
    for (uint32_t layer = 0; layer < cache->layers; layer++)
        ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    for (uint32_t row = 5; row < 500; row += 13)
        if (row < 100)
            check_same_row(cache, whole, row);
        else
            ck_assert_int_ne(memcmp(row_at(cache, 3, LARDER_V, row),
                                    row_at(whole, 3, LARDER_V, row), cache->v_token_bytes),
                             0);
    larder_llama_pass_close(pass);
    larder_kv_cache_close(cache);
    larder_kv_cache_close(whole);
}
END_TEST

/* Rows that are let go keep what the cache holds; those that stay go on as if alone. */
START_TEST(test_keep)
{
    struct larder_kv_cache *whole = open_cache(0);
    struct larder_kv_cache *cache = open_cache(0);
    ck_assert_int_eq(larder_llama_forward(model, whole, NULL, LARDER_LOGITS_NONE, tokens, COUNT),
                     0);
    copy_cache(cache, whole);
    struct larder_llama_pass *pass;
    open_pass(&pass, cache, is_any);
    ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    ck_assert_int_eq(larder_llama_pass_project(pass), 0);
    struct larder_tensor k = larder_llama_pass_projected(pass, LARDER_K);
    ck_assert_uint_eq(k.shape[0], COUNT);
    /* project() computes what a forward rounds into the cache, and leaves the cache alone. */
    struct larder_tensor stored = larder_kv_cache_tensor(whole, 1, LARDER_K, 0, COUNT);
    for (uint32_t row = 0; row < COUNT; row++)
        check_same_row(cache, whole, row);
    char *rounded = malloc(COUNT * cache->k_token_bytes);
    struct larder_tensor to = larder_cube(rounded, cache->dtype, COUNT, k.shape[1], k.shape[2]);
    ck_assert_int_eq(device->ops->convert(device, &to, &k), 0);
    ck_assert_int_eq(memcmp(rounded, stored.data, COUNT * cache->k_token_bytes), 0);
    free(rounded);

    static uint32_t indices[COUNT];
    uint32_t kept = 0;
    for (uint32_t row = 0; row < COUNT; row++) {
        if (is_scattered(row))
            indices[kept++] = row;
        else
            for (int kv = LARDER_K; kv <= LARDER_V; kv++)
                ((uint16_t *)row_at(cache, 1, kv, row))[0] ^= 0x8000; /* stays as it is now */
    }
    ck_assert_int_eq(larder_llama_pass_keep(pass, indices, kept), 0);
    ck_assert_uint_eq(larder_llama_pass_rows(pass), kept);
    ck_assert_int_eq(memcmp(larder_llama_pass_positions(pass), indices, kept * sizeof(uint32_t)),
                     0);
    ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    for (uint32_t row = 0; row < COUNT; row++)
        for (int kv = LARDER_K; kv <= LARDER_V; kv++)
            ck_assert_int_eq(memcmp(row_at(cache, 1, kv, row), row_at(whole, 1, kv, row),
                                    cache->k_token_bytes) == 0,
                             is_scattered(row));
    /* None left: the layers pass. */
    ck_assert_int_eq(larder_llama_pass_keep(pass, indices, 0), 0);
    while (larder_llama_pass_next(pass) < cache->layers)
        ck_assert_int_eq(larder_llama_pass_layer(pass), 0);
    larder_llama_pass_close(pass);

    /* write() is for rows that are let go, too. */
    copy_cache(cache, whole);
    open_pass(&pass, cache, is_any);
    for (uint32_t row = 0; row < COUNT; row++)
        memset(row_at(cache, 0, LARDER_K, row), 0, cache->k_token_bytes);
    ck_assert_int_eq(larder_llama_pass_project(pass), 0);
    ck_assert_int_eq(larder_llama_pass_write(pass), 0);
    for (uint32_t row = 0; row < COUNT; row++)
        check_same_row(cache, whole, row);
    larder_llama_pass_close(pass);
    larder_kv_cache_close(cache);
    larder_kv_cache_close(whole);
}
END_TEST

static int refused(struct larder_kv_cache *cache, uint32_t token, uint32_t a, uint32_t b,
                   uint32_t count)
{
    struct larder_llama_pass *pass;
    uint32_t some[2] = {token, 1};
    uint32_t places[2] = {a, b};
    int err = larder_llama_pass_open(&pass, model, cache,
                                     &(struct larder_llama_rows){some, places, count});
    ck_assert_ptr_null(pass);
    ck_assert(strlen(larder_error_message()) > 10);
    return err;
}

START_TEST(test_wrong_calls)
{
    struct larder_kv_cache *cache = open_cache(0);
    ck_assert_int_eq(refused(cache, 0, 0, 1, 0), -EINVAL);
    ck_assert_int_eq(refused(cache, 272, 0, 1, 2), -EINVAL);
    ck_assert_int_eq(refused(cache, 0, 5, 5, 2), -EINVAL);
    ck_assert_int_eq(refused(cache, 0, 6, 5, 2), -EINVAL);
    ck_assert_int_eq(refused(cache, 0, 5, COUNT + 3, 2), LARDER_ELIMIT);
    for (uint64_t n = 1; n < 4; n++) {
        larder_mem_fail_at(n);
        ck_assert_int_eq(refused(cache, 0, 5, 6, 2), -ENOMEM);
    }
    larder_mem_fail_at(0);
    larder_kv_cache_close(cache);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("llama_pass");
    TCase *all = tcase_create("llama_pass");
    tcase_set_timeout(all, 240);
    tcase_add_checked_fixture(all, set_up, tear_down);
    tcase_add_loop_test(all, test_same_bits, 0, 4);
    tcase_add_test(all, test_no_later_key);
    tcase_add_test(all, test_keep);
    tcase_add_test(all, test_wrong_calls);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
