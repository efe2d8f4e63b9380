/* SPDX-License-Identifier: Apache-2.0 */
/* recover.c - what happens at every start.
 *
 *   1. The index is opened and loaded into the table, each value checked. Any damage: it is set
 *      aside and made anew from the segments (rebuild.c).
 *   2. Entries that name a segment that is not there, or bytes outside of what was committed or,
 *      in the newest, written, go, with everything below them.
 *   3. What stands in the newest segment behind its committed bytes was written, acknowledged or
 *      not, and the index did not learn of it. Record by record it is taken in if whole, in the
 *      order of its writing; the file is cut behind the last. If the index does not know that
 *      segment, all of it is such a tail. What stands there in an older segment was given up: it is
 *      cut.
 *   4. What changed is synced and committed, in this order.
 *
 * Generations of this life begin far above all that were seen: records that were written and lost
 * had higher ones than the index knows of.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/planted.h"
#include "storage/recover_priv.h"

#define GENERATIONS_SKIPPED (1ull << 20)
/* Members of one transaction (index.h). */
#define COMMIT_MAX 400u

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* --- shared with rebuild.c -------------------------------------------------------------------- */

int recovery_set_parent(struct recovery *recovery, uint32_t id, const struct larder_key *parent)
{
    uint32_t chunk = id / TABLE_CHUNK_ENTRIES;
    while (chunk >= recovery->parent_chunks) {
        struct larder_key **chunks = larder_realloc(
            recovery->parents, sizeof(struct larder_key *) * (recovery->parent_chunks + 1ul));
        if (!chunks)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->parents = chunks;
        chunks[recovery->parent_chunks] =
            larder_alloc(sizeof(struct larder_key) * TABLE_CHUNK_ENTRIES);
        if (!chunks[recovery->parent_chunks])
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->parent_chunks++;
    }
    recovery->parents[chunk][id % TABLE_CHUNK_ENTRIES] = *parent;
    return 0;
}

int recovery_changed(struct recovery *recovery, const struct larder_key *key, uint64_t variant)
{
    if (recovery->changed_count == recovery->changed_capacity) {
        uint32_t capacity = recovery->changed_capacity ? recovery->changed_capacity * 2 : 1024;
        struct changed_record *changed =
            larder_realloc(recovery->changed, sizeof(*changed) * (size_t)capacity);
        if (!changed)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->changed = changed;
        recovery->changed_capacity = capacity;
    }
    recovery->changed[recovery->changed_count++] =
        (struct changed_record){.key = *key, .variant = variant};
    return 0;
}

int recovery_mark(struct recovery *recovery, const struct recovered_mark *mark)
{
    if (recovery->mark_count == recovery->mark_capacity) {
        uint32_t capacity = recovery->mark_capacity ? recovery->mark_capacity * 2 : 256;
        struct recovered_mark *marks =
            larder_realloc(recovery->marks, sizeof(*marks) * (size_t)capacity);
        if (!marks)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->marks = marks;
        recovery->mark_capacity = capacity;
    }
    recovery->marks[recovery->mark_count++] = *mark;
    return 0;
}

int recovery_marks(struct recovery *recovery, const struct larder_record *record)
{
    const struct larder_record_mark *marks = (const void *)larder_record_extra(record);
    uint32_t count = record->extra_bytes / (uint32_t)sizeof(*marks);
    for (uint32_t i = 0; i < count; i++) {
        if (!mark_is_valid(&marks[i].value))
            continue;
        if (marks[i].value.generation > recovery->generation)
            recovery->generation = marks[i].value.generation;
        struct recovered_mark mark = {.value = marks[i].value, .segment_id = record->segment_id};
        memcpy(mark.key.bytes, marks[i].key, sizeof(mark.key.bytes));
        LARDER_TRY(recovery_mark(recovery, &mark));
    }
    return 0;
}

int recovery_carry_marks(struct recovery *recovery, uint64_t generation, uint64_t since)
{
    if (since >= generation)
        return 0;
    if (recovery->carried_count == recovery->carried_capacity) {
        uint32_t capacity = recovery->carried_capacity ? recovery->carried_capacity * 2 : 256;
        struct carried_mark *carried =
            larder_realloc(recovery->carried, sizeof(*carried) * (size_t)capacity);
        if (!carried)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->carried = carried;
        recovery->carried_capacity = capacity;
    }
    recovery->carried[recovery->carried_count++] =
        (struct carried_mark){.generation = generation, .since = since};
    return 0;
}

static int compare_carried(const void *a, const void *b)
{
    uint64_t left = ((const struct carried_mark *)a)->generation;
    uint64_t right = ((const struct carried_mark *)b)->generation;
    return left < right ? -1 : left > right;
}

/* From which generation on a mark may be the entry's; as far back as this one wants to know. */
static uint64_t marked_since(const struct recovery *recovery, uint32_t id, uint64_t wanted)
{
    uint64_t since = table_entry(&recovery->store->table, id)->variant.generation;
    while (since > wanted && recovery->carried_count > 0) {
        const struct carried_mark key = {.generation = since};
        const struct carried_mark *found =
            bsearch(&key, recovery->carried, recovery->carried_count, sizeof(key), compare_carried);
        if (!found)
            break;
        since = found->since;
    }
    return since;
}

static int raise_marks(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < recovery->mark_count; i++) {
        uint32_t id = table_find(&store->table, &recovery->marks[i].key);
        int raised = id == TABLE_NONE ? 0 : mark_raise(store, id);
        LARDER_TRY(raised);
        if (raised)
            LARDER_TRY(recovery_changed(recovery, &recovery->marks[i].key, CHANGED_MARK));
    }
    return 0;
}

int recovery_set_marks(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    if (recovery->carried_count > 0)
        qsort(recovery->carried, recovery->carried_count, sizeof(*recovery->carried),
              compare_carried);
    for (uint32_t i = 0; i < recovery->mark_count; i++) {
        const struct recovered_mark *mark = &recovery->marks[i];
        uint32_t id = table_find(&store->table, &mark->key);
        int holds = id == TABLE_NONE
                        ? 0
                        : mark_recovered(store, id, &mark->value, mark->segment_id,
                                         marked_since(recovery, id, mark->value.generation));
        LARDER_TRY(holds);
        if (holds != mark->in_index)
            LARDER_TRY(recovery_changed(recovery, &mark->key, CHANGED_MARK));
    }
    mark_recovered_all(store);
    return raise_marks(recovery);
}

bool recovery_tenant(const struct recovery *recovery, const uint8_t id[16], uint16_t *out)
{
    const struct larder_identity *identity = recovery->store->identity;
    uint32_t count = larder_identity_tenant_count(identity);
    for (uint32_t i = 0; i < count; i++) {
        if (memcmp(larder_identity_tenant(identity, i)->id, id, 16) == 0) {
            *out = (uint16_t)i;
            return true;
        }
    }
    return false;
}

void recovery_variant(struct entry_variant *out, struct larder_store *store,
                      const struct larder_record *record)
{
    *out = (struct entry_variant){
        .generation = record->generation,
        .created_s = table_narrow(record->created_s),
        .position = table_narrow(record->position),
        .raw_bytes = (uint32_t)record->raw_bytes,
        .record_pages = (uint32_t)(record->record_bytes / LARDER_PAGE_BYTES),
        .head_bytes = record->head_bytes,
        .segment_id = record->segment_id,
        .segment_page = record->segment_page,
        .recipe = table_recipe(&store->table, larder_record_recipe(record), record->recipe_bytes,
                               measure_profile(record->profile)),
        .quality = record->quality,
        .computed_on = record->computed_on,
        .computed_on_kl = record->computed_on_kl,
    };
}

int recovery_model(struct recovery *recovery, uint32_t *out, const struct larder_record *record)
{
    struct larder_model_desc desc;
    memcpy(&desc, larder_record_extra(record), sizeof(desc));
    LARDER_TRY(larder_model_check(&desc));
    struct larder_key fingerprint;
    LARDER_TRY(larder_model_fingerprint(&fingerprint, &desc));
    if (memcmp(fingerprint.bytes, record->model, sizeof(record->model)) != 0)
        return larder_fail(LARDER_ECORRUPT, "recovery: a model record of another fingerprint");
    return store_add_model_locked(recovery->store, out, &fingerprint, &desc);
}

static const struct larder_key *parent_of(const struct recovery *recovery, uint32_t id)
{
    return &recovery->parents[id / TABLE_CHUNK_ENTRIES][id % TABLE_CHUNK_ENTRIES];
}

int recovery_add(struct recovery *recovery, uint32_t *out, const struct recovered_entry *found)
{
    struct table *table = &recovery->store->table;
    uint32_t primary = found->is_first ? TABLE_NONE : table_find(table, &found->key);
    *out = TABLE_NONE;
    LARDER_TRY(tiers_expect(recovery->store, found->tenant));
    if (primary == TABLE_NONE) {
        *out = table_add_unlinked(table, &found->key, found->tenant, found->token_count);
        if (*out == TABLE_NONE)
            return larder_fail(-ENOMEM, "recovery: no memory");
        table_entry(table, *out)->model = found->model;
        table_entry(table, *out)->number = (uint8_t)found->variant;
        return recovery_set_parent(recovery, *out, &found->parent);
    }
    const struct entry *entry = table_entry(table, primary);
    if (entry->tenant != found->tenant || entry->model != found->model ||
        entry->token_count != found->token_count ||
        !larder_key_equal(parent_of(recovery, primary), &found->parent) ||
        table_find_variant(table, &found->key, found->variant) != TABLE_NONE)
        return 0;
    *out = table_add_variant_as(table, primary, (uint8_t)found->variant);
    return *out == TABLE_NONE ? larder_fail(-ENOMEM, "recovery: no memory") : 0;
}

void recovery_forget(struct recovery *recovery, uint32_t id)
{
    struct table *table = &recovery->store->table;
    uint32_t other = table_next_variant(table, id);
    if (!(table_entry(table, id)->flags & ENTRY_VARIANT) && other != TABLE_NONE) {
        table_swap_records(table, id, other);
        id = other;
    }
    table_remove(table, id);
}

void recovery_forget_key(struct recovery *recovery, uint32_t primary)
{
    struct table *table = &recovery->store->table;
    uint32_t other;
    while ((other = table_next_variant(table, primary)) != TABLE_NONE)
        table_remove(table, other);
    table_remove(table, primary);
}

/* Whatever was not reached has neither parents nor children that were. */
static int drop_unreached(struct recovery *recovery)
{
    struct table *table = &recovery->store->table;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        struct entry *entry = table_entry(table, id);
        if (!(entry->flags & ENTRY_USED) ||
            (entry->flags & (ENTRY_ROOT | ENTRY_DURABLE | ENTRY_VARIANT)))
            continue;
        for (uint32_t at = id; at != TABLE_NONE; at = table_next_variant(table, at)) {
            LARDER_TRY(recovery_changed(recovery, &entry->key, table_entry(table, at)->number));
            recovery->dropped++;
        }
        history_note(&recovery->store->history, &entry->key, LARDER_EVENT_LOST);
        recovery_forget_key(recovery, id);
    }
    return 0;
}

static void make_durable(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    entry->flags |= ENTRY_VISIBLE | ENTRY_DURABLE;
    tiers_restore(store, id, learned_recall(&store->learned, entry->variant.generation));
    stats_enter_locked(store, id);
    struct segment *segment = seglog_find(&store->log, entry->variant.segment_id);
    segment->live_bytes += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
}

struct aged {
    uint64_t generation;
    uint32_t id;
};

/* Oldest first, by LSD radix: a million in a few milliseconds. The result is in `aged`. */
static void sort_by_age(struct aged *aged, struct aged *spare, uint32_t count)
{
    enum { DIGIT_BITS = 11, DIGITS = 1 << DIGIT_BITS };
    uint64_t all = 0;
    for (uint32_t i = 0; i < count; i++)
        all |= aged[i].generation;
    for (unsigned shift = 0; shift < 64 && all >> shift != 0; shift += DIGIT_BITS) {
        uint32_t starts[DIGITS] = {0};
        for (uint32_t i = 0; i < count; i++)
            starts[aged[i].generation >> shift & (DIGITS - 1)]++;
        uint32_t sum = 0;
        for (uint32_t digit = 0; digit < DIGITS; digit++) {
            uint32_t here = starts[digit];
            starts[digit] = sum;
            sum += here;
        }
        for (uint32_t i = 0; i < count; i++)
            spare[starts[aged[i].generation >> shift & (DIGITS - 1)]++] = aged[i];
        memcpy(aged, spare, sizeof(*aged) * count);
    }
}

static bool is_child(const struct recovery *recovery, uint32_t id, uint32_t parent)
{
    return larder_key_equal(parent_of(recovery, id),
                            &table_entry(&recovery->store->table, parent)->key);
}

/* Links an entry whose parent is linked already; false when it is not (yet). */
static bool link_entry(struct recovery *recovery, uint32_t id)
{
    struct larder_store *store = recovery->store;
    struct table *table = &store->table;
    const struct entry *entry = table_entry(table, id);
    const struct larder_key *key = parent_of(recovery, id);
    uint32_t parent = store->tenants[entry->tenant].root;
    if (!larder_key_equal(key, &larder_key_root)) {
        bool near =
            recovery->last_linked != TABLE_NONE && is_child(recovery, id, recovery->last_linked);
        parent = near ? recovery->last_linked : table_find(table, key);
        if (parent == TABLE_NONE || !(table_entry(table, parent)->flags & ENTRY_DURABLE) ||
            table_entry(table, parent)->tenant != entry->tenant)
            return false;
    }
    table_link(table, id, parent);
    table_entry(table, id)->flags &= (uint16_t)~ENTRY_DOOMED; /* link_late()'s mark */
    make_durable(store, id);
    for (uint32_t at = table_next_variant(table, id); at != TABLE_NONE;
         at = table_next_variant(table, at)) {
        table_entry(table, at)->depth = entry->depth;
        make_durable(store, at);
    }
    if (entry->flags & ENTRY_VARIED) {
        recovery->doubled = recovery->doubled || variant_double(store, id) != TABLE_NONE;
        variant_order_locked(store, id);
    }
    recovery->last_linked = id;
    return true;
}

/* In the order of age: nearly every parent comes before its children then, and neighbours in a
 * chain one after another, which matters because the table itself is in no order that memory likes.
 * Uses are not kept over a restart: age stands for them. */
static uint32_t link_by_age(struct recovery *recovery, struct aged *aged, uint32_t count)
{
    enum { FAR = 24, NEAR = 12 };
    const struct table *table = &recovery->store->table;
    uint32_t left = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i + FAR < count) {
            table_prefetch_entry(table, aged[i + FAR].id);
            __builtin_prefetch(parent_of(recovery, aged[i + FAR].id));
        }
        if (i + NEAR < count && !is_child(recovery, aged[i + NEAR].id, aged[i + NEAR - 1].id))
            table_prefetch(table, parent_of(recovery, aged[i + NEAR].id));
        if (!link_entry(recovery, aged[i].id))
            aged[left++] = aged[i];
    }
    return left;
}

/* A parent that was replaced is younger than its children. From each that is left up to one that is
 * linked, and down again; what has no way up is marked, so that it is walked once. */
static void link_late(struct recovery *recovery, const struct aged *left, uint32_t count,
                      struct aged *path)
{
    struct table *table = &recovery->store->table;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t depth = 0;
        uint32_t id = left[i].id;
        while (id != TABLE_NONE &&
               !(table_entry(table, id)->flags & (ENTRY_DURABLE | ENTRY_DOOMED))) {
            table_entry(table, id)->flags |= ENTRY_DOOMED;
            path[depth++].id = id;
            id = table_find(table, parent_of(recovery, id));
        }
        while (depth > 0 && link_entry(recovery, path[depth - 1].id))
            depth--;
    }
}

/* *late: some came before their parents, and may have none. */
static int link_all(struct recovery *recovery, bool *late)
{
    struct table *table = &recovery->store->table;
    *late = false;
    if (table->count == 0)
        return 0;
    struct aged *aged = larder_alloc(sizeof(*aged) * table->count);
    struct aged *spare = larder_alloc(sizeof(*aged) * table->count);
    int err = aged && spare ? 0 : larder_fail(-ENOMEM, "recovery: no memory");
    if (err == 0) {
        uint32_t count = 0;
        for (uint32_t id = 1; id < table->entry_end; id++) {
            const struct entry *entry = table_entry(table, id);
            if ((entry->flags & ENTRY_USED) && !(entry->flags & (ENTRY_ROOT | ENTRY_VARIANT)))
                aged[count++] = (struct aged){.generation = entry->variant.generation, .id = id};
        }
        sort_by_age(aged, spare, count);
        uint32_t left = link_by_age(recovery, aged, count);
        link_late(recovery, aged, left, spare);
        *late = left > 0;
    }
    larder_free(spare);
    larder_free(aged);
    return err;
}

static void free_parents(struct recovery *recovery)
{
    for (uint32_t i = 0; i < recovery->parent_chunks; i++)
        larder_free(recovery->parents[i]);
    larder_free(recovery->parents);
    recovery->parents = NULL;
    recovery->parent_chunks = 0;
}

/* One record of a key alone: another carries the chain then, if there is one. */
static int drop_record(struct recovery *recovery, uint32_t id)
{
    const struct entry *entry = table_entry(&recovery->store->table, id);
    if (!(entry->flags & ENTRY_VARIANT) && (entry->flags & ENTRY_VARIED))
        id = variant_succeed_locked(recovery->store, id);
    return recovery_drop_subtree(recovery, id);
}

/* Of two records of a key that have one name the newer holds: the older was evicted, or lost with
 * its chain, before that was put under another number. */
static int drop_doubles(struct recovery *recovery, uint32_t primary)
{
    uint32_t older;
    while ((older = variant_double(recovery->store, primary)) != TABLE_NONE)
        LARDER_TRY(drop_record(recovery, older));
    return 0;
}

int recovery_link(struct recovery *recovery)
{
    const struct table *table = &recovery->store->table;
    bool late;
    LARDER_TRY(link_all(recovery, &late));
    free_parents(recovery);
    if (late)
        LARDER_TRY(drop_unreached(recovery));
    for (uint32_t id = 1; recovery->doubled && id < table->entry_end; id++) {
        if ((table_entry(table, id)->flags & (ENTRY_USED | ENTRY_VARIED)) ==
            (ENTRY_USED | ENTRY_VARIED))
            LARDER_TRY(drop_doubles(recovery, id));
    }
    return 0;
}

/* --- records ---------------------------------------------------------------------------------- */

int recovery_next(struct recovery *recovery, const struct larder_record **out,
                  const struct segment *segment, uint64_t *offset, enum recovery_read how)
{
    for (;;) {
        int err = how == READ_WHOLE ? scan_record(&recovery->scan, out, segment, *offset)
                                    : scan_head(&recovery->scan, out, segment, *offset);
        if (err != LARDER_ECORRUPT || how == READ_HEAD)
            return err;
        bool unreadable = recovery->scan.unreadable;
        const struct larder_record *torn;
        LARDER_TRY(scan_head(&recovery->scan, &torn, segment, *offset));
        if (unreadable) {
            /* Perhaps it can be read another time; then its sections' tags will tell. */
            *out = torn;
            return 0;
        }
        uint64_t bytes = torn->record_bytes;
        if (recovery->store->log.punches)
            (void)seglog_punch(&recovery->store->log, segment, *offset, bytes);
        *offset += bytes;
    }
}

/* --- commit ----------------------------------------------------------------------------------- */

static void value_of(struct index_entry *out, const struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    const struct entry_variant *variant = &entry->variant;
    memset(out, 0, sizeof(*out));
    memcpy(out->parent, table_entry(&store->table, table_above(&store->table, id))->key.bytes, 32);
    memcpy(out->tenant, larder_identity_tenant(store->identity, entry->tenant)->id, 16);
    memcpy(out->model, store->models[entry->model]->info.fingerprint.bytes, 32);
    out->generation = variant->generation;
    out->record_bytes = (uint64_t)variant->record_pages * LARDER_PAGE_BYTES;
    out->raw_bytes = variant->raw_bytes;
    out->created_s = variant->created_s;
    out->position = variant->position;
    out->segment_id = variant->segment_id;
    out->segment_page = variant->segment_page;
    out->token_count = entry->token_count;
    out->head_bytes = variant->head_bytes;
    out->quality = variant->quality;
    out->computed_on = variant->computed_on;
    out->computed_on_kl = variant->computed_on_kl;
    out->profile = table_recipe_profile(&store->table, variant->recipe);
    const char *recipe = table_recipe_text(&store->table, variant->recipe);
    memcpy(out->recipe, recipe, larder_min_u64(strlen(recipe), sizeof(out->recipe)));
}

static int put_changed_mark(struct larder_store *store, const struct larder_key *key)
{
    uint32_t id = table_find(&store->table, key);
    struct index_mark row;
    if (id != TABLE_NONE && mark_stored_locked(store, id, &row))
        return larder_index_put_mark(store->index, key, &row);
    return larder_index_delete_mark(store->index, key);
}

static int put_changes(struct recovery *recovery, uint32_t first, uint32_t end, uint32_t mark)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = first; i < end; i++) {
        const struct larder_key *key = &recovery->changed[i].key;
        if (recovery->changed[i].variant == CHANGED_MARK) {
            LARDER_TRY(put_changed_mark(store, key));
            continue;
        }
        uint32_t variant = (uint32_t)recovery->changed[i].variant;
        uint32_t id = table_find_variant(&store->table, key, variant);
        if (id != TABLE_NONE) {
            struct index_entry value;
            value_of(&value, store, id);
            LARDER_TRY(larder_index_put_entry(store->index, key, variant, &value));
        } else {
            LARDER_TRY(larder_index_delete_entry(store->index, key, variant));
        }
    }
    if (mark) {
        struct index_segment row = {0};
        LARDER_TRY(larder_index_put_segment(store->index, mark, &row));
    }
    return 0;
}

static int put_rows(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < store->model_count; i++) {
        struct model_state *model = store->models[i];
        LARDER_TRY(
            larder_index_put_model(store->index, &model->info.fingerprint, &model->info.desc));
        model->in_index = true;
    }
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        struct index_segment row = {.committed_bytes = segment->committed_bytes,
                                    .tombstone_bytes = segment->tombstone_bytes};
        LARDER_TRY(larder_index_put_segment(store->index, segment->id, &row));
        segment->in_index = true;
    }
    /* The row of the highest id stays: it keeps the id from being used again. */
    for (uint32_t i = 0; i < store->gone_count; i++) {
        if (store->gone[i] + 1 < store->log.next_id)
            LARDER_TRY(larder_index_delete_segment(store->index, store->gone[i]));
    }
    return larder_index_delete_segment(store->index, REBUILD_MARK);
}

static int commit_part(struct recovery *recovery, uint32_t first, uint32_t end, uint32_t mark)
{
    struct larder_store *store = recovery->store;
    int err = -EAGAIN;
    for (int attempt = 0; attempt < 3 && err == -EAGAIN; attempt++) {
        LARDER_TRY(larder_index_begin(store->index));
        err = put_changes(recovery, first, end, mark);
        if (err == 0 && end == recovery->changed_count)
            err = put_rows(recovery);
        if (err < 0)
            larder_index_abort(store->index);
        else
            err = larder_index_commit(store->index, store->next_generation);
    }
    return err;
}

int recovery_commit(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        if (!segment->in_index && segment->end_bytes > 0)
            LARDER_TRY(larder_io_run(store->io, LARDER_IO_SYNC, segment->file, NULL, 0, 0));
    }
    uint32_t mark = store->stats.index_rebuilt ? REBUILD_MARK : 0;
    uint32_t first = 0;
    do {
        uint32_t end = (uint32_t)larder_min_u64(first + COMMIT_MAX, recovery->changed_count);
        LARDER_TRY(commit_part(recovery, first, end, end < recovery->changed_count ? mark : 0));
        first = end;
    } while (first < recovery->changed_count);
    store->gone_count = 0;
    return 0;
}

/* --- load ------------------------------------------------------------------------------------- */

static int load_model(void *context, const struct larder_key *fingerprint,
                      const struct larder_model_desc *desc)
{
    struct recovery *recovery = context;
    struct larder_key actual;
    if (larder_model_check(desc) < 0 || larder_model_fingerprint(&actual, desc) < 0 ||
        !larder_key_equal(&actual, fingerprint))
        return larder_fail(LARDER_ECORRUPT, "index: a model does not fit its fingerprint");
    uint32_t index;
    LARDER_TRY(store_add_model_locked(recovery->store, &index, fingerprint, desc));
    recovery->store->models[index]->in_index = true;
    return 0;
}

static int load_segment(void *context, uint32_t id, const struct index_segment *row)
{
    struct recovery *recovery = context;
    struct larder_store *store = recovery->store;
    if (id == REBUILD_MARK) {
        recovery->rebuild_again = true;
        return 0;
    }
    seglog_saw(&store->log, id);
    struct segment *segment = seglog_find(&store->log, id);
    if (!segment) {
        uint32_t *gone = larder_realloc(store->gone, sizeof(*gone) * (store->gone_count + 1ul));
        if (!gone)
            return larder_fail(-ENOMEM, "recovery: no memory");
        store->gone = gone;
        gone[store->gone_count++] = id;
        return 0;
    }
    segment->in_index = true;
    segment->blank = false; /* its header may have been overwritten since */
    segment->committed_bytes =
        larder_min_u64(row->committed_bytes, segment->end_bytes) & ~(LARDER_PAGE_BYTES - 1ull);
    if (segment->committed_bytes < row->committed_bytes)
        larder_log(LARDER_LOG_WARN, "segment %u: %llu bytes, the index knows %llu", id,
                   (unsigned long long)segment->end_bytes,
                   (unsigned long long)row->committed_bytes);
    segment->tombstone_bytes = row->tombstone_bytes;
    return 0;
}

/* The index is whole, but does the entry make sense? A start that was cut short between two
 * transactions has left entries of a tail whose row is written with the last: dropped, they would
 * take with them what is behind them, although the tail has them still. */
static bool entry_fits(const struct recovery *recovery, const struct index_entry *value)
{
    const struct seglog *log = &recovery->store->log;
    const struct segment *segment = seglog_find(log, value->segment_id);
    uint64_t offset = (uint64_t)value->segment_page * LARDER_PAGE_BYTES;
    if (!segment)
        return false;
    uint64_t end_bytes =
        segment == seglog_newest(log) ? segment->end_bytes : segment->committed_bytes;
    return offset >= SEGMENT_HEADER_BYTES && value->record_bytes % LARDER_PAGE_BYTES == 0 &&
           value->record_bytes <= LARDER_RECORD_BYTES_MAX &&
           value->head_bytes >= sizeof(struct larder_record) &&
           value->head_bytes <= value->record_bytes && offset + value->record_bytes <= end_bytes &&
           value->raw_bytes <= LARDER_RECORD_BYTES_MAX &&
           value->token_count <= LARDER_BLOCK_TOKENS_MAX &&
           value->quality <= LARDER_QUALITY_BLENDED && value->computed_on <= LARDER_QUALITY_BLENDED;
}

/* A purge that was cut short behind its point of no return. */
static void punch_purged(struct recovery *recovery, const struct index_entry *value)
{
    struct larder_store *store = recovery->store;
    if (entry_fits(recovery, value) && store->log.punches) /* larder fsck changes nothing */
        seglog_punch(&store->log, seglog_find(&store->log, value->segment_id),
                     (uint64_t)value->segment_page * LARDER_PAGE_BYTES, value->record_bytes);
}

static int load_entry(void *context, const struct larder_key *key, uint32_t variant,
                      const struct index_entry *value)
{
    struct recovery *recovery = context;
    struct larder_store *store = recovery->store;
    int order = memcmp(key->bytes, recovery->last_key.bytes, sizeof(key->bytes));
    if (order < 0)
        return larder_fail(LARDER_ECORRUPT, "index: its keys are out of order");
    recovery->last_key = *key;
    struct larder_key fingerprint;
    memcpy(fingerprint.bytes, value->model, sizeof(fingerprint.bytes));
    uint32_t model = store_find_model_locked(store, &fingerprint);
    uint16_t tenant;
    if (value->generation > recovery->generation)
        recovery->generation = value->generation;
    uint32_t id = TABLE_NONE;
    if (variant < LARDER_VARIANTS_MAX && model < store->model_count &&
        recovery_tenant(recovery, value->tenant, &tenant) && entry_fits(recovery, value)) {
        struct recovered_entry found = {.key = *key,
                                        .tenant = tenant,
                                        .model = (uint16_t)model,
                                        .token_count = (uint16_t)value->token_count,
                                        .variant = variant,
                                        .is_first = order > 0};
        memcpy(found.parent.bytes, value->parent, sizeof(found.parent.bytes));
        LARDER_TRY(recovery_add(recovery, &id, &found));
    }
    if (id == TABLE_NONE) {
        bool purged = !recovery_tenant(recovery, value->tenant, &tenant);
        history_note(&store->history, key, purged ? LARDER_EVENT_PURGED : LARDER_EVENT_LOST);
        if (purged)
            punch_purged(recovery, value);
        recovery->dropped += !purged;
        return recovery_changed(recovery, key, variant);
    }
    table_entry(&store->table, id)->variant = (struct entry_variant){
        .generation = value->generation,
        .created_s = table_narrow(value->created_s),
        .position = table_narrow(value->position),
        .raw_bytes = (uint32_t)value->raw_bytes,
        .record_pages = (uint32_t)(value->record_bytes / LARDER_PAGE_BYTES),
        .head_bytes = value->head_bytes,
        .segment_id = value->segment_id,
        .segment_page = value->segment_page,
        .recipe =
            table_recipe(&store->table, value->recipe,
                         (uint32_t)strnlen(value->recipe, sizeof(value->recipe)), value->profile),
        .quality = value->quality,
        .computed_on = value->computed_on,
        .computed_on_kl = value->computed_on_kl,
    };
    return 0;
}

static void entry_comes(void *context, const struct larder_key *key)
{
    const struct recovery *recovery = context;
    table_prefetch(&recovery->store->table, key);
}

static int load_mark(void *context, const struct larder_key *key, const struct index_mark *row)
{
    struct recovery *recovery = context;
    if (!mark_is_valid(&row->value))
        return recovery_changed(recovery, key, CHANGED_MARK);
    if (row->value.generation > recovery->generation)
        recovery->generation = row->value.generation;
    const struct recovered_mark mark = {
        .key = *key, .value = row->value, .segment_id = row->segment_id, .in_index = true};
    return recovery_mark(recovery, &mark);
}

int recovery_load_index(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    const struct index_visitor visitor = {.context = recovery,
                                          .entry = load_entry,
                                          .segment = load_segment,
                                          .mark = load_mark,
                                          .model = load_model,
                                          .soon = entry_comes};
    uint64_t generation;
    table_expect(&store->table, larder_index_entry_count(store->index));
    LARDER_TRY(larder_index_load(store->index, &visitor, &generation));
    if (generation > recovery->generation)
        recovery->generation = generation;
    if (recovery->rebuild_again)
        return larder_fail(LARDER_ECORRUPT, "index: its making anew was cut short");
    return recovery_link(recovery);
}

/* --- tails ------------------------------------------------------------------------------------ */

static void extent_dead(struct larder_store *store, const struct entry_variant *variant)
{
    const struct dead_extent extent = {.segment_id = variant->segment_id,
                                       .segment_page = variant->segment_page,
                                       .pages = variant->record_pages};
    if (dead_add(&store->dead, extent) < 0)
        larder_log(LARDER_LOG_WARN, "recovery: no memory to give %u pages back", extent.pages);
}

int recovery_drop_subtree(struct recovery *recovery, uint32_t top)
{
    struct larder_store *store = recovery->store;
    for (;;) {
        uint32_t id = top;
        while (table_entry(&store->table, id)->first_child != TABLE_NONE)
            id = table_entry(&store->table, id)->first_child;
        struct entry *entry = table_entry(&store->table, id);
        LARDER_TRY(recovery_changed(recovery, &entry->key, entry->number));
        extent_dead(store, &entry->variant);
        stats_leave_locked(store, id);
        tiers_unwrite_locked(store, id);
        entry->flags &= (uint16_t) ~(ENTRY_VISIBLE | ENTRY_DURABLE);
        table_remove(&store->table, id);
        if (id == top)
            return 0;
    }
}

bool recovery_removed(struct recovery *recovery, struct removed_key *out,
                      const struct larder_record *record)
{
    *out = (struct removed_key){.generation = record->generation, .all = record->variant == 0};
    if (!out->all) {
        struct entry_variant variant;
        recovery_variant(&variant, recovery->store, record);
        out->name = variant_name_of(&variant);
        out->number = (uint8_t)(record->variant - 1);
    }
    return recovery_tenant(recovery, record->tenant, &out->tenant);
}

uint32_t recovery_find_removed(const struct recovery *recovery, const struct removed_key *removed)
{
    const struct table *table = &recovery->store->table;
    uint32_t id = table_find(table, &removed->key);
    for (; id != TABLE_NONE; id = table_next_variant(table, id)) {
        const struct entry *entry = table_entry(table, id);
        if (entry->tenant == removed->tenant && entry->variant.generation < removed->generation &&
            (removed->all || entry->number == removed->number ||
             variant_is_same(&entry->variant, &removed->name)))
            break;
    }
    return id;
}

/* What a tombstone says counts for its tenant's entries alone. */
static int take_tombstone(struct recovery *recovery, const struct larder_record *record)
{
    struct removed_key removed;
    if (!recovery_removed(recovery, &removed, record))
        return 0;
    const struct larder_key *keys = (const void *)larder_record_extra(record);
    uint32_t count = record->extra_bytes / (uint32_t)sizeof(*keys);
    for (uint32_t i = 0; i < count; i++) {
        removed.key = keys[i];
        uint32_t id;
        while ((id = recovery_find_removed(recovery, &removed)) != TABLE_NONE)
            LARDER_TRY(removed.all ? recovery_drop_subtree(recovery, id)
                                   : drop_record(recovery, id));
    }
    return 0;
}

static int take_entry(struct recovery *recovery, const struct larder_record *record)
{
    struct larder_store *store = recovery->store;
    struct larder_key key, parent_key, fingerprint;
    memcpy(key.bytes, record->key, sizeof(key.bytes));
    memcpy(parent_key.bytes, record->parent, sizeof(parent_key.bytes));
    memcpy(fingerprint.bytes, record->model, sizeof(fingerprint.bytes));
    uint32_t model = store_find_model_locked(store, &fingerprint);
    uint16_t tenant;
    if (record->variant >= LARDER_VARIANTS_MAX || model == store->model_count ||
        !recovery_tenant(recovery, record->tenant, &tenant))
        return 0;
    uint32_t parent = larder_key_equal(&parent_key, &larder_key_root)
                          ? store->tenants[tenant].root
                          : table_find(&store->table, &parent_key);
    if (parent == TABLE_NONE || table_entry(&store->table, parent)->tenant != tenant)
        return 0;
    uint32_t primary = table_find(&store->table, &key);
    uint32_t id = table_find_variant(&store->table, &key, record->variant);
    if (primary != TABLE_NONE && (table_entry(&store->table, primary)->parent != parent ||
                                  table_entry(&store->table, primary)->model != model))
        return 0;
    LARDER_TRY(tiers_expect(store, tenant));
    if (primary != TABLE_NONE)
        LARDER_TRY(recovery_carry_marks(recovery, record->generation,
                                        table_entry(&store->table, primary)->variant.generation));
    if (id != TABLE_NONE) {
        struct entry *entry = table_entry(&store->table, id);
        if (entry->variant.generation >= record->generation)
            return 0;
        extent_dead(store, &entry->variant);
        stats_leave_locked(store, id);
        tiers_unwrite_locked(store, id);
        entry->flags &= (uint16_t) ~(ENTRY_VISIBLE | ENTRY_DURABLE);
    } else {
        id = primary != TABLE_NONE
                 ? table_add_variant_as(&store->table, primary, (uint8_t)record->variant)
                 : table_add(&store->table, &key, parent, (uint16_t)record->token_count);
        if (id == TABLE_NONE)
            return larder_fail(-ENOMEM, "recovery: no memory");
    }
    struct entry *entry = table_entry(&store->table, id);
    entry->model = (uint16_t)model;
    entry->number = (uint8_t)record->variant;
    recovery_variant(&entry->variant, store, record);
    make_durable(store, id);
    variant_order_locked(store, table_primary(&store->table, id));
    store->stats.recovered_from_tail++;
    LARDER_TRY(recovery_changed(recovery, &key, record->variant));
    return drop_doubles(recovery, table_primary(&store->table, id));
}

static int take_record(struct recovery *recovery, struct segment *segment,
                       const struct larder_record *record)
{
    if (record->generation > recovery->generation)
        recovery->generation = record->generation;
    uint32_t model;
    switch (record->type) {
    case LARDER_RECORD_ENTRY:
        return take_entry(recovery, record);
    case LARDER_RECORD_TOMBSTONE:
        segment->tombstone_bytes += record->record_bytes;
        return take_tombstone(recovery, record);
    case LARDER_RECORD_MARK:
        segment->tombstone_bytes += record->record_bytes;
        return recovery_marks(recovery, record);
    case LARDER_RECORD_MODEL: {
        int err = recovery_model(recovery, &model, record);
        return err == -ENOMEM ? err : 0;
    }
    default:
        return 0;
    }
}

/* Behind it stands a sound record. */
static void tell_gap(const struct segment *segment, uint64_t from, uint64_t to)
{
    larder_log(LARDER_LOG_WARN,
               "segment %u: no sound record in %llu bytes at %llu, which the index does not know: "
               "damaged, or never acknowledged; passed over",
               segment->id, (unsigned long long)(to - from), (unsigned long long)from);
}

/* Takes in what is whole behind the committed bytes; *end is where the last of it ends. All that
 * was acknowledged was synced, so none of it stands behind what power loss tore; but a bit may have
 * flipped since, and costs its record only. */
static int take_records(struct recovery *recovery, struct segment *segment, uint64_t *end)
{
    uint64_t offset = *end;
    while (offset < segment->end_bytes) {
        const struct larder_record *record;
        int err = recovery_next(recovery, &record, segment, &offset, READ_WHOLE);
        if (err == LARDER_ECORRUPT) {
            LARDER_TRY(scan_resync(&recovery->scan, &offset, segment, offset + LARDER_PAGE_BYTES));
            continue;
        }
        LARDER_TRY(err);
        if (offset > *end)
            tell_gap(segment, *end, offset);
        uint64_t bytes = record->record_bytes;
        LARDER_TRY(take_record(recovery, segment, record));
        offset += bytes;
        *end = offset;
    }
    return 0;
}

static uint64_t tail_begin(const struct segment *segment)
{
    return segment->committed_bytes < SEGMENT_HEADER_BYTES
               ? larder_min_u64(SEGMENT_HEADER_BYTES, segment->end_bytes)
               : segment->committed_bytes;
}

int recovery_read_tail(struct recovery *recovery)
{
    struct segment *newest = seglog_newest(&recovery->store->log);
    if (!newest || newest->blank)
        return 0;
    uint64_t offset = tail_begin(newest);
    return take_records(recovery, newest, &offset);
}

/* True in *changed when there was a tail, good or bad. Only the newest segment's may be good: a
 * segment is begun when all of the one before it is committed or given up (space.c), and what was
 * given up there may have been removed since, by a tombstone in a newer one. */
static int take_tail(struct recovery *recovery, struct segment *segment, bool newest, bool *changed)
{
    struct larder_store *store = recovery->store;
    uint64_t offset = tail_begin(segment);
    if (segment->blank)
        return 0; /* removed as soon as the store runs */
    if (newest && !LARDER_PLANT(TAIL_UNREAD))
        LARDER_TRY(take_records(recovery, segment, &offset));
    if (offset > segment->committed_bytes || segment->file_bytes > offset) {
        *changed = true;
        LARDER_TRY(store->io->ops->truncate(store->io, segment->file, offset));
        /* Synced with what was taken in before the index names it: see recovery_commit(). */
        if (segment->in_index)
            LARDER_TRY(larder_io_run(store->io, LARDER_IO_SYNC, segment->file, NULL, 0, 0));
    }
    segment->committed_bytes = segment->end_bytes = segment->file_bytes = offset;
    return 0;
}

static int take_tails(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    bool changed = store->gone_count > 0;
    const struct segment *newest = seglog_newest(&store->log);
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        LARDER_TRY(take_tail(recovery, segment, segment == newest, &changed));
    }
    store->next_generation = recovery->generation + GENERATIONS_SKIPPED;
    LARDER_TRY(recovery_set_marks(recovery));
    return changed || recovery->changed_count > 0 ? recovery_commit(recovery) : 0;
}

/* --- start ------------------------------------------------------------------------------------ */

static void forget_all(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->model_count; i++)
        larder_free(store->models[i]);
    store->model_count = 0;
    store->gone_count = 0;
    store->dead.count = 0;
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        segment->in_index = false;
        segment->committed_bytes = segment->live_bytes = segment->tombstone_bytes = 0;
    }
    table_close(&store->table);
    tiers_close(store);
    marks_close(&store->marks);
    memset(&store->stats, 0, sizeof(store->stats));
    for (uint32_t i = 0; i < LARDER_TENANTS_MAX; i++)
        store->tenants[i] = (struct tenant_state){0};
}

static int start_anew(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    forget_all(store);
    free_parents(recovery);
    recovery->changed_count = 0;
    recovery->dropped = 0;
    recovery->mark_count = 0;
    recovery->carried_count = 0;
    LARDER_TRY(table_open(&store->table));
    LARDER_TRY(tiers_open(store));
    LARDER_TRY(store_add_tenants(store));
    store->stats.index_rebuilt = 1;
    LARDER_TRY(rebuild_table(recovery));
    store->next_generation = recovery->generation + GENERATIONS_SKIPPED;
    LARDER_TRY(recovery_set_marks(recovery));
    return recovery_commit(recovery);
}

int recover_open_index(struct larder_store *store)
{
    size_t bytes = strlen(store->directory) + sizeof("/index");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "store: no memory");
    snprintf(path, bytes, "%s/index", store->directory);
    bool created;
    int err = larder_index_open(&store->index, path, &created);
    if (err == LARDER_ECORRUPT) {
        larder_log(LARDER_LOG_ERROR, "%s; the index is made anew from the segments",
                   larder_error_message());
        err = larder_index_destroy(path);
        if (err == 0)
            err = larder_index_open(&store->index, path, &created);
    }
    store->index_is_new = created;
    larder_free(path);
    return err;
}

static int replace_index(struct larder_store *store)
{
    larder_log(LARDER_LOG_ERROR, "%s; the index is made anew from the segments",
               larder_error_message());
    larder_index_close(store->index);
    store->index = NULL;
    size_t bytes = strlen(store->directory) + sizeof("/index");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "store: no memory");
    snprintf(path, bytes, "%s/index", store->directory);
    int err = larder_index_destroy(path);
    larder_free(path);
    return err < 0 ? err : recover_open_index(store);
}

static int start_from_index(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    if (store->index_is_new && store->log.count > 0)
        return start_anew(recovery);
    int err = recovery_load_index(recovery);
    if (err == LARDER_ECORRUPT) {
        LARDER_TRY(replace_index(store));
        return start_anew(recovery);
    }
    LARDER_TRY(err);
    return take_tails(recovery);
}

int recovery_begin(struct recovery *recovery, struct larder_store *store)
{
    *recovery = (struct recovery){.store = store};
    return scan_open(&recovery->scan, store->io, store->seal);
}

void recovery_end(struct recovery *recovery)
{
    if (recovery->store)
        learned_free(&recovery->store->learned);
    scan_close(&recovery->scan);
    free_parents(recovery);
    larder_free(recovery->changed);
    larder_free(recovery->marks);
    larder_free(recovery->carried);
}

/* Records that were dead when the last life ended, and not punched yet: they count until their
 * segment goes. What else takes room is little: records of models, the file system's own. */
static int count_stale(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        uint64_t known = segment->live_bytes + segment->tombstone_bytes + SEGMENT_HEADER_BYTES +
                         (uint64_t)store->model_count * LARDER_PAGE_BYTES;
        uint64_t bytes;
        LARDER_TRY(store->io->ops->disk_bytes(store->io, segment->file, &bytes));
        segment->stale_bytes = bytes > known + bytes / 256 ? bytes - known : 0;
    }
    return 0;
}

int recover_store(struct larder_store *store)
{
    uint64_t began_us = now_us();
    struct recovery recovery;
    LARDER_TRY(recovery_begin(&recovery, store));
    if (store->options.index_gate)
        larder_index_set_gate(store->index, store->options.index_gate,
                              store->options.index_gate_context);
    int err = start_from_index(&recovery);
    recovery_end(&recovery);
    if (err == 0)
        err = count_stale(store);
    if (err < 0)
        return err;
    /* Much that was held until all was linked lies between what stays. */
    larder_mem_trim();
    store->sweep = true; /* segments that died in the last life */
    store->stats.recovered_entries = store->stats.entries;
    store->stats.io_errors += recovery.scan.io_errors;
    store->stats.recovery_us = now_us() - began_us;
    store->stats.segments = store->log.count;
    store->stats.segment_bytes = seglog_usage(&store->log);
    if (recovery.dropped > 0)
        larder_log(LARDER_LOG_WARN, "recovery: %llu entries could not be kept",
                   (unsigned long long)recovery.dropped);
    if (store->log.count > 0)
        larder_log(LARDER_LOG_INFO,
                   "recovery: %llu entries, %llu of them not in the index before, %llu ms%s",
                   (unsigned long long)store->stats.entries,
                   (unsigned long long)store->stats.recovered_from_tail,
                   (unsigned long long)(store->stats.recovery_us / 1000),
                   store->stats.index_rebuilt ? "; the index was made anew" : "");
    return 0;
}
