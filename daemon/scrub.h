/* SPDX-License-Identifier: Apache-2.0 */
/* scrub.h - goes over every entry on SSD, slowly, for one of three ends:
 *   scrub   reads it again and checks all its tags: what rots while nobody asks for it is found,
 *           dropped and counted before it is wanted;
 *   gc      writes it again elsewhere when little of its segment is live, so that the file can go;
 *   demote  keeps it smaller when nobody used it for long (demote.h).
 *
 * A pass goes over the store's entries in the order of its table, one record in flight, at no more
 * than so many bytes a second, so that requests hardly notice it. It begins by request, or when the
 * last whole one ended scrub_interval_s ago (DIR/scrubbed holds when that was); one of gc when
 * there are too many files, or, where holes cannot be punched, more dead bytes in them than live
 * ones; one of demote an eighth of the youngest age after the last. A pass that is cancelled or cut
 * short by a restart begins anew.
 *
 * Threads: event thread. Lists are made on a worker.
 */
#ifndef LARDER_DAEMON_SCRUB_H
#define LARDER_DAEMON_SCRUB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "daemon/completions.h"
#include "daemon/workers.h"
#include "storage/store.h"

/* Of one list, and so the most whose places may have changed since it was made. */
#define SCRUB_LIST_MAX 64u

struct demote;
struct larderd;

enum scrub_kind {
    SCRUB_CHECK,
    SCRUB_MOVE, /* gc */
    SCRUB_DEMOTE,
};

struct scrub {
    enum scrub_kind kind;
    struct wire_admin_scrub_ok state;
    uint32_t segments_max; /* of gc: with more of them it begins by itself */
    uint32_t live_percent; /* this and the next three: of gc */
    uint64_t moved;
    uint64_t moved_bytes;
    uint64_t segments_before;
    uint64_t looked_ms; /* whether it is due */
    bool cancelled;
    bool busy; /* a list or a record is on its way */
    /* What may be read now; below 0 after a large record. */
    int64_t credit_bytes;
    uint64_t ticked_ms;
    uint64_t cursor;
    bool listed_all;
    uint32_t count;
    uint32_t next;
    struct larder_entry_info entries[SCRUB_LIST_MAX];
    struct larderd *daemon;
    struct demote *demote; /* of demote */
    struct job job;
    struct completion completion;
    /* worker or storage thread, until the completion is posted */
    int err;
};

/* Reads when the last pass ended. -ENOMEM. */
int scrub_open(struct scrub *scrub, struct larderd *daemon, enum scrub_kind kind);
/* Every 100 ms or so. */
void scrub_tick(struct scrub *scrub, uint64_t now_ms);
/* Begins a pass, or gives the running one another rate; 0: the configured one. `live_percent` is
 * for gc; 0: GC_LIVE_PERCENT. */
#define GC_LIVE_PERCENT 50u
void scrub_start(struct scrub *scrub, uint64_t rate_bytes, uint32_t live_percent);
void scrub_cancel(struct scrub *scrub);
/* Gives back what it holds. Workers have ended. */
void scrub_close(struct scrub *scrub);

#endif
