/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/tag.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
/* For a streaming state on the stack. */
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#if defined(__x86_64__)
/* The library's plain functions stay with SSE2, at half the speed. */
#include <xxh_x86dispatch.h>
#endif

#include "base/error.h"
#include "storage/planted.h"
#include "storage/seal.h"

void tag_bind(struct tag_binding *out, const struct larder_record *record, uint32_t section)
{
    *out = (struct tag_binding){
        .variant = record->variant,
        .segment_id = record->segment_id,
        .segment_page = record->segment_page,
        .generation = record->generation,
        .section = section,
    };
    memcpy(out->key, record->key, sizeof(out->key));
}

static uint64_t seed_of(const struct larder_record *record, uint32_t section)
{
    struct tag_binding binding;
    tag_bind(&binding, record, section);
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
    XXH3_128bits_reset_withSeed(&state, seed_of(record, TAG_HEAD_SECTION));
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

static bool head_matches(const struct larder_record *record)
{
    if (LARDER_PLANT(TAG_UNCHECKED))
        return true;
    uint8_t tag[16];
    tag_of_head(tag, record);
    return memcmp(tag, record->tag, sizeof(tag)) == 0;
}

int tag_open_head(struct seal *seal, struct larder_record *record, uint64_t available_bytes)
{
    int err = larder_record_check(record, sizeof(*record));
    if (err < 0 && err != -EAGAIN)
        return err;
    if (record->head_bytes > available_bytes)
        return -EAGAIN;
    if (record->tag_kind != (seal ? LARDER_TAG_AES_256_GCM : LARDER_TAG_XXH3_128))
        return larder_fail(LARDER_ECORRUPT, "record: tag kind %u in a store that is %sencrypted",
                           record->tag_kind, seal ? "" : "not ");
    if (seal)
        LARDER_TRY(seal_open_head(seal, record));
    else if (!head_matches(record))
        return larder_fail(LARDER_ECORRUPT, "record: the tag of its head does not match");
    return larder_record_check(record, available_bytes);
}

int tag_open_section(struct seal *seal, struct larder_record *record, uint32_t section)
{
    assert(section < record->section_count);
    if (seal)
        return seal_open_section(seal, record, section);
    if (LARDER_PLANT(TAG_UNCHECKED))
        return 0;
    uint8_t tag[16];
    tag_of_section(tag, record, section);
    if (memcmp(tag, larder_record_directory(record)[section].tag, sizeof(tag)) != 0)
        return larder_fail(LARDER_ECORRUPT, "record: the tag of section %u does not match",
                           section);
    return 0;
}
