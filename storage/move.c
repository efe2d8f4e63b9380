/* SPDX-License-Identifier: Apache-2.0 */
/* move.c - a record written again, elsewhere, so that its segment can go.
 *
 *   read     into a buffer of its own, every tag checked (load.c); unless its segment is full
 *            enough, or the open one
 *   written  as a member of a group, with its key, number and generation; place and tags anew
 *   named    once the group is synced: the table says the new place, a batch for the index too,
 *            and the old place is among the dead. The keeper commits the one before it gives the
 *            other back, so that a crash finds the index naming what is there. A start that finds
 *            the copy in the tail, and the old place in the index, keeps to the old one.
 *
 * Nothing is locked meanwhile: the entry may be removed, evicted, replaced or read. Whether it is
 * still the one that was read, where it was, is asked again before it is written and before it is
 * named; if not, the copy is dead. Its tombstone, if any, stands behind the copy, so no rebuild
 * takes the copy for new. An entry that has some of its layers in the host tier stays: what is
 * read into that slot later must be of the record that its head came from.
 *
 * Threads: a move is asked for by any thread and then the storage thread's; the queue and the
 *          tenants' `moves` are under the lock.
 */
#include <assert.h>
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/planted.h"
#include "storage/store_priv.h"

static void run_move(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct move *move = (struct move *)completion;
    move->done(move->context, move->err);
    larder_free(move);
}

int move_begin_locked(struct larder_store *store, uint32_t id, uint32_t live_percent,
                      larder_put_done done, void *context)
{
    const struct entry *entry = table_entry(&store->table, id);
    if (store->read_only)
        return LARDER_EREADONLY;
    /* One that a put has replaced is nowhere until that is durable. */
    if (!find_sees(store, id, entry->tenant) || !(entry->flags & ENTRY_DURABLE) ||
        entry->variant.segment_id == 0 || store->tenants[entry->tenant].closed)
        return LARDER_ENOTFOUND;
    struct move *move = larder_alloc_zero(1, sizeof(*move));
    struct load *load = move ? load_new(entry, HOST_NONE, HOST_LAYERS_ALL) : NULL;
    if (!load) {
        larder_free(move);
        return -ENOMEM;
    }
    move->completion.run = run_move;
    move->key = entry->key;
    move->from = load->variant;
    move->number = load->number;
    move->tenant = entry->tenant;
    move->model = entry->model;
    move->live_percent = live_percent;
    move->done = done;
    move->context = context;
    load->move = move;
    store->tenants[entry->tenant].moves++;
    load_queue_locked(store, load);
    return 0;
}

void larder_store_move(struct larder_store *store, const struct larder_key *key, uint32_t variant,
                       uint32_t live_percent, larder_put_done done, void *context)
{
    pthread_mutex_lock(&store->lock);
    uint32_t id = table_find_variant(&store->table, key, variant);
    int err = id == TABLE_NONE ? LARDER_ENOTFOUND
                               : move_begin_locked(store, id, live_percent, done, context);
    pthread_mutex_unlock(&store->lock);
    if (err < 0)
        done(context, err);
    else
        store_wake(store);
}

bool move_is_wanted(const struct larder_store *store, const struct move *move,
                    const struct segment *segment)
{
    uint64_t bytes = segment->end_bytes - SEGMENT_HEADER_BYTES;
    return segment != store->log.open && !segment->leaving &&
           segment->live_bytes < bytes / 100 * move->live_percent;
}

static void finish_locked(struct larder_store *store, struct move *move, int err)
{
    larder_free(move->append.record);
    move->append.record = NULL;
    move->err = err;
    store->tenants[move->tenant].moves--;
    store_complete_locked(store, &move->completion);
}

void move_read_locked(struct larder_store *store, struct load *load)
{
    struct move *move = load->move;
    if (load->err < 0) {
        finish_locked(store, move, load->err);
        return;
    }
    move->append.record = load->buffer;
    load->buffer = NULL;
    move->next = NULL;
    *store->move_queue_end = move;
    store->move_queue_end = &move->next;
}

/* The entry that was read, if it is still there, in the same place; TABLE_NONE. */
static uint32_t find_locked(const struct larder_store *store, const struct move *move)
{
    uint32_t id = variant_of_generation(store, &move->key, move->from.generation);
    if (id == TABLE_NONE)
        return TABLE_NONE;
    const struct entry *entry = table_entry(&store->table, id);
    bool same =
        (entry->flags & ENTRY_DURABLE) && !(entry->flags & ENTRY_DOOMED) &&
        !store->tenants[entry->tenant].closed && entry->number == move->number &&
        entry->variant.segment_id == move->from.segment_id &&
        entry->variant.segment_page == move->from.segment_page &&
        (entry->slot == HOST_NONE || host_slot_is_whole(host_slot(&store->host, entry->slot)));
    return same ? id : TABLE_NONE;
}

bool move_is_there_locked(const struct larder_store *store, const struct move *move)
{
    return find_locked(store, move) != TABLE_NONE;
}

struct move *move_take_locked(struct larder_store *store)
{
    while (store->move_queue) {
        struct move *move = store->move_queue;
        store->move_queue = move->next;
        if (!store->move_queue)
            store->move_queue_end = &store->move_queue;
        int err = store->read_only                     ? LARDER_EREADONLY
                  : !move_is_there_locked(store, move) ? LARDER_ENOTFOUND
                                                       : 0;
        if (err == 0)
            return move;
        finish_locked(store, move, err);
    }
    return NULL;
}

void move_return_locked(struct larder_store *store, struct move *move, int err)
{
    if (err < 0) {
        finish_locked(store, move, err);
        return;
    }
    move->next = store->move_queue;
    if (!store->move_queue)
        store->move_queue_end = &move->next;
    store->move_queue = move;
}

void move_place_locked(struct larder_store *store, struct move *move, const struct segment *segment)
{
    move->to = move->from;
    move->to.segment_id = segment->id;
    move->to.segment_page = (uint32_t)(move->append.offset / LARDER_PAGE_BYTES);
    commit_fill_value_locked(store, &move->value, find_locked(store, move), move->model, &move->to);
    if (LARDER_PLANT(FREED_BEFORE_NAMED))
        writer_extent_dead_locked(store, &move->from);
}

void move_note_locked(struct larder_store *store, struct move *move, struct batch *into,
                      struct segment *segment)
{
    uint32_t id = find_locked(store, move);
    segment->live_bytes += move->append.bytes;
    move->noted = id != TABLE_NONE;
    if (!move->noted) {
        writer_extent_dead_locked(store, &move->to);
        return;
    }
    if (!LARDER_PLANT(CLEARED_UNNAMED) || move->live_percent != MOVE_ALWAYS)
        batch_put(into, &move->key, move->number, &move->value);
    struct entry *entry = table_entry(&store->table, id);
    entry->variant.segment_id = move->to.segment_id;
    entry->variant.segment_page = move->to.segment_page;
    if (!LARDER_PLANT(FREED_BEFORE_NAMED))
        writer_extent_dead_locked(store, &move->from);
}

void move_done_locked(struct larder_store *store, struct move *move, int err)
{
    finish_locked(store, move, err < 0 ? err : move->noted ? 0 : LARDER_ENOTFOUND);
}
