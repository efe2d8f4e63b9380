/* SPDX-License-Identifier: Apache-2.0 */
/* evict.c - room in both tiers. Who goes first is for the policies to say (tiers.c), who must not
 * go is said here: what is leased, pinned or being written, and whatever would leave a hole.
 *
 * Host: a tenant that needs room adds a slab while host_bytes allows it, then evicts its own slots.
 * When it has nothing to evict, an idle slab (nothing in it leased or being written) of the tenant
 * whose next victim is worth least is emptied and retired, and the room becomes its own: a simple
 * rule under which two busy tenants may take slabs from each other in turns, but neither starves.
 *
 * An entry whose only copy is in one tier goes from it only when it has no children, so that chains
 * never get holes. Policies let chains go from their ends.
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
    tiers_detach_locked(store, id);
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
    if (entry->flags & ENTRY_MARKED)
        mark_row_dead_locked(store, id);
    mark_forget_locked(store, id);
    if (entry->slot != HOST_NONE)
        evict_detach_slot_locked(store, id);
    stats_leave_locked(store, id);
    entry->flags &= (uint16_t)~ENTRY_VISIBLE;
    put_watches_locked(store, id, LARDER_ENOTFOUND);
    table_remove(&store->table, id);
}

/* Its slot may go: either SSD has it, too, or nothing needs it. */
static bool may_leave_host(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    const struct entry *entry = table_entry(&store->table, id);
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    if (slot->state != HOST_SLOT_READY || slot->leases > 0 || slot->pins > 0)
        return false;
    return (entry->flags & ENTRY_DURABLE) || may_forget(store, entry);
}

static void leave_host_locked(struct larder_store *store, uint32_t id, enum larder_event why)
{
    const struct entry *entry = table_entry(&store->table, id);
    if (entry->flags & ENTRY_DURABLE) {
        evict_detach_slot_locked(store, id);
        return;
    }
    history_note(&store->history, &entry->key, why);
    forget_entry_locked(store, id);
}

/* The policy's choice; of the variants of a key the worst. */
static uint32_t victim_locked(struct larder_store *store, struct larder_policy *policy,
                              uint32_t tenant, bool (*may_go)(void *context, uint32_t id))
{
    uint32_t id = larder_policy_victim(policy, tenant, may_go, store);
    if (id == TABLE_NONE || !(table_entry(&store->table, id)->flags & ENTRY_VARIANT))
        return id;
    uint32_t worst = table_first_to_go(&store->table, table_entry(&store->table, id)->parent);
    return larder_policy_has(policy, worst) && may_go(store, worst) ? worst : id;
}

/* Entries that one eviction sends to SSD at most, instead of forgetting them. */
#define DEMOTIONS_MAX 4u

/* What would be lost, and deserves better by now, is written: it stays until it is. The queue is
 * for puts first. */
static bool demote_locked(struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    if ((entry->flags & ENTRY_DURABLE) || store->read_only || store->stopping || store->no_space ||
        store->queued_bytes + bytes > store->options.host_bytes / 8 ||
        !tiers_deserves_ssd(store, id) || !put_rewrite_locked(store, id))
        return false;
    store->stats.bytes_demoted += bytes;
    store->tenants[entry->tenant].stats.bytes_demoted += bytes;
    store_wake(store);
    return true;
}

static bool evict_one_locked(struct larder_store *store, uint32_t tenant)
{
    uint32_t id = victim_locked(store, store->host_policy, tenant, may_leave_host);
    for (uint32_t i = 0; i < DEMOTIONS_MAX && id != TABLE_NONE && demote_locked(store, id); i++)
        id = victim_locked(store, store->host_policy, tenant, may_leave_host);
    if (id == TABLE_NONE)
        return false;
    larder_policy_evict(store->host_policy, id);
    leave_host_locked(store, id, LARDER_EVENT_EVICTED_HOST);
    store->stats.evicted_host++;
    store->tenants[tenant].stats.evicted_host++;
    return true;
}

static bool slab_is_idle(struct larder_store *store, uint32_t first, uint32_t count)
{
    for (uint32_t id = first; id < first + count; id++) {
        const struct host_slot *slot = host_slot(&store->host, id);
        if (slot->state == HOST_SLOT_FREE)
            continue;
        if (slot->state != HOST_SLOT_READY || slot->dropped || !may_leave_host(store, slot->entry))
            return false;
    }
    return true;
}

/* The number of the idle slab that takes least with it: of the tenant whose next victim is worth
 * least. */
static bool find_idle_slab_locked(struct larder_store *store, uint32_t *out, uint32_t tenant)
{
    bool found = false;
    double least = 0;
    for (uint32_t i = 0; i < store->host.slab_end; i++) {
        uint32_t owner;
        uint32_t first;
        uint32_t count;
        if (!host_slab_slots(&store->host, i, &owner, &first, &count) || owner == tenant)
            continue;
        double worth = larder_policy_least(store->host_policy, owner);
        if ((found && worth >= least) || !slab_is_idle(store, first, count))
            continue;
        found = true;
        least = worth;
        *out = i;
    }
    return found;
}

static bool retire_slab_of_another_locked(struct larder_store *store, uint32_t tenant)
{
    uint32_t slab;
    if (!find_idle_slab_locked(store, &slab, tenant))
        return false;
    uint32_t owner;
    uint32_t first;
    uint32_t count;
    host_slab_slots(&store->host, slab, &owner, &first, &count);
    for (uint32_t id = first; id < first + count; id++) {
        if (host_slot(&store->host, id)->state != HOST_SLOT_FREE)
            leave_host_locked(store, host_slot(&store->host, id)->entry, LARDER_EVENT_EVICTED_SLAB);
    }
    host_retire(&store->host, slab);
    return true;
}

bool evict_finds_slab_locked(struct larder_store *store, uint32_t tenant)
{
    uint32_t slab;
    return find_idle_slab_locked(store, &slab, tenant);
}

static int refuse_slot_locked(const struct larder_store *store, uint32_t tenant, uint64_t bytes,
                              bool may_grow)
{
    uint64_t kept = store->host.tenants[tenant].retired_count * store->options.slab_bytes;
    if (!may_grow && kept > 0)
        return larder_fail(
            -EBUSY,
            "no room for %llu bytes in the host tier: clients of the tenant keep "
            "%llu bytes of slabs that went to others; they let go as they make calls",
            (unsigned long long)bytes, (unsigned long long)kept);
    return larder_fail(-EBUSY,
                       "no room for %llu bytes in the host tier: all %s is leased or being "
                       "written; try again, or raise %s",
                       (unsigned long long)bytes, may_grow ? "of it" : "that is the tenant's",
                       may_grow ? "host_bytes" : "its quota");
}

int evict_take_locked(struct larder_store *store, uint32_t *out, uint32_t tenant, uint64_t bytes)
{
    bool may_grow = quota_may_grow_locked(store, tenant);
    for (;;) {
        int err = host_take(&store->host, out, tenant, bytes);
        if (err == 0)
            quota_served_locked(store, tenant);
        if (err != -ENOBUFS && (err != -EAGAIN || may_grow))
            return err;
        if (evict_one_locked(store, tenant))
            continue;
        if (may_grow && retire_slab_of_another_locked(store, tenant))
            continue;
        /* Another thread makes the tenant's next slab: that is to be waited for. */
        if (store->tenants[tenant].growing)
            return -EAGAIN;
        quota_refused_locked(store, tenant);
        return refuse_slot_locked(store, tenant, bytes, may_grow);
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
    int err = quota_may_grow_locked(store, tenant) ? host_grow_begin(&store->host, tenant, &slab_id)
                                                   : -ENOBUFS;
    if (err < 0) {
        /* Another tenant, or thread, was faster; there may be room now, or something to evict. */
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

/* It goes whole if it is nowhere else, so nothing may be behind it then. */
static bool may_leave_ssd(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    const struct entry *entry = table_entry(&store->table, id);
    if (!(entry->flags & ENTRY_DURABLE) ||
        (entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED | ENTRY_HELD)))
        return false;
    if (entry->slot == HOST_NONE)
        return entry->first_child == TABLE_NONE;
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    return host_slot_is_whole(slot) ||
           (entry->first_child == TABLE_NONE && slot->state == HOST_SLOT_READY &&
            slot->leases == 0 && slot->pins == 0);
}

/* The table forgets it before the index does: after a crash meanwhile it is there again. */
static void leave_ssd_locked(struct larder_store *store, uint32_t id, enum larder_event why)
{
    struct entry *entry = table_entry(&store->table, id);
    history_note(&store->history, &entry->key, why);
    /* Some layers without the rest are no copy. */
    if (entry->slot != HOST_NONE && !host_slot_is_whole(host_slot(&store->host, entry->slot)))
        evict_detach_slot_locked(store, id);
    stats_leave_locked(store, id);
    larder_policy_evict(store->ssd_policy, id);
    entry->flags &= (uint16_t)~ENTRY_DURABLE;
    entry->variant.segment_id = 0;
    entry->variant.segment_page = 0;
    stats_enter_locked(store, id);
    store->stats.evicted_ssd++;
    store->tenants[entry->tenant].stats.evicted_ssd++;
    if (entry->slot == HOST_NONE)
        forget_entry_locked(store, id);
}

static uint32_t choose_victims_locked(struct larder_store *store, struct victim *victims,
                                      uint32_t tenant, uint64_t bytes)
{
    enum larder_event why =
        tenant == EVICT_ANY ? LARDER_EVENT_EVICTED_SSD : LARDER_EVENT_EVICTED_QUOTA;
    uint32_t count = 0;
    uint64_t freed = 0;
    while (count < VICTIMS_MAX && freed < bytes) {
        uint32_t id = victim_locked(store, store->ssd_policy, tenant, may_leave_ssd);
        if (id == TABLE_NONE)
            break;
        const struct entry *entry = table_entry(&store->table, id);
        victims[count].key = entry->key;
        victims[count].variant = entry->variant;
        victims[count].number = entry->number;
        freed += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
        count++;
        leave_ssd_locked(store, id, why);
    }
    return count;
}

int evict_ssd_part(struct larder_store *store, uint32_t tenant, uint64_t bytes, uint64_t *freed)
{
    *freed = 0;
    if (store->commits.index_full)
        return larder_fail(-ENOSPC, "eviction: the index has no room on the disk");
    struct victim *victims = larder_alloc(sizeof(*victims) * VICTIMS_MAX);
    struct batch *batch = victims ? batch_new() : NULL;
    if (!batch) {
        larder_free(victims);
        return larder_fail(-ENOMEM, "eviction: no memory");
    }
    pthread_mutex_lock(&store->lock);
    store->ssd_full = store->ssd_full || tenant == EVICT_ANY;
    uint32_t count = choose_victims_locked(store, victims, tenant, bytes);
    for (uint32_t i = 0; i < count; i++) {
        batch_delete(batch, &victims[i].key, victims[i].number);
        writer_extent_dead_locked(store, &victims[i].variant);
        *freed += (uint64_t)victims[i].variant.record_pages * LARDER_PAGE_BYTES;
    }
    pthread_mutex_unlock(&store->lock);
    larder_free(victims);
    if (count > 0) {
        commit_add(store, batch);
        return 0;
    }
    larder_free(batch);
    return larder_fail(-ENOSPC, "nothing more can be evicted from SSD");
}

int evict_ssd(struct larder_store *store, uint32_t tenant, uint64_t bytes, uint64_t *freed)
{
    *freed = 0;
    while (*freed < bytes) {
        uint64_t part;
        LARDER_TRY(evict_ssd_part(store, tenant, bytes - *freed, &part));
        *freed += part;
    }
    return 0;
}
