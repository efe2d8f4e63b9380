/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/seglog.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/record.h"
#include "storage/crypt.h"

#define NAME_BYTES 24

static void name_of(char out[NAME_BYTES], uint32_t id)
{
    snprintf(out, NAME_BYTES, "%08u.seg", id);
}

/* 0 for a name that is not a segment's. */
static uint32_t id_of_name(const char *name)
{
    uint64_t id = 0;
    const char *at = name;
    for (; *at >= '0' && *at <= '9' && id <= UINT32_MAX; at++)
        id = id * 10 + (uint64_t)(*at - '0');
    if (at - name < 8 || strcmp(at, ".seg") != 0 || id > UINT32_MAX - 1)
        return 0;
    return (uint32_t)id;
}

static void header_check(uint8_t out[16], const struct segment_header *header)
{
    XXH128_hash_t hash = XXH3_128bits(header, offsetof(struct segment_header, check));
    memcpy(out, &hash.low64, 8);
    memcpy(out + 8, &hash.high64, 8);
}

/* --- the set of segments --------------------------------------------------------------------- */

struct segment *seglog_find(const struct seglog *log, uint32_t id)
{
    uint32_t low = 0;
    uint32_t high = log->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (log->segments[middle]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < log->count && log->segments[low]->id == id ? log->segments[low] : NULL;
}

void seglog_saw(struct seglog *log, uint32_t id)
{
    if (id >= log->next_id)
        log->next_id = id + 1;
}

static int add_segment(struct seglog *log, struct segment **out, uint32_t id)
{
    *out = NULL;
    if (log->count == log->capacity) {
        uint32_t capacity = log->capacity ? log->capacity * 2 : 64;
        struct segment **segments =
            larder_realloc(log->segments, capacity * sizeof(struct segment *));
        if (!segments)
            return larder_fail(-ENOMEM, "segments: no memory");
        log->segments = segments;
        log->capacity = capacity;
    }
    struct segment *segment = larder_alloc_zero(1, sizeof(*segment));
    if (!segment)
        return larder_fail(-ENOMEM, "segments: no memory");
    segment->id = id;
    uint32_t at = log->count++;
    for (; at > 0 && log->segments[at - 1]->id > id; at--)
        log->segments[at] = log->segments[at - 1];
    log->segments[at] = segment;
    seglog_saw(log, id);
    *out = segment;
    return 0;
}

void seglog_forget(struct seglog *log, struct segment *segment)
{
    uint32_t at = 0;
    while (log->segments[at] != segment)
        at++;
    log->count--;
    memmove(&log->segments[at], &log->segments[at + 1], (log->count - at) * sizeof(segment));
    if (segment->file)
        log->io->ops->close_file(log->io, segment->file);
    if (log->open == segment)
        log->open = NULL;
    larder_free(segment);
}

/* --- open ------------------------------------------------------------------------------------ */

enum header_state {
    HEADER_OURS,
    HEADER_FOREIGN,
    HEADER_BLANK,
};

static bool header_is_whole(const struct segment_header *header)
{
    uint8_t check[16];
    header_check(check, header);
    return header->magic == SEGMENT_MAGIC && memcmp(check, header->check, sizeof(check)) == 0;
}

/* A damaged header costs nothing in a plain store: every record says itself where it belongs, and
 * is checked. In an encrypted one its copy has the salt. */
static int read_header(struct seglog *log, struct segment *segment, enum header_state *state)
{
    *state = HEADER_BLANK;
    if (segment->file_bytes < SEGMENT_HEADER_BYTES)
        return 0;
    int err =
        larder_io_run(log->io, LARDER_IO_READ, segment->file, log->page, 0, SEGMENT_HEADER_BYTES);
    if (err < 0)
        return larder_fail(err, "segment %u: reading its header: %s", segment->id,
                           larder_error_text(err));
    if (larder_all_zero(log->page, SEGMENT_HEADER_BYTES))
        return 0;
    *state = HEADER_OURS;
    struct segment_header header;
    memcpy(&header, log->page, sizeof(header));
    if (!header_is_whole(&header))
        memcpy(&header, log->page + SEGMENT_HEADER_COPY, sizeof(header));
    if (!header_is_whole(&header)) {
        larder_log(LARDER_LOG_WARN, "segment %u: its header is damaged", segment->id);
        return 0;
    }
    if (header.version != SEGMENT_VERSION)
        return larder_fail(LARDER_EVERSION, "segment %u: version %u, this release knows %u",
                           segment->id, header.version, SEGMENT_VERSION);
    if (memcmp(header.store_id, log->store_id, sizeof(header.store_id)) != 0 ||
        header.segment_id != segment->id)
        *state = HEADER_FOREIGN;
    memcpy(segment->salt, header.salt, sizeof(segment->salt));
    segment->has_salt = true;
    return 0;
}

static int open_one(void *context, const char *name)
{
    struct seglog *log = context;
    uint32_t id = id_of_name(name);
    if (id == 0) {
        if (name[0] != '.')
            larder_log(LARDER_LOG_WARN, "segments: %s is not a segment; left alone", name);
        return 0;
    }
    struct segment *segment;
    LARDER_TRY(add_segment(log, &segment, id));
    LARDER_TRY(log->io->ops->open_file(log->io, &segment->file, name, LARDER_IO_OPEN_EXISTING));
    LARDER_TRY(log->io->ops->file_bytes(log->io, segment->file, &segment->file_bytes));
    segment->end_bytes = segment->file_bytes & ~(uint64_t)(LARDER_PAGE_BYTES - 1);
    enum header_state state;
    LARDER_TRY(read_header(log, segment, &state));
    segment->blank = state == HEADER_BLANK;
    if (state == HEADER_FOREIGN) {
        larder_log(LARDER_LOG_WARN, "segments: %s is another store's; left alone", name);
        seglog_forget(log, segment);
    }
    return 0;
}

int seglog_open(struct seglog *log, struct larder_io *io, const uint8_t *store_id,
                uint64_t segment_bytes)
{
    memset(log, 0, sizeof(*log));
    log->io = io;
    log->store_id = store_id;
    log->segment_bytes = segment_bytes;
    log->next_id = 1;
    log->tag_kind = LARDER_TAG_XXH3_128;
    log->punches = true;
    log->page = larder_alloc_aligned(LARDER_PAGE_BYTES, SEGMENT_HEADER_BYTES);
    if (!log->page)
        return larder_fail(-ENOMEM, "segments: no memory");
    int err = io->ops->list(io, open_one, log);
    if (err < 0)
        seglog_close(log);
    return err;
}

void seglog_close(struct seglog *log)
{
    if (log->open)
        seglog_seal(log);
    if (log->ahead) {
        char name[NAME_BYTES];
        name_of(name, log->ahead_id);
        log->io->ops->close_file(log->io, log->ahead);
        log->io->ops->unlink(log->io,
                             name); /* a failure costs a blank file, until the next start */
    }
    while (log->count > 0)
        seglog_forget(log, log->segments[log->count - 1]);
    larder_free(log->segments);
    larder_free(log->page);
    memset(log, 0, sizeof(*log));
}

/* --- append ---------------------------------------------------------------------------------- */

static int fill_header(struct seglog *log, struct segment *segment)
{
    struct segment_header header = {
        .magic = SEGMENT_MAGIC,
        .version = SEGMENT_VERSION,
        .segment_id = segment->id,
        .created_s = (uint64_t)time(NULL),
        .tag_kind = log->tag_kind,
    };
    memcpy(header.store_id, log->store_id, sizeof(header.store_id));
    LARDER_TRY(crypt_random(header.salt, sizeof(header.salt)));
    memcpy(segment->salt, header.salt, sizeof(segment->salt));
    segment->has_salt = true;
    header_check(header.check, &header);
    memset(log->page, 0, SEGMENT_HEADER_BYTES);
    memcpy(log->page, &header, sizeof(header));
    if (log->tag_kind != LARDER_TAG_XXH3_128)
        memcpy(log->page + SEGMENT_HEADER_COPY, &header, sizeof(header));
    return 0;
}

int seglog_make_file(const struct seglog *log, struct larder_file **out, uint32_t id)
{
    *out = NULL;
    if (id == UINT32_MAX)
        return larder_fail(LARDER_ELIMIT, "segments: ids are used up");
    char name[NAME_BYTES];
    name_of(name, id);
    const struct larder_io_ops *ops = log->io->ops;
    struct larder_file *file;
    LARDER_TRY(ops->open_file(log->io, &file, name, LARDER_IO_CREATE_NEW));
    int err = ops->preallocate(log->io, file, log->segment_bytes);
    if (err == 0)
        err = ops->sync_directory(log->io);
    if (err < 0) {
        ops->close_file(log->io, file);
        ops->unlink(log->io, name);
        return err;
    }
    *out = file;
    return 0;
}

void seglog_add_ahead(struct seglog *log, struct larder_file *file, uint32_t id)
{
    assert(!log->ahead);
    log->ahead = file;
    log->ahead_id = id;
    seglog_saw(log, id);
}

int seglog_begin(struct seglog *log)
{
    assert(!log->open);
    assert(log->ahead);
    struct segment *segment;
    LARDER_TRY(add_segment(log, &segment, log->ahead_id));
    int err = fill_header(log, segment);
    if (err < 0) {
        seglog_forget(log, segment);
        return err;
    }
    segment->file = log->ahead;
    log->ahead = NULL;
    segment->file_bytes = log->segment_bytes;
    segment->end_bytes = SEGMENT_HEADER_BYTES;
    segment->needs_header = true;
    log->open = segment;
    return 0;
}

int seglog_create(struct seglog *log)
{
    struct larder_file *file;
    uint32_t id = log->next_id;
    LARDER_TRY(seglog_make_file(log, &file, id));
    seglog_add_ahead(log, file, id);
    return seglog_begin(log);
}

int seglog_seal(struct seglog *log)
{
    struct segment *segment = log->open;
    log->open = NULL;
    int err = log->io->ops->truncate(log->io, segment->file, segment->end_bytes);
    if (err < 0)
        larder_log(LARDER_LOG_WARN, "segment %u: truncating it to %llu bytes: %s", segment->id,
                   (unsigned long long)segment->end_bytes, larder_error_text(err));
    else
        segment->file_bytes = segment->end_bytes;
    return err;
}

/* --- give back ------------------------------------------------------------------------------- */

int seglog_punch(const struct seglog *log, const struct segment *segment, uint64_t offset,
                 uint64_t bytes)
{
    int err = log->io->ops->punch(log->io, segment->file, offset, bytes);
    if (err < 0 && err != -EOPNOTSUPP)
        larder_log(LARDER_LOG_WARN, "segment %u: punching %llu bytes: %s", segment->id,
                   (unsigned long long)bytes, larder_error_text(err));
    return err;
}

bool seglog_may_have_dead(const struct seglog *log)
{
    bool older = false;
    for (uint32_t i = 0; i < log->count; i++) {
        const struct segment *segment = log->segments[i];
        if (segment != log->open && segment->live_bytes == 0 &&
            !(segment->tombstone_bytes > 0 && older))
            return true;
        older = true;
    }
    return false;
}

uint32_t seglog_dead(const struct seglog *log, struct segment **out, uint32_t count_max)
{
    uint32_t count = 0;
    bool older = false; /* stays */
    for (uint32_t i = 0; i < log->count && count < count_max; i++) {
        struct segment *segment = log->segments[i];
        if (segment == log->open || segment->live_bytes > 0 || segment->users > 0 ||
            segment->mark_count > 0 || (segment->tombstone_bytes > 0 && older))
            older = true;
        else
            out[count++] = segment;
    }
    return count;
}

int seglog_remove_file(const struct seglog *log, struct segment *segment)
{
    char name[NAME_BYTES];
    name_of(name, segment->id);
    /* Gone already when its removal could not be made durable the last time. */
    int err = log->io->ops->unlink(log->io, name);
    if (err < 0 && err != -ENOENT)
        return err;
    /* Durable before the next: tombstones must not go before what they removed. */
    LARDER_TRY(log->io->ops->sync_directory(log->io));
    log->io->ops->close_file(log->io, segment->file);
    segment->file = NULL;
    return 0;
}

struct segment *seglog_newest(const struct seglog *log)
{
    for (uint32_t i = log->count; i-- > 0;)
        if (!log->segments[i]->blank)
            return log->segments[i];
    return NULL;
}

uint64_t seglog_usage(const struct seglog *log)
{
    uint64_t bytes = log->ahead ? log->segment_bytes : 0;
    for (uint32_t i = 0; i < log->count; i++) {
        const struct segment *segment = log->segments[i];
        if (segment == log->open || !log->punches)
            bytes += segment->file_bytes;
        else
            bytes += segment->live_bytes + segment->tombstone_bytes + segment->stale_bytes +
                     SEGMENT_HEADER_BYTES;
    }
    return bytes;
}
