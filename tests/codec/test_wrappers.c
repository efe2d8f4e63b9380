/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   what stands around a quantizer does what it says: what it takes out of the numbers, what
 *         it hands on, what it puts back; inputs of a PUT are asked for when they are missing.
 * Method: f32 planes; the wrapper's part is worked out by slow code here, the inner recipe alone
 *         is run over what that hands on, and both together must be the wrapped recipe's answer,
 *         bit for bit unless said. That bytes are small, survive cuts and flips, and give the
 *         recorded error is in test_numbers.c, for the same recipes. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"
#include "tests/codec/number_scene.h"

/* --- balance and normalize -------------------------------------------------------------------- */

static void check_scaled(const char *name, uint32_t section)
{
    enum { HEADS = 2, DIMS = 24, TOKENS = 50 };
    static const char inner[] = "quant bits=3 axis=token group=0";
    char text[80];
    snprintf(text, sizeof(text), "%s | %s", name, inner);
    bool is_balance = strcmp(name, "balance") == 0;
    struct scene s;
    scene_open(&s, text, LARDER_F32, HEADS, DIMS, TOKENS, 0, section);
    const float *x = floats_of(s.planes);
    float factors[HEADS * DIMS];
    float most = 0;
    for (uint32_t i = 0; i < HEADS * DIMS; i++) {
        float largest = 0;
        for (uint32_t token = 0; token < TOKENS; token++)
            largest = fmaxf(largest, fabsf(x[(i / DIMS * TOKENS + token) * DIMS + i % DIMS]));
        const float *q_max = s.q_max + section / 2 * HEADS * DIMS;
        double ratio = is_balance ? (double)largest / (double)q_max[i] : (double)largest;
        factors[i] = is_balance && section % 2 ? 1 : (float)sqrt(ratio);
        most = fmaxf(most, factors[i]);
    }
    float scaled[HEADS * DIMS * TOKENS];
    float wanted[HEADS * DIMS * TOKENS];
    for (uint32_t i = 0; i < HEADS * DIMS; i++)
        factors[i] = stored_f16(factors[i], most);
    for (uint32_t i = 0; i < s.count; i++)
        scaled[i] = x[i] / factors[i / (TOKENS * DIMS) * DIMS + i % DIMS];
    run_alone(wanted, &s, inner, scaled);
    for (uint32_t i = 0; i < s.count; i++)
        wanted[i] *= factors[i / (TOKENS * DIMS) * DIMS + i % DIMS];
    scene_run(&s);
    ck_assert_mem_eq(s.decoded, wanted, s.planes_bytes);
    scene_close(&s);
}

START_TEST(channels_are_scaled_by_their_factors)
{
    check_scaled("normalize", 0);
    check_scaled("normalize", 3);
    check_scaled("balance", 2);
    check_scaled("balance", 3);
}
END_TEST

/* A channel of zeros, queries that are zero, infinite or no number do no harm. */
START_TEST(factors_of_odd_channels)
{
    struct scene s;
    scene_open(&s, "balance | normalize | quant bits=8 group=0", LARDER_F32, 1, 8, 16, 0, 0);
    static const float odd[] = {0, INFINITY, NAN, -1, 1e-45f, 1};
    memcpy(s.q_max, odd, sizeof(odd));
    float *x = floats_of(s.planes);
    for (uint32_t token = 0; token < 16; token++)
        x[token * 8 + 6] = 0;
    scene_run(&s);
    ck_assert(relative_error(&s) < 0.05);
    for (uint32_t token = 0; token < 16; token++)
        ck_assert(fabsf(element(&s, s.decoded, token * 8 + 6)) < 0.1f);
    scene_close(&s);
}
END_TEST

/* --- residual, join and low rank -------------------------------------------------------------- */

START_TEST(a_residual_is_added)
{
    static const char first[] = "quant bits=2 axis=channel group=16";
    static const char second[] = "hadamard | quant bits=3 group=16";
    struct scene s;
    scene_open(&s, "residual{quant bits=2 axis=channel group=16}{hadamard | quant bits=3 group=16}",
               LARDER_F32, 2, 16, 37, 0, 1);
    float rough[2 * 16 * 37];
    float rest[2 * 16 * 37];
    const float *x = floats_of(s.planes);
    run_alone(rough, &s, first, x);
    for (uint32_t i = 0; i < s.count; i++)
        rest[i] = x[i] - rough[i];
    run_alone(rest, &s, second, rest);
    for (uint32_t i = 0; i < s.count; i++)
        rough[i] += rest[i];
    scene_run(&s);
    ck_assert_mem_eq(s.decoded, rough, s.planes_bytes);
    scene_close(&s);
}
END_TEST

/* Four heads of 8 in twos are two heads of 16. */
START_TEST(joined_heads_are_one_wide_head)
{
    enum { TOKENS = 21 };
    static const char inner[] = "quant bits=3 group=12";
    struct scene s;
    struct scene wide;
    scene_open(&s, "join heads=2 | quant bits=3 group=12", LARDER_F32, 4, 8, TOKENS, 0, 0);
    scene_open(&wide, inner, LARDER_F32, 2, 16, TOKENS, 0, 0);
    float *from = floats_of(s.planes);
    float *to = floats_of(wide.planes);
    for (uint32_t i = 0; i < s.count; i++)
        to[(i / (2 * TOKENS * 8) * TOKENS + i / 8 % TOKENS) * 16 + i / (TOKENS * 8) % 2 * 8 +
           i % 8] = from[i];
    scene_run(&s);
    scene_run(&wide);
    from = floats_of(s.decoded);
    to = floats_of(wide.decoded);
    for (uint32_t i = 0; i < s.count; i++)
        ck_assert(from[i] == to[(i / (2 * TOKENS * 8) * TOKENS + i / 8 % TOKENS) * 16 +
                                i / (TOKENS * 8) % 2 * 8 + i % 8]);
    scene_close(&s);
    scene_close(&wide);
}
END_TEST

/* The largest singular values of a matrix by many plain power iterations, each taken off before
 * the next is looked for. */
static double energy_of_rank(double *matrix, int rows, int columns, int rank)
{
    double energy = 0;
    double *x = larder_alloc((uint64_t)(rows + columns) * sizeof(double));
    double *y = x + columns;
    for (int r = 0; r < rank; r++) {
        for (int i = 0; i < columns; i++)
            x[i] = 1 + i % 3;
        double value = 0;
        for (int round = 0; round < 200; round++) {
            double length = 0;
            for (int i = 0; i < rows; i++) {
                y[i] = 0;
                for (int j = 0; j < columns; j++)
                    y[i] += matrix[i * columns + j] * x[j];
                length += y[i] * y[i];
            }
            for (int i = 0; i < rows; i++)
                y[i] /= sqrt(length);
            value = 0;
            for (int j = 0; j < columns; j++) {
                x[j] = 0;
                for (int i = 0; i < rows; i++)
                    x[j] += matrix[i * columns + j] * y[i];
                value += x[j] * x[j];
            }
        }
        energy += value;
        for (int i = 0; i < rows * columns; i++)
            matrix[i] -= y[i / columns] * x[i % columns];
    }
    larder_free(x);
    return energy;
}

/* What is left of the error is what no product of that rank can take, or little more. */
START_TEST(low_rank_takes_what_a_rank_can)
{
    enum { HEADS = 2, DIMS = 32, TOKENS = 64, RANK = 4 };
    static const char inner[] = "quant bits=2 axis=token group=0 clip=0.5";
    struct scene s;
    scene_open(&s, "lowrank rank=4{quant bits=2 axis=token group=0 clip=0.5}", LARDER_F32, HEADS,
               DIMS, TOKENS, 0, 0);
    const float *x = floats_of(s.planes);
    float rough[HEADS * DIMS * TOKENS];
    run_alone(rough, &s, inner, x);
    scene_run(&s);
    double left = 0;
    double least = 0;
    for (int head = 0; head < HEADS; head++) {
        double error[DIMS * TOKENS];
        double energy = 0;
        for (int i = 0; i < DIMS * TOKENS; i++) {
            int at = head * DIMS * TOKENS + i;
            error[i] = (double)x[at] - (double)rough[at];
            energy += error[i] * error[i];
            double off = (double)element(&s, s.decoded, (uint64_t)at) - (double)x[at];
            left += off * off;
        }
        least += energy - energy_of_rank(error, TOKENS, DIMS, RANK);
    }
    ck_assert_msg(left >= 0.999 * least && left < 1.1 * least, "%g left, least %g", left, least);
    scene_close(&s);
}
END_TEST

/* A matrix of rank 2 is there whole, whatever the inner pipe makes of it. */
START_TEST(low_rank_of_odd_matrices)
{
    static const uint32_t shapes[][2] = {{1, 16}, {3, 7}, {40, 16}, {20, 1}};
    for (size_t i = 0; i < LARDER_COUNT_OF(shapes); i++) {
        for (int zero = 0; zero < 2; zero++) {
            struct scene s;
            uint32_t dims = shapes[i][1];
            scene_open(&s, "lowrank rank=9 iterations=4{quant bits=1 group=0 clip=0.1}", LARDER_F32,
                       1, dims, shapes[i][0], 0, 1);
            for (uint32_t e = 0; e < s.count; e++)
                floats_of(s.planes)[e] = zero ? 0
                                              : (float)(e / dims + 1) * (float)(e % dims + 1) / 50 +
                                                    (e % dims == 0 ? 5 : 0) * (float)(e / dims % 3);
            scene_encode(&s);
            ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
            if (zero)
                ck_assert(larder_all_zero(s.decoded, s.planes_bytes));
            else
                ck_assert_msg(relative_error(&s) < 0.03, "%u x %u: %g", shapes[i][0], dims,
                              relative_error(&s));
            scene_close(&s);
        }
    }
}
END_TEST

/* --- outliers --------------------------------------------------------------------------------- */

/* Places of a row in the order of their numbers, the earlier one first of equal ones. */
static void sort_places(uint32_t *places, uint32_t count, const float *x)
{
    for (uint32_t i = 1; i < count; i++) {
        uint32_t place = places[i];
        uint32_t j = i;
        for (; j > 0 && x[places[j - 1]] > x[place]; j--)
            places[j] = places[j - 1];
        places[j] = place;
    }
}

static void check_outliers(bool by_channel, bool mean)
{
    enum { HEADS = 2, DIMS = 20, TOKENS = 45, ROW_MAX = 45 };
    char inner[80];
    char text[160];
    snprintf(inner, sizeof(inner), "quant bits=2 axis=%s group=%d",
             by_channel ? "channel" : "token", by_channel ? 16 : 0);
    snprintf(text, sizeof(text), "outliers share=.1 axis=%s fill=%s{%s}",
             by_channel ? "channel" : "token", mean ? "mean" : "median", inner);
    struct scene s;
    scene_open(&s, text, LARDER_F32, HEADS, DIMS, TOKENS, 0, 0);
    float *x = floats_of(s.planes);
    /* Many equal numbers, so that ties are broken; the first row has but one. */
    for (uint32_t i = 0; i < s.count; i++) {
        bool first = by_channel ? i % DIMS == 0 && i < TOKENS * DIMS : i / DIMS % TOKENS == 0;
        x[i] = first ? -3 : roundf(x[i]);
    }
    float filled[HEADS * DIMS * TOKENS];
    float wanted[HEADS * DIMS * TOKENS];
    bool outside[HEADS * DIMS * TOKENS] = {0};
    memcpy(filled, x, sizeof(filled));
    uint32_t rows = by_channel ? HEADS * DIMS : TOKENS;
    uint32_t length = by_channel ? TOKENS : HEADS * DIMS;
    uint32_t each = (uint32_t)round(0.1 / 2 * length);
    uint32_t outliers = 0;
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t places[ROW_MAX];
        for (uint32_t i = 0; i < length; i++) {
            uint32_t token = by_channel ? i : row;
            uint32_t channel = by_channel ? row : i;
            places[i] = (channel / DIMS * TOKENS + token) * DIMS + channel % DIMS;
        }
        uint32_t sorted[ROW_MAX];
        memcpy(sorted, places, sizeof(sorted));
        sort_places(sorted, length, x);
        float fill = x[sorted[(length - 1) / 2]];
        for (uint32_t i = 0; i < each; i++)
            outside[sorted[i]] = true;
        /* Of equal large ones the first are taken: as if the negatives were sorted. */
        for (uint32_t i = 0; i < length; i++)
            filled[places[i]] = -x[places[i]];
        memcpy(sorted, places, sizeof(sorted));
        sort_places(sorted, length, filled);
        for (uint32_t i = 0; i < each; i++)
            outside[sorted[i]] = true;
        double sum = 0;
        uint32_t inside = 0;
        for (uint32_t i = 0; i < length; i++) {
            sum += outside[places[i]] ? 0 : (double)x[places[i]];
            inside += !outside[places[i]];
        }
        outliers += length - inside;
        if (mean)
            fill = (float)(sum / inside);
        for (uint32_t i = 0; i < length; i++)
            filled[places[i]] = outside[places[i]] ? fill : x[places[i]];
    }
    run_alone(wanted, &s, inner, filled);
    for (uint32_t i = 0; i < s.count; i++)
        wanted[i] = outside[i] ? x[i] : wanted[i];
    scene_run(&s);
    ck_assert_mem_eq(s.decoded, wanted, s.planes_bytes);
    /* A byte for each 256 numbers, a byte and the number for each outlier. */
    struct scene alone;
    scene_open(&alone, inner, LARDER_F32, HEADS, DIMS, TOKENS, 0, 0);
    scene_encode(&alone);
    ck_assert_uint_eq(s.encoded_bytes,
                      alone.encoded_bytes + (s.count + 255) / 256 + 5ul * outliers);
    ck_assert_uint_eq(outliers, (2 * rows - 1) * each);
    scene_close(&alone);
    scene_close(&s);
}

START_TEST(outliers_are_exact_and_widen_nothing)
{
    check_outliers(true, false);
    check_outliers(true, true);
    check_outliers(false, false);
    check_outliers(false, true);
}
END_TEST

/* Whole rows of outliers: a run of 256 places holds 255. */
START_TEST(a_run_that_is_all_outliers)
{
    struct scene s;
    scene_open(&s, "outliers share=.25 axis=channel{quant bits=2 axis=channel group=16 clip=.9}",
               LARDER_F32, 1, 64, 32, 0, 0);
    float *x = floats_of(s.planes);
    for (uint32_t i = 0; i < s.count; i++)
        x[i] = (i / 64 < 4 ? 1000 : 0) + (float)(i % 7);
    scene_run(&s);
    uint32_t off = 0;
    for (uint32_t i = 0; i < 4 * 64; i++)
        off += element(&s, s.decoded, i) != x[i];
    ck_assert_uint_eq(off, 1);
    ck_assert_uint_eq(s.encoded[8], 255);
    scene_close(&s);
}
END_TEST

/* --- split ------------------------------------------------------------------------------------ */

enum { SPLIT_HEADS = 3, SPLIT_DIMS = 20, SPLIT_TOKENS = 50 };

/* Both parts as blocks of their own. */
static void check_parts(const struct scene *s, const bool *chosen, bool by_class, uint32_t head,
                        uint32_t heads, const char *const inner[2])
{
    uint32_t count = by_class ? SPLIT_TOKENS : SPLIT_DIMS;
    for (int part = 0; part < 2; part++) {
        uint32_t places[SPLIT_TOKENS];
        uint32_t n = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (chosen[i] == (part == 0))
                places[n++] = i;
        }
        uint32_t tokens = by_class ? n : SPLIT_TOKENS;
        uint32_t dims = by_class ? SPLIT_DIMS : n;
        struct scene alone;
        scene_open(&alone, inner[part], LARDER_F32, heads, dims, tokens, 0, 0);
        for (int back = 0; back < 2; back++) {
            for (uint32_t i = 0; i < alone.count; i++) {
                uint32_t token = i / dims % tokens;
                uint32_t dim = i % dims;
                uint32_t at = ((head + i / dims / tokens) * SPLIT_TOKENS +
                               (by_class ? places[token] : token)) *
                                  SPLIT_DIMS +
                              (by_class ? dim : places[dim]);
                if (back)
                    ck_assert(floats_of(alone.decoded)[i] == element(s, s->decoded, at));
                else
                    floats_of(alone.planes)[i] = element(s, s->planes, at);
            }
            if (!back)
                scene_run(&alone);
        }
        scene_close(&alone);
    }
}

/* The `count` largest, the earlier one of equal ones. */
static void choose_largest(bool *chosen, const float *score, uint32_t scores, uint32_t count)
{
    memset(chosen, 0, scores * sizeof(chosen[0]));
    for (; count > 0; count--) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = 0; i < scores; i++) {
            if (!chosen[i] && (best == UINT32_MAX || score[i] > score[best]))
                best = i;
        }
        chosen[best] = true;
    }
}

START_TEST(important_tokens_have_a_pipe_of_their_own)
{
    static const char *const inner[2] = {"quant bits=6 axis=channel group=0",
                                         "quant bits=3 axis=token group=0"};
    for (int each = 0; each < 2; each++) {
        char text[200];
        snprintf(text, sizeof(text), "split by=class share=.3 heads=%s{%s}{%s}",
                 each ? "each" : "together", inner[0], inner[1]);
        struct scene s;
        scene_open(&s, text, LARDER_F32, SPLIT_HEADS, SPLIT_DIMS, SPLIT_TOKENS, 0, 4);
        /* Scores of which many are equal. */
        for (uint32_t i = 0; i < 3 * SPLIT_HEADS * SPLIT_TOKENS; i++)
            s.importance[i] = floorf(s.importance[i] * 4);
        scene_run(&s);
        const float *scores = s.importance + 2 * SPLIT_HEADS * SPLIT_TOKENS;
        for (uint32_t head = 0; head < (each ? SPLIT_HEADS : 1); head++) {
            float score[SPLIT_TOKENS] = {0};
            for (uint32_t i = 0; i < SPLIT_TOKENS; i++) {
                for (uint32_t other = 0; other < SPLIT_HEADS; other++)
                    score[i] += !each || other == head ? scores[other * SPLIT_TOKENS + i] : 0;
            }
            bool chosen[SPLIT_TOKENS];
            choose_largest(chosen, score, SPLIT_TOKENS, 15);
            check_parts(&s, chosen, true, head, each ? 1 : SPLIT_HEADS, inner);
        }
        scene_close(&s);
    }
}
END_TEST

START_TEST(wide_channels_have_a_pipe_of_their_own)
{
    static const char *const inner[2] = {"quant bits=6 axis=channel group=16",
                                         "quant bits=3 axis=token group=0"};
    for (int by_range = 0; by_range < 2; by_range++) {
        char text[200];
        snprintf(text, sizeof(text), "split share=.25 order=%s{%s}{%s}",
                 by_range ? "range" : "first", inner[0], inner[1]);
        struct scene s;
        scene_open(&s, text, LARDER_F32, SPLIT_HEADS, SPLIT_DIMS, SPLIT_TOKENS, 0, 1);
        float score[SPLIT_DIMS];
        for (uint32_t dim = 0; dim < SPLIT_DIMS; dim++) {
            score[dim] = by_range ? 0 : -(float)dim;
            for (uint32_t head = 0; head < SPLIT_HEADS && by_range; head++) {
                float low = INFINITY;
                float high = -INFINITY;
                for (uint32_t token = 0; token < SPLIT_TOKENS; token++) {
                    uint64_t at = (head * SPLIT_TOKENS + token) * SPLIT_DIMS + dim;
                    low = fminf(low, element(&s, s.planes, at));
                    high = fmaxf(high, element(&s, s.planes, at));
                }
                score[dim] = fmaxf(score[dim], high - low);
            }
        }
        bool chosen[SPLIT_DIMS];
        choose_largest(chosen, score, SPLIT_DIMS, 5);
        scene_run(&s);
        check_parts(&s, chosen, false, 0, SPLIT_HEADS, inner);
        scene_close(&s);
    }
}
END_TEST

START_TEST(what_reads_places_stands_outside)
{
    static const struct {
        const char *text;
        const char *stage;
    } cases[] = {
        {"split{rope-off | quant}{quant}", "rope-off"},
        {"split by=class{quant}{rope-off | quant}", "rope-off"},
        {"join | rope-off | quant", "rope-off"},
        {"split by=class{sinks{quant}}{quant}", "sinks"},
        {"split{balance | quant}{quant}", "balance"},
        {"split by=class heads=each{balance | quant}{quant}", "balance"},
        {"split by=class{split by=class{quant}{quant}}{quant}", "split"},
        {"join | split by=class heads=each{quant}{quant}", "split"},
        {"join | join | quant", "join"},
        {"split{outliers by=thresholds axis=channel{quant}}{quant}", "outliers"},
        {"split{quant}{codebook axis=channel}", "codebook"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct larder_recipe *recipe;
        ck_assert_int_eq(larder_recipe_open(&recipe, cases[i].text, NULL), -EINVAL);
        char wanted[80];
        snprintf(wanted, sizeof(wanted), ": %s reads what is known", cases[i].stage);
        ck_assert_msg(strstr(larder_error_message(), wanted) != NULL, "%s", larder_error_message());
    }
    static const char *const good[] = {"join | balance | quant",
                                       "balance | split{quant}{split{quant}{quant}}",
                                       "split by=class{balance | quant}{split{quant}{quant}}",
                                       "k{split{quant}{quant}} v{rope-off | quant}"};
    for (size_t i = 0; i < LARDER_COUNT_OF(good); i++) {
        struct larder_recipe *recipe;
        ck_assert_msg(larder_recipe_open(&recipe, good[i], NULL) == 0, "%s",
                      larder_error_message());
        larder_recipe_close(recipe);
    }
}
END_TEST

/* --- inputs ----------------------------------------------------------------------------------- */

START_TEST(missing_inputs_are_named)
{
    static const struct {
        const char *text;
        uint32_t needs;
        const char *message;
    } cases[] = {
        {"kivi2", 0, ""},
        {"balance | quant", LARDER_INPUT_Q_MAX, "larder_put_options.q_max"},
        {"k{sinks{balance | quant}} v{quant}", LARDER_INPUT_Q_MAX, "larder_put_options.q_max"},
        {"split by=class{quant}{quant}", LARDER_INPUT_IMPORTANCE, "larder_put_options.importance"},
        {"split by=channels{quant}{quant}", 0, ""},
        {"balance | split by=class{quant}{quant}", LARDER_INPUT_IMPORTANCE | LARDER_INPUT_Q_MAX,
         "larder_put_options.importance"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        struct scene s;
        scene_open(&s, cases[i].text, LARDER_BF16, 2, 16, 20, 0, 1);
        ck_assert_uint_eq(larder_recipe_needs(s.recipe), cases[i].needs);
        scene_encode(&s);
        /* Decoding asks for nothing. */
        s.block.importance = NULL;
        s.block.q_max = NULL;
        ck_assert_int_eq(scene_decode(&s, s.encoded, s.encoded_bytes), 0);
        int err =
            larder_recipe_encode(s.recipe, s.encoded, s.bound, &s.encoded_bytes, &s.error, &s.block,
                                 s.section, s.planes, s.workspace, s.workspace_bytes);
        ck_assert_int_eq(err, cases[i].needs ? -EINVAL : 0);
        if (err < 0)
            ck_assert_ptr_nonnull(strstr(larder_error_message(), cases[i].message));
        scene_close(&s);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("wrappers");
    TCase *tests = tcase_create("wrappers");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, channels_are_scaled_by_their_factors);
    tcase_add_test(tests, factors_of_odd_channels);
    tcase_add_test(tests, a_residual_is_added);
    tcase_add_test(tests, joined_heads_are_one_wide_head);
    tcase_add_test(tests, low_rank_takes_what_a_rank_can);
    tcase_add_test(tests, low_rank_of_odd_matrices);
    tcase_add_test(tests, outliers_are_exact_and_widen_nothing);
    tcase_add_test(tests, a_run_that_is_all_outliers);
    tcase_add_test(tests, important_tokens_have_a_pipe_of_their_own);
    tcase_add_test(tests, wide_channels_have_a_pipe_of_their_own);
    tcase_add_test(tests, what_reads_places_stands_outside);
    tcase_add_test(tests, missing_inputs_are_named);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
