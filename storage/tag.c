/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/tag.h"

#include <assert.h>
#include <string.h>
/* For a streaming state on the stack. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#if defined(__x86_64__)
/* The library's plain functions stay with SSE2, at half the speed. */
#include <xxh_x86dispatch.h>
#endif

#include "storage/planted.h"

#define HEAD_SECTION UINT32_MAX

/* What a tag is bound to, packed as docs/FORMAT.md lists it. */
struct __attribute__((packed)) binding {
    uint8_t key[32];
    uint32_t variant;
    uint32_t segment_id;
    uint32_t segment_page;
    uint64_t generation;
    uint32_t section;
};
static_assert(sizeof(struct binding) == 56, "format");

static uint64_t seed_of(const struct larder_record *record, uint32_t section)
{
    struct binding binding = {
        .variant = record->variant,
        .segment_id = record->segment_id,
        .segment_page = record->segment_page,
        .generation = record->generation,
        .section = section,
    };
    memcpy(binding.key, record->key, sizeof(binding.key));
    return XXH3_64bits(&binding, sizeof(binding));
}

static void store_hash(uint8_t out[16], XXH128_hash_t hash)
{
    memcpy(out, &hash.low64, 8);
    memcpy(out + 8, &hash.high64, 8);
}

static void tag_of_section(uint8_t out[16], const struct larder_record *record, uint32_t index)
{
    const struct larder_section *section = &larder_record_directory(record)[index];
    const char *bytes = (const char *)record + section->offset;
    store_hash(out, XXH3_128bits_withSeed(bytes, section->bytes, seed_of(record, index)));
}

static void tag_of_head(uint8_t out[16], const struct larder_record *record)
{
    /* The tag is hashed as zeros without writing to the record, which others may be reading. */
    struct larder_record header = *record;
    memset(header.tag, 0, sizeof(header.tag));
    XXH3_state_t state;
    /* reset_withSeed() trusts the secret in a state whose seed it has already, and this one's is
     * whatever the stack held: the last head's seed over a secret since overwritten. */
    XXH3_INITSTATE(&state);
    XXH3_128bits_reset_withSeed(&state, seed_of(record, HEAD_SECTION));
    XXH3_128bits_update(&state, &header, sizeof(header));
    XXH3_128bits_update(&state, record + 1, record->head_bytes - sizeof(header));
    store_hash(out, XXH3_128bits_digest(&state));
}

void tag_record(struct larder_record *record)
{
    struct larder_section *sections = (struct larder_section *)larder_record_directory(record);
    for (uint32_t i = 0; i < record->section_count; i++)
        tag_of_section(sections[i].tag, record, i);
    tag_of_head(record->tag, record);
}

bool tag_head_matches(const struct larder_record *record)
{
    if (LARDER_PLANT(TAG_UNCHECKED))
        return true;
    uint8_t tag[16];
    tag_of_head(tag, record);
    return memcmp(tag, record->tag, sizeof(tag)) == 0;
}

bool tag_section_matches(const struct larder_record *record, uint32_t section)
{
    assert(section < record->section_count);
    if (LARDER_PLANT(TAG_UNCHECKED))
        return true;
    uint8_t tag[16];
    tag_of_section(tag, record, section);
    return memcmp(tag, larder_record_directory(record)[section].tag, sizeof(tag)) == 0;
}

bool tag_record_matches(const struct larder_record *record)
{
    if (!tag_head_matches(record))
        return false;
    for (uint32_t i = 0; i < record->section_count; i++) {
        if (!tag_section_matches(record, i))
            return false;
    }
    return true;
}
