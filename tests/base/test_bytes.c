/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   sizes, hex and rounding are read and written without surprises at their edges.
 * Method: tables of texts and values. */
#include "base/bytes.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

START_TEST(parse)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},
        {"4096", 4096},
        {"64K", 64ull << 10},
        {"64k", 64ull << 10},
        {"3M", 3ull << 20},
        {"2G", 2ull << 30},
        {"1T", 1ull << 40},
        {"18446744073709551615", UINT64_MAX},
        {"16777215T", 16777215ull << 40},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(good); i++) {
        uint64_t bytes = 1;
        ck_assert_int_eq(larder_parse_bytes(&bytes, good[i].text), 0);
        ck_assert_uint_eq(bytes, good[i].bytes);
    }
    static const char *const bad[] = {"",
                                      "K",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1KB",
                                      "1.5G",
                                      "0x10",
                                      "1P",
                                      "16777216T",
                                      "1kk",
                                      "18446744073709551616",
                                      "G1"};
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++) {
        uint64_t bytes = 77;
        ck_assert_int_eq(larder_parse_bytes(&bytes, bad[i]), -EINVAL);
        ck_assert_uint_eq(bytes, 77);
        ck_assert_ptr_nonnull(strstr(larder_error_message(), "is not a size"));
    }
}
END_TEST

START_TEST(seconds)
{
    static const struct {
        const char *text;
        uint64_t seconds;
    } good[] = {{"90", 90},     {"90s", 90},       {"15m", 900},
                {"12h", 43200}, {"7d", 7 * 86400}, {"36600d", 36600ull * 86400}};
    for (size_t i = 0; i < LARDER_COUNT_OF(good); i++) {
        uint64_t number = 1;
        ck_assert_int_eq(larder_parse_seconds(&number, good[i].text), 0);
        ck_assert_uint_eq(number, good[i].seconds);
    }
    static const char *const bad[] = {
        "", "0", "s", "-1s", "+1", " 1s", "1w", "1sm", "1.5h", "36601d", "18446744073709551616"};
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++) {
        uint64_t number = 77;
        ck_assert_int_eq(larder_parse_seconds(&number, bad[i]), -EINVAL);
        ck_assert_uint_eq(number, 77);
    }
}
END_TEST

START_TEST(human)
{
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {
        {0, "0 B"},           {999, "999 B"},     {1000, "1.0 KB"},       {786432, "786.4 KB"},
        {999949, "999.9 KB"}, {999950, "1.0 MB"}, {3100000000, "3.1 GB"}, {UINT64_MAX, "18.4 EB"},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(cases); i++) {
        char text[16];
        ck_assert_ptr_eq(larder_human_bytes(text, cases[i].bytes), text);
        ck_assert_str_eq(text, cases[i].text);
    }
}
END_TEST

START_TEST(hex)
{
    const uint8_t bytes[] = {0x00, 0x01, 0x9a, 0xbc, 0xff};
    char text[11];
    larder_hex(text, bytes, sizeof(bytes));
    ck_assert_str_eq(text, "00019abcff");
    uint8_t back[5] = {0};
    ck_assert_int_eq(larder_unhex(back, 5, text), 0);
    ck_assert_mem_eq(back, bytes, 5);
    ck_assert_int_eq(larder_unhex(back, 5, "00019ABCFF"), 0);
    ck_assert_mem_eq(back, bytes, 5);
    static const char *const bad[] = {"",           "00019abcf",  "00019abcff0",
                                      "00019abcfg", "00 19abcff", "0x019abcff"};
    for (size_t i = 0; i < LARDER_COUNT_OF(bad); i++)
        ck_assert_int_eq(larder_unhex(back, 5, bad[i]), -EINVAL);
    larder_hex(text, NULL, 0);
    ck_assert_str_eq(text, "");
    ck_assert_int_eq(larder_unhex(back, 0, ""), 0);
}
END_TEST

START_TEST(rounding_and_overflow)
{
    ck_assert_uint_eq(larder_round_up(0, 64), 0);
    ck_assert_uint_eq(larder_round_up(1, 64), 64);
    ck_assert_uint_eq(larder_round_up(64, 64), 64);
    ck_assert_uint_eq(larder_round_up((1ull << 40) + 1, 4096), (1ull << 40) + 4096);
    ck_assert_uint_eq(larder_min_u64(3, 4), 3);
    ck_assert_uint_eq(larder_min_u64(4, 3), 3);
    uint64_t out;
    ck_assert(larder_mul_u64(&out, 1ull << 32, (1ull << 32) - 1));
    ck_assert_uint_eq(out, ((1ull << 32) - 1) << 32);
    ck_assert(!larder_mul_u64(&out, 1ull << 32, 1ull << 32));
    ck_assert(larder_add_u64(&out, UINT64_MAX - 1, 1));
    ck_assert(!larder_add_u64(&out, UINT64_MAX, 1));
}
END_TEST

START_TEST(zeros)
{
    uint8_t bytes[70] = {0};
    ck_assert(larder_all_zero(bytes, 0));
    ck_assert(larder_all_zero(bytes, sizeof(bytes)));
    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = 1;
        ck_assert(!larder_all_zero(bytes, sizeof(bytes)));
        ck_assert(larder_all_zero(bytes, i));
        bytes[i] = 0;
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("bytes");
    TCase *tests = tcase_create("bytes");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, parse);
    tcase_add_test(tests, human);
    tcase_add_test(tests, seconds);
    tcase_add_test(tests, hex);
    tcase_add_test(tests, rounding_and_overflow);
    tcase_add_test(tests, zeros);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
