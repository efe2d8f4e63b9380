/* SPDX-License-Identifier: Apache-2.0 */
/* find.c - what only looks: lookup, list, find. Nothing here has a side effect. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "storage/store_priv.h"

bool find_sees(const struct larder_store *store, uint32_t entry, uint32_t tenant)
{
    if (entry == TABLE_NONE)
        return false;
    const struct entry *at = table_entry(&store->table, entry);
    return at->tenant == tenant && !store->tenants[tenant].closed && (at->flags & ENTRY_VISIBLE) &&
           !(at->flags & ENTRY_DOOMED) && !mark_expired_locked(store, entry);
}

/* Chains have no holes, so the number of leading keys that are stored is found by halving. */
static uint32_t depth_of_run(const struct larder_store *store, uint32_t tenant,
                             const struct larder_key *keys, uint32_t key_count, uint32_t *last)
{
    uint32_t low = 0;
    uint32_t high = key_count;
    *last = TABLE_NONE;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        uint32_t entry = table_find(&store->table, &keys[middle]);
        if (find_sees(store, entry, tenant)) {
            *last = entry;
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

int find_run_locked(struct larder_store *store, uint32_t *out_count, uint32_t *last,
                    const struct larder_want *want)
{
    const uint32_t tenant = want->tenant;
    const struct larder_key *keys = want->keys;
    const struct accept accept = accept_of(want);
    *out_count = 0;
    *last = TABLE_NONE;
    if (tenant >= LARDER_TENANTS_MAX || store->tenants[tenant].root == TABLE_NONE)
        return larder_fail(-EINVAL, "tenant=%u does not exist", tenant);
    uint32_t entry;
    uint32_t count = depth_of_run(store, tenant, keys, want->key_count, &entry);
    *last = entry;
    *out_count = count;
    /* Up again, to be sure that the keys are one chain, and to end it before a block that is not
     * good enough or whose time is over: what is behind it goes with it. */
    for (uint32_t i = count; i-- > 0;) {
        const struct entry *at = table_entry(&store->table, entry);
        /* The root is above the first key; its own key is all zeros, and never one of a chain. */
        if (entry == TABLE_NONE || (at->flags & ENTRY_ROOT) ||
            memcmp(at->key.bytes, keys[i].bytes, sizeof(keys[i].bytes)) != 0)
            return larder_fail(LARDER_EPROTO, "key %u is not the parent of key %u", i, i + 1);
        if (variant_pick(store, entry, accept) == TABLE_NONE || mark_expired_locked(store, entry)) {
            *out_count = i;
            *last = at->parent;
        }
        entry = at->parent;
    }
    if (*out_count == 0)
        *last = TABLE_NONE;
    return 0;
}

static void find_tails(struct larder_store *store, struct larder_match *out, uint32_t above,
                       struct accept accept, uint32_t block_tokens)
{
    uint32_t walked = 0;
    uint32_t child = table_entry(&store->table, above)->first_child;
    for (; child != TABLE_NONE && walked < SIBLINGS_WALK_MAX; walked++) {
        const struct entry *entry = table_entry(&store->table, child);
        if (find_sees(store, child, entry->tenant) && !(entry->flags & ENTRY_VARIANT) &&
            entry->token_count > 0 && entry->token_count < block_tokens &&
            variant_pick(store, child, accept) != TABLE_NONE) {
            uint32_t at = out->tail_count;
            if (at == LARDER_TAILS_MAX)
                at--; /* the shortest gives way, if this one is longer */
            else
                out->tail_count++;
            bool free_place = at == out->tail_count - 1 && out->tails[at].token_count == 0;
            if (free_place || out->tails[at].token_count < entry->token_count) {
                for (; at > 0 && out->tails[at - 1].token_count < entry->token_count; at--)
                    out->tails[at] = out->tails[at - 1];
                out->tails[at] =
                    (struct larder_tail){.key = entry->key, .token_count = entry->token_count};
            }
        }
        child = entry->next_sibling;
    }
}

/* Whose children may extend what matched; TABLE_NONE: nobody's. */
static uint32_t last_matched(const struct larder_store *store, uint32_t last, uint32_t tenant,
                             const struct larder_key *parent)
{
    if (last != TABLE_NONE)
        return last;
    if (larder_key_equal(parent, &larder_key_root))
        return store->tenants[tenant].root;
    uint32_t entry = table_find(&store->table, parent);
    return find_sees(store, entry, tenant) ? entry : TABLE_NONE;
}

static void add_up(const struct larder_store *store, struct larder_match *out,
                   const struct entry *entry)
{
    const uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    const float kl = measure_kl_locked(store, entry);
    out->bytes += bytes;
    out->bytes_host += entry->slot != HOST_NONE ? bytes : 0;
    out->tokens += entry->token_count;
    if (entry->variant.quality > out->quality)
        out->quality = entry->variant.quality;
    if (kl > out->kl)
        out->kl = kl;
}

int larder_store_lookup(struct larder_store *store, struct larder_match *out,
                        const struct larder_want *want, const struct larder_key *parent,
                        uint32_t block_tokens)
{
    const struct accept accept = accept_of(want);
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&store->lock);
    uint32_t entry;
    int err = find_run_locked(store, &out->count, &entry, want);
    if (err == 0) {
        uint32_t above = last_matched(store, entry, want->tenant, parent);
        if (above != TABLE_NONE)
            find_tails(store, out, above, accept, block_tokens);
        for (uint32_t i = out->count; i > 0; i--) {
            add_up(store, out, table_entry(&store->table, variant_pick(store, entry, accept)));
            entry = table_entry(&store->table, entry)->parent;
        }
    }
    pthread_mutex_unlock(&store->lock);
    if (err < 0)
        memset(out, 0, sizeof(*out));
    return err;
}

static void describe(const struct larder_store *store, struct larder_entry_info *out, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    const struct entry_variant *variant = &entry->variant;
    memset(out, 0, sizeof(*out));
    out->key = entry->key;
    uint32_t primary = table_primary(&store->table, id);
    /* A root's is all zeros. */
    out->parent = table_entry(&store->table, table_above(&store->table, id))->key;
    out->tenant = entry->tenant;
    out->model = entry->model;
    out->token_count = entry->token_count;
    out->depth = entry->depth;
    out->children = table_block_count(&store->table, primary);
    out->lease_count = entry->slot != HOST_NONE ? host_slot(&store->host, entry->slot)->leases : 0;
    out->record_bytes = (uint64_t)variant->record_pages * LARDER_PAGE_BYTES;
    out->raw_bytes = variant->raw_bytes;
    out->created_s = variant->created_s;
    out->position = variant->position;
    out->uses = entry->uses;
    out->idle_s = tiers_idle_s(store, id);
    out->segment_id = variant->segment_id;
    out->segment_page = variant->segment_page;
    out->quality = variant->quality;
    out->computed_on = variant->computed_on;
    out->in_host = entry->slot != HOST_NONE;
    out->durable = variant->segment_id != 0;
    out->variant = entry->number;
    for (uint32_t at = primary; at != TABLE_NONE; at = table_next_variant(&store->table, at))
        out->variants += find_sees(store, at, entry->tenant);
    mark_describe_locked(store, id, out);
    snprintf(out->recipe, sizeof(out->recipe), "%s",
             table_recipe_text(&store->table, variant->recipe));
}

int larder_store_list(struct larder_store *store, struct larder_entry_info *out, uint32_t *count,
                      uint64_t *cursor, uint32_t count_max)
{
    /* Holding the lock over a long list would keep everybody waiting: a look at so many ids. */
    const uint32_t ids_max = 65536;
    *count = 0;
    pthread_mutex_lock(&store->lock);
    uint64_t id = *cursor ? *cursor : 1;
    uint64_t stop = larder_min_u64(store->table.entry_end, id + ids_max);
    for (; id < stop && *count < count_max; id++) {
        const struct entry *entry = table_entry(&store->table, (uint32_t)id);
        if ((entry->flags & ENTRY_USED) && find_sees(store, (uint32_t)id, entry->tenant))
            describe(store, &out[(*count)++], (uint32_t)id);
    }
    *cursor = id < store->table.entry_end ? id : 0;
    pthread_mutex_unlock(&store->lock);
    return 0;
}

void larder_store_variants(struct larder_store *store,
                           struct larder_entry_info out[LARDER_VARIANTS_MAX], uint32_t *count,
                           const struct larder_key *key)
{
    *count = 0;
    pthread_mutex_lock(&store->lock);
    for (uint32_t id = table_find(&store->table, key); id != TABLE_NONE;
         id = table_next_variant(&store->table, id)) {
        if (find_sees(store, id, table_entry(&store->table, id)->tenant))
            describe(store, &out[(*count)++], id);
    }
    pthread_mutex_unlock(&store->lock);
}

bool larder_store_is_recipe(const struct larder_entry_info *entry, const char *recipe)
{
    char name[TABLE_RECIPE_BYTES + 1];
    table_recipe_name(name, recipe, (uint32_t)strlen(recipe));
    return strcmp(entry->recipe, name) == 0;
}

uint32_t larder_store_history(struct larder_store *store, struct larder_event_info *out,
                              uint32_t count_max, const struct larder_key *key)
{
    struct history_event events[LARDER_EVENTS_FOUND_MAX];
    pthread_mutex_lock(&store->lock);
    uint32_t count = history_find(
        &store->history, events, (uint32_t)larder_min_u64(count_max, LARDER_EVENTS_FOUND_MAX), key);
    pthread_mutex_unlock(&store->lock);
    for (uint32_t i = 0; i < count; i++)
        out[i] = (struct larder_event_info){.when_s = events[i].when_s,
                                            .what = (enum larder_event)events[i].what};
    return count;
}

void larder_store_event_counts(struct larder_store *store, uint64_t out[LARDER_EVENT_END])
{
    pthread_mutex_lock(&store->lock);
    memcpy(out, store->history.counts, sizeof(store->history.counts));
    pthread_mutex_unlock(&store->lock);
}

int larder_store_find(struct larder_store *store, struct larder_entry_info *out,
                      const struct larder_key *key)
{
    pthread_mutex_lock(&store->lock);
    uint32_t id = table_find(&store->table, key);
    bool there = id != TABLE_NONE && find_sees(store, id, table_entry(&store->table, id)->tenant);
    if (there)
        describe(store, out, id);
    pthread_mutex_unlock(&store->lock);
    return there ? 0 : larder_fail(LARDER_ENOTFOUND, "no entry of this key is stored");
}
