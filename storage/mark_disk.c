/* SPDX-License-Identifier: Apache-2.0 */
/* mark_disk.c - marks on their way to disk, and segments that hold them.
 *
 * On disk a mark is a record of its own, written in a group as everything else is. Of the marks of
 * a key the highest generation holds, and only for a record that is older than it: so a mark never
 * outlives its entry into another one of the same key, and an entry that is replaced has its mark
 * written again. A mark that says nothing takes the ones before it away, as a tombstone does an
 * entry; so a segment with marks stays until no older one is left (seglog.h, S2), and the marks of
 * the oldest one that still hold are written again before it goes.
 *
 * A mark that comes with a put is written before its record, so it goes before all puts. Others
 * have a share of each group, a page, when puts or removals wait too; there tenants take turns.
 *
 * Threads: what is queued and what is said of it is under the store's lock; the storage thread
 *          takes it.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* Of one batch for the index. */
#define ROWS_MAX 400u
/* Written again in one go: the lock is held, and other marks wait behind them. */
#define MOVES_MAX (10u * LARDER_MARKS_MAX)

/* --- the queue -------------------------------------------------------------------------------- */

static void run_write(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct mark_write *write = (struct mark_write *)completion;
    if (write->done)
        write->done(write->context, write->err);
    larder_free(write);
}

struct mark_write *mark_new_write(const struct larder_key *key, uint32_t tenant)
{
    struct mark_write *write = larder_alloc_zero(1, sizeof(*write));
    if (!write)
        return NULL;
    write->completion.run = run_write;
    write->key = *key;
    write->tenant = tenant;
    return write;
}

static void queue_add(struct mark_queue *queue, struct mark_write *write)
{
    write->next = NULL;
    if (queue->first)
        queue->last->next = write;
    else
        queue->first = write;
    queue->last = write;
}

static struct mark_write *queue_pop(struct mark_queue *queue)
{
    struct mark_write *write = queue->first;
    queue->first = write->next;
    return write;
}

/* The tenant waits for its turn, behind all others. */
static void take_turn_locked(struct larder_store *store, uint32_t tenant)
{
    struct marks_waiting *waiting = &store->marks_waiting;
    if (waiting->tenant_count++ == 0)
        waiting->first_tenant = tenant;
    else
        store->tenants[waiting->last_tenant].next_marked = tenant;
    waiting->last_tenant = tenant;
}

void mark_queue_locked(struct larder_store *store, struct mark_write *write)
{
    struct mark_queue *own = &store->tenants[write->tenant].marks;
    if (!write->is_before_put && !own->first)
        take_turn_locked(store, write->tenant);
    queue_add(write->is_before_put ? &store->marks_waiting.before_puts : own, write);
    store->mark_moves += write->is_moved;
}

bool mark_is_queued_locked(const struct larder_store *store)
{
    return store->marks_waiting.before_puts.first || store->marks_waiting.tenant_count > 0;
}

bool mark_goes_first_locked(const struct larder_store *store)
{
    return store->marks_waiting.before_puts.first != NULL;
}

/* Those that puts wait for, then one of each tenant in turn. */
static struct mark_write *pop_write_locked(struct larder_store *store)
{
    struct marks_waiting *waiting = &store->marks_waiting;
    if (waiting->before_puts.first)
        return queue_pop(&waiting->before_puts);
    struct tenant_state *tenant = &store->tenants[waiting->first_tenant];
    struct mark_write *write = queue_pop(&tenant->marks);
    waiting->first_tenant = tenant->next_marked;
    waiting->tenant_count--;
    if (tenant->marks.first)
        take_turn_locked(store, write->tenant);
    return write;
}

void mark_free_queued(struct larder_store *store)
{
    while (mark_is_queued_locked(store))
        larder_free(pop_write_locked(store));
}

/* --- records ---------------------------------------------------------------------------------- */

/* A record whose mark was not written may not be either: the mark that is on disk is older than it,
 * and would not hold for it. */
static void refuse_put_locked(struct larder_store *store, const struct mark_write *write, int err)
{
    for (struct larder_put *put = store->put_queue; put; put = put->next)
        if (larder_key_equal(&put->key, &write->key))
            put->refused = err;
}

static void finish_write_locked(struct larder_store *store, struct mark_write *write, int err)
{
    if (err < 0 && !write->is_moved)
        refuse_put_locked(store, write, err);
    write->err = err;
    store->mark_moves -= write->is_moved;
    store_complete_locked(store, &write->completion);
}

void mark_give_up_locked(struct larder_store *store, int err)
{
    while (mark_is_queued_locked(store))
        finish_write_locked(store, pop_write_locked(store), err);
}

/* Its entry is there, and nothing newer was said of it if it is only moved. */
static bool is_wanted_locked(const struct larder_store *store, const struct mark_write *write)
{
    uint32_t id = table_find(&store->table, &write->key);
    if (id == TABLE_NONE || (table_entry(&store->table, id)->flags & ENTRY_DOOMED))
        return false;
    const struct mark *mark = mark_of(store, id);
    return !write->is_moved || (mark && mark->value.generation == write->value.generation);
}

/* What holds by now: changes that waited for one entry come in any order, and the index keeps what
 * it learned last. */
static void say_newest_locked(struct larder_store *store, struct mark_write *write)
{
    const struct mark *mark = mark_of(store, table_find(&store->table, &write->key));
    if (mark)
        write->value = mark->value;
    else if (!mark_is_empty(&write->value))
        write->value = (struct larder_mark_value){.generation = store->next_generation++,
                                                  .boot = store->clock.boot,
                                                  .epoch_s = store->clock.epoch_s};
}

static struct larder_record *new_record(struct larder_store *store)
{
    struct larder_record *record = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_PAGE_BYTES);
    if (!record)
        return NULL;
    memset(record, 0, LARDER_PAGE_BYTES);
    record->magic = LARDER_RECORD_MAGIC;
    record->version = LARDER_RECORD_VERSION;
    record->type = LARDER_RECORD_MARK;
    record->tag_kind = LARDER_TAG_XXH3_128;
    record->record_bytes = LARDER_PAGE_BYTES;
    record->created_s = (uint64_t)time(NULL);
    record->generation = store->next_generation++;
    return record;
}

struct mark_batch *mark_take_batch_locked(struct larder_store *store)
{
    struct mark_batch *batch = larder_alloc_zero(1, sizeof(*batch));
    struct larder_record *record = new_record(store);
    if (!batch || !record) {
        larder_free(batch);
        larder_free(record);
        return NULL;
    }
    struct larder_record_mark *marks = (void *)(record + 1);
    struct mark_write **end = &batch->writes;
    while (mark_is_queued_locked(store) && batch->count < LARDER_MARKS_MAX) {
        struct mark_write *write = pop_write_locked(store);
        if (!is_wanted_locked(store, write)) {
            finish_write_locked(store, write, LARDER_ENOTFOUND);
            continue;
        }
        batch->has_others = batch->has_others || !write->is_before_put;
        say_newest_locked(store, write);
        memcpy(marks[batch->count].key, write->key.bytes, sizeof(write->key.bytes));
        marks[batch->count].value = write->value;
        batch->count++;
        write->next = NULL;
        *end = write;
        end = &write->next;
    }
    struct larder_head_layout layout;
    record->extra_bytes = batch->count * (uint32_t)sizeof(*marks);
    larder_head_layout(&layout, record->extra_bytes, 0, 0, 0);
    record->head_bytes = layout.head_bytes;
    batch->append.record = record;
    batch->append.bytes = LARDER_PAGE_BYTES;
    return batch;
}

void mark_row_dead_locked(struct larder_store *store, uint32_t id)
{
    if (store->mark_row_count == store->mark_row_capacity) {
        uint32_t capacity = store->mark_row_capacity ? store->mark_row_capacity * 2 : 64;
        struct larder_key *rows = larder_realloc(store->mark_rows, sizeof(*rows) * capacity);
        if (!rows)
            return; /* it goes at the next start */
        store->mark_rows = rows;
        store->mark_row_capacity = capacity;
    }
    store->mark_rows[store->mark_row_count++] = table_entry(&store->table, id)->key;
}

void mark_forget_rows(struct larder_store *store)
{
    for (;;) {
        pthread_mutex_lock(&store->lock);
        bool any = store->mark_row_count > 0;
        pthread_mutex_unlock(&store->lock);
        struct batch *batch = any ? batch_new() : NULL;
        if (!batch)
            return;
        pthread_mutex_lock(&store->lock);
        while (store->mark_row_count > 0 && batch->count < ROWS_MAX) {
            const struct larder_key *key = &store->mark_rows[--store->mark_row_count];
            uint32_t id = table_find(&store->table, key);
            /* Stored again, and marked: its row is that of the new mark. */
            if (id == TABLE_NONE || !mark_of(store, id))
                batch_delete_mark(batch, key);
        }
        pthread_mutex_unlock(&store->lock);
        if (batch->count > 0)
            commit_add(store, batch);
        else
            larder_free(batch);
    }
}

void mark_note(struct batch *into, const struct mark_batch *batch, uint32_t segment_id)
{
    for (; batch; batch = batch->next) {
        for (const struct mark_write *write = batch->writes; write; write = write->next) {
            const struct index_mark row = {.value = write->value, .segment_id = segment_id};
            if (mark_is_empty(&write->value))
                batch_delete_mark(into, &write->key);
            else
                batch_put_mark(into, &write->key, &row);
        }
    }
}

void mark_batch_done_locked(struct larder_store *store, struct mark_batch *batch,
                            uint32_t segment_id, int err)
{
    while (batch->writes) {
        struct mark_write *write = batch->writes;
        batch->writes = write->next;
        uint32_t id = table_find(&store->table, &write->key);
        struct mark *mark = id != TABLE_NONE ? mark_of(store, id) : NULL;
        if (err == 0 && mark && mark->value.generation == write->value.generation)
            marks_settle(&store->marks, mark, segment_id);
        finish_write_locked(store, write, err);
    }
}

/* --- segments that hold marks ----------------------------------------------------------------- */

void mark_count_homes_locked(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->log.count; i++)
        store->log.segments[i]->mark_count =
            marks_count_of(&store->marks, store->log.segments[i]->id);
}

void mark_move_out_locked(struct larder_store *store, uint32_t segment_id)
{
    if (store->mark_moves > 0)
        return;
    const struct mark *mark = marks_first_of(&store->marks, segment_id);
    for (; mark && store->mark_moves < MOVES_MAX; mark = marks_next_of(&store->marks, mark)) {
        const struct entry *entry = table_entry(&store->table, mark->entry);
        struct mark_write *write = mark_new_write(&entry->key, entry->tenant);
        if (!write)
            return; /* the segment stays, and is looked at again */
        write->value = mark->value;
        write->is_moved = true;
        mark_queue_locked(store, write);
    }
}
