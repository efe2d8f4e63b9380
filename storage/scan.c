/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/scan.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/tag.h"

int scan_open(struct scan *scan, struct larder_io *io, struct seal *seal)
{
    *scan = (struct scan){.io = io, .seal = seal, .capacity = LARDER_IO_BYTES_MAX};
    scan->buffer = larder_alloc_aligned(LARDER_PAGE_BYTES, scan->capacity);
    scan->window = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_IO_BYTES_MAX);
    if (scan->buffer && scan->window)
        return 0;
    scan_close(scan);
    *scan = (struct scan){0};
    return larder_fail(-ENOMEM, "recovery: no memory");
}

void scan_close(struct scan *scan)
{
    larder_free(scan->buffer);
    larder_free(scan->window);
}

static int read_bytes(struct scan *scan, const struct segment *segment, uint8_t *out,
                      uint64_t offset, uint32_t bytes)
{
    int err = -EIO;
    for (int attempt = 0; attempt < 2 && err < 0 && err != -ENODATA; attempt++)
        err = larder_io_run(scan->io, LARDER_IO_READ, segment->file, out, offset, bytes);
    if (err >= 0)
        return 0;
    scan->unreadable = err != -ENODATA;
    scan->io_errors += scan->unreadable;
    return larder_fail(LARDER_ECORRUPT, "segment %u: reading at %llu: %s", segment->id,
                       (unsigned long long)offset, larder_error_text(err));
}

/* How many of the bytes at that place are in the window. */
static uint64_t in_window(const struct scan *scan, const struct segment *segment, uint64_t offset,
                          uint64_t bytes)
{
    if (segment != scan->window_segment || offset < scan->window_from || offset >= scan->window_end)
        return 0;
    return larder_min_u64(bytes, scan->window_end - offset);
}

/* Bytes [from, to) of what lies at `offset`, into the same places of the buffer. */
static int read_part(struct scan *scan, const struct segment *segment, uint64_t offset,
                     uint64_t from, uint64_t to)
{
    if (to > scan->capacity) {
        uint8_t *buffer = larder_alloc_aligned(LARDER_PAGE_BYTES, to);
        if (!buffer)
            return larder_fail(-ENOMEM, "recovery: no memory for a record of %llu bytes",
                               (unsigned long long)to);
        memcpy(buffer, scan->buffer, from);
        larder_free(scan->buffer);
        scan->buffer = buffer;
        scan->capacity = to;
    }
    uint64_t known = in_window(scan, segment, offset + from, to - from);
    if (known > 0)
        memcpy(scan->buffer + from, scan->window + (offset + from - scan->window_from), known);
    from += known;
    while (from < to) {
        uint32_t bytes = (uint32_t)larder_min_u64(to - from, LARDER_IO_BYTES_MAX);
        LARDER_TRY(read_bytes(scan, segment, scan->buffer + from, offset + from, bytes));
        from += bytes;
    }
    return 0;
}

int scan_head(struct scan *scan, const struct larder_record **out, const struct segment *segment,
              uint64_t offset)
{
    *out = NULL;
    scan->unreadable = false;
    if (offset + LARDER_PAGE_BYTES > segment->end_bytes)
        return LARDER_ECORRUPT;
    LARDER_TRY(read_part(scan, segment, offset, 0, LARDER_PAGE_BYTES));
    struct larder_record *record = (void *)scan->buffer;
    if (record->magic != LARDER_RECORD_MAGIC)
        return LARDER_ECORRUPT;
    int err = tag_open_head(scan->seal, record, LARDER_PAGE_BYTES);
    if (err == -EAGAIN && offset + record->record_bytes <= segment->end_bytes) {
        uint64_t head_bytes = larder_round_up(record->head_bytes, LARDER_PAGE_BYTES);
        LARDER_TRY(read_part(scan, segment, offset, LARDER_PAGE_BYTES, head_bytes));
        record = (void *)scan->buffer;
        err = tag_open_head(scan->seal, record, head_bytes);
    }
    if (err == -ENOMEM)
        return err;
    /* A version that is not known is damage here: the segment's header said which it holds. */
    if (err < 0 || record->segment_id != segment->id ||
        record->segment_page != offset / LARDER_PAGE_BYTES ||
        offset + record->record_bytes > segment->end_bytes)
        return LARDER_ECORRUPT;
    *out = record;
    return 0;
}

int scan_record(struct scan *scan, const struct larder_record **out, const struct segment *segment,
                uint64_t offset)
{
    const struct larder_record *record;
    *out = NULL;
    LARDER_TRY(scan_head(scan, &record, segment, offset));
    uint64_t head_bytes = larder_round_up(record->head_bytes, LARDER_PAGE_BYTES);
    LARDER_TRY(read_part(scan, segment, offset, head_bytes, record->record_bytes));
    struct larder_record *whole = (void *)scan->buffer;
    for (uint32_t i = 0; i < whole->section_count; i++)
        LARDER_TRY(tag_open_section(scan->seal, whole, i));
    *out = whole;
    return 0;
}

/* The page at `offset` is in the window then, and what stands behind it. */
static int open_window(struct scan *scan, const struct segment *segment, uint64_t offset)
{
    if (in_window(scan, segment, offset, 1) > 0)
        return 0;
    uint32_t bytes = (uint32_t)larder_min_u64(segment->end_bytes - offset, LARDER_IO_BYTES_MAX);
    scan->window_segment = NULL;
    int err = read_bytes(scan, segment, scan->window, offset, bytes);
    if (err == LARDER_ECORRUPT && bytes > LARDER_PAGE_BYTES) {
        /* Something in it cannot be read: page by page past it. */
        bytes = LARDER_PAGE_BYTES;
        err = read_bytes(scan, segment, scan->window, offset, bytes);
    }
    LARDER_TRY(err);
    scan->window_segment = segment;
    scan->window_from = offset;
    scan->window_end = offset + bytes;
    return 0;
}

int scan_resync(struct scan *scan, uint64_t *out, const struct segment *segment, uint64_t offset)
{
    const uint64_t magic = LARDER_RECORD_MAGIC;
    for (; offset < segment->end_bytes; offset += LARDER_PAGE_BYTES) {
        int err = open_window(scan, segment, offset);
        if (err == LARDER_ECORRUPT)
            continue;
        LARDER_TRY(err);
        if (memcmp(scan->window + (offset - scan->window_from), &magic, sizeof(magic)) == 0)
            break;
    }
    *out = larder_min_u64(offset, segment->end_bytes);
    return 0;
}
