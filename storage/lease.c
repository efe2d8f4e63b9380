/* SPDX-License-Identifier: Apache-2.0 */
/* lease.c - holding slots of the host tier for a reader, and filling them from SSD.
 *
 * A lease counts once on each of its slots. It is freed by larder_store_release(), or behind the
 * callback that is just being run.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/store_priv.h"

static void run_lease(struct larder_store *store, struct completion *completion)
{
    struct larder_lease *lease = (struct larder_lease *)completion;
    pthread_mutex_lock(&store->lock);
    lease->queued = false;
    lease->calling = !lease->released;
    pthread_mutex_unlock(&store->lock);
    if (!lease->calling) {
        larder_free(lease);
        return;
    }
    lease->done(lease->context, lease->loaded, lease->err);
    pthread_mutex_lock(&store->lock);
    lease->calling = false;
    bool released = lease->released;
    pthread_mutex_unlock(&store->lock);
    if (released)
        larder_free(lease);
}

void lease_ref_done_locked(struct larder_store *store, struct lease_ref *ref, int err)
{
    struct larder_lease *lease = ref->lease;
    uint32_t index = (uint32_t)(ref - lease->refs);
    assert(ref->waiting);
    ref->waiting = false;
    lease->waiting--;
    if (err < 0 && index < lease->loaded) {
        lease->loaded = index;
        lease->err = err;
    }
    if (lease->waiting == 0 && !lease->queued) {
        lease->queued = true;
        store_complete_locked(store, &lease->completion);
    }
}

static void stop_waiting_locked(struct larder_store *store, struct lease_ref *ref)
{
    struct load *load = host_slot(&store->host, ref->slot)->load;
    assert(load);
    struct lease_ref **at = &load->waiters;
    while (*at != ref)
        at = &(*at)->next;
    *at = ref->next;
    ref->waiting = false;
    ref->lease->waiting--;
}

static void let_go_locked(struct larder_store *store, struct larder_lease *lease)
{
    if (lease->let_go)
        return;
    lease->let_go = true;
    for (uint32_t i = 0; i < lease->count; i++) {
        if (lease->refs[i].waiting)
            stop_waiting_locked(store, &lease->refs[i]);
        host_unlease(&store->host, lease->refs[i].slot);
    }
}

static void unlink_lease_locked(struct larder_store *store, struct larder_lease *lease)
{
    if (lease->prev)
        lease->prev->next = lease->next;
    else
        store->leases = lease->next;
    if (lease->next)
        lease->next->prev = lease->prev;
}

void larder_store_release(struct larder_store *store, struct larder_lease *lease)
{
    pthread_mutex_lock(&store->lock);
    assert(!lease->released);
    let_go_locked(store, lease);
    unlink_lease_locked(store, lease);
    lease->released = true;
    bool own = lease->own;
    bool free_now = !lease->queued && !lease->calling;
    pthread_mutex_unlock(&store->lock);
    if (free_now)
        larder_free(lease);
    if (own)
        store_wake(store); /* a purge may wait for it */
}

/* Whether it was waiting for something. */
static bool revoke_locked(struct larder_store *store, struct larder_lease *lease)
{
    bool waited = lease->waiting > 0;
    let_go_locked(store, lease);
    if (waited && !lease->queued) {
        /* What was still on its way will not be told any more. */
        lease->loaded = 0;
        lease->err = -ECANCELED;
        lease->queued = true;
        store_complete_locked(store, &lease->completion);
    }
    return waited;
}

void larder_store_revoke(struct larder_store *store, struct larder_lease *lease)
{
    pthread_mutex_lock(&store->lock);
    bool waited = revoke_locked(store, lease);
    pthread_mutex_unlock(&store->lock);
    if (waited)
        store_wake(store);
}

static bool lease_is_of_tenant_locked(const struct larder_store *store,
                                      const struct larder_lease *lease, uint32_t tenant)
{
    return !lease->let_go && host_slot_tenant(&store->host, lease->refs[0].slot) == tenant;
}

bool lease_owns_tenant_locked(const struct larder_store *store, uint32_t tenant)
{
    for (const struct larder_lease *lease = store->leases; lease; lease = lease->next) {
        if (lease->own && lease_is_of_tenant_locked(store, lease, tenant))
            return true;
    }
    return false;
}

void lease_revoke_tenant_locked(struct larder_store *store, uint32_t tenant)
{
    for (struct larder_lease *lease = store->leases; lease; lease = lease->next) {
        if (!lease->own && lease_is_of_tenant_locked(store, lease, tenant))
            (void)revoke_locked(store, lease);
    }
}

void lease_free_all(struct larder_store *store)
{
    while (store->leases) {
        struct larder_lease *lease = store->leases;
        store->leases = lease->next;
        larder_free(lease);
    }
}

/* --- taking ---------------------------------------------------------------------------------- */

static void begin_load_locked(struct larder_store *store, struct load *load, uint32_t slot_id)
{
    struct host_slot *slot = host_slot(&store->host, slot_id);
    slot->load = load;
    load->shared = slot->shared;
    load->buffer = host_record(&store->host, slot_id);
    load_queue_locked(store, load);
}

static bool covers(struct host_layers have, struct host_layers want)
{
    return have.first <= want.first && want.end <= have.end;
}

static struct host_layers layers_of(const struct larder_want *want)
{
    assert(want->layer_first <= LARDER_LAYERS_MAX);
    assert(want->layer_count <= LARDER_LAYERS_MAX);
    return (struct host_layers){
        .first = (uint16_t)want->layer_first,
        .end = want->layer_count ? (uint16_t)(want->layer_first + want->layer_count) : UINT16_MAX};
}

static struct host_layers hull(struct host_layers a, struct host_layers b)
{
    return (struct host_layers){.first = a.first < b.first ? a.first : b.first,
                                .end = a.end > b.end ? a.end : b.end};
}

/* Its slot holds these layers, or a load is on its way to them. */
static int want_layers_locked(struct larder_store *store, uint32_t id, struct host_layers wanted)
{
    const struct entry *entry = table_entry(&store->table, id);
    struct host_slot *slot = host_slot(&store->host, entry->slot);
    if (slot->load) {
        slot->load->wanted = hull(slot->load->wanted, wanted);
        return 0;
    }
    if (covers(slot->layers, wanted))
        return 0;
    assert(entry->flags & ENTRY_DURABLE);
    struct load *load = load_new(entry, entry->slot, hull(slot->layers, wanted));
    if (!load)
        return larder_fail(-ENOMEM, "load: no memory");
    slot->pins++;
    begin_load_locked(store, load, entry->slot);
    load_resume(load);
    return 0;
}

/* Starts reading the entry into a slot of its own. */
static int start_load_locked(struct larder_store *store, uint32_t id, struct host_layers wanted)
{
    struct entry *entry = table_entry(&store->table, id);
    assert(entry->flags & ENTRY_DURABLE);
    uint32_t slot_id;
    uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    if (bytes > host_record_bytes_max(&store->host))
        return larder_fail(
            LARDER_EFULL, "a record of %llu bytes does not fit a slab of %llu; raise slab_bytes",
            (unsigned long long)bytes, (unsigned long long)store->options.slab_bytes);
    LARDER_TRY(evict_take_locked(store, &slot_id, entry->tenant, bytes));
    struct load *load = load_new(entry, slot_id, wanted);
    if (!load) {
        host_drop(&store->host, slot_id);
        host_unpin(&store->host, slot_id);
        return larder_fail(-ENOMEM, "load: no memory");
    }
    begin_load_locked(store, load, slot_id);
    stats_leave_locked(store, id);
    tiers_attach_locked(store, id, slot_id);
    stats_enter_locked(store, id);
    return 0;
}

static void hold_locked(struct larder_store *store, struct larder_lease *lease, uint32_t index,
                        uint32_t slot_id)
{
    struct lease_ref *ref = &lease->refs[index];
    ref->lease = lease;
    ref->slot = slot_id;
    host_slot(&store->host, slot_id)->leases++;
}

/* The last one that is held, behind `index`: false when there is none. */
static bool let_last_go_locked(struct larder_store *store, struct larder_lease *lease,
                               uint32_t index, uint32_t *end)
{
    while (*end > index + 1) {
        struct lease_ref *ref = &lease->refs[--*end];
        if (ref->slot == HOST_NONE)
            continue;
        host_unlease(&store->host, ref->slot);
        return true;
    }
    return false;
}

/* Holds what is in the host tier first, so that making room for the rest cannot evict it; but of a
 * chain that does not fit, the end gives way to the start. */
static int hold_run_locked(struct larder_store *store, struct larder_lease *lease, uint32_t *ids,
                           uint32_t count, struct host_layers layers)
{
    int err = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot = table_entry(&store->table, ids[i])->slot;
        lease->refs[i].slot = HOST_NONE;
        if (slot != HOST_NONE)
            hold_locked(store, lease, i, slot);
    }
    uint32_t held = 0;
    uint32_t end = count;
    for (; held < end; held++) {
        if (lease->refs[held].slot != HOST_NONE) {
            err = want_layers_locked(store, ids[held], layers);
            if (err < 0)
                break;
            continue;
        }
        do {
            err = start_load_locked(store, ids[held], layers);
        } while (err == -EBUSY && let_last_go_locked(store, lease, held, &end));
        if (err < 0)
            break;
        hold_locked(store, lease, held, table_entry(&store->table, ids[held])->slot);
    }
    for (uint32_t i = held; i < end; i++) {
        if (lease->refs[i].slot != HOST_NONE)
            host_unlease(&store->host, lease->refs[i].slot);
    }
    lease->count = lease->loaded = held;
    if (err == -EAGAIN) {
        /* A slab is to be added without the lock. */
        for (uint32_t i = 0; i < held; i++)
            host_unlease(&store->host, lease->refs[i].slot);
        lease->count = 0;
    }
    return err;
}

static void count_hit(struct larder_store_stats *stats, uint64_t bytes, bool loading)
{
    if (loading) {
        stats->blocks_hit_ssd++;
        stats->bytes_hit_ssd += bytes;
    } else {
        stats->blocks_hit_host++;
        stats->bytes_hit_host += bytes;
    }
}

/* From the chain's end to its start, as the policies want it. */
static void use_run_locked(struct larder_store *store, struct larder_lease *lease,
                           const uint32_t *ids, struct larder_ref *refs,
                           const struct larder_want *want)
{
    uint32_t tenant = want->tenant;
    for (uint32_t i = lease->count; i-- > 0;) {
        struct lease_ref *ref = &lease->refs[i];
        struct host_slot *slot = host_slot(&store->host, ref->slot);
        struct entry *entry = table_entry(&store->table, ids[i]);
        if (slot->load) {
            ref->waiting = true;
            ref->next = slot->load->waiters;
            slot->load->waiters = ref;
            lease->waiting++;
        }
        host_address(&store->host, ref->slot, &refs[i].slab_id, &refs[i].slot);
        refs[i].generation = atomic_load_explicit(&slot->shared->generation, memory_order_relaxed);
        if (want->peek)
            continue;
        uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
        count_hit(&store->stats, bytes, slot->load != NULL);
        count_hit(&store->tenants[tenant].stats, bytes, slot->load != NULL);
        tiers_use_locked(store, ids[i]);
        if (entry->flags & ENTRY_VARIANT)
            tiers_use_locked(store, entry->parent);
        entry->uses++;
    }
}

static int find_ids_locked(struct larder_store *store, uint32_t *ids, uint32_t *count,
                           const struct larder_want *want)
{
    uint32_t last;
    if (want->peek) {
        assert(want->key_count == 1);
        ids[0] = table_find_variant(&store->table, &want->keys[0], want->variant);
        *count = find_sees(store, ids[0], want->tenant);
        return 0;
    }
    LARDER_TRY(find_run_locked(store, count, &last, want));
    for (uint32_t i = *count; i-- > 0;) {
        ids[i] = variant_pick(store, last, accept_of(want));
        last = table_entry(&store->table, last)->parent;
    }
    return 0;
}

static void count_get(struct larder_store *store, const struct larder_want *want, uint32_t missed)
{
    struct larder_store_stats *own = &store->tenants[want->tenant].stats;
    store->stats.gets++;
    store->stats.blocks_missed += missed;
    own->gets++;
    own->blocks_missed += missed;
}

static int lease_locked(struct larder_store *store, struct larder_lease *lease, uint32_t *ids,
                        struct larder_ref *refs, const struct larder_want *want)
{
    uint32_t count;
    LARDER_TRY(find_ids_locked(store, ids, &count, want));
    LARDER_TRY(tiers_begin_locked(store, want->tenant));
    int err = hold_run_locked(store, lease, ids, count, layers_of(want));
    if (err != -EAGAIN)
        use_run_locked(store, lease, ids, refs, want);
    tiers_end_locked(store);
    if (err == -EAGAIN)
        return err;
    if (!want->peek)
        count_get(store, want, want->key_count - count);
    if (lease->count > 0) {
        lease->prev = NULL;
        lease->next = store->leases;
        if (store->leases)
            store->leases->prev = lease;
        store->leases = lease;
        return 0;
    }
    return count > 0 ? err : 0;
}

/* Holds the run, and lets it go with its loads under way. */
static int prefetch_locked(struct larder_store *store, struct larder_lease *lease, uint32_t *ids,
                           const struct larder_want *want)
{
    uint32_t count;
    LARDER_TRY(find_ids_locked(store, ids, &count, want));
    LARDER_TRY(tiers_begin_locked(store, want->tenant));
    int err = hold_run_locked(store, lease, ids, count, layers_of(want));
    tiers_end_locked(store);
    if (err == -EAGAIN)
        return err;
    for (uint32_t i = lease->count; i-- > 0;) {
        const struct host_slot *slot = host_slot(&store->host, lease->refs[i].slot);
        if (slot->load)
            slot->load->keep = true;
        host_unlease(&store->host, lease->refs[i].slot);
    }
    return err == -ENOMEM ? err : 0;
}

static struct larder_lease *new_lease(const struct larder_want *want)
{
    assert(want->key_count <= LARDER_REQUEST_KEYS_MAX);
    struct larder_lease *lease =
        larder_alloc_zero(1, sizeof(*lease) + want->key_count * sizeof(struct lease_ref));
    if (!lease)
        (void)larder_fail(-ENOMEM, "lease: no memory");
    return lease;
}

int larder_store_lease(struct larder_store *store, struct larder_lease **out,
                       struct larder_ref *refs, uint32_t *ref_count, bool *ready,
                       const struct larder_want *want, larder_lease_done done, void *context)
{
    *out = NULL;
    *ref_count = 0;
    *ready = false;
    uint32_t ids[LARDER_REQUEST_KEYS_MAX];
    struct larder_lease *lease = new_lease(want);
    if (!lease)
        return -ENOMEM;
    lease->completion.run = run_lease;
    lease->done = done;
    lease->context = context;
    lease->own = want->own;

    int err;
    for (;;) {
        pthread_mutex_lock(&store->lock);
        err = lease_locked(store, lease, ids, refs, want);
        *ref_count = lease->count;
        *ready = lease->waiting == 0;
        pthread_mutex_unlock(&store->lock);
        if (err != -EAGAIN || want->now)
            break;
        err = evict_grow(store, want->tenant);
        if (err < 0)
            break;
    }
    if (err < 0 || *ref_count == 0) {
        store_wake(store); /* something may have been queued to be read before it failed */
        *ref_count = 0;
        *ready = false;
        larder_free(lease);
        return err;
    }
    *out = lease;
    if (!*ready)
        store_wake(store);
    return 0;
}

int larder_store_prefetch(struct larder_store *store, uint32_t *entry_count,
                          const struct larder_want *want)
{
    *entry_count = 0;
    uint32_t ids[LARDER_REQUEST_KEYS_MAX];
    struct larder_lease *lease = new_lease(want);
    if (!lease)
        return -ENOMEM;
    int err;
    for (;;) {
        pthread_mutex_lock(&store->lock);
        err = prefetch_locked(store, lease, ids, want);
        *entry_count = lease->count;
        pthread_mutex_unlock(&store->lock);
        if (err != -EAGAIN || want->now)
            break;
        err = evict_grow(store, want->tenant);
        if (err < 0)
            break;
    }
    larder_free(lease);
    store_wake(store);
    return err;
}

/* --- slabs ----------------------------------------------------------------------------------- */

int larder_store_slab_fd(struct larder_store *store, int *out_fd, uint64_t *out_bytes,
                         uint32_t tenant, uint32_t slab_id)
{
    *out_bytes = store->options.slab_bytes;
    pthread_mutex_lock(&store->lock);
    int err = host_slab_open(&store->host, out_fd, tenant, slab_id);
    pthread_mutex_unlock(&store->lock);
    return err;
}

const struct larder_record *larder_store_ref_record(struct larder_store *store, uint32_t tenant,
                                                    const struct larder_ref *ref)
{
    pthread_mutex_lock(&store->lock);
    uint32_t id = host_slot_at(&store->host, tenant, ref->slab_id, ref->slot);
    const struct larder_record *record = id != HOST_NONE ? host_record(&store->host, id) : NULL;
    pthread_mutex_unlock(&store->lock);
    return record;
}
