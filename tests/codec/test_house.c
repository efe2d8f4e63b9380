/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the house recipe rounds coefficients of the profile's basis to the profile's step, finer
 *         at a block's end, whatever they are; a profile that makes no sense is refused.
 * Method: f32 planes and bases made up here; coefficients of what came back are worked out by slow
 *         code and must be whole numbers of steps within half a step of those that went in; one
 *         fault a profile. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "codec/klt.h"
#include "codec/profile_writer.h"
#include "codec/rans.h"
#include "codec/steps.h"
#include "tests/codec/number_scene.h"

enum { LAYERS = 3, HEADS = 2, DIMS_MAX = 20 };

static const float kls[] = {0.001f, 0.01f, 0.1f};
static const int32_t steps[] = {-12, -6, -2};
static const double step_of[] = {0.125, 0.35355339, 0.70710678};

struct house {
    uint32_t dims;
    double forward[LAYERS * HEADS][DIMS_MAX][DIMS_MAX];
    float mean[LAYERS * HEADS][DIMS_MAX];
    struct larder_profile *profile;
    void *bytes;
};

/* What is wrong with a profile. */
enum fault {
    NOTHING,
    NO_BASIS,
    NO_TABLES,
    BAD_TABLE,
    NO_ZERO,
    FAR_SCALE,
    FAR_STEP,
    OTHER_SHAPE,
    NO_STEPS,
};

/* Unlike the unit matrix, and far from singular. */
static void fill_forward(double m[DIMS_MAX][DIMS_MAX], uint32_t dims)
{
    for (uint32_t i = 0; i < dims; i++) {
        for (uint32_t j = 0; j < dims; j++)
            m[i][j] = (i == j ? 1.5 : 0) + 0.3 * (double)next_normal() / sqrt(dims);
    }
}

/* back[c][i]: the inverse, transposed; Gauss and Jordan. */
static void invert(float *back, const double m[DIMS_MAX][DIMS_MAX], uint32_t dims)
{
    double a[DIMS_MAX][2 * DIMS_MAX];
    for (uint32_t i = 0; i < dims; i++) {
        for (uint32_t j = 0; j < 2 * dims; j++)
            a[i][j] = j < dims ? m[i][j] : (double)(j - dims == i);
    }
    for (uint32_t p = 0; p < dims; p++) {
        double pivot = a[p][p];
        for (uint32_t j = 0; j < 2 * dims; j++)
            a[p][j] /= pivot;
        for (uint32_t i = 0; i < dims; i++) {
            double factor = a[i][p];
            for (uint32_t j = 0; j < 2 * dims && i != p; j++)
                a[i][j] -= factor * a[p][j];
        }
    }
    for (uint32_t c = 0; c < dims; c++) {
        for (uint32_t i = 0; i < dims; i++)
            back[c * dims + i] = (float)a[i][dims + c];
    }
}

static void fill_tables(uint16_t out[STEPS_TABLES][RANS_LEVELS_MAX], enum fault fault)
{
    for (uint32_t table = 0; table < STEPS_TABLES; table++) {
        uint64_t counts[RANS_LEVELS_MAX] = {[STEPS_ESCAPE] = 1};
        int reach = table < 20 ? 1 + (int)table : 100;
        for (int whole = -reach; whole <= reach; whole++)
            counts[STEPS_ZERO + whole] = 1 + (uint64_t)(1e6 * exp(-abs(whole) * 8.0 / reach));
        struct rans_model model;
        rans_model_fit(&model, counts, RANS_LEVELS_MAX);
        memcpy(out[table], model.frequency, sizeof(out[table]));
    }
    if (fault == BAD_TABLE)
        out[5][STEPS_ZERO]++;
    if (fault == NO_ZERO) {
        out[7][STEPS_ZERO + 1] = (uint16_t)(out[7][STEPS_ZERO + 1] + out[7][STEPS_ZERO]);
        out[7][STEPS_ZERO] = 0;
    }
}

static void put_f32(struct larder_profile_writer *writer, char side, const char *what,
                    uint32_t rank, uint32_t dims, const float *data)
{
    char name[32];
    snprintf(name, sizeof(name), "larder.%c.%s", side, what);
    ck_assert_int_eq(larder_profile_put(writer, name, LARDER_PROFILE_F32,
                                        (uint64_t[]){LAYERS, HEADS, dims, dims}, rank, data),
                     0);
}

static void put_side(struct larder_profile_writer *writer, struct house *h, char side,
                     enum fault fault)
{
    static float forward[LAYERS * HEADS * DIMS_MAX * DIMS_MAX];
    static float back[LAYERS * HEADS * DIMS_MAX * DIMS_MAX];
    float mean[LAYERS * HEADS * DIMS_MAX];
    int32_t scale[LAYERS * HEADS * DIMS_MAX];
    uint32_t dims = h->dims;
    for (uint32_t head = 0; head < LAYERS * HEADS; head++) {
        invert(back + head * dims * dims, h->forward[head], dims);
        for (uint32_t i = 0; i < dims; i++) {
            for (uint32_t j = 0; j < dims; j++)
                forward[(head * dims + j) * dims + i] = (float)h->forward[head][i][j];
            mean[head * dims + i] = h->mean[head][i];
            scale[head * dims + i] = (int32_t)(i % 9) - 3;
        }
    }
    if (fault == FAR_SCALE)
        scale[7] = 401;
    put_f32(writer, side, "mean", 3, dims, mean);
    put_f32(writer, side, "forward", 4, dims, forward);
    if (fault != NO_BASIS)
        put_f32(writer, side, "back", 4, dims, back);
    char name[32];
    snprintf(name, sizeof(name), "larder.%c.scale", side);
    uint32_t rank = fault == OTHER_SHAPE ? 2 : 3;
    ck_assert_int_eq(larder_profile_put(writer, name, LARDER_PROFILE_I32,
                                        (uint64_t[]){LAYERS, HEADS, dims}, rank, scale),
                     0);
}

static void house_open(struct house *h, uint32_t dims, enum fault fault)
{
    const struct larder_model_desc model = {.layers = LAYERS,
                                            .kv_heads = HEADS,
                                            .k_dims = dims,
                                            .v_dims = dims,
                                            .dtype = LARDER_F32,
                                            .vocab = 10};
    h->dims = dims;
    for (uint32_t head = 0; head < LAYERS * HEADS; head++) {
        fill_forward(h->forward[head], dims);
        for (uint32_t i = 0; i < dims; i++)
            h->mean[head][i] = next_normal();
    }
    struct larder_profile_writer *writer;
    ck_assert_int_eq(larder_profile_writer_open(&writer, &model), 0);
    put_side(writer, h, 'k', fault);
    put_side(writer, h, 'v', fault);
    uint16_t tables[STEPS_TABLES][RANS_LEVELS_MAX];
    fill_tables(tables, fault);
    if (fault != NO_TABLES)
        ck_assert_int_eq(larder_profile_put(writer, "larder.tables", LARDER_PROFILE_U16,
                                            (uint64_t[]){STEPS_TABLES, RANS_LEVELS_MAX}, 2, tables),
                         0);
    int32_t stored[3];
    memcpy(stored, steps, sizeof(stored));
    if (fault == FAR_STEP)
        stored[2] = -401;
    if (fault != NO_STEPS) {
        ck_assert_int_eq(
            larder_profile_put(writer, "larder.kl", LARDER_PROFILE_F32, (uint64_t[]){3}, 1, kls),
            0);
        ck_assert_int_eq(larder_profile_put(writer, "larder.step", LARDER_PROFILE_I32,
                                            (uint64_t[]){3}, 1, stored),
                         0);
    }
    uint64_t count;
    ck_assert_int_eq(larder_profile_finish(writer, &h->bytes, &count), 0);
    larder_profile_writer_close(writer);
    ck_assert_int_eq(larder_profile_open(&h->profile, h->bytes, count), 0);
}

static void house_close(struct house *h)
{
    larder_profile_close(h->profile);
    larder_free(h->bytes);
}

/* Coefficient `c` of the row of a section at `at`. */
static double coefficient(const struct house *h, uint32_t head, const float *at, uint32_t c)
{
    double sum = 0;
    for (uint32_t i = 0; i < h->dims; i++)
        sum += h->forward[head][c][i] * ((double)at[i] - (double)h->mean[head][i]);
    return sum;
}

/* How much finer the step is at token `token`. */
static double finer_at(uint32_t token, uint32_t tokens, bool fine_ends)
{
    uint32_t behind = (tokens + 15) / 16 - 1 - token / 16;
    if (!fine_ends || behind > 3)
        return 1;
    return behind == 0 ? sqrt(8) : sqrt(2);
}

static void check_rounded(struct scene *s, const struct house *h, double step, bool fine_ends)
{
    uint32_t tokens = s->block.token_count;
    const float *was = floats_of(s->planes);
    const float *is = floats_of(s->decoded);
    for (uint32_t row = 0; row < HEADS * tokens; row++) {
        uint32_t head = s->section / 2 * HEADS + row / tokens;
        double here = step / finer_at(row % tokens, tokens, fine_ends);
        for (uint32_t c = 0; c < h->dims; c++) {
            double before = coefficient(h, head, was + row * h->dims, c) / here;
            double after = coefficient(h, head, is + row * h->dims, c) / here;
            double slack = 1e-4 + 1e-5 * fabs(before);
            ck_assert_msg(fabs(after - round(after)) <= slack, "row %u, %u: %g steps", row, c,
                          after);
            ck_assert_msg(fabs(after - before) <= 0.5 + slack, "row %u, %u: %g, was %g", row, c,
                          after, before);
        }
    }
}

START_TEST(coefficients_are_whole_steps)
{
    static const uint32_t shapes[][2] = {{16, 256}, {12, 100}, {7, 17}, {20, 1}, {1, 15}, {5, 64}};
    for (uint32_t i = 0; i < 4 * LARDER_COUNT_OF(shapes); i++) {
        const uint32_t *shape = shapes[i / 4];
        struct house h;
        struct scene s;
        house_open(&h, shape[0], NOTHING);
        const char *text = i % 2 ? "klt | steps kl=0.01 ends=even" : "klt | steps";
        scene_open_with(&s, h.profile, text, LARDER_F32, HEADS, shape[0], shape[1], 0,
                        (i / 2 % 2) + 2 * (i % LAYERS));
        scene_encode(&s);
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        relative_error(&s);
        ck_assert(larder_recipe_needs_profile(s.recipe));
        if (!s.error.fell_back)
            check_rounded(&s, &h, step_of[1], i % 2 == 0);
        ck_assert(!s.error.fell_back || shape[0] * shape[1] < 256);
        scene_close(&s);
        house_close(&h);
    }
}
END_TEST

/* Every version of the sum gives the scalar one's bits; that one is checked against a plain sum. */
START_TEST(sums_are_alike)
{
    static const uint32_t dims[] = {1, 7, 8, 16, 23, 64, 80, 128};
    static float matrix[128 * 128];
    float start[128];
    float factors[KLT_TOKENS * 128];
    float first[KLT_TOKENS * 128 + 1];
    float again[KLT_TOKENS * 128 + 1];
    const klt_sum_function versions[] = {klt_sum_avx512(), klt_sum_avx2()};
    for (uint32_t round = 0; round < 40 * LARDER_COUNT_OF(dims); round++) {
        uint32_t n = dims[round % LARDER_COUNT_OF(dims)];
        uint32_t tokens = 1 + round % KLT_TOKENS;
        memset(factors, 0, sizeof(factors));
        for (uint32_t i = 0; i < n * n; i++)
            matrix[i] = next_normal();
        for (uint32_t i = 0; i < n; i++)
            start[i] = next_normal();
        for (uint32_t i = 0; i < tokens * n; i++)
            factors[i] = next_random() % (1 + round / 16) ? 0 : next_normal();
        const struct klt_sum sum = {.dims = n,
                                    .tokens = tokens,
                                    .start = round % 3 ? start : NULL,
                                    .factors = factors,
                                    .matrix = matrix};
        first[tokens * n] = again[tokens * n] = 77;
        klt_sum_scalar(first, &sum);
        ck_assert(first[tokens * n] == 77);
        for (uint32_t i = 0; i < tokens * n; i++) {
            double x = sum.start ? (double)start[i % n] : 0;
            for (uint32_t c = 0; c < n; c++)
                x += (double)factors[i / n * n + c] * (double)matrix[c * n + i % n];
            ck_assert_double_eq_tol((double)first[i], x, 1e-4);
        }
        for (size_t v = 0; v < LARDER_COUNT_OF(versions); v++) {
            if (!versions[v])
                continue;
            versions[v](again, &sum);
            ck_assert_mem_eq(again, first, (tokens * n + 1) * sizeof(*first));
        }
    }
}
END_TEST

START_TEST(numbers_far_out_are_escapes)
{
    struct house h;
    struct scene s;
    house_open(&h, 16, NOTHING);
    scene_open_with(&s, h.profile, "klt | steps", LARDER_F32, HEADS, 16, 96, 0, 3);
    float *x = floats_of(s.planes);
    for (uint32_t i = 0; i < 40; i++)
        x[(i * 77) % s.count] += (i % 2 ? 1 : -1) * (float)(i * i);
    scene_run(&s);
    check_rounded(&s, &h, step_of[1], true);
    x[100] = 1e9f; /* more steps than an escape can say */
    scene_encode(&s);
    ck_assert(s.error.fell_back);
    ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
    ck_assert_mem_eq(s.decoded, s.planes, s.planes_bytes);
    x[100] = NAN;
    scene_encode(&s);
    ck_assert(s.error.fell_back);
    scene_close(&s);
    house_close(&h);
}
END_TEST

START_TEST(a_constant_costs_nothing)
{
    struct house h;
    struct scene s;
    house_open(&h, 16, NOTHING);
    scene_open_with(&s, h.profile, "klt | steps", LARDER_F32, HEADS, 16, 256, 0, 5);
    for (uint32_t i = 0; i < s.count; i++)
        floats_of(s.planes)[i] = h.mean[2 * HEADS + i / (16 * 256)][i % 16];
    scene_run(&s);
    ck_assert_mem_eq(s.decoded, s.planes, s.planes_bytes);
    ck_assert_uint_le(s.encoded_bytes, 8 + 4 + 8 + RANS_LANES * 4);
    scene_close(&s);
    house_close(&h);
}
END_TEST

START_TEST(the_step_is_the_largest_allowed)
{
    static const struct {
        const char *kl;
        double step;
    } asked[] = {{"1", step_of[2]},    {"0.1", step_of[2]},   {"0.09", step_of[1]},
                 {"0.01", step_of[1]}, {"0.005", step_of[0]}, {"0.001", step_of[0]}};
    struct house h;
    house_open(&h, 8, NOTHING);
    for (size_t i = 0; i < LARDER_COUNT_OF(asked); i++) {
        char text[64];
        snprintf(text, sizeof(text), "klt | steps ends=even kl=%s", asked[i].kl);
        struct scene s;
        scene_open_with(&s, h.profile, text, LARDER_F32, HEADS, 8, 48, 0, 1);
        scene_run(&s);
        check_rounded(&s, &h, asked[i].step, false);
        scene_close(&s);
    }
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, "klt | steps kl=0.0009", h.profile),
                     LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "0.001"));
    house_close(&h);
}
END_TEST

/* The preset on K: sinks kept, rotary embedding taken off and put back. */
START_TEST(the_preset_is_whole)
{
    struct house h;
    house_open(&h, 16, NOTHING);
    for (uint32_t section = 0; section < 2; section++) {
        struct scene s;
        scene_open_with(&s, h.profile, "larder", LARDER_BF16, HEADS, 16, 256, section * 256,
                        section);
        scene_run(&s);
        ck_assert_double_le(relative_error(&s), 0.1);
        ck_assert_uint_le(s.encoded_bytes, s.planes_bytes * 2 / 3);
        bool kept = memcmp(s.decoded, s.planes, 32) == 0;
        ck_assert(kept == (section == 0));
        scene_close(&s);
    }
    house_close(&h);
}
END_TEST

START_TEST(profiles_without_sense_are_refused)
{
    static const struct {
        enum fault fault;
        int err;
        const char *named;
    } faults[] = {{NO_BASIS, LARDER_EUNSUPPORTED, "larder.k.back"},
                  {NO_TABLES, LARDER_EUNSUPPORTED, "larder.tables"},
                  {BAD_TABLE, LARDER_EFORMAT, "larder.tables"},
                  {NO_ZERO, LARDER_EFORMAT, "larder.tables"},
                  {FAR_SCALE, LARDER_EFORMAT, "larder.k.scale"},
                  {FAR_STEP, LARDER_EFORMAT, "larder.step"},
                  {OTHER_SHAPE, LARDER_EFORMAT, "larder.k.scale"},
                  {NO_STEPS, LARDER_EUNSUPPORTED, "larder.kl"}};
    for (size_t i = 0; i < LARDER_COUNT_OF(faults); i++) {
        struct house h;
        house_open(&h, 8, faults[i].fault);
        struct larder_recipe *recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, "larder", h.profile), faults[i].err);
        ck_assert_msg(strstr(larder_error_message(), faults[i].named) != NULL, "%s",
                      larder_error_message());
        house_close(&h);
    }
    struct larder_recipe *recipe;
    ck_assert_int_eq(larder_recipe_open(&recipe, "larder", NULL), 0);
    struct house h;
    struct scene s;
    house_open(&h, 8, NOTHING);
    scene_open_with(&s, h.profile, "larder", LARDER_F32, HEADS, 8, 16, 0, 0);
    ck_assert_int_eq(larder_recipe_fits(recipe, &s.model), LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "larder calibrate"));
    larder_recipe_close(recipe);
    scene_close(&s);
    /* Where a stage before it has taken channels away. */
    ck_assert_int_eq(
        larder_recipe_open(&recipe, "split by=channels{klt | steps}{quant}", h.profile), 0);
    ck_assert_int_eq(larder_recipe_fits(recipe, &s.model), LARDER_EUNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(larder_error_message(), "klt"));
    larder_recipe_close(recipe);
    house_close(&h);
}
END_TEST

START_TEST(cut_and_changed_bytes_stay_within)
{
    struct house h;
    struct scene s;
    house_open(&h, 12, NOTHING);
    scene_open_with(&s, h.profile, "klt | steps", LARDER_F32, HEADS, 12, 40, 0, 4);
    scene_encode(&s);
    for (uint64_t cut = 0; cut < s.encoded_bytes; cut++)
        ck_assert_int_lt(scene_decode(&s, s.encoded, cut), 0);
    for (uint32_t round = 0; round < 2000; round++) {
        uint64_t at = 8 + next_random() % (s.encoded_bytes - 8);
        uint8_t was = s.encoded[at];
        s.encoded[at] = (uint8_t)next_random();
        scene_decode(&s, s.encoded, s.encoded_bytes);
        s.encoded[at] = was;
    }
    scene_close(&s);
    house_close(&h);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("house");
    TCase *tests = tcase_create("house");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, coefficients_are_whole_steps);
    tcase_add_test(tests, sums_are_alike);
    tcase_add_test(tests, numbers_far_out_are_escapes);
    tcase_add_test(tests, a_constant_costs_nothing);
    tcase_add_test(tests, the_step_is_the_largest_allowed);
    tcase_add_test(tests, the_preset_is_whole);
    tcase_add_test(tests, profiles_without_sense_are_refused);
    tcase_add_test(tests, cut_and_changed_bytes_stay_within);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
