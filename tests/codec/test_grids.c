/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the grids of the published quantizers are what their sources say: levels, thresholds,
 *         scales, sizes and errors; their vector versions give the bits of the specification.
 * Method: each grid against a slow one written out here in double precision (every level tried, the
 *         nearest taken); the error of normal numbers against the theory; Lloyd's condition on the
 *         levels themselves; examples by hand; all symbols through each lookup. */
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
#include "codec/grid.h"
#include "codec/hadamard.h"
#include "codec/profile_writer.h"
#include "kernels/cpu/cpu_math.h"

static uint64_t random_state = 1;

static double next_uniform(void)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return ((double)(random_state >> 11) + 0.5) * 0x1p-53;
}

static double next_normal(void)
{
    return sqrt(-2 * log(next_uniform())) * cos(2 * 3.14159265358979323846 * next_uniform());
}

/* One section of f32 through a recipe and back. */
struct scene {
    struct larder_recipe *recipe;
    struct larder_model_desc model;
    struct larder_block block;
    uint32_t section;
    uint64_t count;
    float *x;
    float *decoded;
    uint8_t *encoded;
    uint64_t encoded_bytes;
    struct larder_section_error error;
    void *workspace;
};

static void scene_open(struct scene *s, const char *text, uint32_t heads, uint32_t tokens,
                       uint32_t dims)
{
    *s = (struct scene){.section = 1, .count = (uint64_t)heads * tokens * dims};
    s->model = (struct larder_model_desc){.layers = 1,
                                          .kv_heads = heads,
                                          .k_dims = dims,
                                          .v_dims = dims,
                                          .dtype = LARDER_F32,
                                          .vocab = 10};
    s->block = (struct larder_block){.model = &s->model, .token_count = tokens};
    ck_assert_msg(larder_recipe_open(&s->recipe, text, NULL) == 0, "%s", larder_error_message());
    s->x = larder_alloc(s->count * sizeof(float));
    s->decoded = larder_alloc(s->count * sizeof(float));
    s->encoded = larder_alloc(larder_recipe_bound(s->recipe, &s->model, 1, tokens));
    s->workspace =
        larder_alloc_aligned(64, larder_recipe_workspace_bytes(s->recipe, &s->model, tokens));
    for (uint64_t i = 0; i < s->count; i++)
        s->x[i] = (float)next_normal();
}

static void scene_close(struct scene *s)
{
    larder_free(s->workspace);
    larder_free(s->encoded);
    larder_free(s->decoded);
    larder_free(s->x);
    larder_recipe_close(s->recipe);
}

static void scene_run(struct scene *s)
{
    uint32_t tokens = s->block.token_count;
    uint64_t workspace_bytes = larder_recipe_workspace_bytes(s->recipe, &s->model, tokens);
    ck_assert_msg(larder_recipe_encode(s->recipe, s->encoded,
                                       larder_recipe_bound(s->recipe, &s->model, 1, tokens),
                                       &s->encoded_bytes, &s->error, &s->block, s->section, s->x,
                                       s->workspace, workspace_bytes) == 0,
                  "%s", larder_error_message());
    ck_assert_msg(larder_recipe_decode(s->recipe, s->decoded, s->count * sizeof(float), &s->block,
                                       s->section, s->encoded, s->encoded_bytes, s->workspace,
                                       workspace_bytes) == 0,
                  "%s", larder_error_message());
}

static double mean_square_error(const struct scene *s)
{
    double off = 0;
    double all = 0;
    for (uint64_t i = 0; i < s->count; i++) {
        off += pow((double)s->decoded[i] - (double)s->x[i], 2);
        all += pow((double)s->x[i], 2);
    }
    return off / all;
}

/* What theory gives for normal numbers (Max, 1960); of blocks that share a power of two, of floats
 * and of a fitted scale: seen, and kept. A row's own deviation fits it a little better than the one
 * of all numbers would. */
START_TEST(errors_of_normal_numbers)
{
    static const struct {
        const char *text;
        double error; /* of a normal number's square */
        double bits;  /* an element, at most */
    } cases[] = {
        {"lloyd bits=1", 0.3634, 1.126},
        {"lloyd bits=2", 0.1175, 2.126},
        {"lloyd bits=3", 0.03454, 3.126},
        {"lloyd bits=4", 0.009497, 4.126},
        {"lloyd bits=4 scale=fit", 0.0089, 4.126},
        {"lloyd bits=4 | rans", 0.009497, 3.90},
        {"lloyd levels=3", 0.190, 1.6 + 0.126},
        {"lloyd levels=5 | rans", 0.0799, 2.34},
        {"ternary group=128", 0.190, 1.6 + 0.126},
        {"ternary axis=channel group=256", 0.190, 1.6 + 0.064},
        {"lloyd bits=1 axis=channel group=256 scale=fit", 0.3634, 1.064},
        {"hadamard signs=5 | lloyd bits=2", 0.1175, 2.126},
        {"fp8 format=e4m3", 0.000698, 8.02},
        {"fp8 format=e5m2", 0.00278, 8.02},
        {"fp4 clip=none", 0.0132, 4.251},
        {"fp4", 0.0125, 4.251},
        {"bfp mantissa=4 block=32", 0.0175, 4.251},
        {"bfp mantissa=8 block=32", 0.0000684, 8.251},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct scene s;
        scene_open(&s, cases[i].text, 8, 256, 128);
        scene_run(&s);
        double error = mean_square_error(&s);
        double bits = (double)s.encoded_bytes * 8 / (double)s.count;
        ck_assert_msg(error < 1.01 * cases[i].error, "%s: error %g, theory %g", cases[i].text,
                      error, cases[i].error);
        ck_assert_msg(error > 0.97 * cases[i].error, "%s: error %g, theory %g", cases[i].text,
                      error, cases[i].error);
        ck_assert_msg(bits < cases[i].bits, "%s: %g bits", cases[i].text, bits);
        /* What was measured while encoding is what a reader gets. */
        ck_assert(fabs(s.error.error_energy / s.error.signal_energy - error) < 1e-5 * error);
        scene_close(&s);
    }
}
END_TEST

static double normal_density(double x)
{
    return isinf(x) ? 0 : exp(-x * x / 2) / sqrt(2 * 3.14159265358979323846);
}

/* Where level `i` ends and the next begins: bounds are of magnitudes. */
static double level_end(const struct grid *grid, uint32_t i)
{
    int place = 2 * (int)i + 2 - (int)grid->levels;
    if (i + 1 == grid->levels)
        return INFINITY;
    return place == 0  ? 0
           : place > 0 ? (double)grid->bounds[(place - 1) / 2]
                       : -(double)grid->bounds[(-place - 1) / 2];
}

/* Each level is the mean of the normal numbers that become it; levels lie symmetrically. */
START_TEST(levels_of_a_normal_number)
{
    const struct codec_size size = {.heads = 1, .tokens = 1, .dims = 8};
    for (uint32_t count = 2; count <= GRID_TABLE_LEVELS; count++) {
        struct codec_node node = {.ops = &codec_node_lloyd.ops, .value = {4, count}};
        struct grid grid = {0};
        codec_node_lloyd.open(&grid, &node, &size);
        ck_assert_uint_eq(grid.levels, count);
        ck_assert_uint_eq(grid.bound_count, (count - 1) / 2);
        for (uint32_t i = 0; i < count; i++) {
            double low = i == 0 ? -INFINITY : level_end(&grid, i - 1);
            double high = level_end(&grid, i);
            double share = (erfc(low / sqrt(2)) - erfc(high / sqrt(2))) / 2;
            double mean = (normal_density(low) - normal_density(high)) / share;
            ck_assert_msg(fabs(mean - (double)grid.level[i]) < 5e-7, "%u levels, %u: %.9g, is %.9g",
                          count, i, mean, (double)grid.level[i]);
            ck_assert(grid.level[i] == -grid.level[count - 1 - i]);
        }
    }
}
END_TEST

/* The nearest of `values`, the one with an even code where two are as near. */
static double nearest(const double *values, uint32_t count, double x)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++) {
        double was = fabs(values[best] - x);
        double is = fabs(values[i] - x);
        if (is < was || (is == was && i % 2 == 0))
            best = i;
    }
    return values[best];
}

/* Codes 0 .. are magnitudes; `fraction` bits, and the exponents' bias. */
static uint32_t fill_floats(double *out, uint32_t fraction, int bias, double most)
{
    uint32_t count = 0;
    for (; count == 0 || out[count - 1] < most; count++) {
        uint32_t exponent = count >> fraction;
        double part = (double)(count & ((1u << fraction) - 1)) / (double)(1u << fraction);
        out[count] = exponent ? ldexp(1 + part, (int)exponent - bias) : ldexp(part, 1 - bias);
    }
    return count;
}

/* Numbers whose largest makes a scale of 1: random ones of all sizes, and every tie. */
START_TEST(floats_round_to_the_nearest)
{
    static const struct {
        const char *text;
        uint32_t fraction;
        int bias;
        double most;
    } cases[] = {
        {"fp8 format=e4m3 group=32", 3, 7, 448},
        {"fp8 format=e5m2 group=32", 2, 15, 57344},
        {"fp8 format=e4m3 axis=channel group=16", 3, 7, 448},
        {"fp8 format=e5m2 axis=channel group=0", 2, 15, 57344},
        {"fp4 clip=none", 1, 1, 6},
    };
    for (size_t c = 0; c < LARDER_COUNT_OF(cases); c++) {
        double values[256];
        uint32_t count = fill_floats(values, cases[c].fraction, cases[c].bias, cases[c].most);
        struct scene s;
        scene_open(&s, cases[c].text, 2, 16, 96);
        for (uint64_t i = 0; i < s.count; i++) {
            uint64_t at = i % (count - 1);
            double tie = (values[at] + values[at + 1]) / 2;
            double any = cases[c].most * exp2(-20 * next_uniform());
            bool sets_scale = i % 32 == 0 || i % (16 * 96) < 96;
            double x = sets_scale ? cases[c].most : i % 3 ? tie : any;
            s.x[i] = (float)(i % 2 ? -x : x);
        }
        scene_run(&s);
        ck_assert(!s.error.fell_back);
        for (uint64_t i = 0; i < s.count; i++) {
            double wanted = copysign(nearest(values, count, fabs((double)s.x[i])), (double)s.x[i]);
            ck_assert_msg((double)s.decoded[i] == wanted, "%s: %.9g became %.9g, not %.9g",
                          cases[c].text, (double)s.x[i], (double)s.decoded[i], wanted);
        }
        scene_close(&s);
    }
}
END_TEST

/* Mantissas -8 .. 7 of a block whose largest has the exponent of 4: a scale of 1. */
START_TEST(blocks_share_an_exponent)
{
    struct scene s;
    scene_open(&s, "bfp mantissa=4 block=32", 1, 2, 64);
    for (uint64_t i = 0; i < s.count; i++)
        s.x[i] = i % 32 == 7 ? -7.5f : (float)(15.9 * (next_uniform() - 0.5));
    scene_run(&s);
    for (uint64_t i = 0; i < s.count; i++) {
        double wanted = rint((double)s.x[i]);
        wanted = wanted > 7 ? 7 : wanted;
        ck_assert_msg((double)s.decoded[i] == wanted, "%g became %g", (double)s.x[i],
                      (double)s.decoded[i]);
    }
    scene_close(&s);
}
END_TEST

/* 32 tokens of a channel: 16 of 3, 8 of -1, 8 of .1. Their mean magnitude is 1.775, half of it the
 * threshold: 1 stays above it, .1 below. */
START_TEST(three_levels_by_hand)
{
    struct scene s;
    scene_open(&s, "ternary axis=channel group=32 scale=mean", 1, 32, 4);
    for (uint64_t i = 0; i < s.count; i++)
        s.x[i] = i / 4 % 2 ? 3 : i / 4 % 4 ? -1 : 0.1f;
    scene_run(&s);
    for (uint64_t i = 0; i < s.count; i++) {
        float wanted = i / 4 % 2 ? 1.775f : i / 4 % 4 ? -1.775f : 0;
        ck_assert_msg(fabsf(s.decoded[i] - wanted) < 1e-3f, "%g became %g", (double)s.x[i],
                      (double)s.decoded[i]);
    }
    /* Header 8, unit 1, four scales, 32 * 4 symbols: 103 in the first tile's 13 bytes and so on. */
    ck_assert_uint_eq(s.encoded_bytes, 8 + 1 + 4 * 2 + 2 * 13);
    scene_close(&s);
}
END_TEST

/* A token of 4 channels at one bit: -1 and 1 times .7979 of the deviation, or fitted, times the
 * mean magnitude. */
START_TEST(one_bit_by_hand)
{
    static const float x[4] = {1, -2, 3, -4};
    for (int fit = 0; fit < 2; fit++) {
        struct scene s;
        scene_open(&s, fit ? "lloyd bits=1 scale=fit" : "lloyd bits=1", 1, 1, 4);
        memcpy(s.x, x, sizeof(x));
        scene_run(&s);
        double level = fit ? 2.5 : sqrt(30.0 / 4) * 0.7978845608;
        for (int i = 0; i < 4; i++)
            ck_assert(fabs((double)s.decoded[i] - copysign(level, (double)x[i])) < 1e-3 * level);
        scene_close(&s);
    }
}
END_TEST

START_TEST(a_clip_is_taken_where_it_helps)
{
    /* One number that is alone beside many: half the power serves the others better. */
    struct scene s;
    double error[2];
    for (int i = 0; i < 2; i++) {
        scene_open(&s, i ? "fp4" : "fp4 clip=none", 1, 1, 32);
        for (uint64_t dim = 0; dim < s.count; dim++)
            s.x[dim] = dim ? 0.24f : 4.01f;
        scene_run(&s);
        error[i] = mean_square_error(&s);
        scene_close(&s);
    }
    ck_assert_msg(error[1] < error[0], "%g, without %g", error[1], error[0]);
}
END_TEST

/* Every version of the lookup gives the bits of the specification, at every length. */
START_TEST(lookups_are_alike)
{
    const grid_lookup_function versions[] = {grid_lookup_avx2(), grid_lookup_avx512()};
    float level[GRID_TABLE_LEVELS];
    float scale[100];
    uint8_t q[100];
    for (uint32_t i = 0; i < GRID_TABLE_LEVELS; i++)
        level[i] = (float)next_normal();
    for (uint32_t i = 0; i < 100; i++) {
        scale[i] = (float)next_normal();
        q[i] = (uint8_t)(i * 7 % GRID_TABLE_LEVELS);
    }
    for (size_t v = 0; v < LARDER_COUNT_OF(versions); v++) {
        for (uint32_t count = 0; count <= 100 && versions[v]; count++) {
            for (uint32_t step = 0; step < 2; step++) {
                float wanted[101];
                float is[101];
                wanted[count] = is[count] = 42;
                grid_lookup_scalar(level, wanted, q, count, scale, step);
                versions[v](level, is, q, count, scale, step);
                ck_assert_mem_eq(is, wanted, (count + 1) * sizeof(float));
            }
        }
    }
}
END_TEST

/* So do those of the rotation, of every size; and the specification is its own inverse. */
START_TEST(rotations_are_alike)
{
    enum { COUNT = 2048 };
    const hadamard_function versions[] = {hadamard_avx2(), hadamard_avx512(), hadamard_scalar};
    float x[COUNT];
    float factors[COUNT];
    float wanted[COUNT];
    float is[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        x[i] = (float)next_normal();
        factors[i] = (float)next_normal();
    }
    for (uint64_t dims = 1; dims <= COUNT; dims *= 2) {
        for (uint64_t count = dims; count <= COUNT; count += count == dims ? dims * 2 : COUNT) {
            if (count > COUNT)
                break;
            for (size_t v = 0; v < LARDER_COUNT_OF(versions); v++) {
                for (int scaled = 0; scaled < 2 && versions[v]; scaled++) {
                    memcpy(wanted, x, sizeof(x));
                    memcpy(is, x, sizeof(x));
                    hadamard_scalar(wanted, count, dims, scaled ? factors : NULL);
                    versions[v](is, count, dims, scaled ? factors : NULL);
                    ck_assert_mem_eq(is, wanted, sizeof(is));
                }
            }
            memcpy(is, x, sizeof(x));
            hadamard_scalar(is, count, dims, NULL);
            hadamard_scalar(is, count, dims, NULL);
            for (uint64_t i = 0; i < count; i++)
                ck_assert(fabsf(is[i] / (float)dims - x[i]) < 1e-5f);
        }
    }
}
END_TEST

START_TEST(bad_parameters)
{
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"lloyd bits=5", "bits=, a whole number from 1 to 4"},
        {"lloyd levels=1", "lloyd: levels=1; there must be 2 to 16"},
        {"lloyd axis=channel group=24", "lloyd: group=24 with axis=channel; it must be a multiple"},
        {"ternary axis=channel group=8", "ternary: group=8 with axis=channel"},
        {"fp8 format=e3m4", "format=, one of: e4m3 e5m2"},
        {"fp8 axis=channel group=8", "fp8: group=8 with axis=channel"},
        {"bfp mantissa=1", "mantissa=, a whole number from 2 to 8"},
        {"fp4 clip=0.5", "clip=, one of: search none"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe;
        ck_assert_int_lt(larder_recipe_open(&recipe, cases[i].text, NULL), 0);
        ck_assert_msg(strstr(larder_error_message(), cases[i].message) != NULL, "%s",
                      larder_error_message());
    }
}
END_TEST

/* A scale that is no number is refused, whatever its place. */
START_TEST(no_number_as_a_power)
{
    struct scene s;
    scene_open(&s, "bfp", 2, 20, 64);
    scene_run(&s);
    s.encoded[8 + 37] = 255;
    uint64_t workspace_bytes = larder_recipe_workspace_bytes(s.recipe, &s.model, 20);
    ck_assert_int_eq(larder_recipe_decode(s.recipe, s.decoded, s.count * sizeof(float), &s.block, 1,
                                          s.encoded, s.encoded_bytes, s.workspace, workspace_bytes),
                     LARDER_ECORRUPT);
    ck_assert_str_eq(larder_error_message(), "scale 37 is 255, which is no number");
    scene_close(&s);
}
END_TEST

/* Numbers of any magnitude, up to the largest: kept as well as any, or kept exact; zeros are. */
START_TEST(magnitudes)
{
    static const char *const texts[] = {"lloyd bits=4", "ternary group=0", "fp4", "fp8", "bfp"};
    static const float scales[] = {1e-37f, 1e-20f, 1, 1e20f, 8e37f, 3.4e38f / 4};
    for (size_t i = 0; i < LARDER_COUNT_OF(texts) * LARDER_COUNT_OF(scales); i++) {
        struct scene s;
        float scale = scales[i % LARDER_COUNT_OF(scales)];
        scene_open(&s, texts[i / LARDER_COUNT_OF(scales)], 2, 20, 64);
        for (uint64_t e = 0; e < s.count; e++)
            s.x[e] = fmaxf(-4, fminf(s.x[e], 4)) * scale;
        scene_run(&s);
        double off = 0;
        for (uint64_t e = 0; e < s.count; e++) {
            ck_assert(isfinite(s.decoded[e]));
            off += pow(((double)s.decoded[e] - (double)s.x[e]) / (double)scale, 2);
        }
        ck_assert_msg(off / (double)s.count < 0.25, "scale %g: %g", (double)scale,
                      off / (double)s.count);
        memset(s.x, 0, s.count * sizeof(float));
        scene_run(&s);
        ck_assert(larder_all_zero((const uint8_t *)s.decoded, s.count * sizeof(float)));
        scene_close(&s);
    }
}
END_TEST

static bool fill_bad(struct scene *s, int kind)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    for (uint64_t i = 0; i < s->count; i++) {
        float normal = (float)next_normal();
        s->x[i] = kind == 3 ? 0 : kind == 4 ? -7.25f : kind == 5 ? normal * 1e-41f : normal;
    }
    if (kind < 3)
        s->x[s->count / 3] = odd[kind];
    return kind < 3;
}

/* What is not finite is kept exact; zeros stay zeros; what a scale cannot hold is no wrong value;
 * so also with one token and an odd number of channels. */
START_TEST(bad_numbers)
{
    static const char *const texts[] = {
        "lloyd bits=3", "lloyd bits=1 axis=channel group=16 scale=fit",
        "ternary",      "ternary axis=channel group=16 scale=mean",
        "fp4",          "fp8 format=e4m3",
        "bfp",          "fp8 format=e5m2 axis=channel group=16",
        "qjl",          "rfft | lloyd bits=2",
        "vidkv",
    };
    static const uint32_t shapes[][2] = {{1, 7}, {33, 45}};
    for (size_t t = 0; t < LARDER_COUNT_OF(texts); t++) {
        for (int kind = 0; kind < 12; kind++) {
            struct scene s;
            scene_open(&s, texts[t], 2, shapes[kind / 6][0], shapes[kind / 6][1]);
            bool exact = fill_bad(&s, kind % 6);
            scene_run(&s);
            ck_assert(!exact || s.error.fell_back);
            if (exact)
                ck_assert_mem_eq(s.decoded, s.x, s.count * sizeof(float));
            double most = 0;
            for (uint64_t i = 0; i < s.count && !exact; i++) {
                ck_assert(isfinite(s.decoded[i]));
                most = fmax(most, fabs((double)s.x[i]));
            }
            /* A sketch is the noisiest: its numbers may be a few times as large. */
            for (uint64_t i = 0; i < s.count && !exact; i++)
                ck_assert_msg(fabs((double)s.decoded[i]) <= 6 * most, "%s: %g, of at most %g",
                              texts[t], (double)s.decoded[i], most);
            scene_close(&s);
        }
    }
}
END_TEST

/* A wave of one frequency is one number behind the transform, and the others are 0: two levels keep
 * it, whatever the number of channels. */
START_TEST(a_wave_is_one_number)
{
    static const uint32_t sizes[] = {2, 3, 8, 12, 15, 64, 100};
    for (size_t n = 0; n < LARDER_COUNT_OF(sizes); n++) {
        for (uint32_t wave = 0; wave < sizes[n]; wave++) {
            struct scene s;
            uint32_t dims = sizes[n];
            scene_open(&s, "rfft | quant bits=1 group=4096", 2, 3, dims);
            bool is_sine = wave > dims / 2;
            double turns = (double)(is_sine ? wave - dims / 2 : wave) / dims;
            for (uint64_t i = 0; i < s.count; i++) {
                double angle = 2 * 3.14159265358979323846 * turns * (double)(i % dims);
                s.x[i] = (float)(7 * (is_sine ? sin(angle) : cos(angle)));
            }
            scene_run(&s);
            ck_assert_msg(mean_square_error(&s) < 1e-6, "wave %u of %u: %g", wave, dims,
                          mean_square_error(&s));
            scene_close(&s);
        }
    }
}
END_TEST

/* Its copies are noisy, but products with them are right on average: over seeds the copies of one
 * number come to it. The noise is pi / 2 of the energy. */
START_TEST(sketches_are_right_on_average)
{
    enum { SEEDS = 400, DIMS = 32 };
    double sum[DIMS] = {0};
    double noise = 0;
    struct scene s;
    for (int seed = 0; seed < SEEDS; seed++) {
        char text[32];
        snprintf(text, sizeof(text), "qjl seed=%d", seed);
        scene_open(&s, text, 1, 1, DIMS);
        for (int i = 0; i < DIMS; i++)
            s.x[i] = (float)(i - 7);
        scene_run(&s);
        for (int i = 0; i < DIMS; i++)
            sum[i] += (double)s.decoded[i];
        noise += mean_square_error(&s);
        if (seed + 1 < SEEDS)
            scene_close(&s);
    }
    double off = 0;
    double all = 0;
    for (int i = 0; i < DIMS; i++) {
        off += pow(sum[i] / SEEDS - (double)s.x[i], 2);
        all += pow((double)s.x[i], 2);
    }
    scene_close(&s);
    ck_assert_msg(fabs(noise / SEEDS - 3.14159265 / 2) < 0.1, "noise %g", noise / SEEDS);
    /* What is left of the noise after so many, with room. */
    ck_assert_msg(off / all < 2 * 1.571 / SEEDS, "mean off by %g", off / all);
}
END_TEST

/* Reordered numbers are coded as if they had stood so; V is left alone. */
START_TEST(channels_in_a_profiles_order)
{
    enum { HEADS = 2, DIMS = 64, CHANNELS = HEADS * DIMS, TOKENS = 20 };
    struct scene plain;
    struct scene s;
    scene_open(&plain, "bfp", HEADS, TOKENS, DIMS);
    scene_open(&s, "bfp", HEADS, TOKENS, DIMS);
    int32_t order[CHANNELS];
    for (int32_t i = 0; i < CHANNELS; i++)
        order[i] = (i * 37 + 11) % CHANNELS;
    uint64_t shape[2] = {1, CHANNELS};
    for (int damage = 0; damage < 3; damage++) {
        struct larder_profile_writer *writer;
        struct larder_profile *profile;
        struct larder_recipe *recipe;
        void *bytes;
        uint64_t byte_count;
        int32_t was = order[5];
        order[5] = damage == 0 ? was : damage == 1 ? order[6] : -1;
        ck_assert_int_eq(larder_profile_writer_open(&writer, &s.model), 0);
        ck_assert_int_eq(
            larder_profile_put(writer, "bfp.order", LARDER_PROFILE_I32, shape, 2, order), 0);
        ck_assert_int_eq(larder_profile_finish(writer, &bytes, &byte_count), 0);
        ck_assert_int_eq(larder_profile_open(&profile, bytes, byte_count), 0);
        int err = larder_recipe_open(&recipe, "reorder by=bfp | bfp", profile);
        ck_assert_int_eq(err, damage ? LARDER_EFORMAT : 0);
        order[5] = was;
        for (uint32_t section = 0; section < 2 && err == 0; section++) {
            for (uint64_t i = 0; i < s.count; i++)
                s.x[i] = (float)(next_normal() * exp2((double)(i * 5 % 7)));
            for (uint64_t i = 0; i < s.count; i++) {
                uint64_t head = i / DIMS / TOKENS;
                uint64_t token = i / DIMS % TOKENS;
                uint64_t from =
                    section ? head * DIMS + i % DIMS : (uint64_t)order[head * DIMS + i % DIMS];
                plain.x[i] = s.x[(from / DIMS * TOKENS + token) * DIMS + from % DIMS];
            }
            plain.section = s.section = section;
            scene_run(&plain);
            struct larder_recipe *unordered = s.recipe;
            s.recipe = recipe;
            scene_run(&s);
            s.recipe = unordered;
            ck_assert_uint_eq(s.encoded_bytes, plain.encoded_bytes);
            ck_assert_mem_eq(s.encoded, plain.encoded, plain.encoded_bytes);
            ck_assert(fabs(mean_square_error(&s) / mean_square_error(&plain) - 1) < 1e-9);
        }
        larder_recipe_close(recipe);
        ck_assert_int_eq(larder_recipe_open(&recipe, "reorder by=rotatekv | quant", profile),
                         LARDER_EUNSUPPORTED);
        ck_assert_ptr_nonnull(strstr(larder_error_message(), "rotatekv.order"));
        larder_profile_close(profile);
        larder_free(bytes);
        larder_profile_writer_close(writer);
    }
    scene_close(&s);
    scene_close(&plain);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("grids");
    TCase *tests = tcase_create("grids");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, errors_of_normal_numbers);
    tcase_add_test(tests, levels_of_a_normal_number);
    tcase_add_test(tests, floats_round_to_the_nearest);
    tcase_add_test(tests, blocks_share_an_exponent);
    tcase_add_test(tests, three_levels_by_hand);
    tcase_add_test(tests, one_bit_by_hand);
    tcase_add_test(tests, a_clip_is_taken_where_it_helps);
    tcase_add_test(tests, lookups_are_alike);
    tcase_add_test(tests, rotations_are_alike);
    tcase_add_test(tests, bad_parameters);
    tcase_add_test(tests, no_number_as_a_power);
    tcase_add_test(tests, magnitudes);
    tcase_add_test(tests, bad_numbers);
    tcase_add_test(tests, a_wave_is_one_number);
    tcase_add_test(tests, sketches_are_right_on_average);
    tcase_add_test(tests, channels_in_a_profiles_order);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
