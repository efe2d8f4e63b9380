/* SPDX-License-Identifier: Apache-2.0 */
/* remove.c - taking entries out: by request, after damage, or because a longer block replaced them.
 *
 * A removal dooms the whole subtree at once: nobody finds it any more. Its keys then go, children
 * before parents, in slices: a tombstone in a segment, synced, with the index's deletion of the
 * same keys in the same group. So no crash leaves a hole, and no rebuild brings a key back. Every
 * doomed key gets a tombstone, stored on SSD or not: an older copy that was evicted may still stand
 * in a segment whose file system cannot punch.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/store_priv.h"

#define VARIANT_ALL UINT32_MAX

static void run_removal(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct removal *removal = (struct removal *)completion;
    if (removal->done)
        removal->done(removal->context, removal->err, removal->removed);
    larder_free(removal->entries);
    larder_free(removal);
}

/* Children before parents: the reverse of a walk that names parents first. What another removal
 * took already is left to it. */
static int list_subtree_locked(struct larder_store *store, struct removal *removal, uint32_t top)
{
    uint32_t count = 0;
    for (uint32_t id = top; id != TABLE_NONE; id = table_next_below(&store->table, id, top))
        count += !(table_entry(&store->table, id)->flags & ENTRY_DOOMED);
    removal->entries = larder_alloc(sizeof(uint32_t) * count);
    if (!removal->entries)
        return larder_fail(-ENOMEM, "remove: no memory");
    removal->entry_count = count;
    for (uint32_t id = top; id != TABLE_NONE; id = table_next_below(&store->table, id, top)) {
        if (!(table_entry(&store->table, id)->flags & ENTRY_DOOMED))
            removal->entries[--count] = id;
    }
    return 0;
}

int remove_subtree_locked(struct larder_store *store, uint32_t id, struct removal *removal)
{
    assert(!(table_entry(&store->table, id)->flags & (ENTRY_ROOT | ENTRY_DOOMED)));
    LARDER_TRY(list_subtree_locked(store, removal, id));
    removal->completion.run = run_removal;
    removal->tenant = table_entry(&store->table, id)->tenant;
    removal->single = table_entry(&store->table, id)->flags & ENTRY_VARIANT;
    removal->generation = store->next_generation++;
    store->tenants[removal->tenant].removals++;
    for (uint32_t i = 0; i < removal->entry_count; i++) {
        /* From now on it is a miss, whenever its tombstone is written. */
        history_note(&store->history, &table_entry(&store->table, removal->entries[i])->key,
                     removal->why);
        tiers_doom_locked(store, removal->entries[i]);
        put_watches_locked(store, removal->entries[i], LARDER_ENOTFOUND);
    }
    removal->next = NULL;
    *store->removals_end = removal;
    store->removals_end = &removal->next;
    return 0;
}

static bool start_internal_locked(struct larder_store *store, uint32_t id, enum larder_event why)
{
    if (table_entry(&store->table, id)->flags & ENTRY_DOOMED)
        return true;
    struct removal *removal = larder_alloc_zero(1, sizeof(*removal));
    if (!removal)
        return false;
    removal->why = why;
    if (remove_subtree_locked(store, id, removal) < 0) {
        larder_free(removal);
        return false;
    }
    return true;
}

void remove_corrupt_locked(struct larder_store *store, uint32_t id)
{
    /* Of several variants the others stay, and one of them carries the chain. */
    if (!(table_entry(&store->table, id)->flags & ENTRY_VARIANT)) {
        uint32_t other = variant_succeed_locked(store, id);
        id = other != TABLE_NONE ? other : id;
    }
    if (start_internal_locked(store, id, LARDER_EVENT_CORRUPT))
        return;
    /* Without memory: hidden at least, with all below it, until the next start finds it again. */
    for (uint32_t at = id; at != TABLE_NONE; at = table_next_below(&store->table, at, id))
        tiers_doom_locked(store, at);
}

void remove_tail_locked(struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    bool leased = entry->slot != HOST_NONE && host_slot(&store->host, entry->slot)->leases > 0;
    if (table_block_count(&store->table, id) > 0 || leased ||
        (entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED | ENTRY_HELD)))
        return;
    start_internal_locked(store, id, LARDER_EVENT_REPLACED);
}

/* Without memory it stays hidden, and is looked at again. */
void remove_expired_locked(struct larder_store *store, uint32_t id)
{
    start_internal_locked(store, id, LARDER_EVENT_EXPIRED);
}

static uint32_t find_named(const struct larder_store *store, const struct larder_key *key,
                           uint32_t variant)
{
    return variant == VARIANT_ALL ? table_find(&store->table, key)
                                  : table_find_variant(&store->table, key, variant);
}

/* What a request is about: the primary with all that is below, or one variant that is to go alone;
 * of the best one another must take the place. */
static int find_removed_locked(struct larder_store *store, uint32_t *out, uint32_t tenant,
                               const struct larder_key *key, uint32_t variant,
                               enum larder_remove_pinned pinned)
{
    bool all = variant == VARIANT_ALL;
    *out = find_named(store, key, variant);
    if (store->tenants[tenant].closed)
        return larder_fail(-EBUSY, "the tenant is being purged; try again");
    if (!find_sees(store, *out, tenant))
        return larder_fail(LARDER_ENOTFOUND,
                           all ? "no entry of this key is stored" : "no such variant is stored");
    if (store->read_only)
        return larder_fail(LARDER_EREADONLY, "store is read-only after a failed sync; restart it");
    if (all && pinned == LARDER_KEEP_PINNED &&
        (table_entry(&store->table, *out)->flags & ENTRY_HELD))
        return larder_fail(LARDER_EPINNED,
                           "the entry, or one behind it, is pinned; unpin it first");
    if (!all && !(table_entry(&store->table, *out)->flags & ENTRY_VARIANT))
        *out = variant_succeed_locked(store, *out);
    if (*out == TABLE_NONE)
        return larder_fail(-EBUSY,
                           "variant %u is the only one that can carry its chain now; wait until "
                           "another is stored, or remove the entry",
                           variant);
    return 0;
}

/* The record that goes because a smaller one stands for it. */
static int find_demoted_locked(struct larder_store *store, uint32_t *out, uint32_t tenant,
                               const struct larder_key *key, uint32_t kept, uint64_t idle_s)
{
    const struct table *table = &store->table;
    const uint32_t primary = table_find(table, key);
    const uint32_t stays = table_find_variant(table, key, kept);
    *out = TABLE_NONE;
    if (store->tenants[tenant].closed)
        return larder_fail(-EBUSY, "the tenant is being purged; try again");
    if (!find_sees(store, stays, tenant))
        return larder_fail(LARDER_ENOTFOUND, "no record that could stay is stored");
    if (store->read_only)
        return larder_fail(LARDER_EREADONLY, "store is read-only after a failed sync; restart it");
    if (table_entry(table, primary)->flags & ENTRY_HELD)
        return larder_fail(LARDER_EPINNED, "the entry, or one behind it, is pinned");
    if (!(table_entry(table, stays)->flags & ENTRY_DURABLE))
        return larder_fail(-EBUSY, "the record that stays is not durable");
    uint32_t pages = table_entry(table, stays)->variant.record_pages;
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(table, id)) {
        const struct entry *entry = table_entry(table, id);
        if (!find_sees(store, id, tenant))
            continue;
        if ((entry->flags & ENTRY_PUTTING) || tiers_idle_s(store, id) < idle_s)
            return larder_fail(-EBUSY, "a record of the key is in use");
        if (entry->variant.record_pages <= pages)
            continue;
        pages = entry->variant.record_pages;
        *out = id;
    }
    if (*out == TABLE_NONE)
        return larder_fail(LARDER_ENOTFOUND, "no larger record is stored");
    if (!(table_entry(table, *out)->flags & ENTRY_VARIANT))
        *out = variant_succeed_locked(store, *out);
    return *out == TABLE_NONE ? larder_fail(-EBUSY, "no other record can carry the chain now") : 0;
}

/* It may have been evicted, or be about to be removed by another, and come back with a crash: who
 * is told that it is not there must not meet it again. */
static void tell_absent_later_locked(struct larder_store *store, struct removal *removal)
{
    removal->completion.run = run_removal;
    removal->generation = store->next_generation++;
    removal->next = store->absent;
    store->absent = removal;
}

/* Removals end in the order in which they began. */
static bool is_older_under_way_locked(const struct larder_store *store, uint64_t generation)
{
    const struct group *groups[] = {store->syncing, store->filling};
    const struct removal *oldest = store->removals;
    for (uint32_t i = LARDER_COUNT_OF(groups); i-- > 0;) {
        if (groups[i] && groups[i]->slices)
            oldest = groups[i]->slices->removal;
    }
    return oldest && oldest->generation < generation;
}

/* A removal that failed has shown it again. */
static int absent_error_locked(const struct larder_store *store, const struct removal *removal)
{
    uint32_t id = find_named(store, &removal->key, removal->variant);
    if (store->read_only)
        return LARDER_EREADONLY;
    return find_sees(store, id, removal->tenant) &&
                   table_entry(&store->table, id)->variant.generation < removal->generation
               ? -EBUSY
               : LARDER_ENOTFOUND;
}

void remove_tell_absent(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    for (struct removal **at = &store->absent; *at;) {
        struct removal *removal = *at;
        if (is_older_under_way_locked(store, removal->generation)) {
            at = &removal->next;
            continue;
        }
        *at = removal->next;
        removal->err = absent_error_locked(store, removal);
        if (commit_is_behind(store))
            commit_hold_locked(store, removal);
        else
            store_complete_locked(store, &removal->completion);
    }
    pthread_mutex_unlock(&store->lock);
}

static void remove_record(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                          uint32_t variant, enum larder_remove_pinned pinned,
                          void (*done)(void *context, int err, uint64_t removed), void *context)
{
    struct removal *removal = larder_alloc_zero(1, sizeof(*removal));
    if (!removal) {
        done(context, -ENOMEM, 0);
        return;
    }
    removal->why = LARDER_EVENT_REMOVED;
    removal->tenant = tenant;
    removal->key = *key;
    removal->variant = variant;
    removal->done = done;
    removal->context = context;
    pthread_mutex_lock(&store->lock);
    uint32_t id;
    int err = find_removed_locked(store, &id, tenant, key, variant, pinned);
    bool absent = err == LARDER_ENOTFOUND;
    if (err == 0)
        err = remove_subtree_locked(store, id, removal);
    else if (absent)
        tell_absent_later_locked(store, removal);
    pthread_mutex_unlock(&store->lock);
    if (err < 0 && !absent) {
        larder_free(removal);
        done(context, err, 0);
        return;
    }
    store_wake(store);
}

void larder_store_remove(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                         enum larder_remove_pinned pinned,
                         void (*done)(void *context, int err, uint64_t removed), void *context)
{
    remove_record(store, tenant, key, VARIANT_ALL, pinned, done, context);
}

void larder_store_remove_variant(struct larder_store *store, uint32_t tenant,
                                 const struct larder_key *key, uint32_t variant,
                                 void (*done)(void *context, int err, uint64_t removed),
                                 void *context)
{
    remove_record(store, tenant, key, variant, LARDER_KEEP_PINNED, done, context);
}

void larder_store_demote(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                         uint32_t kept, uint64_t idle_s,
                         void (*done)(void *context, int err, uint64_t removed), void *context)
{
    struct removal *removal = larder_alloc_zero(1, sizeof(*removal));
    if (!removal) {
        done(context, -ENOMEM, 0);
        return;
    }
    removal->why = LARDER_EVENT_DEMOTED;
    removal->done = done;
    removal->context = context;
    uint32_t id;
    pthread_mutex_lock(&store->lock);
    int err = find_demoted_locked(store, &id, tenant, key, kept, idle_s);
    if (err == 0)
        err = remove_subtree_locked(store, id, removal);
    pthread_mutex_unlock(&store->lock);
    if (err < 0) {
        larder_free(removal);
        done(context, err, 0);
        return;
    }
    store_wake(store);
}

/* --- the end of a slice ----------------------------------------------------------------------- */

void remove_dead_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    mark_forget_locked(store, id);
    if (entry->slot != HOST_NONE)
        evict_detach_slot_locked(store, id);
    stats_leave_locked(store, id);
    put_orphan_locked(store, id);
    if (entry->flags & ENTRY_DURABLE) {
        writer_extent_dead_locked(store, &entry->variant);
    }
    tiers_unwrite_locked(store, id);
    entry->flags &= (uint16_t) ~(ENTRY_VISIBLE | ENTRY_DURABLE);
    put_watches_locked(store, id, LARDER_ENOTFOUND);
    if (entry->first_child != TABLE_NONE) {
        /* An inner removal failed after this one was under way: both stay hidden until the next
         * start, which drops what has lost its parent. */
        return;
    }
    table_remove(&store->table, id);
}

/* What was not removed is found again, parents before children; but not below one that is hidden
 * itself, by a removal around this one. */
static void undoom_locked(struct larder_store *store, const struct removal *removal)
{
    for (uint32_t i = removal->entry_count; i-- > 0;) {
        if (removal->entries[i] == TABLE_NONE)
            continue;
        struct entry *entry = table_entry(&store->table, removal->entries[i]);
        if (!(table_entry(&store->table, entry->parent)->flags & ENTRY_DOOMED))
            tiers_undoom_locked(store, removal->entries[i]);
    }
}

void remove_slice_done_locked(struct larder_store *store, struct slice *slice, int err)
{
    struct removal *removal = slice->removal;
    if (err < 0 && removal->err == 0)
        removal->err = err;
    for (uint32_t i = slice->first; err == 0 && i < slice->first + slice->count; i++) {
        remove_dead_locked(store, removal->entries[i]);
        removal->entries[i] = TABLE_NONE;
        removal->removed++;
    }
    removal->slices--;
    if (removal->slices > 0 || removal->sliced < removal->entry_count)
        return;
    if (removal->err < 0 && removal->why != LARDER_EVENT_CORRUPT)
        undoom_locked(store, removal);
    if (removal->err == 0 && removal->done && removal->why != LARDER_EVENT_DEMOTED) {
        store->stats.removed += removal->removed;
        store->tenants[removal->tenant].stats.removed += removal->removed;
    }
    store->tenants[removal->tenant].removals--;
    if (removal->err == 0 && removal->done)
        commit_hold_locked(store, removal);
    else
        store_complete_locked(store, &removal->completion);
}
