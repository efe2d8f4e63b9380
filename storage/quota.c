/* SPDX-License-Identifier: Apache-2.0 */
/* quota.c - what one tenant may have of both tiers and of the queue, and what it must give when
 * another has too little.
 *
 * SSD: a tenant at its quota evicts its own entries, never others'; what is pinned counts, and when
 * nothing but that is left its PUTs are refused. Host: its slabs stay within its quota (one it may
 * always have), and it evicts its own. What of it was retired, and its clients keep, counts. The
 * queue: it may have as much as the others leave free of it, so that a flood of one leaves room for
 * all who come after.
 *
 * Leases are the other way to take all of the host tier: a tenant that found no slot while it has
 * less than its fair share starves, and who has most above theirs is named, for the daemon to
 * revoke its oldest leases (larder_store_starving()).
 */
#include <errno.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "storage/store_priv.h"

/* A tenant that was refused, and has not come again since, does not starve any more. */
#define STARVES_MS 1000u
/* Evicted beyond what is needed, as a part of the quota: so that not every PUT evicts. */
#define SPARE_PART 64u

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void larder_store_set_quota(struct larder_store *store, uint32_t tenant,
                            const struct larder_quota *quota)
{
    pthread_mutex_lock(&store->lock);
    if (tenant < LARDER_TENANTS_MAX)
        store->tenants[tenant].quota = *quota;
    pthread_mutex_unlock(&store->lock);
}

/* --- PUTs ------------------------------------------------------------------------------------- */

static int check_queue_locked(const struct larder_store *store, uint32_t tenant, uint64_t bytes)
{
    uint64_t queue_max = store->options.host_bytes / 2;
    uint64_t free_bytes = queue_max - larder_min_u64(queue_max, store->queued_bytes);
    uint64_t mine = store->tenants[tenant].queued_bytes;
    if (store->queued_bytes > 0 && bytes > free_bytes)
        return larder_fail(-EBUSY, "%llu bytes wait to be written, at most %llu may; try again",
                           (unsigned long long)store->queued_bytes, (unsigned long long)queue_max);
    bool alone = larder_identity_tenant_count(store->identity) == 1;
    if (alone || mine == 0 || mine + bytes <= free_bytes)
        return 0;
    return larder_fail(-EBUSY,
                       "%llu bytes of this tenant wait to be written, and %llu are left for all; "
                       "try again",
                       (unsigned long long)mine, (unsigned long long)free_bytes);
}

int quota_check_put_locked(const struct larder_store *store, uint32_t tenant, uint64_t bytes)
{
    const struct tenant_state *state = &store->tenants[tenant];
    uint64_t held = state->stats.record_bytes_held;
    if (state->quota.ssd_bytes > 0 && held + bytes > state->quota.ssd_bytes)
        return larder_fail(LARDER_EFULL,
                           "%llu bytes are pinned, and %llu more do not fit the tenant's quota of "
                           "%llu on SSD; unpin some, or raise the quota",
                           (unsigned long long)held, (unsigned long long)bytes,
                           (unsigned long long)state->quota.ssd_bytes);
    return check_queue_locked(store, tenant, bytes);
}

int quota_make_room(struct larder_store *store, uint32_t tenant, uint64_t bytes)
{
    pthread_mutex_lock(&store->lock);
    const struct tenant_state *state = &store->tenants[tenant];
    uint64_t quota = state->quota.ssd_bytes;
    uint64_t need = state->stats.record_bytes_ssd + state->grouped_bytes + bytes;
    pthread_mutex_unlock(&store->lock);
    if (quota == 0 || need <= quota)
        return 0;
    uint64_t freed;
    int err = evict_ssd(store, tenant, need - quota + quota / SPARE_PART, &freed);
    if (err != -ENOSPC)
        return err;
    /* Fewer than the spare ones could go: is there room at least? */
    pthread_mutex_lock(&store->lock);
    need = state->stats.record_bytes_ssd + state->grouped_bytes + bytes;
    bool fits = need <= quota;
    pthread_mutex_unlock(&store->lock);
    return fits ? 0
                : larder_fail(LARDER_EFULL,
                              "%llu bytes with what the tenant has are above its quota of %llu on "
                              "SSD, and nothing more can be evicted; unpin some, or raise it",
                              (unsigned long long)need, (unsigned long long)quota);
}

/* --- the host tier ---------------------------------------------------------------------------- */

/* Slabs of it that its clients keep count, up to all of the host tier where there is no quota: else
 * whoever lets nothing go would get ever more memory, a slab each time another tenant takes one. */
bool quota_may_grow_locked(const struct larder_store *store, uint32_t tenant)
{
    const struct host_tenant *slabs = &store->host.tenants[tenant];
    uint64_t quota = store->tenants[tenant].quota.host_bytes;
    if (quota == 0 && slabs->retired_count == 0)
        return true;
    uint64_t limit = quota > 0 ? quota : store->options.host_bytes;
    uint64_t kept = slabs->retired_count * store->options.slab_bytes;
    if (slabs->slab_count == 0)
        return kept <= limit;
    return kept + (slabs->slab_count + 1ull) * store->options.slab_bytes <= limit;
}

bool larder_store_free_retired(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    struct host_slab *released = host_take_released(&store->host);
    pthread_mutex_unlock(&store->lock);
    if (released)
        host_slab_free(released);
    return released != NULL;
}

static bool is_starving(const struct tenant_state *state, uint64_t at_ms)
{
    return state->starved_ms != 0 && at_ms - state->starved_ms <= STARVES_MS;
}

/* Slabs of each, if those who want some shared them. */
static uint32_t fair_slabs_locked(const struct larder_store *store, uint32_t tenant, uint64_t at_ms)
{
    uint32_t tenants = 0;
    for (uint32_t i = 0; i < larder_identity_tenant_count(store->identity); i++)
        tenants += i == tenant || store->host.tenants[i].slab_count > 0 ||
                   is_starving(&store->tenants[i], at_ms);
    uint32_t slabs = (uint32_t)(store->options.host_bytes / store->options.slab_bytes);
    return slabs > tenants ? slabs / tenants : 1;
}

void quota_refused_locked(struct larder_store *store, uint32_t tenant)
{
    uint64_t at_ms = now_ms();
    if (quota_may_grow_locked(store, tenant) &&
        store->host.tenants[tenant].slab_count < fair_slabs_locked(store, tenant, at_ms))
        store->tenants[tenant].starved_ms = at_ms;
}

void quota_served_locked(struct larder_store *store, uint32_t tenant)
{
    store->tenants[tenant].starved_ms = 0;
}

bool larder_store_starving(struct larder_store *store, uint32_t *from)
{
    pthread_mutex_lock(&store->lock);
    uint64_t at_ms = now_ms();
    uint32_t count = larder_identity_tenant_count(store->identity);
    uint32_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_starving(&store->tenants[i], at_ms) || evict_finds_slab_locked(store, i))
            continue;
        uint32_t fair = fair_slabs_locked(store, i, at_ms);
        for (uint32_t other = 0; other < count; other++) {
            uint32_t slabs = store->host.tenants[other].slab_count;
            if (other == i || slabs <= fair || slabs <= most)
                continue;
            most = slabs;
            *from = other;
        }
    }
    pthread_mutex_unlock(&store->lock);
    return most > 0;
}
