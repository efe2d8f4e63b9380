/* SPDX-License-Identifier: Apache-2.0 */
/* gather.c - what goes into a group (writer.c): puts, tombstones of removals, marks, and records
 * that are moved, each placed at the end of the open segment.
 *
 * Parents go before their children, marks before the records that they were put with. Whatever
 * else waits, each kind has its share of every group. What cannot be written is told so here.
 *
 * Threads: the storage thread. What it reads of entries is under the lock.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* --- places ----------------------------------------------------------------------------------- */

void gather_append(struct group *group, struct append *append)
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
        gather_append(group, &group->header);
    }
    *append = (struct append){
        .record = record, .buffer = record, .offset = segment->end_bytes, .bytes = bytes};
    segment->end_bytes += bytes;
    group->end_bytes = segment->end_bytes;
    gather_append(group, append);
}

/* 0: room for `bytes` in the open segment, and for what the index is to learn. 1: not now. */
static int ready_for(struct larder_store *store, struct group *group, uint64_t bytes)
{
    if (!group->batch)
        group->batch = batch_new();
    return group->batch ? space_make_room(store, group, bytes) : -ENOMEM;
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

/* --- puts ------------------------------------------------------------------------------------- */

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

/* Finding that there is no room takes a while: the answer holds for all that waits now. Among them
 * are those for which this one, their ancestor, was written. */
static void refuse_queued_locked(struct larder_store *store, int err)
{
    for (struct larder_put *put = store->put_queue; put; put = put->next)
        put->refused = err;
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

    uint64_t bytes = (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
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
        commit_fill_value_locked(store, &put->value, put->entry, put->model, &put->variant);
        table_entry(&store->table, put->entry)->flags |= ENTRY_GROUPED;
        store->tenants[tenant].grouped_bytes += bytes;
        *group->puts_end = put;
        group->puts_end = &put->next;
        group->members += store->models[put->model]->in_index ? 1 : 2;
    }
    pthread_mutex_unlock(&store->lock);
    return room == 1 ? 1 : 0;
}

/* --- removals --------------------------------------------------------------------------------- */

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

/* --- marks and moves -------------------------------------------------------------------------- */

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

/* --- whose turn it is ------------------------------------------------------------------------- */

bool gather_has_more_locked(const struct larder_store *store)
{
    return store->put_queue || store->removals || store->move_queue || mark_is_queued_locked(store);
}

void gather_members(struct larder_store *store, struct group *group)
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
