/* SPDX-License-Identifier: Apache-2.0 */
/* writer.c - the way to SSD: groups of records, one sync each.
 *
 *   FILLING  members are taken from the queues, placed at the end of the open segment, stamped with
 *            their place, tagged, and written. A group takes members until its sync begins.
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
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/planted.h"
#include "storage/store_priv.h"
#include "storage/tag.h"

static uint64_t append_record_bytes(const struct larder_put *put)
{
    return (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
}

/* --- groups ----------------------------------------------------------------------------------- */

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

static void group_append(struct group *group, struct append *append)
{
    append->next = NULL;
    append->submitted_bytes = 0;
    *group->appends_end = append;
    group->appends_end = &append->next;
    if (!group->appending)
        group->appending = append;
    group->bytes += append->bytes;
}

/* The next bytes of the open segment; there is room. */
static void place(struct larder_store *store, struct group *group, struct append *append,
                  struct larder_record *record, uint64_t bytes)
{
    struct segment *segment = store->log.open;
    assert(segment->end_bytes + bytes <= store->options.segment_bytes);
    if (!group->segment) {
        group->segment = segment;
        group->start_bytes = segment->end_bytes;
        segment->users++;
    }
    assert(group->segment == segment);
    if (segment->needs_header) {
        segment->needs_header = false;
        group->start_bytes = 0;
        group->header = (struct append){.buffer = store->log.page, .bytes = SEGMENT_HEADER_BYTES};
        group_append(group, &group->header);
    }
    *append = (struct append){
        .record = record, .buffer = record, .offset = segment->end_bytes, .bytes = bytes};
    segment->end_bytes += bytes;
    group->end_bytes = segment->end_bytes;
    group_append(group, append);
}

/* --- members ---------------------------------------------------------------------------------- */

static bool has_queued_locked(const struct larder_store *store)
{
    return store->put_queue || store->removals || store->move_queue || mark_is_queued_locked(store);
}

static struct larder_put *pop_put_locked(struct larder_store *store)
{
    struct larder_put *put = store->put_queue;
    store->put_queue = put->next;
    if (!store->put_queue)
        store->put_queue_end = &store->put_queue;
    return put;
}

static void push_front_locked(struct larder_store *store, struct larder_put *put)
{
    put->next = store->put_queue;
    if (!store->put_queue)
        store->put_queue_end = &put->next;
    store->put_queue = put;
}

static struct larder_put *unqueue_put_locked(struct larder_store *store, uint32_t entry)
{
    for (struct larder_put **at = &store->put_queue; *at; at = &(*at)->next) {
        struct larder_put *put = *at;
        if (put->entry != entry)
            continue;
        *at = put->next;
        if (store->put_queue_end == &put->next)
            store->put_queue_end = at;
        return put;
    }
    return NULL;
}

/* A durable entry's parent is durable: the highest ancestor that is not, and is not in a group
 * either, goes first. NULL: this one may go; *err when an ancestor cannot. */
static struct larder_put *ancestor_first_locked(struct larder_store *store,
                                                const struct larder_put *put, int *err)
{
    *err = 0;
    uint32_t highest = TABLE_NONE;
    uint32_t id = table_entry(&store->table, put->entry)->parent;
    for (;;) {
        const struct entry *entry = table_entry(&store->table, id);
        if (entry->flags & (ENTRY_ROOT | ENTRY_DURABLE | ENTRY_GROUPED))
            break;
        highest = id;
        id = entry->parent;
    }
    if (highest == TABLE_NONE)
        return NULL;
    struct larder_put *first;
    if (table_entry(&store->table, highest)->flags & ENTRY_PUTTING) {
        first = unqueue_put_locked(store, highest);
    } else {
        first = put_make_rewrite_locked(store, highest);
        if (first) {
            first->state = PUT_QUEUED;
            put_count_queued_locked(store, first);
        }
    }
    /* A better one of it is reserved just now. It will be queued; who waits may try again. */
    if (!first)
        *err = -EAGAIN;
    return first;
}

void writer_fill_value_locked(struct larder_store *store, struct index_entry *value, uint32_t id,
                              uint32_t model, const struct entry_variant *variant)
{
    const struct entry *entry = table_entry(&store->table, id);
    memset(value, 0, sizeof(*value));
    uint32_t above = table_above(&store->table, id);
    memcpy(value->parent, table_entry(&store->table, above)->key.bytes, 32);
    memcpy(value->tenant, larder_identity_tenant(store->identity, entry->tenant)->id, 16);
    memcpy(value->model, store->models[model]->info.fingerprint.bytes, 32);
    value->generation = variant->generation;
    value->record_bytes = (uint64_t)variant->record_pages * LARDER_PAGE_BYTES;
    value->raw_bytes = variant->raw_bytes;
    value->created_s = variant->created_s;
    value->position = variant->position;
    value->segment_id = variant->segment_id;
    value->segment_page = variant->segment_page;
    value->token_count = entry->token_count;
    value->head_bytes = variant->head_bytes;
    value->quality = variant->quality;
    value->computed_on = variant->computed_on;
    value->computed_on_kl = variant->computed_on_kl;
    value->profile = table_recipe_profile(&store->table, variant->recipe);
    const char *recipe = table_recipe_text(&store->table, variant->recipe);
    size_t bytes = strlen(recipe);
    memcpy(value->recipe, recipe, larder_min_u64(bytes, sizeof(value->recipe)));
}

/* A page that describes a model, before the first of its entries in each segment. */
static int add_model_record(struct larder_store *store, struct group *group, uint32_t index)
{
    struct model_state *model = store->models[index];
    struct append *append = larder_alloc_zero(1, sizeof(*append));
    struct larder_record *record = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_PAGE_BYTES);
    if (!append || !record) {
        larder_free(append);
        larder_free(record);
        return larder_fail(-ENOMEM, "segments: no memory");
    }
    memset(record, 0, LARDER_PAGE_BYTES);
    struct larder_head_layout layout;
    larder_head_layout(&layout, sizeof(model->info.desc), 0, 0, 0);
    record->magic = LARDER_RECORD_MAGIC;
    record->version = LARDER_RECORD_VERSION;
    record->type = LARDER_RECORD_MODEL;
    record->tag_kind = LARDER_TAG_XXH3_128;
    record->record_bytes = LARDER_PAGE_BYTES;
    record->head_bytes = layout.head_bytes;
    record->extra_bytes = sizeof(model->info.desc);
    record->created_s = (uint64_t)time(NULL);
    memcpy(record->model, model->info.fingerprint.bytes, sizeof(record->model));
    memcpy((uint8_t *)record + layout.extra, &model->info.desc, sizeof(model->info.desc));
    pthread_mutex_lock(&store->lock);
    record->generation = store->next_generation++;
    pthread_mutex_unlock(&store->lock);
    struct append *others = group->models;
    place(store, group, append, record, LARDER_PAGE_BYTES);
    append->owned_next = others;
    group->models = append;
    model->in_segment = true;
    return 0;
}

/* Finding that there is no room takes a while: the answer holds for all that waits now. Among them
 * are those for which this one, their ancestor, was written. */
static void refuse_queued_locked(struct larder_store *store, int err)
{
    for (struct larder_put *put = store->put_queue; put; put = put->next)
        put->refused = err;
}

/* 0: room for `bytes` in the open segment, and for what the index is to learn. 1: not now. */
static int ready_for(struct larder_store *store, struct group *group, uint64_t bytes)
{
    if (!group->batch)
        group->batch = batch_new();
    return group->batch ? space_make_room(store, group, bytes) : -ENOMEM;
}

/* 0: taken (or refused). 1: this group takes no more. */
static int add_put(struct larder_store *store, struct group *group)
{
    pthread_mutex_lock(&store->lock);
    /* Its own, or that of an ancestor which goes before it. */
    if (mark_goes_first_locked(store)) {
        pthread_mutex_unlock(&store->lock);
        return 0;
    }
    struct larder_put *put = pop_put_locked(store);
    struct larder_put *behind = NULL;
    bool there =
        put->entry != TABLE_NONE && !(table_entry(&store->table, put->entry)->flags & ENTRY_DOOMED);
    int err = store->read_only ? LARDER_EREADONLY : !there ? LARDER_ENOTFOUND : put->refused;
    struct larder_put *first = err == 0 ? ancestor_first_locked(store, put, &err) : NULL;
    if (first) {
        behind = put;
        put = first;
    }
    uint32_t tenant = err == 0 ? table_entry(&store->table, put->entry)->tenant : 0;
    pthread_mutex_unlock(&store->lock);

    uint64_t bytes = append_record_bytes(put);
    /* Behind the header and a record of the model. It was made for longer segments. */
    if (err == 0 && bytes > store->options.segment_bytes - 2 * LARDER_PAGE_BYTES)
        err = larder_fail(LARDER_EFULL,
                          "a record of %llu bytes does not fit a segment of %llu; raise "
                          "segment_bytes",
                          (unsigned long long)bytes,
                          (unsigned long long)store->options.segment_bytes);
    int room = err;
    if (err == 0)
        room = err = quota_make_room(store, tenant, bytes);
    if (room == 0)
        room = ready_for(store, group, bytes + LARDER_PAGE_BYTES);
    if (room == 0 && !store->models[put->model]->in_segment)
        room = add_model_record(store, group, put->model);
    pthread_mutex_lock(&store->lock);
    if (room < 0 && err == 0)
        refuse_queued_locked(store, room);
    if (behind && room < 0)
        put_finish_locked(store, behind, room);
    else if (behind)
        push_front_locked(store, behind);
    if (room == 1) {
        push_front_locked(store, put);
    } else if (room < 0) {
        put_finish_locked(store, put, room);
    } else {
        place(store, group, &put->append, put->append.record, bytes);
        put->variant.segment_id = group->segment->id;
        put->variant.segment_page = (uint32_t)(put->append.offset / LARDER_PAGE_BYTES);
        put->state = PUT_GROUPED;
        put->next = NULL;
        /* Making room may have evicted on SSD, but never an entry that is PUTTING or above one. */
        writer_fill_value_locked(store, &put->value, put->entry, put->model, &put->variant);
        table_entry(&store->table, put->entry)->flags |= ENTRY_GROUPED;
        store->tenants[tenant].grouped_bytes += bytes;
        *group->puts_end = put;
        group->puts_end = &put->next;
        group->members += store->models[put->model]->in_index ? 1 : 2;
    }
    pthread_mutex_unlock(&store->lock);
    return room == 1 ? 1 : 0;
}

static struct slice *make_slice_locked(struct larder_store *store, struct removal *removal)
{
    uint32_t left = removal->entry_count - removal->sliced;
    uint32_t count = left < SLICE_KEYS_MAX ? left : SLICE_KEYS_MAX;
    const uint32_t *entries = removal->entries + removal->sliced;
    /* A key goes with all its variants, which stand right before their primary. */
    while (count < left && (table_entry(&store->table, entries[count - 1])->flags & ENTRY_VARIANT))
        count--;
    const struct entry_variant *single =
        removal->single ? &table_entry(&store->table, entries[0])->variant : NULL;
    const char *recipe = single ? table_recipe_text(&store->table, single->recipe) : "";
    uint32_t recipe_bytes = (uint32_t)strlen(recipe);
    struct larder_head_layout layout;
    larder_head_layout(&layout, count * 32, recipe_bytes, 0, 0);
    uint64_t bytes = larder_round_up(layout.head_bytes, LARDER_PAGE_BYTES);
    struct slice *slice = larder_alloc_zero(1, sizeof(*slice));
    struct larder_record *record = larder_alloc_aligned(LARDER_PAGE_BYTES, bytes);
    if (!slice || !record) {
        larder_free(slice);
        larder_free(record);
        return NULL;
    }
    memset(record, 0, bytes);
    record->magic = LARDER_RECORD_MAGIC;
    record->version = LARDER_RECORD_VERSION;
    record->type = LARDER_RECORD_TOMBSTONE;
    record->tag_kind = LARDER_TAG_XXH3_128;
    record->record_bytes = bytes;
    record->generation = removal->generation;
    record->created_s = (uint64_t)time(NULL);
    memcpy(record->tenant, larder_identity_tenant(store->identity, removal->tenant)->id, 16);
    record->head_bytes = layout.head_bytes;
    record->extra_bytes = count * 32;
    uint8_t *keys = (uint8_t *)record + layout.extra;
    for (uint32_t i = 0; i < count; i++) {
        const struct entry *entry = table_entry(&store->table, entries[i]);
        memcpy(keys + 32ul * i, entry->key.bytes, 32);
        slice->numbers[i] = entry->number;
    }
    if (single) {
        const uint64_t profile = table_recipe_profile(&store->table, single->recipe);
        record->variant = slice->numbers[0] + 1u;
        record->quality = single->quality;
        record->computed_on = single->computed_on;
        record->recipe_bytes = (uint16_t)recipe_bytes;
        memcpy((uint8_t *)record + layout.recipe, recipe, recipe_bytes);
        memcpy(record->profile, &profile, sizeof(profile));
    }
    slice->removal = removal;
    slice->first = removal->sliced;
    slice->count = count;
    slice->append.record = record;
    slice->append.bytes = bytes;
    return slice;
}

/* The rest of a removal is given up with `err`. */
static void give_up_removal_locked(struct larder_store *store, int err)
{
    struct removal *removal = store->removals;
    store->removals = removal->next;
    if (!store->removals)
        store->removals_end = &store->removals;
    struct slice rest = {.removal = removal,
                         .first = removal->sliced,
                         .count = removal->entry_count - removal->sliced};
    removal->sliced = removal->entry_count;
    removal->slices++;
    remove_slice_done_locked(store, &rest, err);
}

/* As add_put(), for a slice of the oldest removal. */
static int add_slice(struct larder_store *store, struct group *group)
{
    const uint64_t bytes_max =
        larder_round_up(sizeof(struct larder_record) + SLICE_KEYS_MAX * 32, LARDER_PAGE_BYTES);
    pthread_mutex_lock(&store->lock);
    /* A slice of children failed: their parents stay, or the chain would have a hole. */
    if (store->removals->err < 0) {
        give_up_removal_locked(store, store->removals->err);
        pthread_mutex_unlock(&store->lock);
        return 0;
    }
    bool read_only = store->read_only;
    pthread_mutex_unlock(&store->lock);
    int room = read_only ? LARDER_EREADONLY : ready_for(store, group, bytes_max);
    if (room == 1)
        return 1;
    pthread_mutex_lock(&store->lock);
    struct removal *removal = store->removals;
    struct slice *slice = room == 0 ? make_slice_locked(store, removal) : NULL;
    if (!slice) {
        give_up_removal_locked(store, room < 0 ? room : -ENOMEM);
        pthread_mutex_unlock(&store->lock);
        return 0;
    }
    removal->sliced += slice->count;
    removal->slices++;
    if (removal->sliced == removal->entry_count) {
        store->removals = removal->next;
        if (!store->removals)
            store->removals_end = &store->removals;
    }
    place(store, group, &slice->append, slice->append.record, slice->append.bytes);
    group->tombstone_bytes += slice->append.bytes;
    *group->slices_end = slice;
    group->slices_end = &slice->next;
    group->members += slice->count;
    pthread_mutex_unlock(&store->lock);
    return 0;
}

/* As add_put(), for what is queued of marks, up to a record of them. */
static int add_marks(struct larder_store *store, struct group *group)
{
    pthread_mutex_lock(&store->lock);
    bool read_only = store->read_only;
    pthread_mutex_unlock(&store->lock);
    int room = read_only ? LARDER_EREADONLY : ready_for(store, group, LARDER_PAGE_BYTES);
    if (room == 1)
        return 1;
    pthread_mutex_lock(&store->lock);
    struct mark_batch *batch = room == 0 ? mark_take_batch_locked(store) : NULL;
    if (!batch) {
        mark_give_up_locked(store, room < 0 ? room : -ENOMEM);
    } else if (batch->count == 0) {
        larder_free(batch->append.record);
        larder_free(batch);
    } else {
        place(store, group, &batch->append, batch->append.record, batch->append.bytes);
        group->tombstone_bytes += batch->append.bytes;
        struct mark_batch **end = &group->marks;
        while (*end) /* the index learns of them in their order */
            end = &(*end)->next;
        *end = batch;
        group->has_mark_share = group->has_mark_share || batch->has_others;
        group->members += batch->count;
    }
    pthread_mutex_unlock(&store->lock);
    return 0;
}

/* As add_put(), for a record that is moved. */
static int add_move(struct larder_store *store, struct group *group)
{
    pthread_mutex_lock(&store->lock);
    struct move *move = move_take_locked(store);
    pthread_mutex_unlock(&store->lock);
    if (!move)
        return 0;
    uint64_t bytes = (uint64_t)move->from.record_pages * LARDER_PAGE_BYTES;
    int room = bytes > store->options.segment_bytes - 2 * LARDER_PAGE_BYTES
                   ? -EALREADY
                   : ready_for(store, group, bytes + LARDER_PAGE_BYTES);
    if (room == 0 && !store->models[move->model]->in_segment)
        room = add_model_record(store, group, move->model);
    pthread_mutex_lock(&store->lock);
    /* Making room may have evicted it. */
    if (room == 0 && !move_is_there_locked(store, move))
        room = LARDER_ENOTFOUND;
    if (room == 0) {
        place(store, group, &move->append, move->append.record, bytes);
        move->next = group->moves;
        group->moves = move;
        group->move_bytes += bytes;
        group->members++;
        move_place_locked(store, move, group->segment);
    } else {
        move_return_locked(store, move, room);
    }
    pthread_mutex_unlock(&store->lock);
    return room == 1 ? 1 : 0;
}

static void gather(struct larder_store *store, struct group *group)
{
    while (!group->closed) {
        if (group->bytes >= GROUP_BYTES_MAX ||
            group->members + SLICE_KEYS_MAX > GROUP_MEMBERS_MAX) {
            group->closed = true;
            return;
        }
        pthread_mutex_lock(&store->lock);
        bool puts = store->put_queue != NULL;
        bool removals = store->removals != NULL;
        bool marks = mark_is_queued_locked(store);
        bool marks_first = mark_goes_first_locked(store);
        bool moves = store->move_queue != NULL;
        pthread_mutex_unlock(&store->lock);
        if (!puts && !removals && !marks && !moves)
            return;
        /* Up to half of the group, and one before what callers wait for, so that it gets on under
         * any load. */
        bool has_share = group->move_bytes <= group->bytes / 2;
        if (moves && (has_share || (!puts && !removals && !marks))) {
            group->closed = add_move(store, group) == 1;
            continue;
        }
        /* Before the entries that they were put with: see mark_published_locked(). Of others a page
         * a group, when something else waits. */
        if (marks_first || (marks && (!group->has_mark_share || (!puts && !removals)))) {
            group->closed = add_marks(store, group) == 1;
            continue;
        }
        /* Removals are served under a steady load of puts, and the other way round. */
        bool slice = removals && (!puts || !group->slices);
        group->closed = (slice ? add_slice(store, group) : add_put(store, group)) == 1;
    }
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
        group->segment->live_bytes += append_record_bytes(put);
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
        bool work = has_queued_locked(store);
        pthread_mutex_unlock(&store->lock);
        if (!work)
            return;
        group_begin(store);
    }
    struct group *group = store->filling;
    gather(store, group);
    if (LARDER_PLANT(INDEX_BEFORE_DATA) && group->appends && !group->slices && !group->closed &&
        !store->syncing)
        note_early(store, group);
    if (group->appends && !group->ahead_asked && !store->syncing) {
        group->ahead_asked = true;
        if (ahead_wanted(store, group, &group->ahead)) {
            group_append(group, &group->ahead);
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
    bool queued = has_queued_locked(store);
    pthread_mutex_unlock(&store->lock);
    return queued && !store->filling && !store->syncing && !store->blocked;
}

bool writer_idle(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    bool queued = has_queued_locked(store) || store->absent;
    pthread_mutex_unlock(&store->lock);
    return !queued && !store->filling && !store->syncing && commit_idle(store);
}
