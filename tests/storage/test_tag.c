/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a tag depends on the record alone, and on every bit of it.
 * Method: a small record; a flip of each bit. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "storage/tag.h"

#define TOKENS 16u

static _Alignas(LARDER_PAGE_BYTES) uint8_t bytes[LARDER_PAGE_BYTES];

static struct larder_record *make_record(void)
{
    struct larder_record *record = (void *)bytes;
    struct larder_head_layout layout;
    larder_head_layout(&layout, 0, 3, TOKENS, 2);
    memset(bytes, 0, sizeof(bytes));
    *record = (struct larder_record){
        .magic = LARDER_RECORD_MAGIC,
        .version = LARDER_RECORD_VERSION,
        .type = LARDER_RECORD_ENTRY,
        .tag_kind = LARDER_TAG_XXH3_128,
        .record_bytes = sizeof(bytes),
        .generation = 7,
        .segment_id = 3,
        .segment_page = 5,
        .head_bytes = layout.head_bytes,
        .token_count = TOKENS,
        .section_count = 2,
        .recipe_bytes = 3,
    };
    memset(record->key, 0x5a, sizeof(record->key));
    memcpy(bytes + layout.recipe, "raw", 3);
    struct larder_section *sections = (void *)(bytes + layout.directory);
    for (uint8_t i = 0; i < 2; i++)
        sections[i] = (struct larder_section){.layer_count = 1,
                                              .head_count = 1,
                                              .kind = i,
                                              .offset = layout.sections + 256ull * i,
                                              .bytes = 200};
    for (uint64_t at = layout.sections; at < layout.sections + 512; at++)
        bytes[at] = (uint8_t)(at * 37);
    ck_assert_int_eq(larder_record_check(record, sizeof(bytes)), 0);
    tag_record(record);
    return record;
}

static bool matches(void)
{
    static _Alignas(LARDER_PAGE_BYTES) uint8_t copy[sizeof(bytes)];
    memcpy(copy, bytes, sizeof(bytes));
    struct larder_record *record = (void *)copy;
    if (tag_open_head(NULL, record, sizeof(copy)) < 0)
        return false;
    return tag_open_section(NULL, record, 0) == 0 && tag_open_section(NULL, record, 1) == 0;
}

START_TEST(every_bit_of_what_is_tagged_counts)
{
    struct larder_record *record = make_record();
    ck_assert(matches());
    const struct larder_section *sections = larder_record_directory(record);
    for (uint64_t bit = 0; bit < 8ull * sizeof(bytes); bit++) {
        uint64_t at = bit / 8;
        bool covered = at < record->head_bytes;
        for (int i = 0; i < 2; i++)
            covered |= at >= sections[i].offset && at < sections[i].offset + sections[i].bytes;
        /* The fields that say how much is tagged are larder_record_check()'s to refuse. */
        if ((at >= 204 && at < 216) || (at >= 224 && at < 228) ||
            (at >= (uint64_t)((const uint8_t *)sections - bytes) && at < record->head_bytes))
            continue;
        bytes[at] ^= (uint8_t)(1u << bit % 8);
        ck_assert_msg(matches() != covered, "bit %llu", (unsigned long long)bit);
        bytes[at] ^= (uint8_t)(1u << bit % 8);
    }
    ck_assert(matches());
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tag");
    TCase *all = tcase_create("all");
    tcase_add_test(all, every_bit_of_what_is_tagged_counts);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
