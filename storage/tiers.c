/* SPDX-License-Identifier: Apache-2.0 */
/* tiers.c - what the eviction policies are told, one for each tier (policy.h, docs/EVICTION.md).
 *
 * Both name entries by the table's ids and keep their tenants apart as groups. The host tier's node
 * of an entry is in its slot, the SSD's in the entry.
 *
 * P1  The host tier's policy has exactly the entries with a slot, the SSD's those that are durable
 *     or being written. What is DOOMED is held in both.
 * P2  Each has a tenant's group before an entry of that tenant is made.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* At this place in its prompt a token's attention costs as much as all else of it, in models of
 * today. */
#define POSITION_OF_TWICE 32768.0f
/* A read from SSD costs about this much less than computing does. */
#define VARIANT_DISCOUNT 16.0f
/* Of a record, until some are known. */
#define RECORD_BYTES_GUESS 65536u

static struct larder_policy_node *host_node(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    uint32_t slot = table_entry(&store->table, id)->slot;
    return slot != HOST_NONE ? &host_slot(&store->host, slot)->node : NULL;
}

static uint32_t *host_child_count(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    return &table_entry(&store->table, id)->host_children;
}

static struct larder_policy_node *ssd_node(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    return &table_entry(&store->table, id)->ssd_node;
}

static uint32_t *ssd_child_count(void *context, uint32_t id)
{
    const struct larder_store *store = context;
    return &table_entry(&store->table, id)->ssd_children;
}

static float doublings(int count)
{
    return count >= 0 ? (float)(1u << count) : 1 / (float)(1u << -count);
}

static void describe(void *context, uint32_t id, struct larder_policy_entry *out)
{
    const struct larder_store *store = context;
    const struct entry *entry = table_entry(&store->table, id);
    bool first = table_entry(&store->table, entry->parent)->flags & ENTRY_ROOT;
    uint32_t tokens = entry->token_count > 0 ? entry->token_count : 1;
    *out = (struct larder_policy_entry){
        .parent = first ? LARDER_POLICY_NONE : entry->parent,
        .group = entry->tenant,
        .depth = entry->depth,
        .token_count = entry->token_count,
        .bytes = entry->variant.record_pages * LARDER_PAGE_BYTES,
        .cost = (float)tokens * (1 + (float)entry->variant.position / POSITION_OF_TWICE),
    };
    if (entry->flags & ENTRY_MARKED)
        out->cost *= doublings(mark_priority_locked(store, id));
    /* Without it its block is there still: what it saves is the larger read of a better one. */
    if (entry->flags & ENTRY_VARIANT)
        out->cost /= VARIANT_DISCOUNT;
    memcpy(&out->key, entry->key.bytes, sizeof(out->key));
    out->key ^= entry->number * 0x9E3779B97F4A7C15ull;
}

/* --- open ------------------------------------------------------------------------------------ */

static uint64_t clock_ms(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Wall time as it was when the store was opened, from then on by the clock that nobody sets. */
static uint64_t now_ms(const struct larder_store *store)
{
    if (store->options.now_ms)
        return store->options.now_ms(store->options.now_ms_context);
    return store->opened_ms + clock_ms(CLOCK_MONOTONIC);
}

/* By which entries remember when they were used. */
static uint32_t now_s(const struct larder_store *store)
{
    return table_narrow(now_ms(store) / 1000);
}

static uint32_t capacity_of(uint64_t tier_bytes, uint64_t record_bytes, uint64_t records)
{
    uint64_t each = records >= 64 ? record_bytes / records : RECORD_BYTES_GUESS;
    uint64_t capacity = tier_bytes / (each > 0 ? each : 1);
    return capacity == 0 ? 1 : capacity < UINT32_MAX / 4 ? (uint32_t)capacity : UINT32_MAX / 4;
}

static int open_one(struct larder_store *store, struct larder_policy **out, uint64_t tier_bytes,
                    const struct larder_policy_home *home)
{
    const struct larder_policy_options options = {
        .name = store->options.eviction,
        .capacity_entries = capacity_of(tier_bytes, 0, 0),
        .group_max = LARDER_TENANTS_MAX,
        .home = *home,
    };
    return larder_policy_open(out, &options);
}

/* Both tiers saw the same requests, and learned the same of them. */
static void load_learned(struct larder_store *store)
{
    struct learned *learned = &store->learned;
    learned_free(learned);
    learned_load(learned, store->directory);
    struct larder_policy *policies[] = {store->ssd_policy, store->host_policy};
    double share = (double)store->options.host_bytes / (double)store->options.ssd_bytes;
    for (uint32_t i = 0; i < LARDER_COUNT_OF(policies); i++) {
        double capacity = learned->capacity_entries * (i == 0 ? 1 : share);
        if (capacity >= 1 && capacity < UINT32_MAX / 4)
            larder_policy_resize(policies[i], (uint32_t)capacity);
        int err =
            larder_policy_load(policies[i], learned->state, learned->state_bytes, now_ms(store));
        if (err == 0)
            continue;
        larder_log(LARDER_LOG_WARN, "%s", larder_error_message());
        learned_free(learned);
        err = larder_policy_load(policies[i], NULL, 0, now_ms(store));
        assert(err == 0);
    }
}

int tiers_open(struct larder_store *store)
{
    const struct larder_policy_home host = {
        .context = store,
        .node = host_node,
        .child_count = host_child_count,
        .describe = describe,
    };
    const struct larder_policy_home ssd = {
        .context = store,
        .node = ssd_node,
        .child_count = ssd_child_count,
        .describe = describe,
    };
    store->opened_ms = clock_ms(CLOCK_REALTIME) - clock_ms(CLOCK_MONOTONIC);
    LARDER_TRY(open_one(store, &store->host_policy, store->options.host_bytes, &host));
    LARDER_TRY(open_one(store, &store->ssd_policy, store->options.ssd_bytes, &ssd));
    load_learned(store);
    return 0;
}
/* --- saving ---------------------------------------------------------------------------------- */

#define SAVE_MS 300000u
/* Looked at with the lock held. */
#define SAVE_STEP 16384u

static int list_learned(struct larder_store *store, struct learned *learned)
{
    uint32_t capacity = 0;
    for (uint32_t id = 1;;) {
        if (capacity - learned->entry_count < SAVE_STEP) {
            capacity += capacity / 2 + 2 * SAVE_STEP;
            struct learned_entry *entries =
                larder_realloc(learned->entries, sizeof(*entries) * (size_t)capacity);
            if (!entries)
                return -ENOMEM;
            learned->entries = entries;
        }
        pthread_mutex_lock(&store->lock);
        uint32_t end = store->table.entry_end;
        for (uint32_t step = 0; step < SAVE_STEP && id < end; step++, id++) {
            const struct entry *entry = table_entry(&store->table, id);
            if ((entry->flags & ENTRY_DURABLE) && larder_policy_has(store->ssd_policy, id))
                learned->entries[learned->entry_count++] = (struct learned_entry){
                    .generation = entry->variant.generation,
                    .recalled = larder_policy_recall(store->ssd_policy, id),
                };
        }
        pthread_mutex_unlock(&store->lock);
        if (id >= end)
            return 0;
    }
}

void tiers_save(struct larder_store *store)
{
    struct learned learned = {0};
    learned.state = larder_alloc(larder_policy_state_bytes_max(store->ssd_policy) + 1);
    if (learned.state) {
        pthread_mutex_lock(&store->lock);
        learned.state_bytes = (uint32_t)larder_policy_save(store->ssd_policy, learned.state);
        learned.capacity_entries = larder_policy_capacity(store->ssd_policy);
        pthread_mutex_unlock(&store->lock);
    }
    /* By recency nothing is learned: the order of storing stands for it. */
    if (learned.state_bytes > 0 && list_learned(store, &learned) == 0)
        learned_save(&learned, store->directory);
    learned_free(&learned);
}

static void *saver_thread(void *argument)
{
    struct larder_store *store = argument;
    uint32_t wait_ms = store->options.save_ms ? store->options.save_ms : SAVE_MS;
    uint64_t saved_requests = 0;
    pthread_mutex_lock(&store->lock);
    while (!store->stopping) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += wait_ms / 1000;
        until.tv_nsec += wait_ms % 1000 * 1000000l;
        if (until.tv_nsec >= 1000000000l) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000l;
        }
        int err = pthread_cond_timedwait(&store->saver_wanted, &store->lock, &until);
        uint64_t requests = store->stats.puts + store->stats.gets;
        if (err != ETIMEDOUT || requests == saved_requests || store->read_only)
            continue;
        pthread_mutex_unlock(&store->lock);
        tiers_save(store);
        saved_requests = requests;
        pthread_mutex_lock(&store->lock);
    }
    pthread_mutex_unlock(&store->lock);
    return NULL;
}

int tiers_start_saver(struct larder_store *store)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&store->saver_wanted, &attributes);
    pthread_condattr_destroy(&attributes);
    int err = pthread_create(&store->saver, NULL, saver_thread, store);
    store->saver_runs = err == 0;
    if (err != 0)
        pthread_cond_destroy(&store->saver_wanted);
    return err == 0 ? 0 : larder_fail(-err, "store: thread: %s", strerror(err));
}

void tiers_stop_saver(struct larder_store *store)
{
    if (!store->saver_runs)
        return;
    pthread_cond_signal(&store->saver_wanted);
    pthread_join(store->saver, NULL);
    pthread_cond_destroy(&store->saver_wanted);
    store->saver_runs = false;
}

void tiers_close(struct larder_store *store)
{
    larder_policy_close(store->host_policy);
    larder_policy_close(store->ssd_policy);
    store->host_policy = store->ssd_policy = NULL;
    learned_free(&store->learned);
}

/* --- requests -------------------------------------------------------------------------------- */

/* What a tier holds depends on how large its records turn out to be. */
static void fit_capacity(struct larder_policy *policy, uint32_t capacity)
{
    uint32_t known = larder_policy_capacity(policy);
    if (capacity / 2 > known || capacity < known / 2)
        larder_policy_resize(policy, capacity);
}

int tiers_begin_locked(struct larder_store *store, uint32_t tenant)
{
    const struct larder_store_stats *stats = &store->stats;
    fit_capacity(store->host_policy, capacity_of(store->options.host_bytes,
                                                 stats->record_bytes_host, stats->entries_host));
    fit_capacity(store->ssd_policy, capacity_of(store->options.ssd_bytes, stats->record_bytes_ssd,
                                                stats->entries_durable));
    const uint64_t at_ms = now_ms(store);
    store->request_s = table_narrow(at_ms / 1000);
    LARDER_TRY(larder_policy_begin(store->host_policy, tenant, at_ms));
    int err = larder_policy_begin(store->ssd_policy, tenant, at_ms);
    if (err < 0)
        larder_policy_end(store->host_policy);
    return err;
}

void tiers_end_locked(struct larder_store *store)
{
    larder_policy_end(store->host_policy);
    larder_policy_end(store->ssd_policy);
}

void tiers_use_locked(struct larder_store *store, uint32_t id)
{
    table_entry(&store->table, id)->used_s = store->request_s;
    if (larder_policy_has(store->host_policy, id))
        larder_policy_use(store->host_policy, id);
    if (larder_policy_has(store->ssd_policy, id))
        larder_policy_use(store->ssd_policy, id);
}

void tiers_attach_locked(struct larder_store *store, uint32_t id, uint32_t slot)
{
    struct entry *entry = table_entry(&store->table, id);
    assert(entry->slot == HOST_NONE);
    assert(!(entry->flags & ENTRY_DOOMED));
    entry->slot = slot;
    host_slot(&store->host, slot)->entry = id;
    larder_policy_insert(store->host_policy, id);
}

void tiers_detach_locked(struct larder_store *store, uint32_t id)
{
    if (larder_policy_has(store->host_policy, id))
        larder_policy_remove(store->host_policy, id);
    table_entry(&store->table, id)->slot = HOST_NONE;
}

static void hold_as_flagged(struct larder_store *store, uint32_t id)
{
    uint16_t flags = table_entry(&store->table, id)->flags;
    if (!larder_policy_has(store->ssd_policy, id))
        return;
    if (flags & (ENTRY_DOOMED | ENTRY_HELD))
        larder_policy_hold(store->ssd_policy, id);
    else
        larder_policy_release(store->ssd_policy, id);
}

void tiers_write_locked(struct larder_store *store, uint32_t id)
{
    if (!larder_policy_has(store->ssd_policy, id))
        larder_policy_insert(store->ssd_policy, id);
    hold_as_flagged(store, id);
}

/* From the first eviction on, until half of it is free: where evictions keep room, it is full all
 * the same. */
static bool ssd_is_full(struct larder_store *store)
{
    if (store->stats.segment_bytes < store->options.ssd_bytes / 2)
        store->ssd_full = false;
    return store->ssd_full;
}

bool tiers_admit_locked(struct larder_store *store, uint32_t id)
{
    uint32_t parent = table_entry(&store->table, id)->parent;
    bool rooted = (table_entry(&store->table, parent)->flags & ENTRY_ROOT) ||
                  larder_policy_has(store->ssd_policy, parent);
    if (!store->options.admits_all && ssd_is_full(store) &&
        !larder_policy_admits(store->ssd_policy, id, rooted))
        return false;
    tiers_write_locked(store, id);
    return true;
}

/* --- outside of requests --------------------------------------------------------------------- */

int tiers_expect(struct larder_store *store, uint32_t tenant)
{
    return larder_policy_expect(store->ssd_policy, tenant);
}

static void return_to(struct larder_store *store, struct larder_policy *policy, uint32_t id,
                      uint64_t recalled)
{
    uint64_t stored_ms = table_entry(&store->table, id)->variant.created_s * 1000ull;
    int err = larder_policy_restore(policy, id, recalled, stored_ms);
    assert(err == 0); /* P2 */
}

static void set_idle(struct larder_store *store, uint32_t id, uint64_t idle_s)
{
    const uint32_t now = now_s(store);
    table_entry(&store->table, id)->used_s = idle_s < now ? now - (uint32_t)idle_s : 0;
}

/* Where nothing was learned of it, it counts as used at the start: to take it for older would have
 * larderd think that nobody wants what is in use. */
void tiers_restore(struct larder_store *store, uint32_t id, uint64_t recalled)
{
    return_to(store, store->ssd_policy, id, recalled);
    set_idle(store, id, recalled ? larder_policy_idle_ms(store->ssd_policy, id) / 1000 : 0);
}

uint64_t tiers_idle_s(const struct larder_store *store, uint32_t id)
{
    const uint32_t now = now_s(store);
    const uint32_t used = table_entry(&store->table, id)->used_s;
    return used < now ? now - used : 0;
}

void tiers_rewrite_locked(struct larder_store *store, uint32_t id)
{
    if (larder_policy_has(store->ssd_policy, id))
        return;
    uint64_t recalled = larder_policy_has(store->host_policy, id)
                            ? larder_policy_recall(store->host_policy, id)
                            : 0;
    return_to(store, store->ssd_policy, id, recalled);
    hold_as_flagged(store, id);
}

bool tiers_deserves_ssd(struct larder_store *store, uint32_t id)
{
    return !ssd_is_full(store) || larder_policy_worth(store->host_policy, id) >
                                      larder_policy_least(store->ssd_policy, LARDER_POLICY_ALL);
}

void tiers_unwrite_locked(struct larder_store *store, uint32_t id)
{
    if (larder_policy_has(store->ssd_policy, id))
        larder_policy_remove(store->ssd_policy, id);
}

/* What is pinned stays on SSD; its copy in the host tier may go. */
void tiers_held_locked(struct larder_store *store, uint32_t id)
{
    hold_as_flagged(store, id);
}

void tiers_doom_locked(struct larder_store *store, uint32_t id)
{
    table_entry(&store->table, id)->flags |= ENTRY_DOOMED;
    hold_as_flagged(store, id);
    if (larder_policy_has(store->host_policy, id))
        larder_policy_hold(store->host_policy, id);
}

void tiers_undoom_locked(struct larder_store *store, uint32_t id)
{
    table_entry(&store->table, id)->flags &= (uint16_t)~ENTRY_DOOMED;
    hold_as_flagged(store, id);
    if (larder_policy_has(store->host_policy, id))
        larder_policy_release(store->host_policy, id);
}

/* Taken out and put back: the policies look at its worth then. */
void tiers_weigh_locked(struct larder_store *store, uint32_t id)
{
    struct larder_policy *policies[] = {store->host_policy, store->ssd_policy};
    for (uint32_t i = 0; i < LARDER_COUNT_OF(policies); i++) {
        if (!larder_policy_has(policies[i], id))
            continue;
        uint64_t recalled = larder_policy_recall(policies[i], id);
        larder_policy_remove(policies[i], id);
        return_to(store, policies[i], id, recalled);
    }
    hold_as_flagged(store, id);
}

void tiers_age_locked(struct larder_store *store, uint32_t id, uint32_t idle_s)
{
    struct larder_policy *policies[] = {store->host_policy, store->ssd_policy};
    const uint64_t at_ms = now_ms(store);
    const uint64_t idle_ms = idle_s * 1000ull;
    set_idle(store, id, idle_s);
    for (uint32_t i = 0; i < LARDER_COUNT_OF(policies); i++) {
        if (!larder_policy_has(policies[i], id))
            continue;
        larder_policy_remove(policies[i], id);
        int err = larder_policy_restore(policies[i], id, 0, idle_ms < at_ms ? at_ms - idle_ms : 0);
        assert(err == 0); /* P2 */
    }
    hold_as_flagged(store, id);
}

struct place {
    struct larder_policy *policy;
    uint32_t id;
    bool taken;
    uint64_t recalled;
};

void tiers_exchange_locked(struct larder_store *store, uint32_t primary, uint32_t other)
{
    /* What is said of a record goes with it. */
    struct place places[] = {
        {.policy = store->host_policy, .id = other},
        {.policy = store->host_policy, .id = primary},
        {.policy = store->ssd_policy, .id = other},
        {.policy = store->ssd_policy, .id = primary},
    };
    for (uint32_t i = 0; i < LARDER_COUNT_OF(places); i++) {
        struct place *place = &places[i];
        place->taken = larder_policy_has(place->policy, place->id);
        if (!place->taken)
            continue;
        place->recalled = larder_policy_recall(place->policy, place->id);
        larder_policy_remove(place->policy, place->id);
    }
    table_swap_records(&store->table, primary, other);
    for (uint32_t i = LARDER_COUNT_OF(places); i-- > 0;) {
        const struct place *place = &places[i];
        if (!place->taken)
            continue;
        uint32_t id = place->policy == store->ssd_policy ? place->id
                      : place->id == primary             ? other
                                                         : primary;
        return_to(store, place->policy, id, place->recalled);
    }
}

bool tiers_is_written(const struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    if (entry->flags & ENTRY_DURABLE)
        return true;
    return (entry->flags & ENTRY_PUTTING) && put_of_locked(store, id)->state != PUT_RESERVED;
}

/* --- invariants ------------------------------------------------------------------------------ */

int tiers_check_entry(const struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    if (larder_policy_has(store->host_policy, id) != (entry->slot != HOST_NONE))
        return larder_fail(LARDER_ECORRUPT, "entry %u: slot %u, the policy says otherwise", id,
                           entry->slot);
    if (larder_policy_has(store->ssd_policy, id) != tiers_is_written(store, id))
        return larder_fail(LARDER_ECORRUPT, "entry %u: flags %x, the SSD's policy says otherwise",
                           id, entry->flags);
    uint32_t in_host = 0;
    uint32_t on_ssd = 0;
    for (uint32_t child = entry->first_child; child != TABLE_NONE;
         child = table_entry(&store->table, child)->next_sibling) {
        in_host += larder_policy_has(store->host_policy, child);
        on_ssd += larder_policy_has(store->ssd_policy, child);
    }
    if (entry->host_children != in_host || entry->ssd_children != on_ssd)
        return larder_fail(LARDER_ECORRUPT, "entry %u: %u and %u children, counted %u and %u", id,
                           entry->host_children, entry->ssd_children, in_host, on_ssd);
    return 0;
}
