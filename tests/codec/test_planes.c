/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   byte planes are what planes.h says, and every fast version gives the scalar one's bits.
 * Method: the scalar version against a definition written out here; fast ones against the scalar
 *         over all 16-bit values and all counts around the vector width, with guard bytes behind
 *         each output. */
#include "codec/planes.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 300
#define GUARD     0xa5

static uint64_t random_state = 1;

static uint8_t random_byte(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(random_state >> 56);
}

START_TEST(scalar_is_the_definition)
{
    /* -2.5 in bf16: sign 1, exponent 128, fraction 0x20. */
    const uint16_t bf16 = 0xc020;
    uint8_t low;
    uint8_t high;
    uint8_t *const two[] = {&low, &high};
    planes_scalar.split[0](two, &bf16, 1);
    ck_assert_uint_eq(high, 128);
    ck_assert_uint_eq(low, 0x20 << 1 | 1);

    /* -2.5 in f32 */
    const float f32 = -2.5f;
    uint8_t bytes[4];
    uint8_t *const four[] = {&bytes[0], &bytes[1], &bytes[2], &bytes[3]};
    planes_scalar.split[1](four, &f32, 1);
    ck_assert_uint_eq(bytes[3], 128);
    ck_assert_uint_eq(bytes[2], 0x40);
    ck_assert_uint_eq(bytes[1], 0);
    ck_assert_uint_eq(bytes[0], 1);
}
END_TEST

static void check_width(const struct planes_ops *ops, int wide, size_t rows, size_t dims,
                        int with_base)
{
    size_t count = rows * dims;
    size_t elem_bytes = wide ? 4 : 2;
    static uint8_t elems[4 * COUNT_MAX];
    static uint8_t back[2][4 * COUNT_MAX + 1];
    static uint8_t planes[2][PLANES_MAX][COUNT_MAX + 1];
    uint8_t base[COUNT_MAX];
    ck_assert_uint_le(count, COUNT_MAX);
    for (size_t i = 0; i < count * elem_bytes; i++)
        elems[i] = random_byte();
    for (size_t d = 0; d < dims; d++)
        base[d] = with_base ? random_byte() : 0;
    memset(planes, GUARD, sizeof(planes));
    memset(back, GUARD, sizeof(back));

    const struct planes_ops *both[] = {&planes_scalar, ops};
    for (int i = 0; i < 2; i++) {
        uint8_t *to[PLANES_MAX];
        const uint8_t *from[PLANES_MAX];
        for (int p = 0; p < PLANES_MAX; p++)
            from[p] = to[p] = planes[i][p];
        both[i]->split[wide](to, elems, count);
        /* Join adds the base back that is taken off here. */
        uint8_t *top = planes[i][elem_bytes - 1];
        for (size_t e = 0; e < count; e++)
            top[e] = (uint8_t)(top[e] - base[e % dims]);
        both[i]->join[wide](back[i], from, with_base ? base : NULL, rows, dims);
        ck_assert_mem_eq(back[i], elems, count * elem_bytes);
        ck_assert_uint_eq(back[i][count * elem_bytes], GUARD);
        for (size_t p = 0; p < elem_bytes; p++)
            ck_assert_uint_eq(planes[i][p][count], GUARD);
    }
    ck_assert_mem_eq(planes[0], planes[1], sizeof(planes[0]));
}

START_TEST(fast_equals_scalar)
{
    const struct planes_ops *ops = planes_avx2();
    if (!ops)
        return;
    for (int wide = 0; wide < 2; wide++) {
        for (int with_base = 0; with_base < 2; with_base++) {
            for (size_t dims = 1; dims <= 100; dims++)
                check_width(ops, wide, 3, dims, with_base);
            for (size_t count = 1; count <= COUNT_MAX; count++)
                check_width(ops, wide, 1, count, with_base);
        }
    }
}
END_TEST

START_TEST(every_16_bit_value_survives)
{
    static uint16_t elems[65536];
    static uint16_t back[65536];
    static uint8_t low[65536];
    static uint8_t high[65536];
    for (unsigned i = 0; i < 65536; i++)
        elems[i] = (uint16_t)i;
    uint8_t *const to[] = {low, high};
    const uint8_t *const from[] = {low, high};
    planes_best()->split[0](to, elems, 65536);
    planes_best()->join[0](back, from, NULL, 1, 65536);
    ck_assert_mem_eq(back, elems, sizeof(elems));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("planes");
    TCase *tests = tcase_create("planes");
    tcase_add_test(tests, scalar_is_the_definition);
    tcase_add_test(tests, fast_equals_scalar);
    tcase_add_test(tests, every_16_bit_value_survives);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
