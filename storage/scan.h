/* SPDX-License-Identifier: Apache-2.0 */
/* scan.h - reading records of a segment without an index: at start only.
 * Threads: the one that opens the store.
 */
#ifndef LARDER_STORAGE_SCAN_H
#define LARDER_STORAGE_SCAN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/record.h"
#include "storage/io.h"
#include "storage/seglog.h"

struct seal;

struct scan {
    struct larder_io *io;
    struct seal *seal; /* NULL: a plain store */
    uint8_t *buffer;   /* aligned */
    uint64_t capacity;
    /* What was read last to find a record in: those that stand there are not read once more. */
    uint8_t *window;
    const struct segment *window_segment;
    uint64_t window_from;
    uint64_t window_end;
    uint64_t io_errors;
    bool unreadable; /* the last LARDER_ECORRUPT was a read that failed, twice */
};

int scan_open(struct scan *scan, struct larder_io *io, struct seal *seal);
void scan_close(struct scan *scan);

/* The head at `offset`, checked and decrypted: form, place, tag; it ends within the segment. Valid
 * until the next call. LARDER_ECORRUPT: there is no valid head here (or it cannot be read).
 * Sections are not looked at. */
int scan_head(struct scan *scan, const struct larder_record **out, const struct segment *segment,
              uint64_t offset);
/* The same with the whole record and all its tags. */
int scan_record(struct scan *scan, const struct larder_record **out, const struct segment *segment,
                uint64_t offset);
/* The first page from `offset` on that could be a record's; the segment's end if there is none. */
int scan_resync(struct scan *scan, uint64_t *out, const struct segment *segment, uint64_t offset);

#endif
