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

struct variant_name variant_name_of(const struct entry_variant *variant)
{
    return (struct variant_name){.quality = variant->quality,
                                 .computed_on = variant->computed_on,
                                 .recipe = variant->recipe};
}

static bool has_name(const struct entry_variant *variant, const struct variant_name *name)
{
    return variant->quality == name->quality && variant->computed_on == name->computed_on &&
           variant->recipe == name->recipe;
}

bool variant_is_same(const struct entry_variant *variant, const struct variant_name *name)
{
    return name->recipe != 0 && has_name(variant, name);
}

/* Of a put that replaces what is visible the entry does not know the name yet. */
static bool will_have_name(const struct larder_store *store, uint32_t id,
                           const struct variant_name *name)
{
    const unsigned replaced = ENTRY_VISIBLE | ENTRY_PUTTING;
    if ((table_entry(&store->table, id)->flags & replaced) != replaced)
        return false;
    return has_name(&put_of_locked(store, id)->variant, name);
}

uint32_t variant_named(const struct larder_store *store, uint32_t primary,
                       const struct variant_name *name)
{
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(&store->table, id)) {
        if (has_name(&table_entry(&store->table, id)->variant, name) ||
            will_have_name(store, id, name))
            return id;
    }
    return TABLE_NONE;
}

bool variant_had_name(const struct larder_store *store, uint32_t primary,
                      const struct variant_name *name)
{
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(&store->table, id)) {
        if (!(table_entry(&store->table, id)->flags & ENTRY_PUTTING))
            continue;
        const struct larder_put *put = put_of_locked(store, id);
        if (put->replaces && put->state != PUT_RESERVED && has_name(&put->old, name))
            return true;
    }
    return false;
}

uint32_t variant_double(const struct larder_store *store, uint32_t primary)
{
    const struct table *table = &store->table;
    for (uint32_t id = table_next_variant(table, primary); id != TABLE_NONE;
         id = table_next_variant(table, id)) {
        const struct entry_variant *variant = &table_entry(table, id)->variant;
        const struct variant_name name = variant_name_of(variant);
        for (uint32_t before = primary; before != id; before = table_next_variant(table, before)) {
            const struct entry_variant *other = &table_entry(table, before)->variant;
            if (variant_is_same(other, &name))
                return other->generation < variant->generation ? before : id;
        }
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

/* One of a key's records that is good enough. */
struct candidate {
    uint32_t id;
    float kl; /* 0 unless the reader asks for it */
};

/* Among equals the one that need not be read from SSD. */
static bool is_wanted_before(const struct larder_store *store, const struct candidate *a,
                             const struct candidate *b, bool smallest)
{
    const struct entry *x = table_entry(&store->table, a->id);
    const struct entry *y = table_entry(&store->table, b->id);
    if (smallest && x->variant.record_pages != y->variant.record_pages)
        return x->variant.record_pages < y->variant.record_pages;
    if (x->variant.quality != y->variant.quality)
        return x->variant.quality < y->variant.quality;
    if (a->kl < b->kl || a->kl > b->kl)
        return a->kl < b->kl;
    if ((x->slot != HOST_NONE) != (y->slot != HOST_NONE))
        return x->slot != HOST_NONE;
    return x->variant.record_pages < y->variant.record_pages;
}

static bool is_accepted(const struct larder_store *store, struct candidate *out, uint32_t id,
                        struct accept accept)
{
    const struct entry *entry = table_entry(&store->table, id);
    *out = (struct candidate){.id = id};
    if (accept.max_kl > 0)
        out->kl = measure_kl_locked(store, entry);
    return entry->variant.quality <= (accept.worst & ~(uint32_t)LARDER_QUALITY_SMALLEST) ||
           (accept.max_kl > 0 && out->kl <= accept.max_kl);
}

uint32_t variant_pick(const struct larder_store *store, uint32_t primary, struct accept accept)
{
    const struct table *table = &store->table;
    bool smallest = accept.worst & LARDER_QUALITY_SMALLEST;
    struct candidate at;
    if (!(table_entry(table, primary)->flags & ENTRY_VARIED))
        return is_accepted(store, &at, primary, accept) ? primary : TABLE_NONE;
    struct candidate picked = {.id = TABLE_NONE};
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(table, id)) {
        if (find_sees(store, id, table_entry(table, id)->tenant) &&
            is_accepted(store, &at, id, accept) &&
            (picked.id == TABLE_NONE || is_wanted_before(store, &at, &picked, smallest)))
            picked = at;
    }
    return picked.id;
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
