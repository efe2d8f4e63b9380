/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   larder_record_check() takes any head without leaving its bytes; of what it accepts, every
 *         part lies within the head and every section within the record, in order and apart.
 * Input:  the first bytes of a record. They are checked as they are, and again with head_bytes set
 *         to what the counts demand, which is how deeper checks are reached. */
#include "base/record.h"

#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "tests/fuzz/fuzz.h"

static void check_parts(const struct larder_record *record, size_t available)
{
    const uint8_t *start = (const uint8_t *)record;
    const uint8_t *end = start + record->head_bytes;
    assert(record->head_bytes <= available && record->head_bytes <= record->record_bytes);
    assert(record->record_bytes <= LARDER_RECORD_BYTES_MAX);
    const uint8_t *extra = larder_record_extra(record);
    const uint8_t *recipe = (const uint8_t *)larder_record_recipe(record);
    const uint8_t *tokens = (const uint8_t *)larder_record_tokens(record);
    const struct larder_section *sections = larder_record_directory(record);
    assert(extra + record->extra_bytes <= recipe && recipe + record->recipe_bytes <= tokens);
    assert((uintptr_t)tokens % 4 == 0 && (uintptr_t)sections % 8 == 0);
    assert(tokens + 4 * (size_t)record->token_count <= (const uint8_t *)sections);
    assert((const uint8_t *)(sections + record->section_count) == end);
    fuzz_touch(start, record->head_bytes);

    uint64_t reached = record->head_bytes;
    for (uint32_t i = 0; i < record->section_count; i++) {
        assert(sections[i].offset % LARDER_SECTION_ALIGN == 0);
        assert(sections[i].offset >= reached);
        uint64_t section_end;
        assert(larder_add_u64(&section_end, sections[i].offset, sections[i].bytes));
        reached = section_end;
        assert(sections[i].layer_first + sections[i].layer_count <= (int)LARDER_LAYERS_MAX);
        assert(sections[i].head_first + sections[i].head_count <= (int)LARDER_KV_HEADS_MAX);
    }
    assert(reached <= record->record_bytes);
}

static void check(const struct larder_record *record, size_t available)
{
    int err = larder_record_check(record, available);
    assert(err == 0 || err == LARDER_ECORRUPT || err == LARDER_EVERSION || err == -EAGAIN);
    if (err == 0)
        check_parts(record, available);
    else if (err == -EAGAIN)
        assert(record->head_bytes > available && record->head_bytes <= record->record_bytes);
    else
        assert(larder_error_message()[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < sizeof(struct larder_record))
        return 0;
    struct larder_record *record = fuzz_copy(data, bytes);
    check(record, bytes);
    check(record, sizeof(*record)); /* only the fixed part was read so far */
    if (record->extra_bytes <= LARDER_TOMBSTONE_BYTES_MAX &&
        record->token_count <= LARDER_BLOCK_TOKENS_MAX) {
        struct larder_head_layout layout;
        larder_head_layout(&layout, record->extra_bytes, record->recipe_bytes, record->token_count,
                           record->section_count);
        record->head_bytes = layout.head_bytes;
        check(record, bytes);
    }
    free(record);
    return 0;
}
