/* SPDX-License-Identifier: Apache-2.0 */
/* writer.c - the way to SSD: groups of records, one sync each.
 *
 *   FILLING  members are taken from the queues and placed at the end of the open segment
 *            (gather.c), stamped with their place, tagged, and written. A group takes members until
 *            its sync begins.
 *   SYNCING  one fdatasync covers its writes; the next group is being filled and written meanwhile.
 *   then     everybody is told, and what the index is to learn goes to commit.c.
 *
 * At most one group is in each state, so groups end in their order in the segment, the index learns
 * of them in that order, and everything below a segment's committed_bytes is named by it or dead.
 *
 * A failed write ends its group and its segment: what it left behind the groups before is cut.
 * A failed sync, or a failed transaction of the index, ends writing altogether (the page cache may
 * have thrown away what it could not write, so a second sync that succeeds proves nothing).
 *
 * Threads: the storage thread. What it reads of entries is under the lock; slots that wait for
 * their write are pinned.
 */
#include <assert.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/planted.h"
#include "storage/store_priv.h"
#include "storage/tag.h"

static void group_begin(struct larder_store *store)
{
    struct group *group =
        store->syncing == &store->groups[0] ? &store->groups[1] : &store->groups[0];
    assert(group->state == GROUP_IDLE);
    memset(group, 0, sizeof(*group));
    group->state = GROUP_FILLING;
    group->puts_end = &group->puts;
    group->slices_end = &group->slices;
    group->appends_end = &group->appends;
    store->filling = group;
}

/* --- writing ---------------------------------------------------------------------------------- */

static void append_done(struct larder_io_request *io)
{
    struct append_request *request = (struct append_request *)io;
    struct larder_store *store = io->context;
    struct group *group = request->group;
    if (io->result < 0 && group->err == 0)
        group->err = io->result;
    group->in_flight--;
    group->in_flight_bytes -= io->bytes;
    if (request->sealed)
        seal_piece_done(store->seal, request->sealed);
    request->next = store->free_append_requests;
    store->free_append_requests = request;
}

/* What of an append goes next. 1: that. 0: no buffer is free now. Negative: it cannot be sealed. */
static int next_piece(struct larder_store *store, const struct group *group, struct append *append,
                      struct seal_piece *out)
{
    uint32_t page = (uint32_t)(append->offset / LARDER_PAGE_BYTES);
    if (append->record && store->seal)
        return seal_next_piece(store->seal, out, append->record, group->segment->id, page);
    if (append->record && append->submitted_bytes == 0) {
        append->record->segment_id = group->segment->id;
        append->record->segment_page = page;
        tag_record(append->record);
    }
    *out = (struct seal_piece){
        .buffer = (uint8_t *)append->buffer + append->submitted_bytes,
        .offset = append->submitted_bytes,
        .bytes =
            (uint32_t)larder_min_u64(append->bytes - append->submitted_bytes, LARDER_IO_BYTES_MAX),
    };
    return 1;
}

/* False: nothing more can be submitted now. */
static bool submit_append(struct larder_store *store, struct group *group, struct append *append)
{
    struct seal_piece piece;
    int made = next_piece(store, group, append, &piece);
    if (made < 0)
        group->err = made;
    if (made <= 0)
        return false;
    struct append_request *request = store->free_append_requests;
    store->free_append_requests = request->next;
    request->group = group;
    request->sealed = append->record && store->seal ? piece.buffer : NULL;
    request->io = (struct larder_io_request){
        .op = LARDER_IO_WRITE,
        .file = group->segment->file,
        .buffer = piece.buffer,
        .offset = append->offset + piece.offset,
        .bytes = piece.bytes,
        .done = append_done,
        .context = store,
    };
    append->submitted_bytes += piece.bytes;
    group->in_flight++;
    group->in_flight_bytes += piece.bytes;
    store->io->ops->submit(store->io, &request->io);
    return true;
}

static void submit_appends(struct larder_store *store, struct group *group)
{
    while (group->appending && store->free_append_requests && group->err == 0 &&
           group->in_flight_bytes < WRITE_BYTES_IN_FLIGHT_MAX && !store->read_only) {
        struct append *append = group->appending;
        if (!submit_append(store, group, append))
            return;
        if (append->submitted_bytes == append->bytes)
            group->appending = append->next;
    }
}

static void sync_done(struct larder_io_request *io)
{
    struct group *group = io->context;
    group->err = io->result;
    group->synced = true;
}

static void begin_sync(struct larder_store *store, struct group *group)
{
    group->closed = true;
    group->state = GROUP_SYNCING;
    store->filling = NULL;
    store->syncing = group;
    group->sync = (struct larder_io_request){
        .op = LARDER_IO_SYNC,
        .file = group->segment->file,
        .done = sync_done,
        .context = group,
    };
    store->io->ops->submit(store->io, &group->sync);
}

/* --- the end ---------------------------------------------------------------------------------- */

/* What the index is to learn of the group. */
static void note_changes(struct larder_store *store, struct group *group)
{
    struct batch *batch = group->batch;
    group->batch = NULL;
    for (struct larder_put *put = group->puts; put; put = put->next) {
        struct model_state *model = store->models[put->model];
        if (!model->in_index)
            batch_model(batch, &model->info);
        model->in_index = true;
        batch_put(batch, &put->key, put->number, &put->value);
        group->segment->live_bytes += (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
    }
    /* Before the slices: what is doomed gets no mark, so one of the same key came first. */
    mark_note(batch, group->marks, group->segment->id);
    pthread_mutex_lock(&store->lock);
    for (struct move *move = group->moves; move; move = move->next)
        move_note_locked(store, move, batch, group->segment);
    pthread_mutex_unlock(&store->lock);
    for (struct slice *slice = group->slices; slice; slice = slice->next) {
        const struct larder_record *record = slice->append.record;
        const struct larder_key *keys = (const void *)larder_record_extra(record);
        for (uint32_t i = 0; i < slice->count; i++)
            batch_delete(batch, &keys[i], slice->numbers[i]);
        for (uint32_t i = 0; i < slice->count && !slice->removal->single; i++)
            batch_delete_mark(batch, &keys[i]);
    }
    group->segment->tombstone_bytes += group->tombstone_bytes;
    batch->segment_id = group->segment->id;
    batch->row = (struct index_segment){.committed_bytes = group->end_bytes,
                                        .tombstone_bytes = group->segment->tombstone_bytes};
    batch->bytes = group->bytes;
    commit_add(store, batch);
}

/* A longer block is stored: the shorter ones that it extends may go. */
static void drop_tails_locked(struct larder_store *store, const struct larder_put *put)
{
    const struct entry *entry = table_entry(&store->table, put->entry);
    if (entry->flags & ENTRY_DOOMED)
        return;
    uint32_t above = table_above(&store->table, put->entry);
    uint32_t id = table_entry(&store->table, above)->first_child;
    for (uint32_t walked = 0; id != TABLE_NONE && walked < SIBLINGS_WALK_MAX; walked++) {
        const struct entry *sibling = table_entry(&store->table, id);
        uint32_t next = sibling->next_sibling;
        if (!(sibling->flags & ENTRY_VARIANT) && sibling->token_count > 0 &&
            sibling->token_count < entry->token_count &&
            table_block_count(&store->table, id) == 0 && sibling->model == entry->model &&
            sibling->variant.quality >= entry->variant.quality &&
            (sibling->flags & ENTRY_DURABLE) && !(sibling->flags & (ENTRY_PUTTING | ENTRY_DOOMED)))
            load_check_tail_locked(store, id, put->slot);
        id = next;
    }
}

static void free_members(struct group *group)
{
    while (group->models) {
        struct append *append = group->models;
        group->models = append->owned_next;
        larder_free(append->record);
        larder_free(append);
    }
    while (group->marks) {
        struct mark_batch *batch = group->marks;
        group->marks = batch->next;
        larder_free(batch->append.record);
        larder_free(batch);
    }
    while (group->slices) {
        struct slice *slice = group->slices;
        group->slices = slice->next;
        larder_free(slice->append.record);
        larder_free(slice);
    }
}

/* Everybody is told, good or bad; the group is over. */
static void group_end(struct larder_store *store, struct group *group, int err)
{
    if (err == 0 && !group->noted)
        note_changes(store, group);
    pthread_mutex_lock(&store->lock);
    if (err == 0) {
        store->stats.synced_groups++;
        store->stats.bytes_written += group->bytes;
    }
    for (struct larder_put *put = group->puts; put;) {
        struct larder_put *next = put->next;
        /* Its removal, if one is under way, is in this group or behind it. */
        assert(put->entry != TABLE_NONE);
        if (err == 0)
            drop_tails_locked(store, put);
        put_finish_locked(store, put, err);
        put = next;
    }
    for (struct slice *slice = group->slices; slice; slice = slice->next)
        remove_slice_done_locked(store, slice, err);
    for (struct mark_batch *batch = group->marks; batch; batch = batch->next)
        mark_batch_done_locked(store, batch, group->segment->id, err);
    while (group->moves) {
        struct move *move = group->moves;
        group->moves = move->next;
        move_done_locked(store, move, err);
    }
    /* What they took the place of may have been the last of a segment. After a failure a sweep
     * would move the same marks again at once, for as long as the disk fails. */
    store->sweep = store->sweep || (err == 0 && group->marks);
    pthread_mutex_unlock(&store->lock);
    free_members(group);
    larder_free(group->batch);
    group->batch = NULL;
    if (group->segment)
        group->segment->users--;
    group->state = GROUP_IDLE;
    if (store->filling == group)
        store->filling = NULL;
    if (store->syncing == group)
        store->syncing = NULL;
    commit_publish_usage(store);
}

static void end_synced(struct larder_store *store, struct group *group)
{
    if (group->err < 0)
        store_fail_writes(store, "fdatasync of a segment", group->err);
    /* I4: nor is it when the index failed meanwhile. */
    group_end(store, group, store->read_only ? LARDER_EREADONLY : 0);
}

/* The segment ends where this group began; the next one begins a new segment. Nobody is told before
 * the cut is durable: a tombstone that comes back after its removal was said to have failed would
 * take a durable entry with it. */
static void abandon_group(struct larder_store *store, struct group *group)
{
    struct segment *segment = group->segment;
    larder_log(LARDER_LOG_ERROR, "storage: writing to segment %u: %s", segment->id,
               larder_error_text(group->err));
    pthread_mutex_lock(&store->lock);
    store->stats.io_errors++;
    pthread_mutex_unlock(&store->lock);
    segment->end_bytes = group->start_bytes;
    assert(store->log.open == segment);
    int err = seglog_seal(&store->log);
    if (err < 0) {
        store_fail_writes(store, "cutting a segment after a failed write", err);
        group_end(store, group, LARDER_EREADONLY);
        return;
    }
    group->closed = true;
    group->abandoned = true;
    group->write_err = group->err;
    group->sync = (struct larder_io_request){
        .op = LARDER_IO_SYNC,
        .file = segment->file,
        .done = sync_done,
        .context = group,
    };
    store->io->ops->submit(store->io, &group->sync);
}

static void end_abandoned(struct larder_store *store, struct group *group)
{
    if (group->err < 0)
        store_fail_writes(store, "fdatasync of a segment", group->err);
    group_end(store, group, group->err < 0 ? LARDER_EREADONLY : group->write_err);
}

/* A planted bug: the index and the callers hear of records that are still on their way. */
static void note_early(struct larder_store *store, struct group *group)
{
    group->closed = true;
    group->noted = true;
    note_changes(store, group);
    store->commits.hurry = true;
    for (struct larder_put *put = group->puts; put; put = put->next) {
        if (put->done)
            put->done(put->context, 0);
        put->done = NULL;
    }
}

static void step_group(struct larder_store *store)
{
    if (store->syncing && store->syncing->synced)
        end_synced(store, store->syncing);
    if (store->filling && store->filling->abandoned) {
        if (!store->filling->synced)
            return;
        end_abandoned(store, store->filling);
    }
    if (!store->filling) {
        pthread_mutex_lock(&store->lock);
        bool work = gather_has_more_locked(store);
        pthread_mutex_unlock(&store->lock);
        if (!work)
            return;
        group_begin(store);
    }
    struct group *group = store->filling;
    gather_members(store, group);
    if (LARDER_PLANT(INDEX_BEFORE_DATA) && group->appends && !group->slices && !group->closed &&
        !store->syncing)
        note_early(store, group);
    if (group->appends && !group->ahead_asked && !store->syncing) {
        group->ahead_asked = true;
        if (ahead_wanted(store, group, &group->ahead)) {
            gather_append(group, &group->ahead);
            group->closed = true;
        }
    }
    submit_appends(store, group);
    if (group->in_flight > 0 || (group->appending && group->err == 0 && !store->read_only))
        return;
    if (store->read_only) {
        group_end(store, group, LARDER_EREADONLY);
    } else if (group->err < 0) {
        abandon_group(store, group);
    } else if (!group->appends) {
        /* All that was queued was refused, or waits for the keeper. */
        store->blocked = group->closed;
        larder_free(group->batch);
        group->state = GROUP_IDLE;
        store->filling = NULL;
    } else if (!store->syncing) {
        begin_sync(store, group);
    }
}

void writer_step(struct larder_store *store)
{
    store->blocked = false;
    /* Before: who waits for a round that is over by now must not wait for another. */
    commit_take_round(store);
    step_group(store);
    mark_forget_rows(store);
    remove_tell_absent(store);
    space_look_ahead(store);
    commit_give_round(store);
}

bool writer_must_step(struct larder_store *store)
{
    if (store->syncing && store->syncing->synced)
        return true;
    pthread_mutex_lock(&store->lock);
    bool queued = gather_has_more_locked(store);
    pthread_mutex_unlock(&store->lock);
    return queued && !store->filling && !store->syncing && !store->blocked;
}

bool writer_idle(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    bool queued = gather_has_more_locked(store) || store->absent;
    pthread_mutex_unlock(&store->lock);
    return !queued && !store->filling && !store->syncing && commit_idle(store);
}
