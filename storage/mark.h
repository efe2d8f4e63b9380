/* SPDX-License-Identifier: Apache-2.0 */
/* mark.h - marks of entries: pins, expiry, priority. Few entries have one, so they lie beside the
 * table, found by the entry's id, in a heap by when something of them is due, and in a list for
 * each segment of those whose newest record stands there.
 *
 * Threads: none of its own; all of it under the store's lock.
 * M1  Every mark's entry has ENTRY_MARKED, and no other entry.
 * M2  A mark's place in the heap says so, and the heap's root is due first.
 * M3  A mark with a segment is in that segment's list, and no list is empty. There are never more
 *     lists than marks: a mark changes its segment without memory.
 */
#ifndef LARDER_STORAGE_MARK_H
#define LARDER_STORAGE_MARK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/record.h"

struct mark {
    struct larder_mark_value value; /* boot and epoch_s are not used: times are the store's clock */
    uint64_t due_s;                 /* 0: not in the heap */
    uint32_t entry;
    uint32_t segment_id; /* its newest record that is durable; 0: none. By marks_settle() */
    uint32_t next;       /* in the hash chain, or of the free ones */
    uint32_t heap_at;
    uint32_t segment_next; /* of the same segment; 0: none */
    uint32_t segment_last;
};

/* The marks of a segment. */
struct mark_list {
    uint32_t segment_id;
    uint32_t count;
    uint32_t first;
    uint32_t next; /* in the hash chain, or of the free ones */
};

struct marks {
    struct mark *items; /* 0 is none */
    uint32_t *buckets;
    uint32_t *heap;          /* of items */
    struct mark_list *lists; /* 0 is none */
    uint32_t *list_buckets;  /* as many as buckets */
    uint32_t capacity;
    uint32_t bucket_count; /* power of two */
    uint32_t end;
    uint32_t free_first;
    uint32_t count;
    uint32_t heap_count;
    uint32_t list_end;
    uint32_t list_free;
};

void marks_close(struct marks *marks);

/* NULL when the entry has none. What is pointed at moves when another mark is added. */
struct mark *marks_find(const struct marks *marks, uint32_t entry);
/* An empty one, for an entry that has none; NULL without memory. */
struct mark *marks_add(struct marks *marks, uint32_t entry);
void marks_remove(struct marks *marks, struct mark *mark);
/* When it is to be looked at; 0: never. */
void marks_schedule(struct marks *marks, struct mark *mark, uint64_t due_s);
/* The one that is due first, if that is by now; NULL: none. */
struct mark *marks_due(const struct marks *marks, uint64_t now_s);
/* Its newest durable record is in this segment now; 0: it has none. */
void marks_settle(struct marks *marks, struct mark *mark, uint32_t segment_id);
/* Of those that stand in the segment: how many; one, and from it the next; NULL: none. */
uint32_t marks_count_of(const struct marks *marks, uint32_t segment_id);
struct mark *marks_first_of(const struct marks *marks, uint32_t segment_id);
struct mark *marks_next_of(const struct marks *marks, const struct mark *mark);
/* All of them: *at begins with 0; NULL at the end. */
struct mark *marks_next(const struct marks *marks, uint32_t *at);

/* Nothing is pinned, ends or is worth more or less. */
bool mark_is_empty(const struct larder_mark_value *value);
bool mark_is_pinned(const struct larder_mark_value *value, uint64_t now_s);
bool mark_is_over(const struct larder_mark_value *value, uint64_t now_s);
/* When the next of its times comes; 0: never. */
uint64_t mark_due_s(const struct larder_mark_value *value, uint64_t now_s);
/* Are all fields what they may be? */
bool mark_is_valid(const struct larder_mark_value *value);

/* Tests: M2, M3 and the hash; LARDER_ECORRUPT with a message. */
int marks_check(const struct marks *marks);

#endif
