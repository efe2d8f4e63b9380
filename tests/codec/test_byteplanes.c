/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   recipe "exact" gives every bit back, never grows a section by more than its header, is
 *         deterministic, and is total on bytes that no encode made.
 * Method: round trips over dtypes, shapes and contents (channels like a model's, a real model's,
 *         special values, constants, noise, up-cast halves), each into buffers of exactly the
 *         promised sizes, so that the address sanitizer sees one byte too many; then every
 *         truncation, flipped bits, and random headers, decoded the same way. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/codec.h"
#include "tests/codec/kv_sample.h"

static uint64_t random_state;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static double random_gauss(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++)
        sum += (double)(random_bits() >> 11) * 0x1p-53;
    return sum - 6;
}

/* One section: K of a one-layer model. */
struct section {
    struct larder_model_desc model;
    uint32_t token_count;
    struct larder_recipe *recipe;
    uint8_t *planes;
    uint64_t planes_bytes;
    uint8_t *encoded; /* exactly encoded_bytes long */
    uint64_t encoded_bytes;
    void *workspace;
    uint64_t workspace_bytes;
};

static void section_open(struct section *s, uint32_t dtype, uint32_t heads, uint32_t tokens,
                         uint32_t dims)
{
    *s = (struct section){.token_count = tokens};
    s->model.layers = 1;
    s->model.kv_heads = heads;
    s->model.k_dims = dims;
    s->model.v_dims = 1;
    s->model.dtype = dtype;
    s->model.vocab = 1;
    ck_assert_int_eq(larder_recipe_open(&s->recipe, "exact", NULL), 0);
    s->planes_bytes = (uint64_t)heads * tokens * dims * larder_dtype_bytes(dtype);
    s->planes = larder_alloc(s->planes_bytes);
    s->workspace_bytes = larder_recipe_workspace_bytes(s->recipe, &s->model, tokens);
    s->workspace = larder_alloc_aligned(64, s->workspace_bytes);
    ck_assert_ptr_nonnull(s->planes);
    ck_assert_ptr_nonnull(s->workspace);
    memset(s->workspace, 0x5a, s->workspace_bytes);
    random_state = 0x9e3779b97f4a7c15u;
}

static void section_close(struct section *s)
{
    larder_free(s->workspace);
    larder_free(s->encoded);
    larder_free(s->planes);
    larder_recipe_close(s->recipe);
}

static void section_encode(struct section *s)
{
    uint64_t bound = larder_recipe_bound(s->recipe, &s->model, 0, s->token_count);
    ck_assert_uint_le(bound, s->planes_bytes + 24);
    uint8_t *out = larder_alloc(bound);
    struct larder_section_error error;
    struct larder_block block = {.model = &s->model, .token_count = s->token_count};
    ck_assert_int_eq(larder_recipe_encode(s->recipe, out, bound, &s->encoded_bytes, &error, &block,
                                          0, s->planes, s->workspace, s->workspace_bytes),
                     0);
    ck_assert_uint_le(s->encoded_bytes, bound);
    ck_assert(error.error_energy == 0);
    larder_free(s->encoded);
    s->encoded = larder_alloc(s->encoded_bytes);
    memcpy(s->encoded, out, s->encoded_bytes);
    larder_free(out);
}

/* Decodes `bytes` of `from` into planes of exactly the right size. */
static int section_decode(struct section *s, uint8_t *planes, const uint8_t *from, uint64_t bytes)
{
    struct larder_block block = {.model = &s->model, .token_count = s->token_count};
    return larder_recipe_decode(s->recipe, planes, s->planes_bytes, &block, 0, from, bytes,
                                s->workspace, s->workspace_bytes);
}

/* The ratio, after a round trip. */
static double round_trip(struct section *s)
{
    section_encode(s);
    uint8_t *back = larder_alloc(s->planes_bytes);
    ck_assert_int_eq(section_decode(s, back, s->encoded, s->encoded_bytes), 0);
    ck_assert_mem_eq(back, s->planes, s->planes_bytes);
    larder_free(back);

    /* Deterministic, whatever the workspace held before. */
    uint64_t bytes = s->encoded_bytes;
    uint8_t *first = s->encoded;
    s->encoded = NULL;
    section_encode(s);
    ck_assert_uint_eq(s->encoded_bytes, bytes);
    ck_assert_mem_eq(s->encoded, first, bytes);
    larder_free(first);
    return (double)bytes / (double)s->planes_bytes;
}

static void put_elem(struct section *s, uint64_t index, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    if (s->model.dtype == LARDER_F32) {
        memcpy(s->planes + 4 * index, &bits, 4);
        return;
    }
    uint16_t half = (uint16_t)(bits >> 16);
    if (s->model.dtype == LARDER_F16) {
        /* Truncated; small values become zero, large ones infinite. */
        int exponent = (int)(bits >> 23 & 255) - 112;
        uint32_t sign = bits >> 16 & 0x8000;
        half = (uint16_t)(exponent <= 0    ? sign
                          : exponent >= 31 ? sign | 0x7c00
                                           : sign | (uint32_t)exponent << 10 | (bits >> 13 & 1023));
    }
    memcpy(s->planes + 2 * index, &half, 2);
}

/* Channels of their own loudness that drift from token to token, as in a model. */
static void fill_channels(struct section *s)
{
    uint32_t dims = s->model.k_dims;
    uint64_t at = 0;
    for (uint32_t h = 0; h < s->model.kv_heads; h++) {
        double scale[LARDER_HEAD_DIMS_MAX];
        double state[LARDER_HEAD_DIMS_MAX];
        for (uint32_t d = 0; d < dims; d++) {
            scale[d] = exp(0.7 * random_gauss());
            state[d] = random_gauss();
        }
        for (uint32_t t = 0; t < s->token_count; t++) {
            for (uint32_t d = 0; d < dims; d++) {
                state[d] = 0.9 * state[d] + 0.436 * random_gauss();
                put_elem(s, at++, (float)(scale[d] * state[d]));
            }
        }
    }
}

static void fill_noise(struct section *s)
{
    for (uint64_t i = 0; i < s->planes_bytes; i++)
        s->planes[i] = (uint8_t)random_bits();
}

static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F16, LARDER_F32};

START_TEST(shapes)
{
    static const uint32_t tokens[] = {1, 2, 15, 16, 17, 255, 256, 300};
    static const uint32_t dims[] = {1, 3, 32, 33, 128};
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        for (size_t t = 0; t < LARDER_COUNT_OF(tokens); t++) {
            for (size_t d = 0; d < LARDER_COUNT_OF(dims); d++) {
                struct section s;
                section_open(&s, dtypes[i], 2, tokens[t], dims[d]);
                fill_channels(&s);
                round_trip(&s);
                fill_noise(&s);
                round_trip(&s);
                section_close(&s);
            }
        }
    }
}
END_TEST

START_TEST(channels_shrink)
{
    static const double at_most[] = {0.72, 0.90, 0.86};
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        struct section s;
        section_open(&s, dtypes[i], 8, 256, 128);
        fill_channels(&s);
        ck_assert_double_le(round_trip(&s), at_most[i]);
        section_close(&s);
    }
}
END_TEST

START_TEST(a_models_kv_shrinks)
{
    uint8_t *sample = larder_alloc(KV_SAMPLE_BYTES);
    FILE *file = fopen("tests/codec/kv_sample.bin", "rb");
    ck_assert_msg(file != NULL, "run it from the top of the tree");
    ck_assert_uint_eq(fread(sample, 1, KV_SAMPLE_BYTES, file), KV_SAMPLE_BYTES);
    fclose(file);
    uint64_t stored = 0;
    for (uint64_t at = 0; at < KV_SAMPLE_BYTES;) {
        struct section s;
        section_open(&s, LARDER_BF16, KV_SAMPLE_HEADS, KV_SAMPLE_TOKENS, KV_SAMPLE_DIMS);
        memcpy(s.planes, sample + at, s.planes_bytes);
        at += s.planes_bytes;
        round_trip(&s);
        stored += s.encoded_bytes;
        section_close(&s);
    }
    /* 0.66 when this was written; the aim is 0.72. */
    ck_assert_double_le((double)stored / KV_SAMPLE_BYTES, 0.70);
    larder_free(sample);
}
END_TEST

START_TEST(a_long_block_takes_several_zstd_blocks)
{
    struct section s;
    section_open(&s, LARDER_BF16, 4, 1000, 128);
    fill_channels(&s);
    ck_assert_double_le(round_trip(&s), 0.72);
    section_close(&s);
}
END_TEST

START_TEST(special_values)
{
    /* Every 16-bit pattern, NaN payloads, infinities, -0 and subnormals included. */
    for (size_t i = 0; i < 2; i++) {
        struct section s;
        section_open(&s, dtypes[i], 2, 256, 128);
        for (uint32_t v = 0; v < 65536; v++)
            memcpy(s.planes + 2 * v, &(uint16_t){(uint16_t)v}, 2);
        round_trip(&s);
        section_close(&s);
    }
    static const uint32_t special[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000,
                                       0x7f800001, 0xffffffff, 0x00000001, 0x807fffff, 0x7fa5a5a5};
    struct section s;
    section_open(&s, LARDER_F32, 2, 64, 64);
    for (uint32_t i = 0; i < s.planes_bytes / 4; i++)
        memcpy(s.planes + 4 * i, &special[random_bits() % LARDER_COUNT_OF(special)], 4);
    round_trip(&s);
    section_close(&s);
}
END_TEST

START_TEST(constants_almost_vanish)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        struct section s;
        section_open(&s, dtypes[i], 2, 256, 64);
        for (uint64_t e = 0; e < s.planes_bytes / larder_dtype_bytes(dtypes[i]); e++)
            put_elem(&s, e, -1.5f);
        round_trip(&s);
        ck_assert_uint_eq(s.encoded_bytes, 24 + larder_dtype_bytes(dtypes[i]));
        section_close(&s);
    }
}
END_TEST

START_TEST(noise_does_not_grow)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        struct section s;
        section_open(&s, dtypes[i], 2, 256, 64);
        fill_noise(&s);
        round_trip(&s);
        ck_assert_uint_eq(s.encoded_bytes, s.planes_bytes + 24);
        section_close(&s);
    }
}
END_TEST

START_TEST(halves_in_floats_shrink_by_half)
{
    struct section s;
    section_open(&s, LARDER_F32, 4, 256, 64);
    fill_channels(&s);
    for (uint64_t i = 0; i < s.planes_bytes; i += 4)
        memset(s.planes + i, 0, 2);
    /* The sign is in the lowest plane: one bit of entropy in 32. */
    ck_assert_double_le(round_trip(&s), 0.40);
    section_close(&s);
}
END_TEST

/* Decodes bytes of unknown origin from a buffer of exactly their size. */
static int decode_hostile(struct section *s, uint8_t *back, const uint8_t *bytes, uint64_t count)
{
    uint8_t *exact = larder_alloc(count ? count : 1);
    memcpy(exact, bytes, count);
    int err = section_decode(s, back, count ? exact : exact + 1, count);
    larder_free(exact);
    ck_assert(err == 0 || err == LARDER_ECORRUPT || err == LARDER_EVERSION);
    return err;
}

START_TEST(every_truncation_fails)
{
    struct section s;
    section_open(&s, LARDER_BF16, 1, 32, 32);
    fill_channels(&s);
    section_encode(&s);
    uint8_t *back = larder_alloc(s.planes_bytes);
    for (uint64_t bytes = 0; bytes < s.encoded_bytes; bytes++)
        ck_assert_int_eq(decode_hostile(&s, back, s.encoded, bytes), LARDER_ECORRUPT);
    /* So does one byte more. */
    uint8_t *longer = larder_alloc_zero(1, s.encoded_bytes + 1);
    memcpy(longer, s.encoded, s.encoded_bytes);
    ck_assert_int_eq(decode_hostile(&s, back, longer, s.encoded_bytes + 1), LARDER_ECORRUPT);
    larder_free(longer);
    larder_free(back);
    section_close(&s);
}
END_TEST

START_TEST(flipped_bits_are_survived)
{
    for (size_t i = 0; i < LARDER_COUNT_OF(dtypes); i++) {
        struct section s;
        section_open(&s, dtypes[i], 2, 48, 40);
        fill_channels(&s);
        section_encode(&s);
        uint8_t *back = larder_alloc(s.planes_bytes);
        uint8_t *bad = larder_alloc(s.encoded_bytes);
        int failed = 0;
        for (int round = 0; round < 20000; round++) {
            memcpy(bad, s.encoded, s.encoded_bytes);
            for (uint64_t flips = 1 + random_bits() % 4; flips > 0; flips--) {
                /* Half of them where the headers of section and frame are. */
                uint64_t range = random_bits() % 2 ? s.encoded_bytes : 160;
                bad[random_bits() % range] ^= (uint8_t)(1u << random_bits() % 8);
            }
            failed += decode_hostile(&s, back, bad, s.encoded_bytes) < 0;
        }
        ck_assert_int_gt(failed, 0);
        larder_free(bad);
        larder_free(back);
        section_close(&s);
    }
}
END_TEST

START_TEST(lying_frames_stay_within_the_plane)
{
    /* A frame that is good, but of another size than the plane: encoded from a longer and from a
     * shorter block, its header made to fit. */
    struct section s;
    section_open(&s, LARDER_BF16, 1, 64, 64);
    fill_channels(&s);
    uint8_t *back = larder_alloc(s.planes_bytes);
    static const uint32_t others[] = {32, 63, 65, 80};
    for (size_t i = 0; i < LARDER_COUNT_OF(others); i++) {
        struct section other;
        section_open(&other, LARDER_BF16, 1, others[i], 64);
        fill_channels(&other);
        section_encode(&other);
        uint32_t plane_bytes[2];
        memcpy(plane_bytes, other.encoded + 8, sizeof(plane_bytes));
        /* Header, base and top plane of the other; a low plane as long as ours. */
        uint64_t top_end = other.encoded_bytes - plane_bytes[0];
        uint64_t total = top_end + 64 * 64;
        uint8_t *bad = larder_alloc_zero(1, total);
        memcpy(bad, other.encoded, top_end);
        plane_bytes[0] = 64 * 64;
        memcpy(bad + 8, plane_bytes, sizeof(plane_bytes));
        ck_assert_int_eq(decode_hostile(&s, back, bad, total), LARDER_ECORRUPT);
        larder_free(bad);
        section_close(&other);
    }
    larder_free(back);
    section_close(&s);
}
END_TEST

START_TEST(any_frame_of_the_right_size_is_read)
{
    /* With matches and a checksum, as another encoder may write it. */
    struct section s;
    section_open(&s, LARDER_BF16, 1, 64, 64);
    for (uint64_t i = 0; i < s.planes_bytes / 2; i++)
        put_elem(&s, i, (float)(1u << i % 7));
    const size_t count = 64 * 64;
    uint8_t top[64 * 64];
    uint8_t *made = larder_alloc_zero(1, s.planes_bytes + 24);
    for (size_t i = 0; i < count; i++) {
        uint16_t x;
        memcpy(&x, s.planes + 2 * i, 2);
        top[i] = (uint8_t)(x >> 7);
    }
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, 19);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    size_t frame = ZSTD_compress2(context, made + 24, s.planes_bytes, top, count);
    ZSTD_freeCCtx(context);
    ck_assert(!ZSTD_isError(frame));
    ck_assert_uint_lt(frame, 100);
    const uint32_t plane_bytes[2] = {1, (uint32_t)frame};
    memcpy(made, "\1\2\0\0\2\1\0\0", 8);
    memcpy(made + 8, plane_bytes, sizeof(plane_bytes));
    made[24 + frame] = 0; /* the low plane: no fraction, no sign */
    uint8_t *back = larder_alloc(s.planes_bytes);
    ck_assert_int_eq(decode_hostile(&s, back, made, 24 + frame + 1), 0);
    ck_assert_mem_eq(back, s.planes, s.planes_bytes);
    larder_free(back);
    larder_free(made);
    section_close(&s);
}
END_TEST

START_TEST(random_bytes_are_survived)
{
    struct section s;
    section_open(&s, LARDER_F32, 1, 20, 33);
    uint8_t *back = larder_alloc(s.planes_bytes);
    uint8_t bytes[400];
    for (int round = 0; round < 50000; round++) {
        uint64_t count = random_bits() % sizeof(bytes);
        for (uint64_t i = 0; i < count; i++)
            bytes[i] = (uint8_t)random_bits();
        /* Most get past the first checks. */
        if (count >= 24 && random_bits() % 8) {
            memset(bytes, 0, 24);
            bytes[0] = 1;
            bytes[1] = 4;
            uint64_t left = count - 24;
            for (unsigned p = 0; p < 4; p++) {
                uint32_t plane = p < 3 ? 1 : (uint32_t)(left > 3 ? left - 3 : 0);
                bytes[4 + p] = p < 3 ? 2 : 1;
                memcpy(bytes + 8 + 4 * p, &plane, sizeof(plane));
            }
        }
        decode_hostile(&s, back, bytes, count);
    }
    larder_free(back);
    section_close(&s);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("byteplanes");
    TCase *tests = tcase_create("byteplanes");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, shapes);
    tcase_add_test(tests, channels_shrink);
    tcase_add_test(tests, a_models_kv_shrinks);
    tcase_add_test(tests, a_long_block_takes_several_zstd_blocks);
    tcase_add_test(tests, special_values);
    tcase_add_test(tests, constants_almost_vanish);
    tcase_add_test(tests, noise_does_not_grow);
    tcase_add_test(tests, halves_in_floats_shrink_by_half);
    tcase_add_test(tests, every_truncation_fails);
    tcase_add_test(tests, flipped_bits_are_survived);
    tcase_add_test(tests, lying_frames_stay_within_the_plane);
    tcase_add_test(tests, any_frame_of_the_right_size_is_read);
    tcase_add_test(tests, random_bytes_are_survived);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
