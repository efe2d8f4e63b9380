/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   recipe "exact" gives back every bit of whatever block.
 * Method: K and V of blocks of random shapes and dtypes, half of them cut from a real model's KV,
 *         the others noise, channels like a model's, or any bits, with NaN and infinity and
 *         denormals sprinkled over; encoded, decoded into other memory, compared.
 *         LARDER_EXACT_BLOCKS blocks (3,000); the promise was checked with a million of them. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/codec.h"
#include "tests/codec/kv_sample.h"

#define BLOCKS_DEFAULT 3000u
#define TOKENS_MAX     48u
#define HEADS_MAX      3u
#define DIMS_MAX       96u
#define BYTES_MAX      (TOKENS_MAX * HEADS_MAX * DIMS_MAX * 4u)

static uint64_t state = 88172645463325252ull;
static uint8_t sample[KV_SAMPLE_BYTES];

static uint64_t random_bits(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint32_t random_below(uint32_t limit)
{
    return (uint32_t)(random_bits() >> 32) % limit;
}

/* Bytes of the real sample, as they stand: channels then shift against the block's own. */
static void fill_real(uint8_t *planes, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        uint64_t first = random_below(KV_SAMPLE_BYTES / 2) & ~1u;
        uint64_t count = larder_min_u64(bytes - done, KV_SAMPLE_BYTES - first);
        memcpy(planes + done, sample + first, count);
        done += count;
    }
}

static void fill_made_up(uint8_t *planes, uint64_t bytes, uint32_t dims, uint32_t kind)
{
    uint16_t channels[DIMS_MAX];
    for (uint32_t i = 0; i < dims; i++)
        channels[i] = (uint16_t)(random_bits() & 0xff80u);
    for (uint64_t i = 0; i + 1 < bytes; i += 2) {
        uint16_t half = (uint16_t)random_bits();
        if (kind == 1) /* a channel's exponent, give or take one */
            half = (uint16_t)(channels[i / 2 % dims] ^ (half & 0x80ffu));
        if (kind == 2) /* one number, but for a few */
            half = random_below(100) ? channels[0] : half;
        memcpy(planes + i, &half, sizeof(half));
    }
}

/* Special numbers of 16 and of 32 bits alike. */
static void sprinkle(uint8_t *planes, uint64_t bytes)
{
    static const uint16_t specials[] = {0x7fc1, 0xffff, 0x7f80, 0xff80, 0x0001, 0x8000, 0x7c00};
    for (uint32_t i = random_below(20); i > 0; i--) {
        uint64_t place = random_bits() % (bytes / 2) * 2;
        memcpy(planes + place, &specials[random_below(LARDER_COUNT_OF(specials))], 2);
    }
}

static void check_block(const struct larder_recipe *recipe, uint8_t *planes)
{
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_BF16, LARDER_F16, LARDER_F32};
    static uint8_t decoded[BYTES_MAX];
    struct larder_model_desc model = {.layers = 1,
                                      .kv_heads = 1 + random_below(HEADS_MAX),
                                      .k_dims = 1 + random_below(DIMS_MAX),
                                      .dtype = dtypes[random_below(4)],
                                      .vocab = 1};
    model.v_dims = model.k_dims;
    uint32_t tokens = 1 + random_below(TOKENS_MAX);
    struct larder_block block = {.model = &model, .token_count = tokens};
    uint64_t bytes =
        (uint64_t)model.kv_heads * tokens * model.k_dims * larder_dtype_bytes(model.dtype);
    uint32_t kind = random_below(6);
    if (kind < 3)
        fill_real(planes, bytes);
    else
        fill_made_up(planes, bytes, model.k_dims, kind - 3);
    if (random_below(4) == 0)
        sprinkle(planes, bytes);

    uint64_t bound = larder_recipe_bound(recipe, &model, 0, tokens);
    uint64_t workspace_bytes = larder_recipe_workspace_bytes(recipe, &model, tokens);
    void *workspace = larder_alloc_aligned(64, workspace_bytes);
    uint8_t *encoded = larder_alloc(bound);
    ck_assert_ptr_nonnull(workspace);
    ck_assert_ptr_nonnull(encoded);
    struct larder_section_error error;
    uint64_t encoded_bytes;
    uint32_t section = random_below(2);
    int err = larder_recipe_encode(recipe, encoded, bound, &encoded_bytes, &error, &block, section,
                                   planes, workspace, workspace_bytes);
    if (err == 0)
        err = larder_recipe_decode(recipe, decoded, bytes, &block, section, encoded, encoded_bytes,
                                   workspace, workspace_bytes);
    if (err < 0 || memcmp(planes, decoded, bytes) != 0)
        ck_abort_msg("%s: kind %u, dtype %u, %u heads, %u tokens, %u dims",
                     err < 0 ? larder_error_message() : "other bits", kind, model.dtype,
                     model.kv_heads, tokens, model.k_dims);
    larder_free(encoded);
    larder_free(workspace);
}

START_TEST(test_blocks)
{
    const char *wanted = getenv("LARDER_EXACT_BLOCKS");
    unsigned long count = wanted ? strtoul(wanted, NULL, 10) : BLOCKS_DEFAULT;
    struct larder_recipe *recipe;
    static uint8_t planes[BYTES_MAX];
    FILE *file = fopen("tests/codec/kv_sample.bin", "rb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fread(sample, 1, sizeof(sample), file), sizeof(sample));
    fclose(file);
    ck_assert_int_eq(larder_recipe_open(&recipe, "exact", NULL), 0);
    for (unsigned long i = 0; i < count; i++)
        check_block(recipe, planes);
    larder_recipe_close(recipe);
    if (wanted)
        printf("exact: %lu blocks, every bit\n", count);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("exact_blocks");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 0);
    tcase_add_test(all, test_blocks);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
