/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: importance is the mean attention that a token gets from the probes that see it, and q_max
 * the largest query, however the queries come in.
 * Method: made-up queries and keys; attention again, plainly, in double, for some tokens.
 */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "tools/eval/inputs.h"
#include "tools/eval/samples.h"

#define HEADS    4u
#define KV_HEADS 2u
#define DIMS     8u
#define GROUP    (HEADS / KV_HEADS)

static const struct larder_model_config config = {
    .layers = 2, .heads = HEADS, .kv_heads = KV_HEADS, .head_dims = DIMS};

static float queries[2][EVAL_PREFIX_TOKENS + 5][HEADS][DIMS];
static float keys[2][KV_HEADS][EVAL_PREFIX_TOKENS][DIMS];

static float number(void)
{
    return (float)(rand() % 2001 - 1000) / 500;
}

static void make_numbers(void)
{
    srand(3);
    for (size_t i = 0; i < sizeof(queries) / sizeof(float); i++)
        (&queries[0][0][0][0])[i] = number();
    for (size_t i = 0; i < sizeof(keys) / sizeof(float); i++)
        (&keys[0][0][0][0])[i] = number();
}

static void take(struct eval_inputs *inputs, uint32_t layer, uint32_t first, uint32_t count)
{
    struct larder_tensor q = larder_cube(queries[layer][first], LARDER_F32, count, HEADS, DIMS);
    eval_inputs_take(inputs, layer, first, &q);
}

static double product(const float *a, const float *b)
{
    double sum = 0;
    for (uint32_t i = 0; i < DIMS; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / sqrt(DIMS);
}

/* Of one row and head on one key. */
static double attention(uint32_t layer, uint32_t row, uint32_t head, uint32_t key)
{
    const float *query = queries[layer][row][head];
    double sum = 0;
    for (uint32_t i = 0; i <= row; i++)
        sum += exp(product(query, keys[layer][head / GROUP][i]));
    return exp(product(query, keys[layer][head / GROUP][key])) / sum;
}

static double importance(uint32_t layer, uint32_t kv_head, uint32_t key)
{
    double sum = 0;
    uint32_t probes = 0;
    for (uint32_t row = key; row < EVAL_PREFIX_TOKENS; row++) {
        if (row % 20 != 19 && row < EVAL_PREFIX_TOKENS - EVAL_PREFIX_TOKENS / 20)
            continue;
        probes++;
        for (uint32_t i = 0; i < GROUP; i++)
            sum += attention(layer, row, kv_head * GROUP + i, key);
    }
    return sum / probes;
}

START_TEST(test_inputs)
{
    make_numbers();
    struct eval_inputs *inputs;
    ck_assert_int_eq(eval_inputs_open(&inputs, &config), 0);
    for (int again = 0; again < 2; again++) {
        eval_inputs_clear(inputs);
        for (uint32_t layer = 0; layer < 2; layer++) {
            take(inputs, layer, 0, again ? 384 : EVAL_PREFIX_TOKENS + 5);
            if (again)
                take(inputs, layer, 384, EVAL_PREFIX_TOKENS + 5 - 384);
            for (uint32_t kv_head = 0; kv_head < KV_HEADS; kv_head++) {
                const float *blocks[EVAL_BLOCKS];
                for (uint32_t i = 0; i < EVAL_BLOCKS; i++)
                    blocks[i] = keys[layer][kv_head][i * EVAL_BLOCK_TOKENS];
                eval_inputs_score(inputs, layer, kv_head, blocks);
            }
        }
        for (uint32_t i = 0; i < 2 * KV_HEADS; i++) {
            const uint32_t at[] = {0, 1, 18, 19, 20, 255, 256, 700, 973, 1023};
            for (size_t k = 0; k < sizeof(at) / sizeof(at[0]); k++) {
                const float *scores = eval_inputs_importance(inputs, at[k] / EVAL_BLOCK_TOKENS);
                ck_assert_double_eq_tol(
                    (double)scores[i * EVAL_BLOCK_TOKENS + at[k] % EVAL_BLOCK_TOKENS],
                    importance(i / KV_HEADS, i % KV_HEADS, at[k]), 1e-6);
            }
            for (uint32_t dim = 0; dim < DIMS; dim++) {
                float most = 0;
                for (uint32_t row = 0; row < EVAL_PREFIX_TOKENS; row++)
                    for (uint32_t head = 0; head < GROUP; head++)
                        most = fmaxf(
                            most,
                            fabsf(queries[i / KV_HEADS][row][i % KV_HEADS * GROUP + head][dim]));
                ck_assert_float_eq(eval_inputs_q_max(inputs)[i * DIMS + dim], most);
            }
        }
    }
    eval_inputs_close(inputs);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval_inputs");
    TCase *all = tcase_create("all");
    tcase_add_test(all, test_inputs);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
