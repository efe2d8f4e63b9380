/* SPDX-License-Identifier: Apache-2.0 */
/* check.c - do the store's structures agree with one another? For tests. */
#include <string.h>

#include "base/error.h"
#include "storage/store_priv.h"

static int check_entry(const struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    bool durable = entry->flags & ENTRY_DURABLE;
    if ((entry->flags & ENTRY_VISIBLE) && !durable && entry->slot == HOST_NONE)
        return larder_fail(LARDER_ECORRUPT, "entry %u is visible and nowhere", id);
    if (!(entry->flags & (ENTRY_VISIBLE | ENTRY_PUTTING | ENTRY_DOOMED)))
        return larder_fail(LARDER_ECORRUPT, "entry %u is neither stored nor being stored", id);
    if (durable && !(entry->flags & ENTRY_PUTTING) && entry->variant.segment_id == 0)
        return larder_fail(LARDER_ECORRUPT, "entry %u is durable without a place", id);
    LARDER_TRY(tiers_check_entry(store, id));
    if (entry->slot == HOST_NONE)
        return 0;
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    if (slot->entry != id || slot->dropped || slot->state == HOST_SLOT_FREE)
        return larder_fail(LARDER_ECORRUPT, "entry %u and slot %u do not agree", id, entry->slot);
    if (host_slot_tenant(&store->host, entry->slot) != entry->tenant)
        return larder_fail(LARDER_ECORRUPT, "entry %u is in another tenant's slab", id);
    if (!durable && slot->state == HOST_SLOT_READY && !host_slot_is_whole(slot))
        return larder_fail(LARDER_ECORRUPT, "entry %u has no whole copy", id);
    if (slot->state == HOST_SLOT_READY &&
        host_record(&store->host, entry->slot)->generation != entry->variant.generation)
        return larder_fail(LARDER_ECORRUPT, "slot %u holds another record", entry->slot);
    return 0;
}

/* Two puts of one name are one: else the one that is removed alone leaves the other. */
static int check_names(const struct larder_store *store, uint32_t id)
{
    if (table_primary(&store->table, id) != id || variant_double(store, id) == TABLE_NONE)
        return 0;
    return larder_fail(LARDER_ECORRUPT, "entry %u has two records of one name", id);
}

static int check_marks(const struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    const struct entry *above = table_entry(&store->table, entry->parent);
    bool marked = marks_find(&store->marks, id) != NULL;
    if (marked != ((entry->flags & ENTRY_MARKED) != 0))
        return larder_fail(LARDER_ECORRUPT, "entry %u and its mark do not agree", id);
    if ((entry->flags & ENTRY_HELD) && !(above->flags & (ENTRY_HELD | ENTRY_ROOT)))
        return larder_fail(LARDER_ECORRUPT, "entry %u is held, its parent is not", id);
    return 0;
}

static int check_counts(const struct larder_store *store, const struct larder_store_stats *counted)
{
    const struct larder_store_stats *stats = &store->stats;
    if (stats->entries != counted->entries || stats->entries_host != counted->entries_host ||
        stats->entries_durable != counted->entries_durable)
        return larder_fail(
            LARDER_ECORRUPT,
            "stats say %llu entries, %llu in the host tier, %llu durable; there are "
            "%llu, %llu, %llu",
            (unsigned long long)stats->entries, (unsigned long long)stats->entries_host,
            (unsigned long long)stats->entries_durable, (unsigned long long)counted->entries,
            (unsigned long long)counted->entries_host,
            (unsigned long long)counted->entries_durable);
    if (stats->record_bytes_held != counted->record_bytes_held)
        return larder_fail(LARDER_ECORRUPT, "stats say %llu bytes are held; there are %llu",
                           (unsigned long long)stats->record_bytes_held,
                           (unsigned long long)counted->record_bytes_held);
    return 0;
}

static int check_locked(const struct larder_store *store)
{
    LARDER_TRY(table_check(&store->table));
    LARDER_TRY(host_check(&store->host));
    LARDER_TRY(marks_check(&store->marks));
    struct larder_store_stats counted = {0};
    for (uint32_t id = 1; id < store->table.entry_end; id++) {
        const struct entry *entry = table_entry(&store->table, id);
        if (!(entry->flags & ENTRY_USED) || (entry->flags & ENTRY_ROOT))
            continue;
        LARDER_TRY(check_entry(store, id));
        counted.entries += (entry->flags & ENTRY_VISIBLE) != 0;
        counted.entries_host += entry->slot != HOST_NONE;
        counted.entries_durable += (entry->flags & ENTRY_DURABLE) != 0;
        LARDER_TRY(check_marks(store, id));
        LARDER_TRY(check_names(store, id));
        if ((entry->flags & ENTRY_VISIBLE) && (entry->flags & ENTRY_HELD))
            counted.record_bytes_held += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    }
    LARDER_TRY(check_counts(store, &counted));
    uint64_t queued = 0;
    uint64_t of_tenants = 0;
    for (uint32_t i = 0; i < LARDER_TENANTS_MAX; i++)
        of_tenants += store->tenants[i].queued_bytes;
    for (const struct larder_put *put = store->puts; put; put = put->all_next) {
        if (put->state != PUT_RESERVED)
            queued += (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
    }
    if (queued != store->queued_bytes || queued != of_tenants)
        return larder_fail(LARDER_ECORRUPT, "%llu bytes are queued, counted %llu",
                           (unsigned long long)store->queued_bytes, (unsigned long long)queued);
    return 0;
}

int larder_store_check(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    int err = check_locked(store);
    pthread_mutex_unlock(&store->lock);
    return err;
}
