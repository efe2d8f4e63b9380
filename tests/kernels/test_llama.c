/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: logits and KV of a token are the same bits however the tokens before it came in; wrong
 * weights and wrong calls are refused; the sampler does what it says.
 * Method: one prefill in one go is compared with prefills in pieces, behind restored KV, with
 * other threads and instruction sets, byte for byte over the whole cache.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "kernels/llama.h"
#include "kernels/sampler.h"
#include "tests/kernels/temp_model.h"

#define TINY  "tests/models/tiny"
#define QWEN3 "tests/reference/models/qwen3"
#define COUNT 500 /* two chunks of the forward */

static uint32_t tokens[COUNT];

static void make_tokens(uint32_t vocab)
{
    for (uint32_t i = 0; i < COUNT; i++)
        tokens[i] = (i * i + 31 * i + 5) % (vocab < 256 ? vocab : 256);
}

static struct larder_llama *open_model(struct larder_device **device, const char *directory,
                                       const char *isa, uint32_t threads)
{
    struct larder_llama *model;
    ck_assert_int_eq(
        larder_device_open(device, "cpu",
                           &(struct larder_device_options){.isa = isa, .threads = threads}),
        0);
    int err = larder_llama_open(&model, *device, directory);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    make_tokens(larder_llama_config(model)->vocab);
    return model;
}

static struct larder_kv_cache *open_cache(struct larder_llama *model, uint32_t capacity,
                                          uint32_t dtype)
{
    struct larder_kv_cache *cache;
    int err = larder_llama_cache_open(model, &cache, capacity, dtype);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    return cache;
}

static void forward(struct larder_llama *model, struct larder_kv_cache *cache, float *logits,
                    enum larder_logits which, uint32_t count)
{
    ck_assert_int_eq(
        larder_llama_forward(model, cache, logits, which, tokens + cache->count, count), 0);
}

static void copy_rows(struct larder_kv_cache *to, const struct larder_kv_cache *from,
                      uint32_t count)
{
    for (uint32_t layer = 0; layer < to->layers; layer++) {
        memcpy(larder_kv_cache_rows(to, layer, LARDER_K),
               larder_kv_cache_rows(from, layer, LARDER_K), count * to->k_token_bytes);
        memcpy(larder_kv_cache_rows(to, layer, LARDER_V),
               larder_kv_cache_rows(from, layer, LARDER_V), count * to->v_token_bytes);
    }
    to->count = count;
}

static void check_same_rows(const struct larder_kv_cache *a, const struct larder_kv_cache *b)
{
    ck_assert_uint_eq(a->count, b->count);
    for (uint32_t layer = 0; layer < a->layers; layer++)
        for (int kv = LARDER_K; kv <= LARDER_V; kv++)
            ck_assert_int_eq(memcmp(larder_kv_cache_rows(a, layer, (enum larder_kv)kv),
                                    larder_kv_cache_rows(b, layer, (enum larder_kv)kv),
                                    a->count * a->k_token_bytes),
                             0);
}

/* The same prompt in the ways that must not differ, against `wanted` and `whole`. */
static void check_ways(struct larder_llama *model, const struct larder_kv_cache *whole,
                       const float *wanted)
{
    uint32_t vocab = larder_llama_config(model)->vocab;
    size_t row_bytes = vocab * sizeof(float);
    float *logits = malloc(COUNT * row_bytes);
    static const uint32_t pieces[] = {1, 63, 1, 200, 100, 129, 6};
    struct larder_kv_cache *cache = open_cache(model, COUNT, whole->dtype);
    uint64_t before = larder_llama_forwarded(model);
    for (size_t i = 0; i < LARDER_COUNT_OF(pieces); i++) {
        forward(model, cache, logits, LARDER_LOGITS_LAST, pieces[i]);
        ck_assert_int_eq(memcmp(logits, wanted + (cache->count - 1) * (size_t)vocab, row_bytes), 0);
    }
    ck_assert_uint_eq(larder_llama_forwarded(model) - before, COUNT);
    check_same_rows(cache, whole);

    static const uint32_t restored[] = {1, 64, 390, COUNT - 1};
    for (size_t i = 0; i < LARDER_COUNT_OF(restored); i++) {
        uint32_t count = restored[i];
        copy_rows(cache, whole, count);
        before = larder_llama_forwarded(model);
        forward(model, cache, logits, LARDER_LOGITS_ALL, COUNT - count);
        ck_assert_uint_eq(larder_llama_forwarded(model) - before, COUNT - count);
        ck_assert_int_eq(
            memcmp(logits, wanted + count * (size_t)vocab, (COUNT - count) * row_bytes), 0);
        check_same_rows(cache, whole);
    }
    larder_kv_cache_close(cache);

    /* Token by token, in a cache of another capacity. */
    cache = open_cache(model, COUNT + 77, whole->dtype);
    copy_rows(cache, whole, COUNT - 70);
    while (cache->count < COUNT) {
        forward(model, cache, logits, LARDER_LOGITS_LAST, 1);
        ck_assert_int_eq(memcmp(logits, wanted + (cache->count - 1) * (size_t)vocab, row_bytes), 0);
    }
    check_same_rows(cache, whole);
    larder_kv_cache_close(cache);
    free(logits);
}

START_TEST(test_same_bits)
{
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F16, LARDER_F32};
    struct larder_device *device;
    struct larder_llama *model = open_model(&device, TINY, NULL, 1);
    struct larder_kv_cache *whole = open_cache(model, COUNT, dtypes[_i]);
    uint32_t vocab = larder_llama_config(model)->vocab;
    float *wanted = malloc(COUNT * vocab * sizeof(float));
    forward(model, whole, wanted, LARDER_LOGITS_ALL, COUNT);
    for (uint32_t i = 0; i < COUNT * vocab; i++)
        ck_assert(isfinite(wanted[i]));
    check_ways(model, whole, wanted);

    static const char *const isas[] = {"avx2", "avx512"};
    for (size_t i = 0; i < LARDER_COUNT_OF(isas); i++) {
        struct larder_device *other_device;
        if (larder_device_open(&other_device, "cpu",
                               &(struct larder_device_options){.isa = isas[i]}) < 0)
            continue;
        larder_device_close(other_device);
        struct larder_llama *other = open_model(&other_device, TINY, isas[i], 3);
        check_ways(other, whole, wanted);
        larder_llama_close(other);
        larder_device_close(other_device);
    }
    free(wanted);
    larder_kv_cache_close(whole);
    larder_llama_close(model);
    larder_device_close(device);
}
END_TEST

/* The scalar version on a small model, whose context is 256. */
START_TEST(test_scalar_same_bits)
{
    struct larder_device *device;
    struct larder_device *scalar_device;
    struct larder_llama *model = open_model(&device, QWEN3, NULL, 2);
    struct larder_llama *scalar = open_model(&scalar_device, QWEN3, "scalar", 2);
    float *wanted = calloc(200 * 256, sizeof(float));
    float *got = calloc(200 * 256, sizeof(float));
    struct larder_kv_cache *whole = open_cache(model, 200, 0);
    struct larder_kv_cache *pieces = open_cache(scalar, 200, 0);
    ck_assert_uint_eq(whole->dtype, LARDER_BF16);
    forward(model, whole, wanted, LARDER_LOGITS_ALL, 200);
    forward(scalar, pieces, NULL, LARDER_LOGITS_NONE, 3);
    forward(scalar, pieces, got + 3 * 256, LARDER_LOGITS_ALL, 197);
    ck_assert_int_eq(memcmp(wanted + 3 * 256, got + 3 * 256, 197 * 256 * sizeof(float)), 0);
    check_same_rows(whole, pieces);
    larder_kv_cache_close(pieces);
    larder_kv_cache_close(whole);
    free(got);
    free(wanted);
    larder_llama_close(scalar);
    larder_llama_close(model);
    larder_device_close(scalar_device);
    larder_device_close(device);
}
END_TEST

struct seen_queries {
    float *q; /* [layer][token][heads * dims] */
    uint64_t row;
    uint32_t rows; /* shown, over all layers */
};

static void see_queries(void *context, uint32_t layer, uint32_t first,
                        const struct larder_tensor *q)
{
    struct seen_queries *seen = context;
    ck_assert_uint_eq(q->dtype, LARDER_F32);
    ck_assert_uint_eq(q->shape[1] * q->shape[2], seen->row);
    ck_assert_uint_le(first + q->shape[0], COUNT);
    memcpy(seen->q + ((uint64_t)layer * COUNT + first) * seen->row, q->data,
           q->shape[0] * seen->row * sizeof(float));
    seen->rows += (uint32_t)q->shape[0];
}

/* Each row of each layer once, the same bits in pieces; nobody looks after NULL. */
START_TEST(test_watch)
{
    struct larder_device *device;
    struct larder_llama *model = open_model(&device, TINY, NULL, 2);
    const struct larder_model_config *config = larder_llama_config(model);
    uint64_t row = (uint64_t)config->heads * config->head_dims;
    uint64_t bytes = config->layers * COUNT * row * sizeof(float);
    struct seen_queries whole = {.q = malloc(bytes), .row = row};
    struct seen_queries pieces = {.q = malloc(bytes), .row = row};
    struct larder_kv_cache *cache = open_cache(model, COUNT, 0);
    larder_llama_watch(model, see_queries, &whole);
    forward(model, cache, NULL, LARDER_LOGITS_NONE, COUNT);
    larder_llama_watch(model, see_queries, &pieces);
    cache->count = 0;
    forward(model, cache, NULL, LARDER_LOGITS_NONE, 7);
    forward(model, cache, NULL, LARDER_LOGITS_NONE, COUNT - 7);
    ck_assert_uint_eq(whole.rows, config->layers * COUNT);
    ck_assert_uint_eq(pieces.rows, config->layers * COUNT);
    ck_assert_int_eq(memcmp(whole.q, pieces.q, bytes), 0);
    larder_llama_watch(model, NULL, NULL);
    cache->count = 0;
    forward(model, cache, NULL, LARDER_LOGITS_NONE, 7);
    ck_assert_uint_eq(pieces.rows, config->layers * COUNT);
    free(whole.q);
    free(pieces.q);
    larder_kv_cache_close(cache);
    larder_llama_close(model);
    larder_device_close(device);
}
END_TEST

START_TEST(test_describe)
{
    struct larder_device *device;
    struct larder_llama *model = open_model(&device, QWEN3, NULL, 1);
    struct larder_model_desc desc;
    struct larder_model_desc wide;
    ck_assert_int_eq(larder_llama_describe(model, &desc, 0), 0);
    ck_assert_int_eq(larder_llama_describe(model, &wide, LARDER_F32), 0);
    ck_assert_str_eq(desc.name, "qwen3");
    ck_assert_uint_eq(desc.layers, 2);
    ck_assert_uint_eq(desc.kv_heads, 2);
    ck_assert_uint_eq(desc.k_dims, 32);
    ck_assert_uint_eq(desc.v_dims, 32);
    ck_assert_uint_eq(desc.dtype, LARDER_BF16);
    ck_assert_uint_eq(desc.vocab, 256);
    ck_assert(desc.rope.theta == 1000000);
    ck_assert(!larder_all_zero(desc.weights, sizeof(desc.weights)));
    struct larder_key a;
    struct larder_key b;
    ck_assert_int_eq(larder_model_fingerprint(&a, &desc), 0);
    ck_assert_int_eq(larder_model_fingerprint(&b, &wide), 0);
    ck_assert(!larder_key_equal(&a, &b));
    ck_assert_int_eq(larder_llama_describe(model, &desc, 9), LARDER_EUNSUPPORTED);
    larder_llama_close(model);
    larder_device_close(device);
}
END_TEST

START_TEST(test_wrong_calls)
{
    struct larder_device *device;
    struct larder_llama *model = open_model(&device, QWEN3, NULL, 1);
    struct larder_kv_cache *cache;
    ck_assert_int_eq(larder_llama_cache_open(model, &cache, 257, 0), LARDER_ELIMIT);
    ck_assert_int_eq(larder_llama_cache_open(model, &cache, 0, 0), LARDER_ELIMIT);
    ck_assert_int_eq(larder_llama_cache_open(model, &cache, 8, 77), LARDER_EUNSUPPORTED);
    cache = open_cache(model, 8, 0);
    float logits[256];
    forward(model, cache, logits, LARDER_LOGITS_LAST, 5);
    uint32_t outside[2] = {1, 256};
    ck_assert_int_eq(larder_llama_forward(model, cache, logits, LARDER_LOGITS_LAST, outside, 2),
                     -EINVAL);
    ck_assert_int_eq(larder_llama_forward(model, cache, logits, LARDER_LOGITS_LAST, tokens, 4),
                     LARDER_ELIMIT);
    ck_assert_int_eq(larder_llama_forward(model, cache, logits, LARDER_LOGITS_LAST, tokens, 0),
                     -EINVAL);
    ck_assert_uint_eq(cache->count, 5);
    ck_assert_uint_eq(larder_llama_forwarded(model), 5);
    forward(model, cache, logits, LARDER_LOGITS_LAST, 3);
    larder_kv_cache_close(cache);
    larder_llama_close(model);
    larder_device_close(device);
}
END_TEST

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    char *text = calloc(1, 1 << 20);
    ck_assert_uint_gt(fread(text, 1, (1 << 20) - 1, file), 0);
    fclose(file);
    return text;
}

/* qwen3's weights beside a config.json in which `from` became `to`. */
static int open_changed(const char *from, const char *to)
{
    struct temp_model directory;
    temp_model_open(&directory);
    char *text = read_text(QWEN3 "/config.json");
    char *at = strstr(text, from);
    ck_assert_ptr_nonnull(at);
    char changed[2048];
    snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    free(text);
    temp_model_write(&directory, "config.json", changed, strlen(changed));
    char *here = getcwd(NULL, 0);
    char weights[1024];
    snprintf(weights, sizeof(weights), "%s/%s/model.safetensors", here, QWEN3);
    free(here);
    ck_assert_int_eq(symlink(weights, temp_model_path(&directory, "model.safetensors")), 0);

    struct larder_device *device;
    struct larder_llama *model;
    ck_assert_int_eq(larder_device_open(&device, "cpu", NULL), 0);
    int err = larder_llama_open(&model, device, directory.directory);
    larder_llama_close(model);
    larder_device_close(device);
    temp_model_close(&directory);
    return err;
}

START_TEST(test_wrong_weights)
{
    ck_assert_int_eq(open_changed("\"vocab_size\": 256", "\"vocab_size\": 256 "), 0);
    ck_assert_int_eq(open_changed("\"vocab_size\": 256", "\"vocab_size\": 128"), LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "embed_tokens"));
    ck_assert_int_eq(open_changed("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
                     LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "model.layers.2."));
    ck_assert_int_eq(
        open_changed("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false"),
        LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "lm_head"));
    ck_assert_int_eq(open_changed("\"attention_bias\": false", "\"attention_bias\": true"),
                     LARDER_EFORMAT);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "q_proj.bias"));
    ck_assert_int_eq(open_changed("\"head_dim\": 32", "\"head_dim\": 16"), LARDER_EFORMAT);
}
END_TEST

START_TEST(test_no_memory)
{
    struct larder_device *device;
    ck_assert_int_eq(larder_device_open(&device, "cpu", NULL), 0);
    struct larder_llama *model;
    int err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        larder_mem_fail_at(n);
        err = larder_llama_open(&model, device, QWEN3);
        ck_assert(err == 0 || err == -ENOMEM);
        ck_assert_uint_lt(n, 100);
    }
    struct larder_kv_cache *cache;
    err = -ENOMEM;
    for (uint64_t n = 1; err < 0; n++) {
        larder_mem_fail_at(n);
        err = larder_llama_cache_open(model, &cache, 100, 0);
        ck_assert(err == 0 || err == -ENOMEM);
        ck_assert_uint_lt(n, 100);
    }
    larder_mem_fail_at(0);
    /* A forward allocates nothing. */
    make_tokens(256);
    uint64_t before = larder_mem_count();
    float logits[256];
    forward(model, cache, logits, LARDER_LOGITS_LAST, 90);
    ck_assert_uint_eq(larder_mem_count(), before);
    larder_kv_cache_close(cache);
    larder_llama_close(model);
    larder_device_close(device);
}
END_TEST

START_TEST(test_sampler)
{
    float logits[300];
    for (int i = 0; i < 300; i++)
        logits[i] = -20;
    logits[7] = 2;
    logits[250] = 3;
    logits[299] = 2;
    struct larder_sampler greedy = {0};
    ck_assert_uint_eq(larder_sampler_pick(&greedy, logits, 300), 250);

    /* exp(3), exp(2), exp(2): .576, .212, .212 */
    struct larder_sampler warm = {.temperature = 1, .state = 42};
    struct larder_sampler again = warm;
    int seen[3] = {0};
    for (int i = 0; i < 20000; i++) {
        uint32_t token = larder_sampler_pick(&warm, logits, 300);
        ck_assert_uint_eq(larder_sampler_pick(&again, logits, 300), token);
        ck_assert(token == 7 || token == 250 || token == 299);
        seen[token == 7 ? 0 : token == 250 ? 1 : 2]++;
    }
    ck_assert_double_eq_tol(seen[1] / 20000.0, 0.576, 0.02);
    ck_assert_double_eq_tol(seen[0] / 20000.0, 0.212, 0.02);

    struct larder_sampler narrow = {.temperature = 5, .top_k = 2, .state = 1};
    seen[0] = 0;
    for (int i = 0; i < 1000; i++) {
        uint32_t token = larder_sampler_pick(&narrow, logits, 300);
        ck_assert(token == 7 || token == 250); /* of equals the first */
        seen[0] += token == 7;
    }
    ck_assert_int_gt(seen[0], 300);
    struct larder_sampler cold = {.temperature = 1e-6f, .state = 3};
    ck_assert_uint_eq(larder_sampler_pick(&cold, logits, 300), 250);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("llama");
    TCase *all = tcase_create("llama");
    tcase_set_timeout(all, 240);
    tcase_add_loop_test(all, test_same_bits, 0, 3);
    tcase_add_test(all, test_scalar_same_bits);
    tcase_add_test(all, test_watch);
    tcase_add_test(all, test_describe);
    tcase_add_test(all, test_wrong_calls);
    tcase_add_test(all, test_wrong_weights);
    tcase_add_test(all, test_no_memory);
    tcase_add_test(all, test_sampler);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
