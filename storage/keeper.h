/* SPDX-License-Identifier: Apache-2.0 */
/* keeper.h - the thread that waits for the index and for the file system, so that the storage
 * thread, which serves reads, does not.
 *
 * Works in rounds: the storage thread fills one in, gives it, and gets it back with answers, one at
 * a time. A round does, in this order and each only when what is before it succeeded:
 *   1. commits batches of changes to the index, oldest first, one transaction each;
 *   2. punches what no record needs any more, and removes segments: the index forgot them in 1;
 *   3. makes the file of the next segment.
 *
 * Owns:    its thread; while a round is given, the index, the round and what it points to.
 * Threads: the storage thread calls; the keeper's thread works.
 * K1  Nothing is given back before the index has forgotten it, durably.
 * K2  After a commit that failed in earnest nothing more is done (-EIO), in this round or a later
 *     one.
 */
#ifndef LARDER_STORAGE_KEEPER_H
#define LARDER_STORAGE_KEEPER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/index.h"
#include "storage/seglog.h"

/* What one transaction of the index takes: a group's members, and a removal's marks. */
#define BATCH_CHANGES_MAX 1000u
#define ROUND_GONE_MAX    64u
#define ROUND_REMOVES_MAX 64u

enum index_change_kind {
    CHANGE_PUT,
    CHANGE_DELETE,
    CHANGE_PUT_MARK,
    CHANGE_DELETE_MARK,
    CHANGE_MODEL,
};

struct index_change {
    enum index_change_kind kind;
    uint32_t variant;
    struct larder_key key; /* or a model's fingerprint */
    union {
        struct index_entry value;
        struct index_mark mark;
        const struct larder_model_desc *desc; /* stays where it is */
    };
};

/* One transaction. */
struct batch {
    struct batch *next;
    uint32_t segment_id; /* 0: no row */
    struct index_segment row;
    uint64_t bytes; /* of records that it names: what is read again after a crash before it */
    uint32_t count;
    struct index_change changes[BATCH_CHANGES_MAX];
};

struct punch {
    struct segment *segment;
    uint64_t offset;
    uint64_t bytes;
};

struct round {
    /* the storage thread's */
    struct batch *batches;
    uint64_t next_generation;
    uint32_t gone[ROUND_GONE_MAX]; /* segments that the index is to forget; with a row only */
    uint32_t gone_count;
    struct punch *punches; /* may be NULL with a count of 0 */
    uint32_t punch_count;
    struct segment *removes[ROUND_REMOVES_MAX];
    uint32_t remove_count;
    uint32_t make_id; /* 0: no segment is wanted */

    /* the keeper's answers */
    uint32_t committed; /* leading batches */
    int commit_err;     /* keeper_may_try_again(), or writing ends */
    int room_err;       /* has the index room for what comes next? */
    int punch_err;      /* -EOPNOTSUPP: not on this file system */
    uint32_t removed;   /* leading ones of `removes` */
    int remove_err;
    struct larder_file *made;
    int make_err;
};

struct keeper;

/* No room on the disk, or no memory, before anything was changed. */
bool keeper_may_try_again(int commit_err);

/* `done` is called on the keeper's thread when a round is over; keeper_take() gets it then. */
int keeper_open(struct keeper **out, struct larder_index *index, const struct seglog *log,
                void (*done)(void *context), void *context);
/* Waits for the round that was given, if any. */
void keeper_close(struct keeper *keeper);

/* None is under way. */
void keeper_give(struct keeper *keeper, struct round *round);
/* NULL: it is not over yet, or none was given. */
struct round *keeper_take(struct keeper *keeper);

#endif
