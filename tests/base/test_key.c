/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   identities are what docs/FORMAT.md says, and differ whenever anything that matters does.
 * Method: golden vectors made by golden_keys.py, which shares no code; then every field of a
 *         description and every part of a key changed alone. */
#include "base/key.h"

#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"

static struct larder_model_desc sample_model(void)
{
    struct larder_model_desc model = {
        .name = "llama-3.1-8b",
        .layers = 32,
        .kv_heads = 8,
        .k_dims = 128,
        .v_dims = 128,
        .dtype = LARDER_BF16,
        .vocab = 128256,
        .rope = {.kind = LARDER_ROPE_LLAMA3,
                 .rotary_dims = 128,
                 .original_max_position = 8192,
                 .theta = 500000,
                 .factor = 8,
                 .low_freq_factor = 1,
                 .high_freq_factor = 4,
                 .attention_factor = 1},
    };
    for (int i = 0; i < 32; i++)
        model.weights[i] = (uint8_t)(100 + i);
    return model;
}

static void check_key(const struct larder_key *key, const char *hex)
{
    char text[65];
    larder_hex(text, key->bytes, sizeof(key->bytes));
    ck_assert_str_eq(text, hex);
}

static const uint8_t tenant_key[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                       11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                       22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

START_TEST(golden_vectors)
{
    struct larder_key key;
    ck_assert_int_eq(larder_sha256(&key, "larder", 6), 0);
    check_key(&key, "c20fbb7794f4e4f8b114391ab5b8a9f12b38e6937f1de3bb0ac4e0d8e224bd71");

    struct larder_model_desc model = sample_model();
    struct larder_key fingerprint;
    ck_assert_int_eq(larder_model_check(&model), 0);
    ck_assert_int_eq(larder_model_fingerprint(&fingerprint, &model), 0);
    check_key(&fingerprint, "7544f45e52c4415bc286def3b10623e5cba9107bf0545e25d4f98341e1da745f");

    struct larder_hasher *hasher;
    ck_assert_int_eq(larder_hasher_open(&hasher, tenant_key, &fingerprint), 0);
    uint32_t tokens[256];
    for (uint32_t i = 0; i < 256; i++)
        tokens[i] = i + 1;
    struct larder_key first;
    struct larder_key second;
    ck_assert_int_eq(larder_hasher_block(hasher, &first, &larder_key_root, NULL, 0, tokens, 256),
                     0);
    check_key(&first, "0a607c74aade125694f872b6e53da73e419477a51ab50259168f523831950c64");
    const uint32_t few[] = {5, 4, 3};
    ck_assert_int_eq(larder_hasher_block(hasher, &second, &first, "lora-7", 6, few, 3), 0);
    check_key(&second, "d060c3236e038371a7f0d2d197b7035b48b6636dd1d2921e01015602da9101e6");
    /* A hasher keeps nothing of the block before. */
    ck_assert_int_eq(larder_hasher_block(hasher, &second, &larder_key_root, NULL, 0, tokens, 256),
                     0);
    ck_assert(larder_key_equal(&first, &second));
    larder_hasher_close(hasher);
    larder_hasher_close(NULL);
}
END_TEST

/* --- fingerprints ---------------------------------------------------------------------------- */

/* One changed description each. */
#define CHANGES(X)                                                                                 \
    X(model.weights[0] ^= 1)                                                                       \
    X(model.weights[31] ^= 0x80)                                                                   \
    X(model.layers++)                                                                              \
    X(model.kv_heads++)                                                                            \
    X(model.k_dims++)                                                                              \
    X(model.v_dims++)                                                                              \
    X(model.dtype = LARDER_F16)                                                                    \
    X(model.vocab++)                                                                               \
    X(model.rope.kind = LARDER_ROPE_YARN)                                                          \
    X(model.rope.interleaved = 1)                                                                  \
    X(model.rope.rotary_dims -= 2)                                                                 \
    X(model.rope.original_max_position++)                                                          \
    X(model.rope.theta += 1)                                                                       \
    X(model.rope.factor += 1)                                                                      \
    X(model.rope.low_freq_factor += 1)                                                             \
    X(model.rope.high_freq_factor += 1)                                                            \
    X(model.rope.beta_fast += 1)                                                                   \
    X(model.rope.beta_slow += 1)                                                                   \
    X(model.rope.attention_factor += 1)

START_TEST(a_fingerprint_changes_with_every_field_but_the_name)
{
    struct larder_key seen[32];
    size_t count = 0;
    struct larder_model_desc model = sample_model();
    ck_assert_int_eq(larder_model_fingerprint(&seen[count++], &model), 0);
#define FINGERPRINT_OF_CHANGE(change)                                                              \
    model = sample_model();                                                                        \
    change;                                                                                        \
    ck_assert_int_eq(larder_model_fingerprint(&seen[count++], &model), 0);
    CHANGES(FINGERPRINT_OF_CHANGE)
#undef FINGERPRINT_OF_CHANGE
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < i; j++)
            ck_assert_msg(!larder_key_equal(&seen[i], &seen[j]), "changes %zu and %zu", i, j);
    }

    model = sample_model();
    memset(model.name, 'x', sizeof(model.name) - 1);
    struct larder_key renamed;
    ck_assert_int_eq(larder_model_fingerprint(&renamed, &model), 0);
    ck_assert(larder_key_equal(&renamed, &seen[0]));
}
END_TEST

/* --- descriptions ---------------------------------------------------------------------------- */

#define REFUSALS(X)                                                                                \
    X(model.layers = 0, LARDER_ELIMIT, "layers=0")                                                 \
    X(model.layers = LARDER_LAYERS_MAX + 1, LARDER_ELIMIT, "layers=1025 is not within 1..1024")    \
    X(model.kv_heads = 0, LARDER_ELIMIT, "kv_heads=0")                                             \
    X(model.kv_heads = UINT32_MAX, LARDER_ELIMIT, "kv_heads=4294967295")                           \
    X(model.k_dims = 0, LARDER_ELIMIT, "k_dims=0")                                                 \
    X(model.v_dims = LARDER_HEAD_DIMS_MAX + 1, LARDER_ELIMIT, "v_dims=1025")                       \
    X(model.vocab = 0, LARDER_ELIMIT, "vocab=0")                                                   \
    X(model.vocab = LARDER_VOCAB_MAX + 1, LARDER_ELIMIT, "vocab=")                                 \
    X(model.dtype = 0, LARDER_EUNSUPPORTED, "dtype 0")                                             \
    X(model.dtype = 4, LARDER_EUNSUPPORTED, "dtype 4")                                             \
    X(memset(model.name, 'x', sizeof(model.name)), LARDER_EMODEL, "not NUL-terminated")            \
    X(model.rope.kind = 5, LARDER_EUNSUPPORTED, "rope kind 5")                                     \
    X(model.rope.interleaved = 2, LARDER_ELIMIT, "interleaved=2")                                  \
    X(model.rope.rotary_dims = 0, LARDER_ELIMIT, "rotary_dims=0")                                  \
    X(model.rope.rotary_dims = 130, LARDER_ELIMIT, "rotary_dims=130")                              \
    X(model.rope.rotary_dims = 63, LARDER_EMODEL, "rotary_dims=63 is odd")                         \
    X(model.rope.theta = 1, LARDER_EMODEL, "theta=1")                                              \
    X(model.rope.theta = (double)NAN, LARDER_EMODEL, "theta is not a finite")                      \
    X(model.rope.factor = 0.5, LARDER_EMODEL, "factor=0.5")                                        \
    X(model.rope.factor = (double)INFINITY, LARDER_EMODEL, "factor is not a finite")               \
    X(model.rope.low_freq_factor = (double)NAN, LARDER_EMODEL, "low_freq_factor")                  \
    X(model.rope.high_freq_factor = (double)NAN, LARDER_EMODEL, "high_freq_factor")                \
    X(model.rope.beta_fast = (double)NAN, LARDER_EMODEL, "beta_fast")                              \
    X(model.rope.beta_slow = (double)NAN, LARDER_EMODEL, "beta_slow")                              \
    X(model.rope.attention_factor = (double)NAN, LARDER_EMODEL, "attention_factor")

START_TEST(descriptions_that_cannot_be_are_refused)
{
    struct larder_model_desc model;
#define CHECK_REFUSAL(change, code, words)                                                         \
    model = sample_model();                                                                        \
    change;                                                                                        \
    ck_assert_int_eq(larder_model_check(&model), code);                                            \
    ck_assert_msg(strstr(larder_error_message(), words) != NULL, "%s", larder_error_message());
    REFUSALS(CHECK_REFUSAL)
#undef CHECK_REFUSAL
    /* Without RoPE its other fields do not matter. */
    model = sample_model();
    model.rope = (struct larder_rope){0};
    ck_assert_int_eq(larder_model_check(&model), 0);
}
END_TEST

START_TEST(sizes)
{
    struct larder_model_desc model = sample_model();
    ck_assert_uint_eq(larder_model_kv_bytes(&model, 1), 131072);
    ck_assert_uint_eq(larder_model_kv_bytes(&model, LARDER_PROMPT_TOKENS_MAX), 131072ull << 22);
    model.layers = LARDER_LAYERS_MAX;
    model.kv_heads = LARDER_KV_HEADS_MAX;
    model.k_dims = model.v_dims = LARDER_HEAD_DIMS_MAX;
    model.dtype = LARDER_F32;
    ck_assert_uint_eq(larder_model_kv_bytes(&model, 4096), 1ull << 45);
}
END_TEST

/* --- keys ------------------------------------------------------------------------------------ */

static struct larder_key key_of(const uint8_t tenant[32], const struct larder_key *fingerprint,
                                const struct larder_key *parent, const void *extra,
                                size_t extra_bytes, const uint32_t *tokens, size_t count)
{
    struct larder_hasher *hasher;
    struct larder_key key;
    ck_assert_int_eq(larder_hasher_open(&hasher, tenant, fingerprint), 0);
    ck_assert_int_eq(larder_hasher_block(hasher, &key, parent, extra, extra_bytes, tokens, count),
                     0);
    larder_hasher_close(hasher);
    return key;
}

START_TEST(a_key_changes_with_every_part)
{
    const struct larder_key zero = {{0}};
    struct larder_key one = zero;
    one.bytes[31] = 1;
    uint8_t other_tenant[32];
    memcpy(other_tenant, tenant_key, 32);
    other_tenant[0] ^= 1;
    const uint32_t tokens[] = {1, 2, 3, 4};
    const uint32_t swapped[] = {2, 1, 3, 4};
    const uint32_t high[] = {1, 2, 3, 4 | 1u << 31};
    const uint32_t none[] = {0, 0, 0, 0};
    const struct larder_key keys[] = {
        key_of(tenant_key, &zero, &zero, NULL, 0, tokens, 4),
        key_of(other_tenant, &zero, &zero, NULL, 0, tokens, 4),
        key_of(tenant_key, &one, &zero, NULL, 0, tokens, 4),
        key_of(tenant_key, &zero, &one, NULL, 0, tokens, 4),
        key_of(tenant_key, &zero, &zero, "a", 1, tokens, 4),
        key_of(tenant_key, &zero, &zero, "a\0", 2, tokens, 4),
        key_of(tenant_key, &zero, &zero, "b", 1, tokens, 4),
        key_of(tenant_key, &zero, &zero, NULL, 0, tokens, 3),
        key_of(tenant_key, &zero, &zero, NULL, 0, swapped, 4),
        key_of(tenant_key, &zero, &zero, NULL, 0, high, 4),
        key_of(tenant_key, &zero, &zero, NULL, 0, tokens, 0),
        key_of(tenant_key, &zero, &zero, NULL, 0, none, 1),
        key_of(tenant_key, &zero, &zero, NULL, 0, none, 2),
        key_of(tenant_key, &zero, &zero, none, 4, none, 1),
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(keys); i++) {
        for (size_t j = 0; j < i; j++)
            ck_assert_msg(!larder_key_equal(&keys[i], &keys[j]), "keys %zu and %zu", i, j);
    }
}
END_TEST

START_TEST(bytes_cannot_move_between_parts)
{
    /* Without lengths these would be the same bytes: extra then n then tokens. */
    const struct larder_key zero = {{0}};
    const uint32_t long_run[] = {2, 7, 8};
    const uint32_t run[] = {7, 8};
    /* As extra: what the parts of n and of the first tokens look like. */
    const uint32_t extra[] = {4, 3, 12};
    struct larder_key a = key_of(tenant_key, &zero, &zero, NULL, 0, long_run, 3);
    struct larder_key b = key_of(tenant_key, &zero, &zero, extra, sizeof(extra), run, 2);
    ck_assert(!larder_key_equal(&a, &b));
    a = key_of(tenant_key, &zero, &zero, "ab", 2, run, 2);
    b = key_of(tenant_key, &zero, &zero, "a", 1, run, 2);
    ck_assert(!larder_key_equal(&a, &b));
}
END_TEST

START_TEST(the_largest_block)
{
    static uint32_t tokens[LARDER_BLOCK_TOKENS_MAX];
    static uint8_t extra[LARDER_EXTRA_BYTES_MAX];
    const struct larder_key zero = {{0}};
    struct larder_key a =
        key_of(tenant_key, &zero, &zero, extra, sizeof(extra), tokens, LARDER_BLOCK_TOKENS_MAX);
    tokens[LARDER_BLOCK_TOKENS_MAX - 1] = 1;
    struct larder_key b =
        key_of(tenant_key, &zero, &zero, extra, sizeof(extra), tokens, LARDER_BLOCK_TOKENS_MAX);
    ck_assert(!larder_key_equal(&a, &b));
}
END_TEST

START_TEST(no_memory_is_an_error)
{
    struct larder_hasher *hasher = (struct larder_hasher *)&hasher;
    larder_mem_fail_at(1);
    ck_assert_int_eq(larder_hasher_open(&hasher, tenant_key, &larder_key_root), -ENOMEM);
    larder_mem_fail_at(0);
    ck_assert_ptr_null(hasher);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("key");
    TCase *tests = tcase_create("key");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, golden_vectors);
    tcase_add_test(tests, a_fingerprint_changes_with_every_field_but_the_name);
    tcase_add_test(tests, descriptions_that_cannot_be_are_refused);
    tcase_add_test(tests, sizes);
    tcase_add_test(tests, a_key_changes_with_every_part);
    tcase_add_test(tests, bytes_cannot_move_between_parts);
    tcase_add_test(tests, the_largest_block);
    tcase_add_test(tests, no_memory_is_an_error);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
