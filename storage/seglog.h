/* SPDX-License-Identifier: Apache-2.0 */
/* seglog.h - segment files: made, appended to, sealed, punched, removed (docs/FORMAT.md,
 * "Segments").
 *
 * Owns:    the open files under DIR/segments; all of them stay open.
 * Threads: the storage thread, or the one that opens the store. No lock: what others may know of it
 *          is copied out with seglog_usage(). The keeper (keeper.h) calls what is marked so: that
 *          reads only what does not change, and waits for the file system.
 * S1  An id is never used twice; only the segment made last is appended to, and only by the process
 *     that made it.
 * S2  A segment with tombstones or marks stays until no older one is left: they outlive every copy
 *     of what they removed, or changed, that may still stand in one.
 * S3  A file is gone, and that is durable, before the index forgets it: one that the index does not
 *     know is taken for a new one at the next start.
 * S4  A file is made before it is needed, and blank until the first records come: nothing in a
 *     blank segment was ever acknowledged.
 */
#ifndef LARDER_STORAGE_SEGLOG_H
#define LARDER_STORAGE_SEGLOG_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "storage/io.h"

#define SEGMENT_MAGIC        0x314d47455344524cull /* "LRDSEGM1" */
#define SEGMENT_VERSION      1u
#define SEGMENT_HEADER_BYTES 4096u
/* The header's second copy, in another sector: an encrypted segment is lost with its salt. */
#define SEGMENT_HEADER_COPY 2048u

/* The first bytes of a segment's first page, and those at SEGMENT_HEADER_COPY if it is encrypted;
 * zeros between and behind. */
struct segment_header {
    uint64_t magic;       /* 00-07 */
    uint32_t version;     /* 08-11 */
    uint32_t segment_id;  /* 12-15  as in the file's name */
    uint8_t store_id[16]; /* 16-31 */
    uint8_t salt[32];     /* 32-63  random; for keys of encrypted segments */
    uint64_t created_s;   /* 64-71 */
    uint32_t tag_kind;    /* 72-75 */
    uint32_t reserved;    /* 76-79  0 */
    uint8_t check[16];    /* 80-95  XXH3-128 of bytes 0-79 */
};
static_assert(sizeof(struct segment_header) == 96, "on-disk size");

struct segment {
    struct larder_file *file;
    uint32_t id;
    uint32_t users;           /* reads and groups in flight: it is not removed meanwhile */
    uint64_t file_bytes;      /* what it takes on disk, unless punched */
    uint64_t end_bytes;       /* where the next record goes, or went last */
    uint64_t zeroed_bytes;    /* up to there zeros were written ahead of records (ahead.c) */
    uint64_t committed_bytes; /* the index knows everything below */
    uint64_t live_bytes;      /* of records that the table names */
    uint64_t tombstone_bytes; /* and of marks */
    uint64_t stale_bytes;     /* of records that died in an earlier life, and were not punched */
    uint32_t mark_count;      /* that hold; as of the last sweep */
    uint8_t salt[32];         /* of its header */
    bool has_salt;            /* it was found there */
    bool in_index;            /* has a row there */
    bool needs_header;        /* new: its header, in seglog.page, goes out with its first records */
    bool blank;               /* opened, and its header was never written (S4) */
    bool leaving;             /* the keeper removes its file */
};

struct seglog {
    struct larder_io *io;
    const uint8_t *store_id;
    uint64_t segment_bytes;
    uint32_t
        tag_kind; /* of the records in new segments: XXH3-128, until the owner says otherwise */
    struct segment **segments; /* by id, oldest first */
    uint32_t count;
    uint32_t capacity;
    uint32_t next_id;
    struct segment *open;      /* appended to; NULL: none yet, or the last is full */
    struct larder_file *ahead; /* of the next one, made before it is needed; NULL: none */
    uint32_t ahead_id;
    bool punches;  /* until the file system says that it cannot */
    uint8_t *page; /* header of the segment made last; aligned */
};

/* Opens every segment file of this store in the directory. LARDER_EVERSION for a segment of another
 * version; files of another store are left alone, with a warning. */
int seglog_open(struct seglog *log, struct larder_io *io, const uint8_t *store_id,
                uint64_t segment_bytes);
/* Seals the open segment. `io` stays the caller's. */
void seglog_close(struct seglog *log);

/* NULL when there is none. */
struct segment *seglog_find(const struct seglog *log, uint32_t id);
/* The index knows this id: it is not used again. */
void seglog_saw(struct seglog *log, uint32_t id);

/* The newest segment that is not blank: the only one with records that the index may not know. */
struct segment *seglog_newest(const struct seglog *log);

/* Keeper: makes the file of segment `id`, preallocated, its name durable. -ENOSPC and others leave
 * nothing behind. */
int seglog_make_file(const struct seglog *log, struct larder_file **out, uint32_t id);
/* Takes a file that was made: seglog_begin() will use it. */
void seglog_add_ahead(struct seglog *log, struct larder_file *file, uint32_t id);
/* The segment whose file is ready becomes the open one. */
int seglog_begin(struct seglog *log);
/* All three, for the next id. */
int seglog_create(struct seglog *log);
/* Nothing more goes into the open segment: cuts what was preallocated behind its records. An error
 * leaves it longer, which costs space only. */
int seglog_seal(struct seglog *log);

/* Keeper: gives the space of a dead record back. -EOPNOTSUPP where the file system cannot; other
 * errors cost space only, and are logged. */
int seglog_punch(const struct seglog *log, const struct segment *segment, uint64_t offset,
                 uint64_t bytes);

/* Whether there would be any for seglog_dead() if no mark held: a look that costs little. */
bool seglog_may_have_dead(const struct seglog *log);
/* Up to `count_max` segments that nothing needs any more, in the order in which they are to be
 * removed (S2). */
uint32_t seglog_dead(const struct seglog *log, struct segment **out, uint32_t count_max);
/* Keeper: removes the file, durably, and closes it. */
int seglog_remove_file(const struct seglog *log, struct segment *segment);
/* Its file is gone. */
void seglog_forget(struct seglog *log, struct segment *segment);

/* Bytes that all segments take on disk: the open one, and the one ahead, whole. */
uint64_t seglog_usage(const struct seglog *log);

#endif
