/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a head is laid out as docs/FORMAT.md says, and larder_record_check() accepts exactly the
 *         well-formed ones, whatever bytes it is given.
 * Method: offsets computed by hand; a good record with one field at a time out of range; then
 *         random headers and random damage in buffers of exactly the stated size, so that the
 *         address sanitizer sees a read beyond them. Whatever is accepted has all its parts within
 *         the record. */
#include "base/record.h"

#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

static uint64_t random_state = 88172645463325252u;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* A record of 3 tokens and 4 sections, recipe "exact", extra "lo". */
struct sample {
    uint64_t bytes;
    struct larder_record *record;
    struct larder_section *sections;
};

static void sample_open(struct sample *sample)
{
    struct larder_head_layout layout;
    larder_head_layout(&layout, 2, 5, 3, 4);
    sample->bytes = 2 * LARDER_PAGE_BYTES;
    uint8_t *image = larder_alloc_aligned(64, sample->bytes);
    memset(image, 0, sample->bytes);
    sample->record = (struct larder_record *)(void *)image;
    *sample->record = (struct larder_record){
        .magic = LARDER_RECORD_MAGIC,
        .version = LARDER_RECORD_VERSION,
        .type = LARDER_RECORD_ENTRY,
        .tag_kind = LARDER_TAG_XXH3_128,
        .record_bytes = sample->bytes,
        .raw_bytes = 5000,
        .head_bytes = layout.head_bytes,
        .extra_bytes = 2,
        .token_count = 3,
        .section_count = 4,
        .recipe_bytes = 5,
    };
    memcpy(image + layout.extra, "lo", 2);
    memcpy(image + layout.recipe, "exact", 5);
    const uint32_t tokens[] = {7, 8, 9};
    memcpy(image + layout.tokens, tokens, sizeof(tokens));
    sample->sections = (struct larder_section *)(void *)(image + layout.directory);
    uint64_t at = layout.sections;
    for (uint16_t i = 0; i < 4; i++) {
        sample->sections[i] = (struct larder_section){
            .layer_first = i / 2,
            .layer_count = 1,
            .head_count = 2,
            .kind = i % 2,
            .offset = at,
            .bytes = 1000,
        };
        at += 1024;
    }
}

static void sample_close(struct sample *sample)
{
    larder_free(sample->record);
}

START_TEST(offsets_of_parts)
{
    struct larder_head_layout at;
    larder_head_layout(&at, 0, 3, 256, 12);
    ck_assert_uint_eq(at.extra, 256);
    ck_assert_uint_eq(at.recipe, 256);
    ck_assert_uint_eq(at.tokens, 260);
    ck_assert_uint_eq(at.directory, 1288);
    ck_assert_uint_eq(at.head_bytes, 1288 + 12 * 48);
    ck_assert_uint_eq(at.sections, 1920);
    larder_head_layout(&at, 1, 0, 0, 0);
    ck_assert_uint_eq(at.recipe, 257);
    ck_assert_uint_eq(at.tokens, 260);
    ck_assert_uint_eq(at.directory, 264);
    ck_assert_uint_eq(at.head_bytes, 264);
    ck_assert_uint_eq(at.sections, 320);
    larder_head_layout(&at, LARDER_TOMBSTONE_BYTES_MAX, LARDER_RECIPE_BYTES_MAX,
                       LARDER_BLOCK_TOKENS_MAX, LARDER_SECTIONS_MAX);
    ck_assert_uint_eq(at.head_bytes, 256 + 65536 + 1024 + 16384 + 2048 * 48);
}
END_TEST

START_TEST(a_good_record)
{
    struct sample sample;
    sample_open(&sample);
    ck_assert_int_eq(larder_record_check(sample.record, sample.bytes), 0);
    ck_assert_int_eq(larder_record_check(sample.record, sample.record->head_bytes), 0);
    ck_assert_int_eq(larder_record_check(sample.record, sample.record->head_bytes - 1), -EAGAIN);
    ck_assert_int_eq(larder_record_check(sample.record, 256), -EAGAIN);
    ck_assert_mem_eq(larder_record_extra(sample.record), "lo", 2);
    ck_assert_mem_eq(larder_record_recipe(sample.record), "exact", 5);
    ck_assert_uint_eq(larder_record_tokens(sample.record)[2], 9);
    ck_assert_ptr_eq(larder_record_directory(sample.record), sample.sections);
    sample_close(&sample);
}
END_TEST

/* Each: a change to a good record, and the code it must get. */
#define DAMAGES(X)                                                                                 \
    X(r->magic ^= 1, LARDER_ECORRUPT)                                                              \
    X(r->version = 0, LARDER_EVERSION)                                                             \
    X(r->version = 2, LARDER_EVERSION)                                                             \
    X(r->type = 0, LARDER_ECORRUPT)                                                                \
    X(r->type = 99, LARDER_ECORRUPT)                                                               \
    X(r->tag_kind = 0, LARDER_EVERSION)                                                            \
    X(r->tag_kind = 3, LARDER_EVERSION)                                                            \
    X(r->flags = 1, LARDER_ECORRUPT)                                                               \
    X(r->computed_on_kl = 1, LARDER_ECORRUPT) /* of what is exact */                               \
    X((r->computed_on = 1, r->computed_on_kl = 0x7f80), LARDER_ECORRUPT)                           \
    X((r->computed_on = 1, r->computed_on_kl = 0x8000), LARDER_ECORRUPT)                           \
    X(r->record_bytes += 1, LARDER_ECORRUPT)                                                       \
    X(r->record_bytes = 0, LARDER_ECORRUPT)                                                        \
    X(r->record_bytes = LARDER_PAGE_BYTES, LARDER_ECORRUPT)                                        \
    X(r->record_bytes = LARDER_RECORD_BYTES_MAX + LARDER_PAGE_BYTES, LARDER_ECORRUPT)              \
    X(r->record_bytes = UINT64_MAX - 4095, LARDER_ECORRUPT)                                        \
    X(r->raw_bytes = LARDER_RECORD_BYTES_MAX + 1, LARDER_ECORRUPT)                                 \
    X(r->head_bytes++, LARDER_ECORRUPT)                                                            \
    X(r->head_bytes = UINT32_MAX, LARDER_ECORRUPT)                                                 \
    X(r->extra_bytes = LARDER_EXTRA_BYTES_MAX + 1, LARDER_ECORRUPT)                                \
    X(r->extra_bytes = UINT32_MAX, LARDER_ECORRUPT)                                                \
    X(r->token_count = LARDER_BLOCK_TOKENS_MAX + 1, LARDER_ECORRUPT)                               \
    X(r->token_count = UINT32_MAX, LARDER_ECORRUPT)                                                \
    X(r->token_count = 2, LARDER_ECORRUPT)                                                         \
    X(r->section_count = LARDER_SECTIONS_MAX + 1, LARDER_ECORRUPT)                                 \
    X(r->section_count = 5, LARDER_ECORRUPT)                                                       \
    X(r->recipe_bytes = LARDER_RECIPE_BYTES_MAX + 1, LARDER_ECORRUPT)                              \
    X(r->quality = LARDER_QUALITY_BLENDED + 1, LARDER_ECORRUPT)                                    \
    X(r->computed_on = 255, LARDER_ECORRUPT)                                                       \
    X(r->type = LARDER_RECORD_TOMBSTONE, LARDER_ECORRUPT)                                          \
    X(s[0].layer_count = 0, LARDER_ECORRUPT)                                                       \
    X(s[0].head_count = 0, LARDER_ECORRUPT)                                                        \
    X(s[1].layer_first = LARDER_LAYERS_MAX, LARDER_ECORRUPT)                                       \
    X(s[1].layer_count = UINT16_MAX, LARDER_ECORRUPT)                                              \
    X(s[1].head_first = UINT16_MAX, LARDER_ECORRUPT)                                               \
    X(s[2].kind = 2, LARDER_ECORRUPT)                                                              \
    X(s[2].reserved[3] = 1, LARDER_ECORRUPT)                                                       \
    X(s[2].flags = 4, LARDER_ECORRUPT)                                                             \
    X(s[2].error = 1, LARDER_ECORRUPT) /* without the flag that says it was measured */            \
    X((s[2].flags = 1, s[2].error = 0x7f80), LARDER_ECORRUPT) /* infinity */                       \
    X((s[2].flags = 1, s[2].error = 0x7fc0), LARDER_ECORRUPT) /* not a number */                   \
    X((s[2].flags = 1, s[2].error = 0x8001), LARDER_ECORRUPT) /* negative */                       \
    X(s[0].offset = 0, LARDER_ECORRUPT)                                                            \
    X(s[0].offset -= 64, LARDER_ECORRUPT)                                                          \
    X(s[1].offset += 8, LARDER_ECORRUPT)                                                           \
    X(s[1].offset = s[0].offset, LARDER_ECORRUPT)                                                  \
    X(s[3].offset = UINT64_MAX - 63, LARDER_ECORRUPT)                                              \
    X(s[3].offset = r->record_bytes, LARDER_ECORRUPT)                                              \
    X(s[3].bytes = UINT64_MAX, LARDER_ECORRUPT)                                                    \
    X(s[3].bytes = r->record_bytes - s[3].offset + 1, LARDER_ECORRUPT)                             \
    X(s[1].bytes = 1025, LARDER_ECORRUPT)

START_TEST(errors_of_sections)
{
    static const float errors[] = {0, 1e-30f, 6.1e-5f, 0.01f, 0.0123456f, 1, 3.4e38f};
    struct sample sample;
    sample_open(&sample);
    struct larder_section *section = &sample.sections[1];
    ck_assert(larder_section_error(section) < 0);
    section->flags = LARDER_SECTION_FELL_BACK;
    ck_assert(larder_section_error(section) < 0);
    for (size_t i = 0; i < LARDER_COUNT_OF(errors); i++) {
        larder_section_set_error(section, errors[i]);
        ck_assert_uint_eq(section->flags, LARDER_SECTION_MEASURED | LARDER_SECTION_FELL_BACK);
        ck_assert_int_eq(larder_record_check(sample.record, sample.bytes), 0);
        const float read = larder_section_error(section);
        if (errors[i] < 3e38f)
            ck_assert(read >= errors[i] && (double)read <= (double)errors[i] * (1 + 1.0 / 128));
        ck_assert((read == 0) == (errors[i] == 0));
    }
    sample_close(&sample);
}
END_TEST

START_TEST(each_field_out_of_range)
{
    struct sample sample;
#define CHECK_DAMAGE(change, code)                                                                 \
    do {                                                                                           \
        sample_open(&sample);                                                                      \
        struct larder_record *r = sample.record;                                                   \
        struct larder_section *s = sample.sections;                                                \
        (void)r;                                                                                   \
        (void)s;                                                                                   \
        change;                                                                                    \
        ck_assert_msg(larder_record_check(r, sample.bytes) == (code), "%s", #change);              \
        ck_assert_msg(strncmp(larder_error_message(), "record: ", 8) == 0, "%s", #change);         \
        sample_close(&sample);                                                                     \
    } while (0);
    DAMAGES(CHECK_DAMAGE)
#undef CHECK_DAMAGE
}
END_TEST

START_TEST(tombstones)
{
    struct larder_head_layout at;
    for (uint32_t keys = 1; keys <= 2048; keys *= 2) {
        larder_head_layout(&at, keys * 32, 0, 0, 0);
        uint64_t bytes = larder_round_up(at.head_bytes, LARDER_PAGE_BYTES);
        struct larder_record record = {
            .magic = LARDER_RECORD_MAGIC,
            .version = LARDER_RECORD_VERSION,
            .type = LARDER_RECORD_TOMBSTONE,
            .tag_kind = LARDER_TAG_XXH3_128,
            .record_bytes = bytes,
            .head_bytes = at.head_bytes,
            .extra_bytes = keys * 32,
        };
        /* No directory: the rest of the head need not be there. */
        ck_assert_int_eq(larder_record_check(&record, 256), -EAGAIN);
        record.extra_bytes -= 1;
        ck_assert_int_eq(larder_record_check(&record, 256), LARDER_ECORRUPT);
    }
}
END_TEST

/* Whatever is accepted keeps all its parts within the record, in order. */
static void check_accepted(const struct larder_record *record, uint64_t bytes)
{
    ck_assert_uint_le(record->head_bytes, bytes);
    ck_assert_uint_le(record->head_bytes, record->record_bytes);
    const struct larder_section *sections = larder_record_directory(record);
    uint64_t end = record->head_bytes;
    for (uint32_t i = 0; i < record->section_count; i++) {
        ck_assert_uint_ge(sections[i].offset, end);
        end = sections[i].offset + sections[i].bytes;
        ck_assert_uint_le(end, record->record_bytes);
    }
}

START_TEST(damaged_records)
{
    struct sample sample;
    sample_open(&sample);
    uint32_t head_bytes = sample.record->head_bytes;
    uint8_t *image = larder_alloc(head_bytes); /* not a byte more than the head */
    int accepted = 0;
    for (int round = 0; round < 200000; round++) {
        memcpy(image, sample.record, head_bytes);
        for (uint64_t i = 1 + random_bits() % 3; i > 0; i--)
            image[random_bits() % head_bytes] ^= (uint8_t)(1u << random_bits() % 8);
        const struct larder_record *record = (const struct larder_record *)(const void *)image;
        int err = larder_record_check(record, head_bytes);
        ck_assert(err == 0 || err == LARDER_ECORRUPT || err == LARDER_EVERSION || err == -EAGAIN);
        if (err == 0) {
            accepted++;
            check_accepted(record, head_bytes);
        }
    }
    ck_assert_int_gt(accepted, 0); /* damage to keys, tags and tokens is not seen here */
    larder_free(image);
    sample_close(&sample);
}
END_TEST

START_TEST(random_headers)
{
    for (int round = 0; round < 300000; round++) {
        uint64_t words[32];
        for (size_t i = 0; i < 32; i++)
            words[i] = random_bits() >> random_bits() % 64;
        struct larder_record record;
        memcpy(&record, words, sizeof(record));
        /* Past the first gates, with counts that are small as often as not. */
        record.magic = LARDER_RECORD_MAGIC;
        record.version = LARDER_RECORD_VERSION;
        record.tag_kind = LARDER_TAG_XXH3_128;
        record.flags = 0;
        record.computed_on_kl = 0;
        record.type = (uint16_t)(random_bits() % 6);
        record.quality %= 4;
        record.computed_on %= 4;
        record.record_bytes &= ~4095ull;
        if (random_bits() % 2) {
            record.extra_bytes %= 2048;
            record.token_count %= 8192;
            record.recipe_bytes %= 2048;
            record.section_count %= 4096;
            struct larder_head_layout layout;
            larder_head_layout(&layout, record.extra_bytes, record.recipe_bytes, record.token_count,
                               record.section_count);
            record.head_bytes = layout.head_bytes;
        }
        int err = larder_record_check(&record, sizeof(record));
        ck_assert(err == 0 || err == LARDER_ECORRUPT || err == -EAGAIN);
        if (err == 0)
            ck_assert_uint_eq(record.head_bytes, sizeof(record));
        if (err == -EAGAIN)
            ck_assert_uint_le(record.head_bytes, record.record_bytes);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("record");
    TCase *tests = tcase_create("record");
    tcase_set_timeout(tests, 120);
    tcase_add_test(tests, offsets_of_parts);
    tcase_add_test(tests, a_good_record);
    tcase_add_test(tests, errors_of_sections);
    tcase_add_test(tests, each_field_out_of_range);
    tcase_add_test(tests, tombstones);
    tcase_add_test(tests, damaged_records);
    tcase_add_test(tests, random_headers);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
