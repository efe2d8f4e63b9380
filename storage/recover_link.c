/* SPDX-License-Identifier: Apache-2.0 */
/* recover_link.c - from entries that know their parents' keys alone to chains.
 *
 * Entries are added in whatever order they are read, linked oldest first, when nearly every parent
 * comes before its children, and the rest from below. What has no way to a root goes; so does of
 * two records of a key that have one name the older (variant.c).
 * Threads: the one that opens the store.
 */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/recover_priv.h"

/* --- unlinked entries ------------------------------------------------------------------------- */

static int set_parent(struct recovery *recovery, uint32_t id, const struct larder_key *parent)
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
        return set_parent(recovery, *out, &found->parent);
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

void recovery_free_parents(struct recovery *recovery)
{
    for (uint32_t i = 0; i < recovery->parent_chunks; i++)
        larder_free(recovery->parents[i]);
    larder_free(recovery->parents);
    recovery->parents = NULL;
    recovery->parent_chunks = 0;
}

/* --- linked entries --------------------------------------------------------------------------- */

void recovery_make_durable(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    entry->flags |= ENTRY_VISIBLE | ENTRY_DURABLE;
    tiers_restore(store, id, learned_recall(&store->learned, entry->variant.generation));
    stats_enter_locked(store, id);
    struct segment *segment = seglog_find(&store->log, entry->variant.segment_id);
    segment->live_bytes += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
}

void recovery_extent_dead(struct larder_store *store, const struct entry_variant *variant)
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
        recovery_extent_dead(store, &entry->variant);
        stats_leave_locked(store, id);
        tiers_unwrite_locked(store, id);
        entry->flags &= (uint16_t) ~(ENTRY_VISIBLE | ENTRY_DURABLE);
        table_remove(&store->table, id);
        if (id == top)
            return 0;
    }
}

int recovery_drop_record(struct recovery *recovery, uint32_t id)
{
    const struct entry *entry = table_entry(&recovery->store->table, id);
    if (!(entry->flags & ENTRY_VARIANT) && (entry->flags & ENTRY_VARIED))
        id = variant_succeed_locked(recovery->store, id);
    return recovery_drop_subtree(recovery, id);
}

int recovery_drop_doubles(struct recovery *recovery, uint32_t primary)
{
    uint32_t older;
    while ((older = variant_double(recovery->store, primary)) != TABLE_NONE)
        LARDER_TRY(recovery_drop_record(recovery, older));
    return 0;
}

/* --- linking ---------------------------------------------------------------------------------- */

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
    recovery_make_durable(store, id);
    for (uint32_t at = table_next_variant(table, id); at != TABLE_NONE;
         at = table_next_variant(table, at)) {
        table_entry(table, at)->depth = entry->depth;
        recovery_make_durable(store, at);
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

int recovery_link(struct recovery *recovery)
{
    const struct table *table = &recovery->store->table;
    bool late;
    LARDER_TRY(link_all(recovery, &late));
    recovery_free_parents(recovery);
    if (late)
        LARDER_TRY(drop_unreached(recovery));
    for (uint32_t id = 1; recovery->doubled && id < table->entry_end; id++) {
        if ((table_entry(table, id)->flags & (ENTRY_USED | ENTRY_VARIED)) ==
            (ENTRY_USED | ENTRY_VARIED))
            LARDER_TRY(recovery_drop_doubles(recovery, id));
    }
    return 0;
}
