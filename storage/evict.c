/* SPDX-License-Identifier: Apache-2.0 */
/* evict.c - room in both tiers.
 *
 * Host: a tenant that needs room adds a slab while host_bytes allows it, then evicts its own slots,
 * least recently used first. When it has nothing to evict, an idle slab of another tenant (nothing
 * in it leased or being written) is emptied and retired, and the room becomes its own: a simple
 * rule under which two busy tenants may take slabs from each other in turns, but neither starves.
 *
 * An entry whose only copy is in the host tier goes only when it has no children; else a leaf below
 * it goes in its place, so that chains never get holes. On SSD leaves go, too, oldest first; a use
 * touches a chain from its end to its start, so parents are always younger than their children.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* Of one transaction (index.h). */
#define VICTIMS_MAX 400u

void evict_detach_slot_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    assert(entry->slot != HOST_NONE);
    stats_leave_locked(store, id);
    uint32_t slot = entry->slot;
    entry->slot = HOST_NONE;
    stats_enter_locked(store, id);
    host_drop(&store->host, slot);
}

/* --- host tier ------------------------------------------------------------------------------- */

/* The entry's only copy is in the host tier, and nothing needs it. */
static bool may_forget(const struct larder_store *store, const struct entry *entry)
{
    if (entry->first_child != TABLE_NONE || entry->slot == HOST_NONE ||
        (entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED | ENTRY_DURABLE | ENTRY_HELD)))
        return false;
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    return slot->leases == 0 && slot->pins == 0;
}

static void forget_entry_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    mark_forget_locked(store, id);
    if (entry->slot != HOST_NONE)
        evict_detach_slot_locked(store, id);
    stats_leave_locked(store, id);
    entry->flags &= (uint16_t)~ENTRY_VISIBLE;
    put_watches_locked(store, id, LARDER_ENOTFOUND);
    table_remove(&store->table, id);
}

/* Evicts this slot's entry, or what must go before it; false when it cannot go now. */
static bool evict_slot_locked(struct larder_store *store, uint32_t slot_id, enum larder_event why)
{
    const struct host_slot *slot = host_slot(&store->host, slot_id);
    if (slot->leases > 0 || slot->pins > 0)
        return false;
    uint32_t id = slot->entry;
    const struct entry *entry = table_entry(&store->table, id);
    if (entry->flags & ENTRY_DURABLE) {
        evict_detach_slot_locked(store, id);
        return true;
    }
    while (entry->first_child != TABLE_NONE) {
        id = table_first_to_go(&store->table, id);
        entry = table_entry(&store->table, id);
    }
    if (!may_forget(store, entry))
        return false;
    history_note(&store->history, &entry->key, why);
    /* The one above goes next, without a walk down to it. */
    uint32_t parent = id == slot->entry ? TABLE_NONE : entry->parent;
    forget_entry_locked(store, id);
    if (parent != TABLE_NONE && table_entry(&store->table, parent)->slot != HOST_NONE)
        host_age(&store->host, table_entry(&store->table, parent)->slot);
    return true;
}

static bool evict_one_locked(struct larder_store *store, uint32_t tenant)
{
    uint32_t slot = store->host.tenants[tenant].oldest;
    while (slot != HOST_NONE) {
        uint32_t newer = host_slot(&store->host, slot)->newer;
        if (evict_slot_locked(store, slot, LARDER_EVENT_EVICTED_HOST)) {
            store->stats.evicted_host++;
            store->tenants[tenant].stats.evicted_host++;
            return true;
        }
        slot = newer;
    }
    return false;
}

static bool slab_is_idle(const struct larder_store *store, uint32_t first, uint32_t count)
{
    for (uint32_t id = first; id < first + count; id++) {
        const struct host_slot *slot = host_slot(&store->host, id);
        if (slot->state == HOST_SLOT_FREE)
            continue;
        if (slot->state != HOST_SLOT_READY || slot->leases > 0 || slot->pins > 0)
            return false;
        const struct entry *entry = table_entry(&store->table, slot->entry);
        if (!(entry->flags & ENTRY_DURABLE) && !may_forget(store, entry))
            return false;
    }
    return true;
}

static bool retire_slab_of_another_locked(struct larder_store *store, uint32_t tenant)
{
    for (uint32_t i = 0; i < store->host.slab_end; i++) {
        uint32_t owner;
        uint32_t first;
        uint32_t count;
        if (!host_slab_slots(&store->host, i, &owner, &first, &count) || owner == tenant ||
            !slab_is_idle(store, first, count))
            continue;
        for (uint32_t id = first; id < first + count; id++) {
            if (host_slot(&store->host, id)->state == HOST_SLOT_READY)
                evict_slot_locked(store, id, LARDER_EVENT_EVICTED_SLAB);
        }
        host_retire(&store->host, i);
        return true;
    }
    return false;
}

int evict_take_locked(struct larder_store *store, uint32_t *out, uint32_t tenant, uint64_t bytes)
{
    for (;;) {
        int err = host_take(&store->host, out, tenant, bytes);
        if (err != -ENOBUFS)
            return err;
        if (evict_one_locked(store, tenant))
            continue;
        if (!retire_slab_of_another_locked(store, tenant))
            return larder_fail(-EBUSY,
                               "no room for %llu bytes in the host tier: all of it is leased or "
                               "being written; try again, or raise host_bytes",
                               (unsigned long long)bytes);
    }
}

int evict_grow(struct larder_store *store, uint32_t tenant)
{
    struct tenant_state *state = &store->tenants[tenant];
    pthread_mutex_lock(&store->lock);
    if (state->growing) {
        while (state->growing)
            pthread_cond_wait(&store->grown, &store->lock);
        pthread_mutex_unlock(&store->lock);
        return 0;
    }
    uint32_t slab_id;
    int err = host_grow_begin(&store->host, tenant, &slab_id);
    if (err < 0) {
        /* Another tenant was faster; there may be something to evict. */
        pthread_mutex_unlock(&store->lock);
        return 0;
    }
    state->growing = true;
    pthread_mutex_unlock(&store->lock);

    struct host_slab *slab;
    err = host_slab_make(&slab, tenant, slab_id, store->options.slab_bytes);
    pthread_mutex_lock(&store->lock);
    int end_err = host_grow_end(&store->host, slab);
    state->growing = false;
    pthread_cond_broadcast(&store->grown);
    pthread_mutex_unlock(&store->lock);
    return err < 0 ? err : end_err;
}

void larder_store_prepare(struct larder_store *store, uint32_t tenant)
{
    pthread_mutex_lock(&store->lock);
    bool wanted = store->host.tenants[tenant].slab_count == 0;
    pthread_mutex_unlock(&store->lock);
    /* A failure is met, and told, by the request that needs the room. */
    if (wanted)
        (void)evict_grow(store, tenant);
}

/* --- SSD ------------------------------------------------------------------------------------- */

struct victim {
    struct larder_key key;
    struct entry_variant variant;
    uint8_t number;
};

static bool may_leave_ssd(const struct larder_store *store, const struct entry *entry)
{
    if (entry->first_child != TABLE_NONE || !(entry->flags & ENTRY_DURABLE) ||
        (entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED | ENTRY_HELD)))
        return false;
    if (entry->slot == HOST_NONE)
        return true;
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    return host_slot_is_whole(slot) ||
           (slot->state == HOST_SLOT_READY && slot->leases == 0 && slot->pins == 0);
}

/* The table forgets it before the index does: should the index then fail, the store is read-only
 * and a lookup misses what it could have found. */
static void leave_ssd_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    history_note(&store->history, &entry->key, LARDER_EVENT_EVICTED_SSD);
    /* Some layers without the rest are no copy. */
    if (entry->slot != HOST_NONE && !host_slot_is_whole(host_slot(&store->host, entry->slot)))
        evict_detach_slot_locked(store, id);
    stats_leave_locked(store, id);
    table_ssd_remove(&store->table, id);
    entry->flags &= (uint16_t)~ENTRY_DURABLE;
    entry->variant.segment_id = 0;
    entry->variant.segment_page = 0;
    stats_enter_locked(store, id);
    store->stats.evicted_ssd++;
    store->tenants[entry->tenant].stats.evicted_ssd++;
    if (entry->slot == HOST_NONE)
        forget_entry_locked(store, id);
}

/* On the ways down to leaves, of one choice: the lock is held. */
#define STEPS_MAX 65536u

/* The subtree of the oldest entry goes from its leaves; the way down to the next one begins where
 * the last one was. */
static uint32_t choose_victims_locked(struct larder_store *store, struct victim *victims,
                                      uint64_t bytes)
{
    uint32_t count = 0;
    uint64_t freed = 0;
    uint32_t steps = 0;
    uint32_t id = store->table.ssd_oldest;
    uint32_t leaf = id;
    while (id != TABLE_NONE && count < VICTIMS_MAX && freed < bytes) {
        const struct entry *entry = table_entry(&store->table, leaf);
        for (; entry->first_child != TABLE_NONE && steps < STEPS_MAX; steps++) {
            leaf = table_first_to_go(&store->table, leaf);
            entry = table_entry(&store->table, leaf);
        }
        if (!may_leave_ssd(store, entry)) {
            leaf = id = table_entry(&store->table, id)->newer;
            continue;
        }
        victims[count].key = entry->key;
        victims[count].variant = entry->variant;
        victims[count].number = entry->number;
        freed += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
        count++;
        bool was_oldest = leaf == id;
        uint32_t newer = table_entry(&store->table, id)->newer;
        uint32_t parent = entry->parent;
        leave_ssd_locked(store, leaf);
        leaf = parent;
        if (was_oldest)
            leaf = id = newer;
    }
    return count;
}

static int delete_victims(struct larder_store *store, const struct victim *victims, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        int err = larder_index_delete_entry(store->index, &victims[i].key, victims[i].number);
        if (err < 0) {
            larder_index_abort(store->index);
            return err;
        }
    }
    pthread_mutex_lock(&store->lock);
    uint64_t next_generation = store->next_generation;
    pthread_mutex_unlock(&store->lock);
    return larder_index_commit(store->index, next_generation);
}

/* A transaction has begun; it is over when this returns. */
static int forget_in_index(struct larder_store *store, const struct victim *victims, uint32_t count)
{
    int err = delete_victims(store, victims, count);
    for (int attempt = 1; attempt < 3 && err == -EAGAIN; attempt++) {
        LARDER_TRY(larder_index_begin(store->index));
        err = delete_victims(store, victims, count);
    }
    return err;
}

int evict_ssd(struct larder_store *store, uint64_t bytes)
{
    struct victim *victims = larder_alloc(sizeof(*victims) * VICTIMS_MAX);
    if (!victims)
        return larder_fail(-ENOMEM, "eviction: no memory");
    int err = 0;
    uint64_t freed = 0;
    while (freed < bytes) {
        /* A full disk is met here, while the table still has them. */
        err = larder_index_begin(store->index);
        if (err == -ENOSPC)
            break;
        if (err < 0) {
            store_fail_writes(store, "index", err);
            err = LARDER_EREADONLY;
            break;
        }
        pthread_mutex_lock(&store->lock);
        uint32_t count = choose_victims_locked(store, victims, bytes - freed);
        pthread_mutex_unlock(&store->lock);
        if (count == 0) {
            larder_index_abort(store->index);
            err = larder_fail(-ENOSPC, "nothing more can be evicted from SSD");
            break;
        }
        err = forget_in_index(store, victims, count);
        if (err < 0) {
            store_fail_writes(store, "index", err);
            err = LARDER_EREADONLY;
            break;
        }
        pthread_mutex_lock(&store->lock);
        for (uint32_t i = 0; i < count; i++) {
            writer_extent_dead_locked(store, &victims[i].variant);
            freed += (uint64_t)victims[i].variant.record_pages * LARDER_PAGE_BYTES;
        }
        pthread_mutex_unlock(&store->lock);
    }
    larder_free(victims);
    return err;
}
