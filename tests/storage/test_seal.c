/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: what is sealed opens to the same bytes, at its own place only, and no changed bit of it is
 * believed.
 * Method: records of many shapes, in pieces or whole, through a seal over a store's identity and a
 * segment that exists in memory alone; every bit of a small one flipped; parts swapped. */
#include "storage/seal.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "scratch.h"
#include "storage/crypt.h"
#include "storage/identity.h"
#include "storage/seglog.h"
#include "storage/tag.h"

#define SECTIONS_MAX 8u

struct fixture {
    char path[SCRATCH_PATH_BYTES];
    struct larder_identity *identity;
    struct segment segments[2];
    struct segment *list[2];
    struct seglog log;
    struct seal *seal;
    uint8_t tenant[2][16];
};

static void set_up(struct fixture *fixture)
{
    static const uint8_t wrap_key[32] = {1, 2, 3};
    memset(fixture, 0, sizeof(*fixture));
    scratch_make(fixture->path);
    ck_assert_int_eq(larder_identity_open(&fixture->identity, fixture->path, false, wrap_key), 0);
    static const char *const names[2] = {"alice", "bob"};
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t index;
        ck_assert_int_eq(larder_identity_add_tenant(fixture->identity, &index, names[i]), 0);
        memcpy(fixture->tenant[i], larder_identity_tenant(fixture->identity, index)->id, 16);
        fixture->segments[i].id = 7 + i;
        fixture->segments[i].has_salt = true;
        memset(fixture->segments[i].salt, (int)(0x11 + i), sizeof(fixture->segments[i].salt));
        fixture->list[i] = &fixture->segments[i];
    }
    fixture->log.segments = fixture->list;
    fixture->log.count = 2;
    ck_assert_int_eq(seal_create(&fixture->seal, fixture->identity, &fixture->log), 0);
}

static void tear_down(struct fixture *fixture)
{
    seal_close(fixture->seal);
    larder_identity_close(fixture->identity);
    scratch_remove(fixture->path);
}

static struct larder_record *make_record(const struct fixture *fixture, uint32_t tokens,
                                         const uint64_t *section_bytes, uint16_t sections)
{
    struct larder_head_layout layout;
    larder_head_layout(&layout, 5, 3, tokens, sections);
    uint64_t bytes = layout.sections;
    for (uint16_t i = 0; i < sections; i++)
        bytes += larder_round_up(section_bytes[i], LARDER_SECTION_ALIGN);
    bytes = larder_round_up(bytes, LARDER_PAGE_BYTES);
    uint8_t *image = aligned_alloc(LARDER_PAGE_BYTES, bytes);
    memset(image, 0, bytes);
    struct larder_record *record = (void *)image;
    *record = (struct larder_record){
        .magic = LARDER_RECORD_MAGIC,
        .version = LARDER_RECORD_VERSION,
        .type = LARDER_RECORD_ENTRY,
        .tag_kind = LARDER_TAG_XXH3_128,
        .record_bytes = bytes,
        .generation = 9,
        .head_bytes = layout.head_bytes,
        .extra_bytes = 5,
        .token_count = tokens,
        .section_count = sections,
        .recipe_bytes = 3,
    };
    memcpy(record->tenant, fixture->tenant[0], 16);
    memset(record->key, 0x5a, sizeof(record->key));
    memcpy(image + layout.extra, "salty", 5);
    memcpy(image + layout.recipe, "raw", 3);
    for (uint32_t i = 0; i < tokens; i++)
        memcpy(image + layout.tokens + 4ul * i, &(uint32_t){i * 77}, 4);
    struct larder_section *directory = (void *)(image + layout.directory);
    uint64_t at = layout.sections;
    for (uint16_t i = 0; i < sections; i++) {
        directory[i] = (struct larder_section){.layer_first = i,
                                               .layer_count = 1,
                                               .head_count = 1,
                                               .offset = at,
                                               .bytes = section_bytes[i]};
        for (uint64_t b = 0; b < section_bytes[i]; b++)
            image[at + b] = (uint8_t)(b * 31 + i);
        at += larder_round_up(section_bytes[i], LARDER_SECTION_ALIGN);
    }
    ck_assert_int_eq(larder_record_check(record, bytes), 0);
    return record;
}

/* The image on disk. */
static struct larder_record *seal_record(struct fixture *fixture,
                                         const struct larder_record *record, uint32_t segment,
                                         uint32_t page)
{
    uint8_t *image = aligned_alloc(LARDER_PAGE_BYTES, record->record_bytes);
    memset(image, 0xee, record->record_bytes);
    uint64_t written = 0;
    bool first_came = false;
    while (written < record->record_bytes) {
        struct seal_piece piece;
        ck_assert(!first_came);
        ck_assert_int_eq(seal_next_piece(fixture->seal, &piece, record, segment, page), 1);
        ck_assert_uint_le(piece.bytes, LARDER_IO_BYTES_MAX);
        ck_assert_uint_eq(piece.bytes % LARDER_PAGE_BYTES, 0);
        memcpy(image + piece.offset, piece.buffer, piece.bytes);
        first_came = piece.offset == 0;
        written += piece.bytes;
        seal_piece_done(fixture->seal, piece.buffer);
    }
    ck_assert(first_came);
    return (void *)image;
}

static int open_record(struct fixture *fixture, struct larder_record *record)
{
    LARDER_TRY(tag_open_head(fixture->seal, record, record->record_bytes));
    for (uint32_t i = 0; i < record->section_count; i++)
        LARDER_TRY(tag_open_section(fixture->seal, record, i));
    return 0;
}

/* The same but for what a place changes. */
static bool same_content(const struct larder_record *opened, const struct larder_record *record)
{
    if (memcmp(larder_record_extra(opened), larder_record_extra(record),
               (size_t)((const uint8_t *)larder_record_directory(record) -
                        larder_record_extra(record))) != 0)
        return false;
    const struct larder_section *a = larder_record_directory(opened);
    const struct larder_section *b = larder_record_directory(record);
    for (uint32_t i = 0; i < record->section_count; i++) {
        if (a[i].offset != b[i].offset || a[i].bytes != b[i].bytes ||
            memcmp((const uint8_t *)opened + a[i].offset, (const uint8_t *)record + b[i].offset,
                   a[i].bytes) != 0)
            return false;
    }
    return true;
}

START_TEST(all_shapes_come_back)
{
    enum { MIB = 1 << 20 };
    static const struct {
        uint32_t tokens;
        uint16_t sections;
        uint64_t bytes[SECTIONS_MAX];
    } shapes[] = {
        {0, 0, {0}},
        {1, 1, {1}},
        {256, 2, {200, 200}},
        {256, 2, {0, 0}},
        {16, 3, {100, 0, 4096}},
        {16, 2, {60 << 10, 1}},
        {4096, 4, {MIB / 2, MIB / 2, MIB / 2, MIB / 2}},
        {7, 3, {3 * MIB + 17, 0, 5}},
        {256, 8, {MIB, MIB, 1, MIB, MIB - 4096, 4096, 0, 0}},
    };
    struct fixture fixture;
    set_up(&fixture);
    for (uint32_t i = 0; i < LARDER_COUNT_OF(shapes); i++) {
        struct larder_record *record =
            make_record(&fixture, shapes[i].tokens, shapes[i].bytes, shapes[i].sections);
        struct larder_record before = *record;
        struct larder_record *image = seal_record(&fixture, record, 7, 10 + 5000 * i);
        /* The slot that it came from is others' to read. */
        ck_assert_mem_eq(record, &before, sizeof(before));
        ck_assert_uint_eq(image->tag_kind, LARDER_TAG_AES_256_GCM);
        ck_assert(!same_content(image, record));
        ck_assert_msg(open_record(&fixture, image) == 0, "shape %u: %s", i, larder_error_message());
        ck_assert(same_content(image, record));
        /* A plain store does not take it, nor an encrypted one a plain record. */
        ck_assert_int_eq(tag_open_head(NULL, image, image->record_bytes), LARDER_ECORRUPT);
        record->segment_id = 7;
        record->segment_page = 3;
        tag_record(record);
        ck_assert_int_eq(open_record(&fixture, record), LARDER_ECORRUPT);
        free(image);
        free(record);
    }
    tear_down(&fixture);
}
END_TEST

START_TEST(every_bit_counts)
{
    static const uint64_t bytes[] = {100, 333};
    struct fixture fixture;
    set_up(&fixture);
    struct larder_record *record = make_record(&fixture, 16, bytes, 2);
    struct larder_record *image = seal_record(&fixture, record, 7, 10);
    struct larder_record *copy = aligned_alloc(LARDER_PAGE_BYTES, image->record_bytes);
    const struct larder_section *sections = larder_record_directory(record);
    for (uint64_t bit = 0; bit < 8 * image->record_bytes; bit++) {
        uint64_t at = bit / 8;
        bool covered = at < record->head_bytes;
        for (int i = 0; i < 2; i++)
            covered |= at >= sections[i].offset && at < sections[i].offset + sections[i].bytes;
        memcpy(copy, image, image->record_bytes);
        ((uint8_t *)copy)[at] ^= (uint8_t)(1u << bit % 8);
        int err = tag_open_head(fixture.seal, copy, image->record_bytes);
        for (uint32_t i = 0; err == 0 && i < copy->section_count; i++)
            err = tag_open_section(fixture.seal, copy, i);
        ck_assert_msg((err < 0) == covered, "bit %llu", (unsigned long long)bit);
    }
    free(copy);
    free(image);
    free(record);
    tear_down(&fixture);
}
END_TEST

/* Sections, places, segments, generations, keys and tenants exchanged. */
START_TEST(nothing_may_change_places)
{
    static const uint64_t bytes[] = {256, 256};
    struct fixture fixture;
    set_up(&fixture);
    struct larder_record *record = make_record(&fixture, 16, bytes, 2);
    const struct larder_section *sections = larder_record_directory(record);
    struct larder_record *one = seal_record(&fixture, record, 7, 10);
    struct larder_record *two = seal_record(&fixture, record, 7, 11);
    uint8_t *a = (uint8_t *)one + sections[0].offset;
    uint8_t *b = (uint8_t *)two + sections[0].offset;
    ck_assert_mem_ne(a, b, 256);
    ck_assert_mem_ne(a, (uint8_t *)one + sections[1].offset, 256);
    for (int which = 0; which < 8; which++) {
        struct larder_record *copy = aligned_alloc(LARDER_PAGE_BYTES, one->record_bytes);
        memcpy(copy, one, one->record_bytes);
        switch (which) {
        case 0:
            memcpy((uint8_t *)copy + sections[0].offset, b, 256);
            break;
        case 1:
            memcpy((uint8_t *)copy + sections[1].offset, a, 256);
            break;
        case 2:
            copy->segment_page = 11;
            break;
        case 3:
            copy->segment_id = 8;
            break;
        case 4:
            copy->generation++;
            break;
        case 5:
            memcpy(copy->tenant, fixture.tenant[1], 16);
            break;
        case 6:
            memset(copy->tenant, 0, 16);
            break;
        default:
            memset(copy->tenant, 0x77, 16); /* of nobody */
            break;
        }
        ck_assert_msg(open_record(&fixture, copy) == LARDER_ECORRUPT, "change %d", which);
        free(copy);
    }
    ck_assert_int_eq(open_record(&fixture, one), 0);
    ck_assert_int_eq(open_record(&fixture, two), 0);
    free(two);
    free(one);
    free(record);
    tear_down(&fixture);
}
END_TEST

/* A record that is given up halfway does not disturb the next, nor do records that are read. */
START_TEST(given_up_halfway)
{
    static const uint64_t bytes[] = {2500000, 300};
    struct fixture fixture;
    set_up(&fixture);
    struct larder_record *record = make_record(&fixture, 64, bytes, 2);
    struct larder_record *read = seal_record(&fixture, record, 8, 1);
    for (uint32_t i = 0; i < 40; i++) {
        struct seal_piece piece;
        ck_assert_int_eq(seal_next_piece(fixture.seal, &piece, record, 7, 2 + i), 1);
        ck_assert_uint_gt(piece.offset, 0);
        seal_piece_done(fixture.seal, piece.buffer);
        struct larder_record *copy = aligned_alloc(LARDER_PAGE_BYTES, read->record_bytes);
        memcpy(copy, read, read->record_bytes);
        ck_assert_int_eq(open_record(&fixture, copy), 0);
        free(copy);
    }
    struct larder_record *image = seal_record(&fixture, record, 7, 100);
    ck_assert_int_eq(open_record(&fixture, image), 0);
    ck_assert(same_content(image, record));
    free(image);

    /* All buffers in use: come again. */
    struct seal_piece pieces[128];
    uint32_t count = 0;
    int made = 1;
    while (made == 1) {
        ck_assert_uint_lt(count, LARDER_COUNT_OF(pieces));
        made = seal_next_piece(fixture.seal, &pieces[count], record, 7, 200 + count);
        count += made == 1;
    }
    ck_assert_int_eq(made, 0);
    ck_assert_uint_ge(count, 16);
    while (count > 0)
        seal_piece_done(fixture.seal, pieces[--count].buffer);
    image = seal_record(&fixture, record, 7, 900);
    ck_assert_int_eq(open_record(&fixture, image), 0);
    free(image);
    free(read);
    free(record);
    tear_down(&fixture);
}
END_TEST

int main(void)
{
    larder_log_set_level(LARDER_LOG_ERROR);
    Suite *suite = suite_create("seal");
    TCase *all = tcase_create("all");
    tcase_set_timeout(all, 120);
    tcase_add_test(all, all_shapes_come_back);
    tcase_add_test(all, every_bit_counts);
    tcase_add_test(all, nothing_may_change_places);
    tcase_add_test(all, given_up_halfway);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
