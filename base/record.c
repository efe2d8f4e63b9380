/* SPDX-License-Identifier: Apache-2.0 */
#include "base/record.h"

#include <errno.h>
#include <math.h>

#include "base/bytes.h"
#include "base/error.h"

void larder_head_layout(struct larder_head_layout *out, uint32_t extra_bytes, uint32_t recipe_bytes,
                        uint32_t token_count, uint32_t section_count)
{
    out->extra = sizeof(struct larder_record);
    out->recipe = out->extra + extra_bytes;
    out->tokens = (uint32_t)larder_round_up(out->recipe + recipe_bytes, 4);
    out->directory = (uint32_t)larder_round_up(out->tokens + 4 * token_count, 8);
    out->head_bytes = out->directory + (uint32_t)sizeof(struct larder_section) * section_count;
    out->sections = larder_round_up(out->head_bytes, LARDER_SECTION_ALIGN);
}

static void layout_of(struct larder_head_layout *out, const struct larder_record *record)
{
    larder_head_layout(out, record->extra_bytes, record->recipe_bytes, record->token_count,
                       record->section_count);
}

/* The bits of an f32 are those of a number that is not negative, and finite, if they are below
 * infinity's: the sign stands on top. */
#define INFINITY_UPPER 0x7f80u

/* Rounded up. */
static uint16_t upper_half(float value)
{
    uint32_t bits;
    assert(isfinite(value));
    assert(value >= 0);
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t upper = (bits >> 16) + ((bits & 0xffff) != 0);
    return (uint16_t)(upper < INFINITY_UPPER ? upper : INFINITY_UPPER - 1);
}

static float from_upper_half(uint16_t upper)
{
    const uint32_t bits = (uint32_t)upper << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

float larder_computed_on_kl(uint8_t computed_on, uint16_t bits)
{
    if (computed_on == LARDER_QUALITY_EXACT)
        return 0;
    return bits ? from_upper_half(bits) : INFINITY;
}

float larder_record_computed_on_kl(const struct larder_record *record)
{
    return larder_computed_on_kl(record->computed_on, record->computed_on_kl);
}

uint16_t larder_computed_on_kl_bits(float kl)
{
    return isfinite(kl) ? upper_half(kl) : 0;
}

static int check_field(const char *field, uint64_t value, uint64_t most)
{
    if (value > most)
        return larder_fail(LARDER_ECORRUPT, "record: %s=%llu is above %llu", field,
                           (unsigned long long)value, (unsigned long long)most);
    return 0;
}

static uint32_t extra_bytes_max(uint16_t type)
{
    switch (type) {
    case LARDER_RECORD_TOMBSTONE:
        return LARDER_TOMBSTONE_BYTES_MAX;
    case LARDER_RECORD_MARK:
        return LARDER_MARKS_MAX * sizeof(struct larder_record_mark);
    default:
        return LARDER_EXTRA_BYTES_MAX;
    }
}

static int check_header(const struct larder_record *record)
{
    if (record->magic != LARDER_RECORD_MAGIC)
        return larder_fail(LARDER_ECORRUPT, "record: no magic number");
    if (record->version != LARDER_RECORD_VERSION)
        return larder_fail(LARDER_EVERSION, "record: version %u, this release knows %u",
                           record->version, LARDER_RECORD_VERSION);
    if (record->type < LARDER_RECORD_ENTRY || record->type > LARDER_RECORD_MODEL)
        return larder_fail(LARDER_ECORRUPT, "record: type %u is unknown", record->type);
    if (record->tag_kind != LARDER_TAG_XXH3_128 && record->tag_kind != LARDER_TAG_AES_256_GCM)
        return larder_fail(LARDER_EVERSION, "record: tag kind %u, this release knows %u and %u",
                           record->tag_kind, LARDER_TAG_XXH3_128, LARDER_TAG_AES_256_GCM);
    if (record->flags != 0)
        return larder_fail(LARDER_ECORRUPT, "record: reserved fields are not zero");
    if (record->computed_on_kl >= INFINITY_UPPER ||
        (record->computed_on_kl && record->computed_on == LARDER_QUALITY_EXACT))
        return larder_fail(LARDER_ECORRUPT, "record: a KL of 0x%04x of what it was computed on",
                           record->computed_on_kl);
    LARDER_TRY(check_field("record_bytes", record->record_bytes, LARDER_RECORD_BYTES_MAX));
    LARDER_TRY(check_field("raw_bytes", record->raw_bytes, LARDER_RECORD_BYTES_MAX));
    LARDER_TRY(check_field("token_count", record->token_count, LARDER_BLOCK_TOKENS_MAX));
    LARDER_TRY(check_field("section_count", record->section_count, LARDER_SECTIONS_MAX));
    LARDER_TRY(check_field("recipe_bytes", record->recipe_bytes, LARDER_RECIPE_BYTES_MAX));
    LARDER_TRY(check_field("quality", record->quality, LARDER_QUALITY_BLENDED));
    LARDER_TRY(check_field("computed_on", record->computed_on, LARDER_QUALITY_BLENDED));
    LARDER_TRY(check_field("extra_bytes", record->extra_bytes, extra_bytes_max(record->type)));
    if (record->type == LARDER_RECORD_TOMBSTONE &&
        (record->extra_bytes % sizeof(struct larder_key) != 0 || record->section_count != 0))
        return larder_fail(LARDER_ECORRUPT, "record: tombstone of %u bytes of keys, %u sections",
                           record->extra_bytes, record->section_count);
    if (record->type == LARDER_RECORD_MARK &&
        (record->extra_bytes % sizeof(struct larder_record_mark) != 0 ||
         record->section_count != 0))
        return larder_fail(LARDER_ECORRUPT, "record: %u bytes of marks, %u sections",
                           record->extra_bytes, record->section_count);
    if (record->type == LARDER_RECORD_MODEL &&
        (record->extra_bytes != sizeof(struct larder_model_desc) || record->section_count != 0))
        return larder_fail(LARDER_ECORRUPT, "record: model of %u bytes, %u sections",
                           record->extra_bytes, record->section_count);

    struct larder_head_layout layout;
    layout_of(&layout, record);
    if (layout.head_bytes != record->head_bytes)
        return larder_fail(LARDER_ECORRUPT, "record: head_bytes=%u, its parts need %u",
                           record->head_bytes, layout.head_bytes);
    if (record->record_bytes % LARDER_PAGE_BYTES != 0 || record->record_bytes < record->head_bytes)
        return larder_fail(LARDER_ECORRUPT, "record: record_bytes=%llu for a head of %u",
                           (unsigned long long)record->record_bytes, record->head_bytes);
    return 0;
}

float larder_section_error(const struct larder_section *section)
{
    return section->flags & LARDER_SECTION_MEASURED ? from_upper_half(section->error) : -1;
}

void larder_section_set_error(struct larder_section *section, float error)
{
    section->error = upper_half(error);
    section->flags |= LARDER_SECTION_MEASURED;
}

static bool is_measure_sound(const struct larder_section *section)
{
    bool measured = section->flags & LARDER_SECTION_MEASURED;
    return section->flags <= (LARDER_SECTION_MEASURED | LARDER_SECTION_FELL_BACK) &&
           section->error < INFINITY_UPPER && (measured || section->error == 0);
}

static int check_directory(const struct larder_record *record)
{
    const struct larder_section *sections = larder_record_directory(record);
    struct larder_head_layout layout;
    layout_of(&layout, record);
    uint64_t end = layout.sections;
    for (uint32_t i = 0; i < record->section_count; i++) {
        const struct larder_section *at = &sections[i];
        if (at->kind > LARDER_SECTION_V || !larder_all_zero(at->reserved, sizeof(at->reserved)) ||
            !is_measure_sound(at) || at->layer_count == 0 || at->head_count == 0 ||
            at->layer_first + at->layer_count > (int)LARDER_LAYERS_MAX ||
            at->head_first + at->head_count > (int)LARDER_KV_HEADS_MAX)
            return larder_fail(LARDER_ECORRUPT, "record: section %u is malformed", i);
        if (at->offset % LARDER_SECTION_ALIGN != 0 || at->offset < end ||
            at->offset > record->record_bytes || at->bytes > record->record_bytes - at->offset)
            return larder_fail(LARDER_ECORRUPT,
                               "record: section %u at %llu of %llu bytes overlaps or leaves the "
                               "record",
                               i, (unsigned long long)at->offset, (unsigned long long)at->bytes);
        end = at->offset + at->bytes;
    }
    return 0;
}

int larder_record_check(const void *record, uint64_t available_bytes)
{
    const struct larder_record *header = record;
    assert(available_bytes >= sizeof(*header));
    LARDER_TRY(check_header(header));
    if (header->head_bytes > available_bytes)
        return -EAGAIN;
    return check_directory(header);
}

const char *larder_record_recipe(const struct larder_record *record)
{
    struct larder_head_layout layout;
    layout_of(&layout, record);
    return (const char *)record + layout.recipe;
}

const uint32_t *larder_record_tokens(const struct larder_record *record)
{
    struct larder_head_layout layout;
    layout_of(&layout, record);
    return (const uint32_t *)(const void *)((const char *)record + layout.tokens);
}

const struct larder_section *larder_record_directory(const struct larder_record *record)
{
    struct larder_head_layout layout;
    layout_of(&layout, record);
    return (const struct larder_section *)(const void *)((const char *)record + layout.directory);
}
