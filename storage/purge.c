/* SPDX-License-Identifier: Apache-2.0 */
/* purge.c - the end of all that a tenant has.
 *
 *   draining  the tenant is closed: nothing of it is found, no put of it begins. Its leases are
 *             revoked, but for this process's own, which end soon; puts, reads and removals under
 *             way end.
 *   renewing  its id, its key and its data key are replaced in DIR/tenants, durably. This is the
 *             purge: from here on every record and every row of it is of a tenant that does not
 *             exist, in this life and after any crash, in a rebuild too.
 *   cleaning  its entries leave table and index, slice by slice, and their space is given back.
 *   retiring  its slabs are overwritten and given up; what clients still map of them is zeros.
 *
 * Threads: the caller's renews and retires, the storage thread drains and cleans, in turns.
 */
#include <assert.h>
#include <errno.h>

#include "base/error.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* Of one batch, and of one hold of the lock. */
#define SLICE_MAX 400u

enum purge_state {
    PURGE_DRAINING,
    PURGE_DRAINED,
    PURGE_CLEANING,
    PURGE_CLEANED,
};

struct purge {
    struct purge *next;
    enum purge_state state;
    uint32_t tenant;
    uint64_t removed;
    int err;
};

/* --- storage thread --------------------------------------------------------------------------- */

static bool is_of_tenant(const struct larder_store *store, const struct load *load, uint32_t tenant)
{
    uint32_t slot = load->slot != HOST_NONE ? load->slot : load->extends;
    if (slot != HOST_NONE)
        return host_slot_tenant(&store->host, slot) == tenant;
    uint32_t id = table_find(&store->table, &load->key);
    return id == TABLE_NONE || table_entry(&store->table, id)->tenant == tenant;
}

static bool is_drained_locked(const struct larder_store *store, uint32_t tenant)
{
    if (store->tenants[tenant].removals > 0 || store->tenants[tenant].growing ||
        store->tenants[tenant].moves > 0 || lease_owns_tenant_locked(store, tenant))
        return false;
    for (const struct larder_put *put = store->puts; put; put = put->all_next) {
        if (host_slot_tenant(&store->host, put->slot) == tenant)
            return false;
    }
    for (const struct load *load = store->loads; load; load = load->next) {
        if (is_of_tenant(store, load, tenant))
            return false;
    }
    return true;
}

/* Leaves first. Without a batch their rows stay: they are dead by their tenant's id, and go with
 * the next start. */
static uint32_t forget_some_locked(struct larder_store *store, struct purge *purge,
                                   struct batch *batch)
{
    uint32_t root = store->tenants[purge->tenant].root;
    uint32_t count = 0;
    while (count < SLICE_MAX && table_entry(&store->table, root)->first_child != TABLE_NONE) {
        uint32_t id = table_entry(&store->table, root)->first_child;
        while (table_entry(&store->table, id)->first_child != TABLE_NONE)
            id = table_entry(&store->table, id)->first_child;
        const struct entry *entry = table_entry(&store->table, id);
        if (batch)
            batch_delete(batch, &entry->key, entry->number);
        if (batch && (entry->flags & ENTRY_MARKED))
            batch_delete_mark(batch, &entry->key);
        count++;
        history_note(&store->history, &entry->key, LARDER_EVENT_PURGED);
        remove_dead_locked(store, id);
    }
    purge->removed += count;
    store->stats.removed += count;
    store->tenants[purge->tenant].stats.removed += count;
    return count;
}

/* The next purge that this thread can do something for, in *state. */
static struct purge *next_purge_locked(struct larder_store *store)
{
    struct purge *purge = store->purges;
    while (purge && purge->state != PURGE_CLEANING &&
           !(purge->state == PURGE_DRAINING &&
             (store->read_only || is_drained_locked(store, purge->tenant))))
        purge = purge->next;
    return purge;
}

bool purge_step(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    struct purge *purge = next_purge_locked(store);
    uint32_t count = 0;
    bool forgets = purge && purge->state == PURGE_CLEANING;
    struct batch *batch = forgets ? batch_new() : NULL;
    bool read_only = store->read_only;
    if (forgets) {
        count = forget_some_locked(store, purge, batch);
    } else if (purge) {
        purge->state = PURGE_DRAINED;
        purge->err = read_only ? LARDER_EREADONLY : 0;
        pthread_cond_broadcast(&store->purged);
    }
    pthread_mutex_unlock(&store->lock);
    if (!forgets)
        return false;
    if (store->seal)
        seal_forget_keys(store->seal);
    if (batch && count > 0)
        commit_add(store, batch);
    else
        larder_free(batch);
    if (count == SLICE_MAX)
        return true;
    /* Over when the index has forgotten them too. */
    if (commit_is_behind(store) && !read_only && !store->commits.index_full) {
        store->commits.hurry = !store->commits.busy;
        return store->commits.hurry;
    }
    pthread_mutex_lock(&store->lock);
    purge->state = PURGE_CLEANED;
    pthread_cond_broadcast(&store->purged);
    pthread_mutex_unlock(&store->lock);
    return true;
}

/* --- the caller ------------------------------------------------------------------------------- */

static int begin_locked(struct larder_store *store, struct purge *purge)
{
    uint32_t tenant = purge->tenant;
    if (tenant >= LARDER_TENANTS_MAX || store->tenants[tenant].root == TABLE_NONE)
        return larder_fail(LARDER_ENOTFOUND, "tenant=%u does not exist", tenant);
    if (store->read_only)
        return larder_fail(LARDER_EREADONLY, "store is read-only after a failed sync; restart it");
    if (store->tenants[tenant].closed)
        return larder_fail(-EBUSY, "the tenant is being purged already");
    store->tenants[tenant].closed = true;
    purge->next = store->purges;
    store->purges = purge;
    lease_revoke_tenant_locked(store, tenant);
    return 0;
}

static void end_locked(struct larder_store *store, struct purge *purge)
{
    struct purge **at = &store->purges;
    while (*at != purge)
        at = &(*at)->next;
    *at = purge->next;
    store->tenants[purge->tenant].closed = false;
}

static void wait_for(struct larder_store *store, const struct purge *purge, enum purge_state state)
{
    pthread_mutex_lock(&store->lock);
    while (purge->state != state)
        pthread_cond_wait(&store->purged, &store->lock);
    pthread_mutex_unlock(&store->lock);
}

static void retire_slabs(struct larder_store *store, uint32_t tenant)
{
    for (;;) {
        pthread_mutex_lock(&store->lock);
        struct host_slab *slab = host_take_slab(&store->host, tenant);
        pthread_mutex_unlock(&store->lock);
        if (!slab)
            return;
        host_slab_wipe(slab); /* takes long */
        pthread_mutex_lock(&store->lock);
        slab = host_give_up_slab(&store->host, slab);
        pthread_mutex_unlock(&store->lock);
        if (slab)
            host_slab_free(slab);
    }
}

int larder_store_purge(struct larder_store *store, uint32_t tenant, uint64_t *removed)
{
    struct purge purge = {.tenant = tenant};
    *removed = 0;
    pthread_mutex_lock(&store->lock);
    int err = begin_locked(store, &purge);
    pthread_mutex_unlock(&store->lock);
    LARDER_TRY(err);
    store_wake(store);
    wait_for(store, &purge, PURGE_DRAINED);
    bool unsure = false;
    if (purge.err < 0)
        err = larder_fail(purge.err, "store is read-only after a failed sync; restart it");
    else
        err = larder_identity_renew(store->identity, tenant, &store->lock, &unsure);
    /* What would be stored from now on may be a purged tenant's at the next start. */
    if (unsure)
        store_fail_writes(store, "replacing DIR/tenants", err);
    if (err == 0) {
        pthread_mutex_lock(&store->lock);
        purge.state = PURGE_CLEANING;
        pthread_mutex_unlock(&store->lock);
        store_wake(store);
        wait_for(store, &purge, PURGE_CLEANED);
        retire_slabs(store, tenant);
        *removed = purge.removed;
    }
    pthread_mutex_lock(&store->lock);
    end_locked(store, &purge);
    pthread_mutex_unlock(&store->lock);
    return err;
}
