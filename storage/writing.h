/* SPDX-License-Identifier: Apache-2.0 */
/* writing.h - what is on its way to SSD and into the index, as the files of the store share it:
 * puts, marks, moves and removals in their queues, groups of them, and what the index is to learn.
 *
 * Threads: callers make them under the store's lock; from the queue on they are the storage
 *          thread's, which tells the caller by a completion and frees them.
 */
#ifndef LARDER_STORAGE_WRITING_H
#define LARDER_STORAGE_WRITING_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/index.h"
#include "storage/io.h"
#include "storage/keeper.h"
#include "storage/mark.h"
#include "storage/seglog.h"
#include "storage/store.h"
#include "storage/table.h"

/* A group takes at most this much, so that its first member does not wait long for its last. */
#define GROUP_BYTES_MAX (64ull << 20)
/* Entries whose places in the index one transaction changes: it makes sure of room for so many
 * (index.h). */
#define GROUP_MEMBERS_MAX 500u
/* Writes in flight: enough of small ones to keep a disk busy, little enough of large ones that
 * reads get in between. */
#define WRITES_IN_FLIGHT_MAX      64u
#define WRITE_BYTES_IN_FLIGHT_MAX (16u << 20)
/* Keys of one tombstone record. */
#define SLICE_KEYS_MAX 250u
static_assert(SLICE_KEYS_MAX * 32u <= LARDER_TOMBSTONE_BYTES_MAX, "fits a record");

/* Something that is over and has a caller to tell: run on the storage thread, without the lock. */
struct completion {
    struct completion *next;
    void (*run)(struct larder_store *store, struct completion *completion);
};

struct completion_list {
    struct completion *first;
    struct completion **end;
};

/* What tells variants of a key apart: two puts that agree in this are one. */
struct variant_name {
    enum larder_quality quality;
    enum larder_quality computed_on;
    uint16_t recipe; /* of table_recipe() */
};

/* Bytes to append, in order, as requests of LARDER_IO_BYTES_MAX. */
struct append {
    struct append *next;
    struct append *owned_next;    /* of a group's model records */
    struct larder_record *record; /* stamped and tagged before the first request; NULL: a header */
    void *buffer;
    uint64_t offset;
    uint64_t bytes;
    uint64_t submitted_bytes;
};

enum put_state {
    PUT_RESERVED, /* the caller's */
    PUT_QUEUED,
    PUT_GROUPED,
};

struct larder_put {
    struct completion completion;
    struct append append;
    struct larder_store *store;
    struct larder_put *next; /* in the queue or in a group */
    struct larder_put *all_next;
    struct larder_put *all_prev;
    enum put_state state;
    uint32_t entry; /* TABLE_NONE: removed meanwhile */
    uint32_t slot;
    uint8_t number;  /* of the variant */
    bool replaces;   /* `old` was visible before */
    uint32_t idle_s; /* since what it was made of was used */
    int refused;     /* there was no room while it was queued */
    struct entry_variant old;
    struct entry_variant variant;
    struct index_entry value; /* as the index will have it */
    struct larder_key key;
    uint32_t tenant;
    uint32_t model;
    uint64_t payload_offset;
    uint64_t payload_bytes_max;
    uint32_t section_count_max;
    struct larder_mark mark;       /* to be made with it; no fields: none */
    struct mark_write *mark_write; /* for it, or for the one that the entry has */
    larder_put_done done;
    void *context;
    int err;
};

/* A mark on its way to disk. */
struct mark_write {
    struct completion completion;
    struct mark_write *next;
    struct larder_store *store;
    struct larder_key key;
    struct larder_mark_value value;
    uint32_t tenant;
    bool is_moved;      /* out of a segment that is to go: nobody waits for it */
    bool is_before_put; /* its entry's record comes behind it */
    larder_put_done done;
    void *context;
    int err;
};

struct mark_queue {
    struct mark_write *first;
    struct mark_write *last;
};

/* Those of tenants lie with these, which take turns: linked by next_marked. */
struct marks_waiting {
    struct mark_queue before_puts;
    uint32_t first_tenant;
    uint32_t last_tenant;
    uint32_t tenant_count;
};

/* One record of marks. */
struct mark_batch {
    struct append append;
    struct mark_batch *next;
    struct mark_write *writes;
    uint32_t count;
    bool has_others; /* than those that puts wait for */
};

/* A record on its way to another segment. */
struct move {
    struct completion completion;
    struct append append; /* its record: a buffer that is the move's */
    struct move *next;    /* in the queue or in a group */
    struct larder_key key;
    struct entry_variant from;
    struct entry_variant to;
    struct index_entry value; /* as the index will have it */
    uint32_t live_percent;
    uint32_t tenant;
    uint32_t model;
    uint8_t number; /* of the variant */
    bool noted;     /* the entry is there now */
    larder_put_done done;
    void *context;
    int err;
};

/* A larder_store_when() that has to wait. */
struct watch {
    struct completion completion;
    struct watch *next;
    struct larder_key key;
    uint32_t tenant;
    enum larder_quality worst;
    bool is_named; /* only the variant of that name */
    struct variant_name name;
    enum larder_wait wait;
    larder_put_done done;
    void *context;
    int err;
};

/* A subtree on its way out. */
struct removal {
    struct completion completion;
    struct removal *next;
    uint32_t *entries; /* DOOMED; children before parents; TABLE_NONE: removed */
    uint32_t entry_count;
    uint32_t sliced; /* of them, in slices so far */
    uint32_t slices; /* on their way */
    uint64_t removed;
    uint64_t generation;
    uint32_t tenant;
    struct larder_key key; /* that a request names, and the variant, or all */
    uint32_t variant;
    bool single;           /* one variant of a key, not the key */
    enum larder_event why; /* LARDER_EVENT_CORRUPT: stays doomed whatever happens */
    int err;
    void (*done)(void *context, int err, uint64_t removed);
    void *context;
};

/* A part of a removal: one tombstone record. */
struct slice {
    struct append append;
    struct slice *next;
    struct removal *removal;
    uint32_t first;
    uint32_t count;
    uint8_t numbers[SLICE_KEYS_MAX]; /* of the variants that the index forgets */
};

enum group_state {
    GROUP_IDLE,
    GROUP_FILLING, /* takes members, writes them */
    GROUP_SYNCING,
};

struct group {
    enum group_state state;
    struct segment *segment;
    struct larder_put *puts;
    struct larder_put **puts_end;
    struct slice *slices;
    struct slice **slices_end;
    struct mark_batch *marks; /* in the order of their writing: of a key the last holds */
    bool has_mark_share;      /* some of them nothing waits for */
    struct move *moves;
    struct append *appends;
    struct append **appends_end;
    struct append *appending;
    struct append header;
    struct append ahead;
    bool ahead_asked;      /* whether zeros go with it is decided */
    struct append *models; /* of model records; owned */
    struct batch *batch;   /* for what the index is to learn */
    uint64_t bytes;
    uint64_t end_bytes; /* of the segment, behind its members */
    uint64_t tombstone_bytes;
    uint64_t move_bytes;
    uint32_t members; /* changes of the index */
    uint32_t in_flight;
    uint64_t in_flight_bytes;
    bool closed; /* takes no more members */
    bool synced;
    bool abandoned; /* a write failed; what it left is cut, and that is being synced */
    int write_err;
    bool noted; /* before its time: only by a planted bug */
    int err;
    uint64_t start_bytes; /* of the segment, before its members */
    struct larder_io_request sync;
};

struct append_request {
    struct larder_io_request io;
    struct append_request *next;
    struct group *group;
    void *sealed; /* what is written; NULL: the record as it is */
};

/* A record that nothing names any more; its space is given back after the index forgot it. */
struct dead_extent {
    uint32_t segment_id;
    uint32_t segment_page;
    uint32_t pages;
};

struct dead_list {
    struct dead_extent *extents;
    uint32_t count;
    uint32_t capacity;
};

/* What the index is to learn, and the keeper's round (commit.c). */
struct commits {
    struct batch *batches; /* oldest first */
    struct batch *last;
    uint64_t waiting_bytes; /* of records that they name */
    uint32_t waiting_changes;
    uint64_t since_us;          /* the oldest waits */
    uint64_t retry_us;          /* after the index found no room: when to try again; 0: it did */
    uint64_t tail_bytes;        /* of records that the index does not name yet */
    struct removal *held;       /* are told when what is there now is in the index */
    struct removal *held_round; /* ... when the round is over */
    bool hurry;                 /* somebody waits for a round */
    bool want_segment;
    bool is_ahead;      /* that segment: nothing waits for it */
    uint32_t ahead_for; /* the open segment for which the next one was asked for already */
    bool look;          /* use may have changed */
    uint64_t look_us;   /* nothing could go: eviction ahead is tried again then; 0: not waiting */
    uint64_t sweep_us;  /* not all dead segments could: they are tried again then; 0: not waiting */
    bool draining;      /* it was above ssd_high, and is not below ssd_low yet */
    bool index_full;
    bool busy; /* the round is the keeper's */
    int make_err;
    struct round round;
    struct dead_list dead; /* given back by the round */
};

/* The oldest segments, being emptied (clear.c). */
struct clear {
    bool look;          /* there may be reason to begin */
    bool running;       /* a pass over the table */
    bool failed;        /* a move of this pass */
    uint32_t last_id;   /* of the segments that are emptied */
    uint32_t cursor;    /* of entries */
    uint32_t begun;     /* moves of this pass */
    uint32_t in_vain;   /* looks in a row */
    uint32_t in_flight; /* of those */
    uint64_t in_flight_bytes;
    uint64_t begun_us;    /* the first of those in flight */
    uint64_t wait_us;     /* nothing is done before */
    bool resting;         /* ... unless it is urgent */
    uint64_t asked_bytes; /* of tombstones, when it was not worth it */
    uint64_t began_bytes; /* ... when it was; 0: it is not now */
};

#endif
