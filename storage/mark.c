/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/mark.h"

#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

#define NOT_IN_HEAP  UINT32_MAX
#define CAPACITY_MIN 64u

void marks_close(struct marks *marks)
{
    larder_free(marks->items);
    larder_free(marks->buckets);
    larder_free(marks->heap);
    larder_free(marks->lists);
    larder_free(marks->list_buckets);
    memset(marks, 0, sizeof(*marks));
}

/* --- by entry --------------------------------------------------------------------------------- */

/* Ids are dense: the low bits are as good as a hash. */
static uint32_t *bucket_of(const struct marks *marks, uint32_t entry)
{
    return &marks->buckets[entry & (marks->bucket_count - 1)];
}

struct mark *marks_find(const struct marks *marks, uint32_t entry)
{
    if (marks->count == 0)
        return NULL;
    for (uint32_t at = *bucket_of(marks, entry); at != 0; at = marks->items[at].next) {
        if (marks->items[at].entry == entry)
            return &marks->items[at];
    }
    return NULL;
}

static uint32_t *list_bucket_of(const struct marks *marks, uint32_t segment_id)
{
    return &marks->list_buckets[segment_id & (marks->bucket_count - 1)];
}

/* Into buckets of which there are marks->bucket_count; before, there were `old_count`. */
static void move_lists(struct marks *marks, uint32_t *buckets, uint32_t old_count)
{
    uint32_t *old = marks->list_buckets;
    marks->list_buckets = buckets;
    for (uint32_t i = 0; i < old_count; i++) {
        for (uint32_t at = old[i], next; at != 0; at = next) {
            next = marks->lists[at].next;
            uint32_t *bucket = list_bucket_of(marks, marks->lists[at].segment_id);
            marks->lists[at].next = *bucket;
            *bucket = at;
        }
    }
    larder_free(old);
}

static bool grow(struct marks *marks)
{
    uint32_t capacity = marks->capacity ? marks->capacity * 2 : CAPACITY_MIN;
    struct mark *items = larder_realloc(marks->items, sizeof(*items) * capacity);
    if (!items)
        return false;
    marks->items = items;
    uint32_t *heap = larder_realloc(marks->heap, sizeof(*heap) * capacity);
    if (!heap)
        return false;
    marks->heap = heap;
    struct mark_list *lists = larder_realloc(marks->lists, sizeof(*lists) * capacity);
    if (!lists)
        return false;
    marks->lists = lists;
    uint32_t *buckets = larder_alloc_zero(capacity, sizeof(*buckets));
    uint32_t *list_buckets = larder_alloc_zero(capacity, sizeof(*list_buckets));
    if (!buckets || !list_buckets) {
        larder_free(buckets);
        larder_free(list_buckets);
        return false;
    }
    uint32_t old_count = marks->bucket_count;
    uint32_t *old = marks->buckets;
    marks->buckets = buckets;
    marks->bucket_count = capacity;
    move_lists(marks, list_buckets, old_count);
    for (uint32_t i = 0; i < old_count; i++) {
        for (uint32_t at = old[i], next; at != 0; at = next) {
            next = items[at].next;
            uint32_t *bucket = bucket_of(marks, items[at].entry);
            items[at].next = *bucket;
            *bucket = at;
        }
    }
    larder_free(old);
    marks->capacity = capacity;
    if (marks->end == 0)
        marks->end = marks->list_end = 1;
    return true;
}

struct mark *marks_add(struct marks *marks, uint32_t entry)
{
    assert(!marks_find(marks, entry));
    if (marks->free_first == 0 && marks->end == marks->capacity && !grow(marks))
        return NULL;
    uint32_t at = marks->free_first;
    if (at != 0)
        marks->free_first = marks->items[at].next;
    else
        at = marks->end++;
    uint32_t *bucket = bucket_of(marks, entry);
    struct mark *mark = &marks->items[at];
    *mark = (struct mark){.entry = entry, .heap_at = NOT_IN_HEAP, .next = *bucket};
    *bucket = at;
    marks->count++;
    return mark;
}

void marks_remove(struct marks *marks, struct mark *mark)
{
    uint32_t item = (uint32_t)(mark - marks->items);
    marks_schedule(marks, mark, 0);
    marks_settle(marks, mark, 0);
    uint32_t *at = bucket_of(marks, mark->entry);
    while (*at != item)
        at = &marks->items[*at].next;
    *at = mark->next;
    *mark = (struct mark){.next = marks->free_first};
    marks->free_first = item;
    marks->count--;
}

struct mark *marks_next(const struct marks *marks, uint32_t *at)
{
    while (++*at < marks->end) {
        if (marks->items[*at].entry != 0)
            return &marks->items[*at];
    }
    return NULL;
}

/* --- by segment ------------------------------------------------------------------------------- */

/* Where the number of the segment's list stands, or the 0 at the end of its chain. */
static uint32_t *find_list(const struct marks *marks, uint32_t segment_id)
{
    uint32_t *at = list_bucket_of(marks, segment_id);
    while (*at != 0 && marks->lists[*at].segment_id != segment_id)
        at = &marks->lists[*at].next;
    return at;
}

static void leave_list(struct marks *marks, const struct mark *mark)
{
    uint32_t *at = find_list(marks, mark->segment_id);
    struct mark_list *list = &marks->lists[*at];
    if (mark->segment_next != 0)
        marks->items[mark->segment_next].segment_last = mark->segment_last;
    if (mark->segment_last != 0)
        marks->items[mark->segment_last].segment_next = mark->segment_next;
    else
        list->first = mark->segment_next;
    if (--list->count > 0)
        return;
    uint32_t free = *at;
    *at = list->next;
    list->next = marks->list_free;
    marks->list_free = free;
}

static void join_list(struct marks *marks, struct mark *mark)
{
    uint32_t *at = find_list(marks, mark->segment_id);
    if (*at == 0) {
        uint32_t fresh = marks->list_free;
        if (fresh != 0)
            marks->list_free = marks->lists[fresh].next;
        else
            fresh = marks->list_end++;
        marks->lists[fresh] = (struct mark_list){.segment_id = mark->segment_id};
        *at = fresh;
    }
    struct mark_list *list = &marks->lists[*at];
    uint32_t item = (uint32_t)(mark - marks->items);
    mark->segment_next = list->first;
    mark->segment_last = 0;
    if (list->first != 0)
        marks->items[list->first].segment_last = item;
    list->first = item;
    list->count++;
}

void marks_settle(struct marks *marks, struct mark *mark, uint32_t segment_id)
{
    if (mark->segment_id == segment_id)
        return;
    if (mark->segment_id != 0)
        leave_list(marks, mark);
    mark->segment_id = segment_id;
    if (segment_id != 0)
        join_list(marks, mark);
}

static const struct mark_list *list_of(const struct marks *marks, uint32_t segment_id)
{
    uint32_t at = marks->count > 0 ? *find_list(marks, segment_id) : 0;
    return at != 0 ? &marks->lists[at] : NULL;
}

uint32_t marks_count_of(const struct marks *marks, uint32_t segment_id)
{
    const struct mark_list *list = list_of(marks, segment_id);
    return list ? list->count : 0;
}

struct mark *marks_first_of(const struct marks *marks, uint32_t segment_id)
{
    const struct mark_list *list = list_of(marks, segment_id);
    return list ? &marks->items[list->first] : NULL;
}

struct mark *marks_next_of(const struct marks *marks, const struct mark *mark)
{
    return mark->segment_next ? &marks->items[mark->segment_next] : NULL;
}

/* --- by time ---------------------------------------------------------------------------------- */

static uint64_t due_at(const struct marks *marks, uint32_t place)
{
    return marks->items[marks->heap[place]].due_s;
}

static void set_place(struct marks *marks, uint32_t place, uint32_t item)
{
    marks->heap[place] = item;
    marks->items[item].heap_at = place;
}

static void settle(struct marks *marks, uint32_t place)
{
    uint32_t item = marks->heap[place];
    uint64_t due_s = marks->items[item].due_s;
    while (place > 0 && due_at(marks, (place - 1) / 2) > due_s) {
        set_place(marks, place, marks->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child + 1 < marks->heap_count && due_at(marks, child + 1) < due_at(marks, child))
            child++;
        if (child >= marks->heap_count || due_at(marks, child) >= due_s)
            break;
        set_place(marks, place, marks->heap[child]);
        place = child;
    }
    set_place(marks, place, item);
}

void marks_schedule(struct marks *marks, struct mark *mark, uint64_t due_s)
{
    uint32_t item = (uint32_t)(mark - marks->items);
    mark->due_s = due_s;
    if (due_s != 0) {
        if (mark->heap_at == NOT_IN_HEAP)
            set_place(marks, marks->heap_count++, item);
        settle(marks, mark->heap_at);
    } else if (mark->heap_at != NOT_IN_HEAP) {
        uint32_t place = mark->heap_at;
        mark->heap_at = NOT_IN_HEAP;
        uint32_t last = marks->heap[--marks->heap_count];
        if (last != item) {
            set_place(marks, place, last);
            settle(marks, place);
        }
    }
}

struct mark *marks_due(const struct marks *marks, uint64_t now_s)
{
    return marks->heap_count > 0 && due_at(marks, 0) <= now_s ? &marks->items[marks->heap[0]]
                                                              : NULL;
}

/* --- what a mark says ------------------------------------------------------------------------- */

bool mark_is_empty(const struct larder_mark_value *value)
{
    return !value->pinned && value->expires_s == 0 && value->priority == 0;
}

static bool is_past(uint64_t time_s, uint64_t now_s)
{
    return time_s != 0 && time_s <= now_s;
}

bool mark_is_pinned(const struct larder_mark_value *value, uint64_t now_s)
{
    return value->pinned && !is_past(value->pin_expires_s, now_s);
}

bool mark_is_over(const struct larder_mark_value *value, uint64_t now_s)
{
    return is_past(value->expires_s, now_s);
}

uint64_t mark_due_s(const struct larder_mark_value *value, uint64_t now_s)
{
    uint64_t due_s = value->expires_s;
    if (value->pinned && value->pin_expires_s > now_s &&
        (due_s == 0 || value->pin_expires_s < due_s))
        due_s = value->pin_expires_s;
    return due_s;
}

bool mark_is_valid(const struct larder_mark_value *value)
{
    return value->priority >= -LARDER_PRIORITY_MAX && value->priority <= LARDER_PRIORITY_MAX &&
           value->pinned <= 1 && larder_all_zero(value->reserved, sizeof(value->reserved));
}

/* M3, from the list that the mark is in. */
static bool is_in_its_list(const struct marks *marks, const struct mark *mark)
{
    if (mark->segment_id == 0)
        return true;
    const struct mark *first = marks_first_of(marks, mark->segment_id);
    if (!first)
        return false;
    const struct mark *before = mark->segment_last ? &marks->items[mark->segment_last] : NULL;
    return before ? before->segment_id == mark->segment_id && marks_next_of(marks, before) == mark
                  : first == mark;
}

/* As many in the list as it says. */
static bool is_list_whole(const struct marks *marks, const struct mark *first)
{
    uint32_t left = marks_count_of(marks, first->segment_id);
    const struct mark *mark = first;
    for (; mark && left > 0; left--)
        mark = marks_next_of(marks, mark);
    return !mark && left == 0;
}

int marks_check(const struct marks *marks)
{
    uint32_t count = 0;
    uint32_t scheduled = 0;
    uint32_t at = 0;
    for (const struct mark *mark; (mark = marks_next(marks, &at)); count++) {
        if (marks_find(marks, mark->entry) != mark)
            return larder_fail(LARDER_ECORRUPT, "marks: that of entry %u is not found",
                               mark->entry);
        if (!is_in_its_list(marks, mark) ||
            (mark->segment_id != 0 && mark->segment_last == 0 && !is_list_whole(marks, mark)))
            return larder_fail(LARDER_ECORRUPT, "marks: that of entry %u is not among segment %u's",
                               mark->entry, mark->segment_id);
        if (mark->heap_at == NOT_IN_HEAP)
            continue;
        scheduled++;
        if (mark->heap_at >= marks->heap_count || marks->heap[mark->heap_at] != at ||
            (mark->heap_at > 0 && due_at(marks, (mark->heap_at - 1) / 2) > mark->due_s))
            return larder_fail(LARDER_ECORRUPT, "marks: that of entry %u is in a wrong place",
                               mark->entry);
    }
    if (count != marks->count || scheduled != marks->heap_count)
        return larder_fail(LARDER_ECORRUPT, "marks: %u with %u scheduled, counted %u and %u",
                           marks->count, marks->heap_count, count, scheduled);
    return 0;
}
