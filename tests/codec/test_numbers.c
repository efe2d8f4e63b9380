/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   recipes that work on numbers give back what encoding said they would, within their bound
 *         and the error that their levels allow, for every dtype and shape; what they cannot hold
 *         is kept exact; bytes from anywhere are survived.
 * Method: made-up KV with loud channels through many recipes; the error is measured again from the
 *         decoded planes; a small example is worked out by hand; cut and random sections, run under
 *         sanitizers too. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/record.h"
#include "codec/codec.h"
#include "codec/symbols.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/rope.h"
#include "tests/codec/number_scene.h"

static const struct {
    const char *text;
    double error_max; /* relative; this and the next at 256 tokens of 8 heads of 128 */
    double bits_max;  /* an element */
} recipes[] = {
    {"kivi2", 0.65, 3.01},
    {"kivi4", 0.12, 5.01},
    {"quarot-int2", 0.95, 3.01},
    {"quarot-int4", 0.2, 5.01},
    {"quant bits=8 group=0", 0.024, 8.2},
    {"quant bits=6 axis=channel group=64", 0.03, 6.6},
    {"quant bits=5 group=128 mode=int", 0.1, 5.3},
    {"quant bits=3 group=48 clip=0.9", 0.3, 4.0},
    {"quant bits=1 group=16", 1.2, 3.1},
    {"quant levels=3 axis=channel group=0 mode=sym", 0.9, 1.7},
    {"quant levels=31 mode=sym group=0", 0.25, 5.1},
    {"rope-off | quant bits=8 axis=channel group=32", 0.02, 9.1},
    {"rope-off | hadamard heads=2 signs=7 | quant bits=4 axis=token group=128 clip=0.8", 0.35, 4.3},
    {"sinks tokens=5{hadamard | quant bits=4}", 0.2, 5.7},
    {"layers(0){quant bits=2} layers(1-2){quant bits=4} else{quant bits=8}", 0.65, 9},
    {"k{hadamard | quant bits=8} v{quant bits=2}", 0.65, 9.1},
    {"quant bits=4 group=64 | rans", 0.2, 4.4},
    {"sinks{hadamard | quant levels=9 mode=sym axis=channel group=64 | rans}", 0.3, 3.9},
    {"quant bits=1 group=0 | rans", 9, 1.1},
    {"quant bits=8 group=0 | rans", 0.03, 8.1},
    {"turboquant2", 0.37, 2.13},
    {"turboquant4", 0.11, 4.13},
    {"turboquant2.5", 0.3, 2.76},
    {"turboquant3.5", 0.16, 3.76},
    {"turboquant3.5-prod", 0.36, 4.01},
    {"vidkv", 0.6, 2.26},
    {"lloyd levels=9 axis=channel group=64 scale=fit | rans", 0.2, 3.3},
    {"lloyd bits=3 group=40", 0.4, 3.6},
    {"sinks{lloyd bits=1 axis=channel group=0 scale=fit}", 0.65, 1.6},
    {"ternary axis=channel group=32 scale=mean", 0.8, 2.2},
    {"itq3", 0.46, 1.75},
    {"hadamard block=8 | fp4", 0.13, 4.26},
    {"fp4 clip=none | rans", 0.15, 4.3},
    {"fp8-e4m3", 0.03, 8.1},
    {"fp8 format=e5m2 axis=channel group=32", 0.06, 8.6},
    {"bfp4", 0.3, 4.26},
    {"bfp mantissa=7 block=0 | rans", 0.2, 7.1},
    {"rfft | lloyd bits=1 axis=channel group=32 scale=fit", 0.65, 1.6},
    {"rope-off | rfft | quant bits=8", 0.02, 9.1},
    {"qjl", 1.4, 1.13},
    {"sinks{hadamard signs=2 | qjl seed=7 | rans}", 1.4, 1.7},
    {"normalize | quant bits=4 axis=token group=0", 0.2, 4.2},
    {"balance | quant bits=4 axis=token group=64", 0.35, 4.7},
    {"anchors group=16{quant bits=8 group=0 mode=sym}{quant bits=4 group=0 mode=sym}", 0.8, 5},
    {"sinks{anchors group=7{keep}{quant bits=6 group=64 | rans}}", 0.1, 12},
    {"residual{quant bits=2 axis=channel group=32}{hadamard | quant bits=2}", 0.2, 6.1},
    {"residual{quant bits=4 axis=channel group=16 mode=sym}{quant bits=4 axis=channel group=16 "
     "mode=sym}",
     0.02, 10.1},
    {"lowrank rank=4{quant bits=4 axis=channel group=64}", 0.2, 5.4},
    {"lowrank rank=9 iterations=1{outliers share=.02 axis=token fill=mean{quant bits=4}}", 0.2, 20},
    {"outliers share=.02 axis=channel fill=mean{quant bits=4 axis=channel group=64}", 0.2, 5.6},
    {"sinks{outliers share=.01{quant bits=4 axis=token group=0 | rans}}", 0.2, 4.5},
    {"outliers share=.25{quant bits=2}", 0.65, 14},
    {"join | quant bits=4 group=128", 0.3, 4.3},
    {"rope-off | hadamard heads=2 | join heads=2 | quant bits=4 group=96 | rans", 0.3, 4.4},
    {"split share=.3{quant bits=4 axis=channel group=32}{quant bits=2}", 0.7, 4.4},
    {"split order=first{hadamard signs=1 | quant bits=4}{quant bits=3}", 0.3, 4.6},
    {"split by=class share=.6{quant bits=4 axis=channel group=0}{normalize | quant bits=2 group=0}",
     0.65, 3.6},
    {"split by=class heads=each share=.2{quant bits=8}{split share=.5{quant bits=3}{quant "
     "bits=2}}",
     0.65, 5},
    {"split by=class share=0{quant bits=8}{quant bits=4}", 0.2, 5.1},
    {"split by=class share=1{quant bits=8}{quant bits=4}", 0.02, 9.1},
    {"split share=0 order=first{quant bits=8}{quant bits=4}", 0.2, 5.1},
    {"split share=1{quant bits=8}{quant bits=4}", 0.02, 9.1},
    {"split share=.1 order=first{sinks tokens=16{quant bits=8}}{quant bits=2}", 0.65, 5},
};

START_TEST(what_comes_back_is_what_encoding_said)
{
    static const uint32_t dtypes[] = {LARDER_BF16, LARDER_F16, LARDER_F32};
    static const uint32_t shapes[][3] = {
        /* heads, dims, tokens */
        {8, 128, 256}, {2, 64, 100}, {4, 32, 1}, {2, 16, 17}, {2, 8, 33},
    };
    for (size_t r = 0; r < LARDER_COUNT_OF(recipes); r++) {
        for (size_t i = 0; i < LARDER_COUNT_OF(shapes) * LARDER_COUNT_OF(dtypes) * 2; i++) {
            const uint32_t *shape = shapes[i / 2 % LARDER_COUNT_OF(shapes)];
            /* The large one once a recipe: sanitizers take their time. */
            if (shape[2] == 256 && i > 0)
                continue;
            struct scene s;
            scene_open(&s, recipes[r].text, dtypes[i / 2 / LARDER_COUNT_OF(shapes)], shape[0],
                       shape[1], shape[2], i % 2 ? 512 : 0, 2 + i % 2);
            scene_encode(&s);
            ck_assert_msg(scene_decode(&s, s.encoded, s.encoded_bytes) == 0, "%s: %s",
                          recipes[r].text, larder_error_message());
            double error = relative_error(&s);
            double error_max = shape[2] == 256 ? recipes[r].error_max : 10;
            ck_assert_msg(error <= error_max, "%s: error %g", recipes[r].text, error);
            double bits = (double)s.encoded_bytes * 8 / (double)s.count;
            ck_assert_msg(shape[2] != 256 || bits <= recipes[r].bits_max, "%s: %g bits",
                          recipes[r].text, bits);
            ck_assert_uint_lt(s.encoded_bytes, s.planes_bytes + 40);
            scene_close(&s);
        }
    }
}
END_TEST

/* Whatever stands in the workspace, NaNs too. */
START_TEST(the_workspace_and_the_machine_change_nothing)
{
    static const uint32_t tokens[] = {50, 16, 4, 1};
    static const int fills[] = {0xa5, 0, 0xff};
    for (size_t r = 0; r < LARDER_COUNT_OF(recipes) * LARDER_COUNT_OF(tokens); r++) {
        const char *text = recipes[r / LARDER_COUNT_OF(tokens)].text;
        struct scene s;
        scene_open(&s, text, LARDER_BF16, 2, 64, tokens[r % LARDER_COUNT_OF(tokens)], 0, 0);
        uint8_t *first = larder_alloc(s.bound);
        uint8_t *planes = larder_alloc(s.planes_bytes);
        uint64_t bytes = 0;
        for (size_t i = 0; i < LARDER_COUNT_OF(fills); i++) {
            memset(s.workspace, fills[i], s.workspace_bytes);
            scene_encode(&s);
            if (i == 0)
                memcpy(first, s.encoded, bytes = s.encoded_bytes);
            ck_assert_msg(s.encoded_bytes == bytes && memcmp(s.encoded, first, bytes) == 0,
                          "%s: %u tokens are encoded differently", text, s.block.token_count);
            memset(s.workspace, fills[i], s.workspace_bytes);
            ck_assert_int_eq(scene_decode(&s, first, bytes), 0);
            if (i == 0)
                memcpy(planes, s.decoded, s.planes_bytes);
            ck_assert_mem_eq(s.decoded, planes, s.planes_bytes);
        }
        larder_free(planes);
        larder_free(first);
        scene_close(&s);
    }
}
END_TEST

/* Two channels of 16 tokens: 0 .. 15 and -1, 1, -1, ... at two bits: scale 5 and 2/3. */
/* In a chain's later blocks `sinks` keeps nothing, but what stands below it goes the long way. */
START_TEST(the_short_way_to_bf16_gives_the_same_bits)
{
    static const char *const leaves[] = {
        "quant bits=4 axis=channel group=32",
        "quant bits=4 axis=token group=32",
        "quant bits=2 axis=channel group=16 mode=sym",
        "quant bits=8 group=64 mode=int clip=.9",
        "quant bits=5 axis=channel group=0 | rans",
        "quant bits=3 group=0",
        "quant levels=3 group=96 mode=sym",
        "quant bits=7 group=48",
        "layers(0){quant bits=2} else{quant bits=6}",
        "quant bits=1 parts=2",
    };
    static const uint32_t shapes[][3] = {
        /* heads, dims, tokens */
        {4, 128, 256}, {2, 64, 47}, {1, 32, 16}, {3, 96, 65}, {2, 48, 64}, {2, 64, 15},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(leaves) * LARDER_COUNT_OF(shapes); i++) {
        const char *leaf = leaves[i % LARDER_COUNT_OF(leaves)];
        const uint32_t *shape = shapes[i / LARDER_COUNT_OF(leaves)];
        char wrapped[128];
        snprintf(wrapped, sizeof(wrapped), "sinks tokens=1{%s}", leaf);
        struct scene s;
        struct scene around;
        scene_open(&s, leaf, LARDER_BF16, shape[0], shape[1], shape[2], 512, 3);
        scene_open(&around, wrapped, LARDER_BF16, shape[0], shape[1], shape[2], 512, 3);
        memcpy(around.planes, s.planes, s.planes_bytes);
        scene_encode(&s);
        scene_encode(&around);
        ck_assert_uint_eq(s.encoded_bytes, around.encoded_bytes);
        ck_assert_mem_eq(s.encoded, around.encoded, s.encoded_bytes);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        ck_assert_int_eq(scene_decode(&around, around.encoded, around.encoded_bytes), 0);
        ck_assert_msg(memcmp(s.decoded, around.decoded, s.planes_bytes) == 0, "%s: %u x %u x %u",
                      leaf, shape[0], shape[1], shape[2]);
        scene_close(&around);
        scene_close(&s);
    }
}
END_TEST

START_TEST(an_example_by_hand)
{
    struct scene s;
    scene_open(&s, "quant bits=2 axis=channel group=16", LARDER_F32, 1, 2, 16, 0, 0);
    float planes[32];
    for (int token = 0; token < 16; token++) {
        planes[2 * token] = (float)token;
        planes[2 * token + 1] = token % 2 ? 1 : -1;
    }
    memcpy(s.planes, planes, sizeof(planes));
    scene_encode(&s);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    /* Header 8, unit 1, two scales and two lows of 2 bytes, 32 symbols of 2 bits. */
    ck_assert_uint_eq(s.encoded_bytes, 8 + 1 + 8 + 8);
    /* The largest is 15, below 2^4: the unit is 2^(14 - 4). Scales 5 and 2/3, lows 0 and -1. */
    ck_assert_uint_eq(s.encoded[8], 10);
    uint16_t stored[4];
    memcpy(stored, s.encoded + 9, sizeof(stored));
    ck_assert_uint_eq(stored[0], f16_from_float(5 * 1024));
    ck_assert_uint_eq(stored[1], f16_from_float(2.0f / 3 * 1024));
    ck_assert_uint_eq(stored[2], 0);
    ck_assert_uint_eq(stored[3], f16_from_float(-1024));
    for (int token = 0; token < 16; token++) {
        float steps = rintf((float)token / 5);
        ck_assert(element(&s, s.decoded, 2 * (uint64_t)token) == steps * 5);
        float wanted = token % 2 ? 1 : -1;
        ck_assert(fabsf(element(&s, s.decoded, 2 * (uint64_t)token + 1) - wanted) < 1e-3f);
    }
    scene_close(&s);
}
END_TEST

START_TEST(groups_far_from_zero_and_constant_ones)
{
    static const char *const texts[] = {"quant bits=4 axis=channel group=16",
                                        "quant bits=4 axis=token group=8",
                                        "quant bits=4 axis=token group=8 mode=int"};
    for (size_t t = 0; t < LARDER_COUNT_OF(texts); t++) {
        for (int constant = 0; constant < 2; constant++) {
            struct scene s;
            scene_open(&s, texts[t], LARDER_F32, 1, 8, 32, 0, 0);
            for (uint64_t i = 0; i < s.count; i++) {
                float x = constant ? -7.25f : 100 + next_normal();
                memcpy(s.planes + 4 * i, &x, 4);
            }
            scene_encode(&s);
            ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
            ck_assert(relative_error(&s) < (constant ? 1e-6 : 0.003));
            scene_close(&s);
        }
    }
}
END_TEST

/* Numbers of any magnitude keep their relative error; zeros stay zeros. */
START_TEST(magnitudes)
{
    static const float scales[] = {1e-38f, 1e-30f, 1e-6f, 1, 1e6f, 1e30f, 1e37f};
    for (size_t i = 0; i < LARDER_COUNT_OF(scales); i++) {
        struct scene s;
        scene_open(&s, "hadamard | quant bits=8", LARDER_F32, 2, 32, 20, 0, 0);
        for (uint64_t e = 0; e < s.count; e++) {
            float x = next_normal() * scales[i];
            memcpy(s.planes + 4 * e, &x, 4);
        }
        scene_encode(&s);
        ck_assert(!s.error.fell_back);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        double off = 0;
        for (uint64_t e = 0; e < s.count; e++) {
            double was = (double)element(&s, s.planes, e) / (double)scales[i];
            double is = (double)element(&s, s.decoded, e) / (double)scales[i];
            off += (is - was) * (is - was);
        }
        ck_assert_msg(sqrt(off / (double)s.count) < 0.02, "scale %g: %g", (double)scales[i],
                      sqrt(off / (double)s.count));
        memset(s.planes, 0, s.planes_bytes);
        scene_encode(&s);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        ck_assert(larder_all_zero(s.decoded, s.planes_bytes));
        scene_close(&s);
    }
}
END_TEST

START_TEST(what_is_not_finite_is_kept_exact)
{
    static const uint16_t odd[] = {0x7f80, 0xff80, 0x7fc1, 0xffff, 0x7f81};
    for (size_t i = 0; i < LARDER_COUNT_OF(odd); i++) {
        struct scene s;
        scene_open(&s, "rope-off | hadamard | quant bits=2", LARDER_BF16, 2, 32, 20, 64, 0);
        memcpy(s.planes + 2 * (s.count / 2), &odd[i], sizeof(odd[i]));
        scene_encode(&s);
        ck_assert(s.error.fell_back);
        ck_assert(s.error.error_energy == 0);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        ck_assert_mem_eq(s.decoded, s.planes, s.planes_bytes);
        scene_close(&s);
    }
}
END_TEST

/* What is exact on request is not what a recipe could not hold. */
START_TEST(bits_are_kept_on_request)
{
    struct scene s;
    scene_open(&s, "rope-off | hadamard | quant bits=2", LARDER_BF16, 2, 32, 20, 64, 0);
    s.block.keep_bits = true;
    scene_encode(&s);
    ck_assert(!s.error.fell_back);
    ck_assert(s.error.error_energy == 0);
    s.block.keep_bits = false;
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    ck_assert_mem_eq(s.decoded, s.planes, s.planes_bytes);
    scene_close(&s);
}
END_TEST

START_TEST(sinks_are_kept_at_the_start_of_a_chain_only)
{
    for (uint64_t position = 0; position <= 256; position += 256) {
        struct scene s;
        scene_open(&s, "sinks tokens=3{quant bits=2}", LARDER_BF16, 2, 32, 20, position, 1);
        scene_encode(&s);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        for (uint64_t head = 0; head < 2; head++) {
            uint64_t at = head * 20 * 32 * 2;
            bool same = memcmp(s.decoded + at, s.planes + at, 3 * 32 * 2) == 0;
            ck_assert_int_eq(same, position == 0);
            ck_assert_int_ne(memcmp(s.decoded + at + 3 * 64, s.planes + at + 3 * 64, 17 * 64), 0);
        }
        scene_close(&s);
    }
}
END_TEST

/* Decoded with the tables of another place, K stands there: as if it had been moved. */
START_TEST(keys_decode_to_another_position)
{
    for (uint32_t interleaved = 0; interleaved < 2; interleaved++) {
        struct scene s;
        scene_open(&s, "rope-off | quant bits=8 axis=channel group=32", LARDER_F32, 2, 32, 32, 256,
                   0);
        s.model.rope.interleaved = interleaved;
        scene_encode(&s);
        struct larder_rope_table *table;
        ck_assert_int_eq(larder_rope_table_open(&table, &s.model.rope, 32), 0);
        ck_assert_int_eq(larder_rope_table_grow(table, 2000), 0);
        float *moved = larder_alloc(s.planes_bytes);
        for (uint32_t token = 0; token < 32; token++) {
            uint32_t from = 256 + token;
            uint32_t to = 1900 + token;
            struct larder_rope_move move = {
                .out = larder_cube(moved + 32 * token, LARDER_F32, 1, 2, 32),
                .in = larder_cube(s.planes + 4 * 32 * token, LARDER_F32, 1, 2, 32),
                .from = &from,
                .to = &to};
            move.out.stride[1] = move.in.stride[1] = 32 * 32;
            larder_rope_move(table, &move);
        }
        ck_assert_int_eq(larder_recipe_fill_tables(s.recipe, s.tables, &s.model, 1900, 32), 0);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        double off = 0;
        double all = 0;
        for (uint64_t i = 0; i < s.count; i++) {
            double is = (double)element(&s, s.decoded, i);
            off += (is - (double)moved[i]) * (is - (double)moved[i]);
            all += (double)moved[i] * (double)moved[i];
        }
        ck_assert_msg(sqrt(off / all) < 0.01, "%g", sqrt(off / all));
        larder_free(moved);
        larder_rope_table_close(table);
        scene_close(&s);
    }
}
END_TEST

START_TEST(cut_and_random_sections)
{
    for (size_t r = 0; r < LARDER_COUNT_OF(recipes); r++) {
        struct scene s;
        scene_open(&s, recipes[r].text, LARDER_BF16, 2, 64, 50, 0, 0);
        scene_encode(&s);
        uint8_t *bytes = larder_alloc(s.encoded_bytes + 1);
        memcpy(bytes, s.encoded, s.encoded_bytes);
        bytes[s.encoded_bytes] = 0;
        for (uint64_t n = 0; n < s.encoded_bytes; n += 1 + n / 7)
            ck_assert_int_lt(scene_decode(&s, bytes, n), 0);
        ck_assert_int_eq(scene_decode(&s, bytes, s.encoded_bytes + 1), LARDER_ECORRUPT);
        /* Random bytes may be numbers like any others; what matters is where they are written. */
        for (int round = 0; round < 50; round++) {
            for (int flips = 0; flips < 4; flips++)
                bytes[next_random() % s.encoded_bytes] = (uint8_t)next_random();
            (void)scene_decode(&s, bytes, s.encoded_bytes);
        }
        larder_free(bytes);
        scene_close(&s);
    }
}
END_TEST

/* Of a section by its recipe, and of one that is stored exact. */
START_TEST(headers_that_are_none)
{
    for (int exact = 0; exact < 2; exact++) {
        struct scene s;
        scene_open(&s, "quant bits=4", LARDER_BF16, 2, 32, 20, 0, 0);
        s.block.keep_bits = exact;
        scene_encode(&s);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        ck_assert_int_eq(s.encoded[1], exact);
        for (uint32_t i = 0; i < 8; i++) {
            s.encoded[i] ^= 2;
            ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes),
                             i == 0 ? LARDER_EVERSION : LARDER_ECORRUPT);
            s.encoded[i] ^= 2;
        }
        for (uint64_t bytes = 0; bytes < s.encoded_bytes; bytes += 1 + bytes / 9)
            ck_assert_int_eq(scene_decode(&s, s.encoded, bytes), LARDER_ECORRUPT);
        scene_close(&s);
    }
}
END_TEST

START_TEST(what_a_model_cannot_have_is_said)
{
    struct larder_model_desc model = {
        .layers = 1, .kv_heads = 3, .k_dims = 96, .v_dims = 96, .dtype = LARDER_BF16, .vocab = 10};
    static const struct {
        const char *text;
        int fits;
    } cases[] = {
        {"kivi2", 0},
        {"hadamard | quant", LARDER_EUNSUPPORTED},
        {"hadamard block=32 | quant", 0},
        {"hadamard heads=2 block=32 | quant", LARDER_EUNSUPPORTED},
        {"sinks{hadamard | quant}", LARDER_EUNSUPPORTED},
        {"layers(7){hadamard | quant} else{quant}", LARDER_EUNSUPPORTED},
        {"rfft | qjl", 0},
        {"join heads=3 | rfft | qjl", 0},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, cases[i].text, NULL), 0);
        ck_assert_msg(larder_recipe_fits(recipe, &model) == cases[i].fits, "%s", cases[i].text);
        if (cases[i].fits < 0)
            ck_assert_ptr_nonnull(strstr(larder_error_message(), "hadamard"));
        larder_recipe_close(recipe);
    }
    /* A matrix of all heads would be larger than all that they hold. */
    static const char *const wide[] = {"join | rfft | quant", "k{join | qjl} v{quant}",
                                       "residual{quant}{join | hadamard block=32 | rfft | quant}"};
    model.kv_heads = 12;
    for (size_t i = 0; i < LARDER_COUNT_OF(wide); i++) {
        struct larder_recipe *recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, wide[i], NULL), 0);
        ck_assert_int_eq(larder_recipe_fits(recipe, &model), LARDER_EUNSUPPORTED);
        ck_assert_ptr_nonnull(
            strstr(larder_error_message(), "of 1152 channels; the limit is 1024"));
        larder_recipe_close(recipe);
    }
}
END_TEST

START_TEST(symbols_of_all_sizes)
{
    static const uint32_t levels[] = {2, 3, 4, 5, 8, 13, 16, 31, 32, 64, 100, 128, 200, 256};
    const struct codec_size size = {.heads = 3, .tokens = 37, .dims = 5};
    uint8_t in[3 * 37 * 5];
    uint8_t out[3 * 16 * 5 + RANS_LANES];
    static _Alignas(64) uint8_t scratch[1 << 16];
    for (size_t l = 0; l < 3 * LARDER_COUNT_OF(levels); l++) {
        uint32_t level_count = levels[l / 3];
        /* Packed; flat, which a coder cannot shrink; one symbol, which it can. */
        struct codec_node leaf = {.entropy_coded = l % 3 > 0};
        for (size_t i = 0; i < sizeof(in); i++)
            in[i] = (uint8_t)(l % 3 == 2 ? level_count - 1 : next_random() % level_count);
        uint64_t bound = symbols_bound(&leaf, &size, level_count);
        ck_assert_uint_le(symbols_scratch(&leaf, &size), sizeof(scratch));
        uint8_t *bytes = larder_alloc(bound);
        struct larder_block block = {0};
        struct codec_run run = {.block = &block,
                                .out = bytes,
                                .scratch = scratch,
                                .scratch_end = scratch + sizeof(scratch)};
        symbols_encode(&leaf, &run, in, &size, level_count);
        ck_assert_uint_le((uint64_t)(run.out - bytes), bound);
        ck_assert(l % 3 > 0 || run.out == bytes + bound);
        ck_assert(l % 3 < 2 || level_count < 16 || run.out < bytes + bound);
        run.in = bytes;
        run.in_end = run.out;
        struct symbols symbols;
        ck_assert_int_eq(symbols_begin(&symbols, &leaf, &run, &size, level_count), 0);
        for (uint32_t first = 0; first < 37; first += 16) {
            struct codec_size part = {.heads = 3, .tokens = first == 32 ? 5 : 16, .dims = 5};
            symbols_rows(&symbols, first, &part, out);
            for (uint32_t head = 0; head < 3; head++)
                ck_assert_mem_eq(out + head * part.tokens * 5, in + (head * 37 + first) * 5,
                                 part.tokens * 5);
        }
        larder_free(bytes);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("numbers");
    TCase *tests = tcase_create("numbers");
    tcase_set_timeout(tests, 280);
    tcase_add_test(tests, what_comes_back_is_what_encoding_said);
    tcase_add_test(tests, the_workspace_and_the_machine_change_nothing);
    tcase_add_test(tests, the_short_way_to_bf16_gives_the_same_bits);
    tcase_add_test(tests, an_example_by_hand);
    tcase_add_test(tests, groups_far_from_zero_and_constant_ones);
    tcase_add_test(tests, magnitudes);
    tcase_add_test(tests, what_is_not_finite_is_kept_exact);
    tcase_add_test(tests, bits_are_kept_on_request);
    tcase_add_test(tests, sinks_are_kept_at_the_start_of_a_chain_only);
    tcase_add_test(tests, keys_decode_to_another_position);
    tcase_add_test(tests, cut_and_random_sections);
    tcase_add_test(tests, headers_that_are_none);
    tcase_add_test(tests, what_a_model_cannot_have_is_said);
    tcase_add_test(tests, symbols_of_all_sizes);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
