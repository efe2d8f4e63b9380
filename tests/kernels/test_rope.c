/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: frequencies of every RoPE kind, the tables, and moving keys between positions.
 * Method: direct formulae in double; a moved key against the key rotated at its new position;
 * every parameter that makes no table is refused.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/mem.h"
#include "kernels/cpu/cpu_math.h"
#include "kernels/rope.h"

#define PI 3.14159265358979323846

static const struct larder_rope plain = {.kind = LARDER_ROPE_PLAIN,
                                         .rotary_dims = 64,
                                         .theta = 10000,
                                         .factor = 1,
                                         .attention_factor = 1};

static struct larder_rope llama3(void)
{
    struct larder_rope rope = plain;
    rope.kind = LARDER_ROPE_LLAMA3;
    rope.theta = 500000;
    rope.rotary_dims = 128;
    rope.factor = 8;
    rope.low_freq_factor = 1;
    rope.high_freq_factor = 4;
    rope.original_max_position = 8192;
    return rope;
}

static struct larder_rope yarn(void)
{
    struct larder_rope rope = plain;
    rope.kind = LARDER_ROPE_YARN;
    rope.theta = 1000000;
    rope.rotary_dims = 128;
    rope.factor = 4;
    rope.beta_fast = 32;
    rope.beta_slow = 1;
    rope.attention_factor = 0.1 * log(4) + 1;
    rope.original_max_position = 32768;
    return rope;
}

static void check_near(float got, double wanted)
{
    ck_assert_msg(fabs((double)got / wanted - 1) < 1e-6, "%.9g, not %.9g", (double)got, wanted);
}

START_TEST(test_plain_linear)
{
    float got[32];
    struct larder_rope rope = plain;
    larder_rope_frequencies(got, &rope);
    ck_assert(got[0] == 1);
    for (int i = 0; i < 32; i++)
        check_near(got[i], pow(10000, -i / 32.0));
    rope.kind = LARDER_ROPE_LINEAR;
    rope.factor = 2.5;
    larder_rope_frequencies(got, &rope);
    for (int i = 0; i < 32; i++)
        check_near(got[i], pow(10000, -i / 32.0) / 2.5);
}
END_TEST

START_TEST(test_llama3)
{
    float got[64];
    struct larder_rope rope = llama3();
    larder_rope_frequencies(got, &rope);
    int kept = 0;
    int mixed = 0;
    int divided = 0;
    for (int i = 0; i < 64; i++) {
        double turn = pow(500000, -i / 64.0);
        double turns = 8192 * turn / (2 * PI); /* within the trained context */
        if (turns > 4) {
            check_near(got[i], turn);
            kept++;
        } else if (turns < 1) {
            check_near(got[i], turn / 8);
            divided++;
        } else {
            double share = (turns - 1) / 3;
            check_near(got[i], share * turn + (1 - share) * turn / 8);
            mixed++;
        }
    }
    ck_assert_int_gt(kept, 0);
    ck_assert_int_gt(mixed, 0);
    ck_assert_int_gt(divided, 0);
}
END_TEST

START_TEST(test_yarn)
{
    float got[64];
    struct larder_rope rope = yarn();
    larder_rope_frequencies(got, &rope);
    /* 128 log(32768 / (turns 2 pi)) / (2 log 10^6) for 32 and 1 turns: 23.6 and 39.7 */
    int low = 23;
    int high = 40;
    for (int i = 0; i < 64; i++) {
        double turn = pow(1000000, -i / 64.0);
        double ramp = fmin(fmax((double)(i - low) / (high - low), 0), 1);
        check_near(got[i], turn * (1 - ramp) + turn / 4 * ramp);
    }
    struct larder_rope_table *table;
    ck_assert_int_eq(larder_rope_table_open(&table, &rope, 128), 0);
    ck_assert_int_eq(larder_rope_table_grow(table, 3), 0);
    ck_assert(table->cos[0] == (float)rope.attention_factor);
    check_near(table->sin[2 * 64], sin(2) * rope.attention_factor);
    larder_rope_table_close(table);
}
END_TEST

START_TEST(test_table_grows)
{
    struct larder_rope_table *table;
    ck_assert_int_eq(larder_rope_table_open(&table, &plain, 64), 0);
    ck_assert_uint_eq(table->pairs, 32);
    ck_assert_int_eq(larder_rope_table_grow(table, 10), 0);
    float before = table->cos[9 * 32 + 3];
    ck_assert_int_eq(larder_rope_table_grow(table, 5), 0);
    ck_assert_uint_eq(table->positions, 10);
    for (uint64_t n = 1; n <= 2; n++) {
        larder_mem_fail_at(n);
        ck_assert_int_eq(larder_rope_table_grow(table, 5000), -ENOMEM);
        ck_assert_uint_eq(table->positions, 10);
        ck_assert(table->cos[9 * 32 + 3] == before);
    }
    larder_mem_fail_at(0);
    ck_assert_int_eq(larder_rope_table_grow(table, 5000), 0);
    ck_assert(table->cos[9 * 32 + 3] == before);
    for (uint32_t position = 0; position < 5000; position += 617)
        for (uint32_t i = 0; i < 32; i++) {
            double angle = position * pow(10000, -(double)i / 32);
            ck_assert_double_le(fabs((double)table->cos[position * 32 + i] - cos(angle)), 1e-3);
            ck_assert_double_le(fabs((double)table->sin[position * 32 + i] - sin(angle)), 1e-3);
        }
    ck_assert_int_eq(larder_rope_table_grow(table, LARDER_PROMPT_TOKENS_MAX + 1), LARDER_ELIMIT);
    larder_rope_table_close(table);
}
END_TEST

/* Rotates rows in double from the table's own numbers. */
static void rotate(double *out, const double *x, const struct larder_rope_table *table,
                   uint32_t position)
{
    memcpy(out, x, 80 * sizeof(*out));
    for (uint32_t i = 0; i < table->pairs; i++) {
        uint32_t low = table->rope.interleaved ? 2 * i : i;
        uint32_t high = table->rope.interleaved ? 2 * i + 1 : i + table->pairs;
        double c = (double)table->cos[position * table->pairs + i];
        double s = (double)table->sin[position * table->pairs + i];
        out[low] = x[low] * c - x[high] * s;
        out[high] = x[high] * c + x[low] * s;
    }
}

static void check_move(const struct larder_rope *rope, uint32_t dtype, double tolerance,
                       uint32_t far)
{
    enum { ROWS = 5, HEADS = 2, DIMS = 80 };
    const uint32_t from[ROWS] = {0, 7, far, 300, 12};
    const uint32_t to[ROWS] = {far, 8, 3, 300, 0};
    struct larder_rope_table *table;
    ck_assert_int_eq(larder_rope_table_open(&table, rope, DIMS), 0);
    ck_assert_int_eq(larder_rope_table_grow(table, far + 1), 0);

    float block[ROWS * HEADS * DIMS];
    double wanted[ROWS * HEADS * DIMS];
    uint16_t *halves = (uint16_t *)block;
    srand(5);
    for (size_t head = 0; head < ROWS * HEADS; head++) {
        double x[DIMS];
        double rotated[DIMS];
        for (int i = 0; i < DIMS; i++)
            x[i] = (double)rand() / RAND_MAX - 0.5;
        rotate(rotated, x, table, from[head / HEADS]);
        rotate(wanted + head * DIMS, x, table, to[head / HEADS]);
        for (size_t i = 0; i < DIMS; i++) {
            if (dtype == LARDER_F32)
                block[head * DIMS + i] = (float)rotated[i];
            else
                halves[head * DIMS + i] = dtype == LARDER_F16 ? f16_from_float((float)rotated[i])
                                                              : bf16_from_float((float)rotated[i]);
        }
    }
    float before[ROWS * HEADS * DIMS];
    memcpy(before, block, sizeof(block));
    struct larder_tensor rows = larder_cube(block, dtype, ROWS, HEADS, DIMS);
    larder_rope_move(table, &(struct larder_rope_move){rows, rows, from, to});
    for (size_t head = 0; head < ROWS * HEADS; head++) {
        double length = 0;
        for (size_t i = 0; i < DIMS; i++)
            length += wanted[head * DIMS + i] * wanted[head * DIMS + i];
        for (size_t i = 0; i < DIMS; i++)
            ck_assert_double_le(
                fabs((double)load_element(block, dtype, head * DIMS + i) - wanted[head * DIMS + i]),
                tolerance * sqrt(length));
    }
    /* Row 3 stays where it is. */
    size_t row_bytes = HEADS * DIMS * larder_dtype_bytes(dtype);
    ck_assert_int_eq(
        memcmp((char *)before + 3 * row_bytes, (char *)block + 3 * row_bytes, row_bytes), 0);
    larder_rope_table_close(table);
}

START_TEST(test_move)
{
    for (uint32_t interleaved = 0; interleaved < 2; interleaved++) {
        struct larder_rope ropes[] = {plain, llama3(), yarn()};
        for (size_t i = 0; i < LARDER_COUNT_OF(ropes); i++) {
            ropes[i].interleaved = interleaved;
            ropes[i].rotary_dims = 64; /* of 80 */
            check_move(&ropes[i], LARDER_F32, 4e-6, i == 0 ? 1u << 20 : 5000);
            check_move(&ropes[i], LARDER_F16, 1e-3, 5000);
            check_move(&ropes[i], LARDER_BF16, 8e-3, 5000);
        }
    }
}
END_TEST

START_TEST(test_none)
{
    struct larder_rope rope = {.kind = LARDER_ROPE_NONE};
    struct larder_rope_table *table;
    ck_assert_int_eq(larder_rope_table_open(&table, &rope, 8), 0);
    ck_assert_int_eq(larder_rope_table_grow(table, 10), 0);
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint16_t moved[8];
    uint32_t from = 1;
    uint32_t to = 9;
    larder_rope_move(table,
                     &(struct larder_rope_move){larder_cube(moved, LARDER_BF16, 1, 1, 8),
                                                larder_cube(x, LARDER_F32, 1, 1, 8), &from, &to});
    for (uint64_t i = 0; i < 8; i++)
        ck_assert(load_element(moved, LARDER_BF16, i) == x[i]);
    larder_rope_table_close(table);
}
END_TEST

#define REFUSED(code, change)                                                                      \
    do {                                                                                           \
        struct larder_rope rope = yarn();                                                          \
        change;                                                                                    \
        ck_assert_int_eq(larder_rope_check(&rope, 128), (code));                                   \
        ck_assert(strlen(larder_error_message()) > 10);                                            \
    } while (0)

START_TEST(test_refused)
{
    struct larder_rope good = yarn();
    ck_assert_int_eq(larder_rope_check(&good, 128), 0);
    good = llama3();
    ck_assert_int_eq(larder_rope_check(&good, 128), 0);
    REFUSED(LARDER_EUNSUPPORTED, rope.kind = 5);
    REFUSED(LARDER_EMODEL, rope.rotary_dims = 0);
    REFUSED(LARDER_EMODEL, rope.rotary_dims = 63);
    REFUSED(LARDER_EMODEL, rope.rotary_dims = 130);
    REFUSED(LARDER_EMODEL, rope.interleaved = 2);
    REFUSED(LARDER_EMODEL, rope.theta = 0.5);
    REFUSED(LARDER_EMODEL, rope.theta = INFINITY);
    REFUSED(LARDER_EMODEL, rope.factor = 0.5);
    REFUSED(LARDER_EMODEL, rope.factor = NAN);
    REFUSED(LARDER_EMODEL, rope.original_max_position = 0);
    REFUSED(LARDER_EMODEL, rope.beta_slow = 40);
    REFUSED(LARDER_EMODEL, rope.beta_slow = 0);
    REFUSED(LARDER_EMODEL, rope.attention_factor = 0);
    REFUSED(LARDER_EMODEL, rope.attention_factor = NAN);
    REFUSED(LARDER_EMODEL, (rope = llama3(), rope.high_freq_factor = 1));
    REFUSED(LARDER_EMODEL, (rope = llama3(), rope.low_freq_factor = 0));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rope");
    TCase *all = tcase_create("rope");
    tcase_set_timeout(all, 60);
    tcase_add_test(all, test_plain_linear);
    tcase_add_test(all, test_llama3);
    tcase_add_test(all, test_yarn);
    tcase_add_test(all, test_table_grows);
    tcase_add_test(all, test_move);
    tcase_add_test(all, test_none);
    tcase_add_test(all, test_refused);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
