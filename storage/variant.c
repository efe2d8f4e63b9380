/* SPDX-License-Identifier: Apache-2.0 */
/* variant.c - several records of one key (table.h, T3): which one a reader is given, and which one
 * leads.
 *
 * The primary carries the chain, and leads: it goes last. A better variant that was put beside it
 * takes the lead when its put is over, by exchanging records: no id that others hold changes what
 * it stands for in the chain. Nothing is exchanged while one of the two is being put or removed;
 * readers do not depend on who leads.
 */
#include <string.h>

#include "storage/store_priv.h"

uint32_t variant_named(const struct larder_store *store, uint32_t primary,
                       const struct variant_name *name)
{
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(&store->table, id)) {
        const struct entry_variant *variant = &table_entry(&store->table, id)->variant;
        if (variant->quality == name->quality && variant->computed_on == name->computed_on &&
            variant->recipe == name->recipe)
            return id;
    }
    return TABLE_NONE;
}

uint32_t variant_of_generation(const struct larder_store *store, const struct larder_key *key,
                               uint64_t generation)
{
    uint32_t id = table_find(&store->table, key);
    while (id != TABLE_NONE && table_entry(&store->table, id)->variant.generation != generation)
        id = table_next_variant(&store->table, id);
    return id;
}

/* Of two that are good enough. Among equals the one that need not be read from SSD. */
static bool is_wanted_before(const struct entry *a, const struct entry *b, bool smallest)
{
    if (smallest && a->variant.record_pages != b->variant.record_pages)
        return a->variant.record_pages < b->variant.record_pages;
    if (a->variant.quality != b->variant.quality)
        return a->variant.quality < b->variant.quality;
    if ((a->slot != HOST_NONE) != (b->slot != HOST_NONE))
        return a->slot != HOST_NONE;
    return a->variant.record_pages < b->variant.record_pages;
}

uint32_t variant_pick(const struct larder_store *store, uint32_t primary, enum larder_quality least)
{
    const struct table *table = &store->table;
    bool smallest = least & LARDER_QUALITY_SMALLEST;
    uint32_t worst = least & ~(uint32_t)LARDER_QUALITY_SMALLEST;
    const struct entry *entry = table_entry(table, primary);
    if (!(entry->flags & ENTRY_VARIED))
        return entry->variant.quality <= worst ? primary : TABLE_NONE;
    uint32_t picked = TABLE_NONE;
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(table, id)) {
        const struct entry *at = table_entry(table, id);
        if (find_sees(store, id, at->tenant) && at->variant.quality <= worst &&
            (picked == TABLE_NONE || is_wanted_before(at, table_entry(table, picked), smallest)))
            picked = id;
    }
    return picked;
}

static bool is_at_rest(const struct entry *entry)
{
    return (entry->flags & ENTRY_VISIBLE) && !(entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED));
}

/* The best of those with which the primary may exchange records: as durable as it is. */
static uint32_t successor(const struct larder_store *store, uint32_t primary)
{
    const struct table *table = &store->table;
    const struct entry *entry = table_entry(table, primary);
    uint32_t best = TABLE_NONE;
    if (!is_at_rest(entry))
        return TABLE_NONE;
    for (uint32_t id = table_next_variant(table, primary); id != TABLE_NONE;
         id = table_next_variant(table, id)) {
        const struct entry *at = table_entry(table, id);
        if (is_at_rest(at) && (at->flags & ENTRY_DURABLE) == (entry->flags & ENTRY_DURABLE) &&
            (best == TABLE_NONE || table_is_better(at, table_entry(table, best))))
            best = id;
    }
    return best;
}

static void exchange_locked(struct larder_store *store, uint32_t primary, uint32_t other)
{
    uint32_t ids[] = {primary, other};
    for (uint32_t i = 0; i < 2; i++)
        stats_leave_locked(store, ids[i]);
    tiers_exchange_locked(store, primary, other);
    for (uint32_t i = 0; i < 2; i++)
        stats_enter_locked(store, ids[i]);
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t slot = table_entry(&store->table, ids[i])->slot;
        if (slot != HOST_NONE)
            host_slot(&store->host, slot)->entry = ids[i];
    }
}

void variant_order_locked(struct larder_store *store, uint32_t primary)
{
    const struct entry *entry = table_entry(&store->table, primary);
    if (!(entry->flags & ENTRY_VARIED))
        return;
    uint32_t best = successor(store, primary);
    if (best != TABLE_NONE && table_is_better(table_entry(&store->table, best), entry))
        exchange_locked(store, primary, best);
}

uint32_t variant_succeed_locked(struct larder_store *store, uint32_t primary)
{
    uint32_t best = successor(store, primary);
    if (best != TABLE_NONE)
        exchange_locked(store, primary, best);
    return best;
}
