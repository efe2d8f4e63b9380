/* SPDX-License-Identifier: Apache-2.0 */
/* put.c - from a reservation to a visible entry; and waiting for one.
 *
 * A put owns a pin on its slot from reservation until its record is durable or given up. Its entry
 * is PUTTING all that time; the entry may be removed meanwhile, the put then ends without it.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "storage/store_priv.h"

static struct variant_name name_locked(struct larder_store *store,
                                       const struct larder_put_desc *desc)
{
    return (struct variant_name){
        .quality = desc->quality,
        .computed_on = desc->computed_on,
        .recipe = table_recipe(&store->table, desc->recipe, (uint32_t)strlen(desc->recipe),
                               measure_profile(desc->profile)),
    };
}

/* --- waiting --------------------------------------------------------------------------------- */

static void run_watch(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct watch *watch = (struct watch *)completion;
    watch->done(watch->context, watch->err);
    larder_free(watch);
}

/* What a watch is told of this variant now; 1: not yet. `err`: how what was on its way ended. */
static int variant_answer(const struct entry *entry, const struct watch *watch, int err)
{
    if (!(entry->flags & ENTRY_VISIBLE) && !(entry->flags & ENTRY_PUTTING))
        return LARDER_ENOTFOUND;
    if (entry->flags & ENTRY_DOOMED)
        return LARDER_ENOTFOUND;
    bool good = (entry->flags & ENTRY_VISIBLE) && entry->variant.quality <= watch->worst;
    if (good && watch->wait == LARDER_CACHED)
        return 0;
    if (entry->flags & ENTRY_PUTTING)
        return 1;
    if (!good)
        return err < 0 ? err : LARDER_ENOTFOUND;
    return entry->flags & ENTRY_DURABLE ? 0 : err < 0 ? err : -ENOSPC;
}

/* The same of all variants that it waits for: the best answer, then that one is on its way, then
 * why there is none. */
static int watch_answer(const struct larder_store *store, uint32_t primary,
                        const struct watch *watch, int err)
{
    const struct table *table = &store->table;
    if (watch->is_named) {
        uint32_t id = variant_named(store, primary, &watch->name);
        return id == TABLE_NONE ? LARDER_ENOTFOUND
                                : variant_answer(table_entry(table, id), watch, err);
    }
    int best = variant_answer(table_entry(table, primary), watch, err);
    for (uint32_t id = table_next_variant(table, primary); id != TABLE_NONE && best != 0;
         id = table_next_variant(table, id)) {
        int answer = variant_answer(table_entry(table, id), watch, err);
        if (answer >= 0 || best == LARDER_ENOTFOUND)
            best = best == 1 && answer < 0 ? best : answer;
    }
    return best;
}

void put_watches_locked(struct larder_store *store, uint32_t id, int err)
{
    uint32_t primary = table_primary(&store->table, id);
    struct entry *entry = table_entry(&store->table, primary);
    if (!(entry->flags & ENTRY_WATCHED))
        return;
    bool more = false;
    for (struct watch **at = &store->watches; *at;) {
        struct watch *watch = *at;
        int answer = 1;
        bool ours = larder_key_equal(&watch->key, &entry->key);
        if (ours)
            answer = watch_answer(store, primary, watch, err);
        if (answer == 1) {
            more = more || ours;
            at = &watch->next;
            continue;
        }
        *at = watch->next;
        watch->err = answer;
        store_complete_locked(store, &watch->completion);
    }
    if (!more)
        entry->flags &= (uint16_t)~ENTRY_WATCHED;
}

void put_count_queued_locked(struct larder_store *store, const struct larder_put *put)
{
    uint64_t bytes = (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
    store->queued_bytes += bytes;
    store->tenants[put->tenant].queued_bytes += bytes;
}

static void queue_put_locked(struct larder_store *store, struct larder_put *put)
{
    put->state = PUT_QUEUED;
    put->next = NULL;
    *store->put_queue_end = put;
    store->put_queue_end = &put->next;
    put_count_queued_locked(store, put);
}

/* *waits: the watch is in the list. Otherwise the answer is known already. */
static int watch_locked(struct larder_store *store, struct watch *watch, bool *waits)
{
    *waits = false;
    uint32_t primary = table_find(&store->table, &watch->key);
    if (primary == TABLE_NONE || table_entry(&store->table, primary)->tenant != watch->tenant ||
        store->tenants[watch->tenant].closed)
        return LARDER_ENOTFOUND;
    uint32_t id = watch->is_named ? variant_named(store, primary, &watch->name)
                                  : variant_pick(store, primary, (struct accept){watch->worst, 0});
    const struct entry *entry = id == TABLE_NONE ? NULL : table_entry(&store->table, id);
    bool idle = entry && !(entry->flags & (ENTRY_PUTTING | ENTRY_DURABLE | ENTRY_DOOMED));
    if (watch->wait == LARDER_DURABLE && idle) {
        /* It was given up once, for lack of space. */
        if (store->read_only)
            return LARDER_EREADONLY;
        if (!put_rewrite_locked(store, id))
            return -ENOMEM;
    }
    int answer = watch_answer(store, primary, watch, 0);
    if (answer != 1)
        return answer;
    table_entry(&store->table, primary)->flags |= ENTRY_WATCHED;
    watch->next = store->watches;
    store->watches = watch;
    *waits = true;
    return 0;
}

static void start_watch(struct larder_store *store, const struct watch *wanted)
{
    larder_put_done done = wanted->done;
    void *context = wanted->context;
    struct watch *watch = larder_alloc_zero(1, sizeof(*watch));
    if (!watch) {
        done(context, -ENOMEM);
        return;
    }
    *watch = *wanted;
    watch->completion.run = run_watch;
    bool waits;
    pthread_mutex_lock(&store->lock);
    int answer = watch_locked(store, watch, &waits);
    pthread_mutex_unlock(&store->lock);
    if (waits) {
        store_wake(store);
        return;
    }
    larder_free(watch);
    done(context, answer);
}

void larder_store_when(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                       enum larder_quality worst, enum larder_wait wait, larder_put_done done,
                       void *context)
{
    const struct watch watch = {.key = *key,
                                .tenant = tenant,
                                .worst = worst,
                                .wait = wait,
                                .done = done,
                                .context = context};
    start_watch(store, &watch);
}

void larder_store_when_put(struct larder_store *store, const struct larder_put_desc *desc,
                           enum larder_wait wait, larder_put_done done, void *context)
{
    struct watch watch = {.key = desc->key,
                          .tenant = desc->tenant,
                          .worst = desc->quality,
                          .wait = wait,
                          .done = done,
                          .context = context};
    if (desc->beside) {
        pthread_mutex_lock(&store->lock);
        watch.is_named = true;
        watch.name = name_locked(store, desc);
        pthread_mutex_unlock(&store->lock);
    }
    start_watch(store, &watch);
}

/* --- reservation ----------------------------------------------------------------------------- */

static void run_put(struct larder_store *store, struct completion *completion)
{
    (void)store;
    struct larder_put *put = (struct larder_put *)completion;
    put->done(put->context, put->err);
    larder_free(put);
}

static void link_put_locked(struct larder_store *store, struct larder_put *put)
{
    put->all_prev = NULL;
    put->all_next = store->puts;
    if (store->puts)
        store->puts->all_prev = put;
    store->puts = put;
}

static void unlink_put_locked(struct larder_store *store, struct larder_put *put)
{
    if (put->all_prev)
        put->all_prev->all_next = put->all_next;
    else
        store->puts = put->all_next;
    if (put->all_next)
        put->all_next->all_prev = put->all_prev;
}

static int check_desc(const struct larder_put_desc *desc, size_t recipe_bytes)
{
    if (desc->token_count > LARDER_BLOCK_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "token_count=%u is above %u", desc->token_count,
                           LARDER_BLOCK_TOKENS_MAX);
    if (desc->extra_bytes > LARDER_EXTRA_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "extra_bytes=%u is above %u", desc->extra_bytes,
                           LARDER_EXTRA_BYTES_MAX);
    if (recipe_bytes > LARDER_RECIPE_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "recipe of %zu bytes is above %u", recipe_bytes,
                           LARDER_RECIPE_BYTES_MAX);
    if (desc->section_count_max == 0 || desc->section_count_max > LARDER_SECTIONS_MAX)
        return larder_fail(LARDER_ELIMIT, "section_count_max=%u is not 1 to %u",
                           desc->section_count_max, LARDER_SECTIONS_MAX);
    if (desc->payload_bytes_max > LARDER_RECORD_BYTES_MAX ||
        desc->raw_bytes > LARDER_RECORD_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "payload_bytes_max=%llu or raw_bytes=%llu is above %llu",
                           (unsigned long long)desc->payload_bytes_max,
                           (unsigned long long)desc->raw_bytes, LARDER_RECORD_BYTES_MAX);
    if (desc->quality > LARDER_QUALITY_BLENDED || desc->computed_on > LARDER_QUALITY_BLENDED)
        return larder_fail(LARDER_EPROTO, "quality=%d or computed_on=%d is unknown",
                           (int)desc->quality, (int)desc->computed_on);
    if (!(desc->computed_on_kl >= 0) || !(desc->max_kl >= 0))
        return larder_fail(LARDER_EPROTO, "computed_on_kl=%g or max_kl=%g is no KL",
                           (double)desc->computed_on_kl, (double)desc->max_kl);
    if (larder_all_zero(desc->key.bytes, sizeof(desc->key.bytes)))
        return larder_fail(LARDER_EPROTO, "the key is that of a root");
    if (desc->tenant >= LARDER_TENANTS_MAX || desc->model >= LARDER_MODELS_MAX)
        return larder_fail(-EINVAL, "tenant=%u or model=%u does not exist", desc->tenant,
                           desc->model);
    return 0;
}

static int find_parent_locked(struct larder_store *store, uint32_t *out,
                              const struct larder_put_desc *desc)
{
    *out = store->tenants[desc->tenant].root;
    if (*out == TABLE_NONE || desc->model >= store->model_count)
        return larder_fail(-EINVAL, "tenant=%u or model=%u does not exist", desc->tenant,
                           desc->model);
    if (store->tenants[desc->tenant].closed)
        return larder_fail(-EBUSY, "the tenant is being purged; try again");
    if (larder_key_equal(&desc->parent, &larder_key_root))
        return 0;
    *out = table_find(&store->table, &desc->parent);
    if (!find_sees(store, *out, desc->tenant))
        return larder_fail(LARDER_ENOPARENT, "the parent block is not stored; put it first");
    return 0;
}

/* Is it, when the put was to keep a KL, measured to keep that too? */
static bool keeps_locked(const struct larder_store *store, const struct entry *entry,
                         const struct larder_put_desc *desc)
{
    return desc->max_kl == 0 || measure_kl_locked(store, entry) <= desc->max_kl;
}

/* A better record, or none, is to take this entry's place. */
static int check_replaced_locked(const struct larder_store *store, uint32_t primary,
                                 const struct larder_put_desc *desc)
{
    for (uint32_t id = primary; id != TABLE_NONE; id = table_next_variant(&store->table, id)) {
        const struct entry *entry = table_entry(&store->table, id);
        if (entry->flags & ENTRY_DOOMED)
            continue;
        if ((entry->flags & ENTRY_VISIBLE) && entry->variant.quality <= desc->quality &&
            keeps_locked(store, entry, desc))
            return larder_fail(LARDER_EEXISTS, "stored at this quality or better");
        /* Of a put that replaces what is visible the entry does not know the recipe yet. */
        if ((entry->flags & ENTRY_PUTTING) && entry->pending_quality <= desc->quality &&
            (!(entry->flags & ENTRY_VISIBLE) || desc->max_kl == 0) &&
            keeps_locked(store, entry, desc))
            return larder_fail(LARDER_EEXISTS, "being stored at this quality or better");
    }
    if (table_entry(&store->table, primary)->flags & ENTRY_PUTTING)
        return larder_fail(-EBUSY, "being stored at a worse quality; try again");
    return 0;
}

/* A further variant of a key that is there. */
static int claim_beside_locked(struct larder_store *store, uint32_t *out, uint32_t primary,
                               const struct larder_put_desc *desc)
{
    const struct variant_name name = name_locked(store, desc);
    uint32_t same = variant_named(store, primary, &name);
    if (same != TABLE_NONE)
        return table_entry(&store->table, same)->flags & ENTRY_DOOMED
                   ? larder_fail(-EBUSY, "this variant is being removed; try again")
                   : larder_fail(LARDER_EEXISTS, "this variant is stored or being stored");
    if (variant_had_name(store, primary, &name))
        return larder_fail(-EBUSY, "this variant is being replaced; try again");
    if (!(table_entry(&store->table, primary)->flags & ENTRY_VISIBLE))
        return larder_fail(-EBUSY, "the first variant is being stored; try again");
    if (table_variant_count(&store->table, primary) == LARDER_VARIANTS_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "%u variants of this block are stored, the most there "
                           "may be; remove one",
                           LARDER_VARIANTS_MAX);
    *out = table_add_variant(&store->table, primary);
    return *out == TABLE_NONE ? larder_fail(-ENOMEM, "table: no memory") : 0;
}

/* The record whose place is taken: that of the same name, or the best. */
static int claim_replaced_locked(struct larder_store *store, uint32_t *out, uint32_t primary,
                                 const struct larder_put_desc *desc)
{
    const struct variant_name name = name_locked(store, desc);
    LARDER_TRY(check_replaced_locked(store, primary, desc));
    uint32_t same = variant_named(store, primary, &name);
    *out = same == TABLE_NONE ? primary : same;
    const struct entry *entry = table_entry(&store->table, *out);
    if ((entry->flags & (ENTRY_PUTTING | ENTRY_DOOMED)) || variant_had_name(store, primary, &name))
        return larder_fail(-EBUSY, "this variant is being stored, replaced or removed; try again");
    return 0;
}

/* The entry that this put makes or replaces, marked PUTTING. */
static int claim_entry_locked(struct larder_store *store, struct larder_put *put,
                              const struct larder_put_desc *desc)
{
    uint32_t parent;
    LARDER_TRY(find_parent_locked(store, &parent, desc));
    uint32_t id = table_find(&store->table, &desc->key);
    if (desc->made_of > 0 &&
        !find_sees(store, variant_of_generation(store, &desc->key, desc->made_of), desc->tenant))
        return larder_fail(LARDER_ENOTFOUND, "what it was made of is not stored any more");
    if (id != TABLE_NONE) {
        const struct entry *entry = table_entry(&store->table, id);
        if (entry->tenant != desc->tenant || entry->parent != parent)
            return larder_fail(LARDER_EPROTO, "the key is stored behind another parent");
        if (entry->flags & ENTRY_DOOMED)
            return larder_fail(-EBUSY, "the entry is being removed; try again");
        LARDER_TRY(desc->beside ? claim_beside_locked(store, &id, id, desc)
                                : claim_replaced_locked(store, &id, id, desc));
        put->replaces = !desc->beside;
    } else {
        id = table_add(&store->table, &desc->key, parent, (uint16_t)desc->token_count);
        if (id == TABLE_NONE)
            return larder_fail(-ENOMEM, "table: no memory");
        table_entry(&store->table, id)->model = (uint16_t)desc->model;
    }
    struct entry *entry = table_entry(&store->table, id);
    entry->flags |= ENTRY_PUTTING;
    entry->pending_quality = (uint8_t)desc->quality;
    /* Known by these while it is on its way. */
    const struct variant_name name = name_locked(store, desc);
    put->variant.quality = (uint8_t)name.quality;
    put->variant.computed_on = (uint8_t)name.computed_on;
    put->variant.recipe = name.recipe;
    put->variant.computed_on_kl = larder_computed_on_kl_bits(desc->computed_on_kl);
    if (!put->replaces)
        entry->variant = put->variant;
    put->entry = id;
    put->number = entry->number;
    return 0;
}

static void unclaim_entry_locked(struct larder_store *store, struct larder_put *put)
{
    if (put->entry == TABLE_NONE)
        return;
    struct entry *entry = table_entry(&store->table, put->entry);
    entry->flags &= (uint16_t) ~(ENTRY_PUTTING | ENTRY_GROUPED);
    put_watches_locked(store, put->entry, LARDER_ENOTFOUND);
    if (!(entry->flags & (ENTRY_VISIBLE | ENTRY_DOOMED)))
        table_remove(&store->table, put->entry);
    put->entry = TABLE_NONE;
}

/* -EAGAIN: a slab is to be added first. */
static int reserve_locked(struct larder_store *store, struct larder_put *put,
                          const struct larder_put_desc *desc, uint64_t bytes)
{
    if (store->read_only)
        return larder_fail(LARDER_EREADONLY, "store is read-only after a failed sync; restart it");
    /* Else nobody would know that the profile is needed. */
    if (measure_profile(desc->profile) != 0 && name_locked(store, desc).recipe == 0)
        return larder_fail(LARDER_ELIMIT,
                           "%u recipes are known since larderd was started, the most there may be; "
                           "one with a profile cannot be added",
                           TABLE_RECIPES_MAX);
    put->entry = TABLE_NONE;
    put->replaces = false;
    /* Claimed before room is made: the parent must not be what is evicted. */
    LARDER_TRY(claim_entry_locked(store, put, desc));
    link_put_locked(store, put);
    int err = quota_check_put_locked(store, desc->tenant, bytes);
    if (err == 0)
        err = evict_take_locked(store, &put->slot, desc->tenant, bytes);
    if (err == 0) {
        uint32_t primary = table_primary(&store->table, put->entry);
        bool marked = table_entry(&store->table, primary)->flags & ENTRY_MARKED;
        err = mark_prepare_put(&put->mark_write, desc, marked);
        if (err < 0) {
            host_drop(&store->host, put->slot);
            host_unpin(&store->host, put->slot);
        }
    }
    if (err < 0) {
        unclaim_entry_locked(store, put);
        unlink_put_locked(store, put);
    }
    return err;
}

static void write_head(struct larder_put *put, const struct larder_put_desc *desc,
                       const struct larder_head_layout *layout, const uint8_t tenant_id[16],
                       const struct larder_key *fingerprint, size_t recipe_bytes)
{
    struct larder_record *record = put->append.record;
    uint8_t *bytes = (uint8_t *)record;
    memset(bytes, 0, layout->sections);
    record->magic = LARDER_RECORD_MAGIC;
    record->version = LARDER_RECORD_VERSION;
    record->type = LARDER_RECORD_ENTRY;
    record->tag_kind = LARDER_TAG_XXH3_128;
    record->raw_bytes = desc->raw_bytes;
    memcpy(record->key, desc->key.bytes, sizeof(record->key));
    memcpy(record->parent, desc->parent.bytes, sizeof(record->parent));
    memcpy(record->model, fingerprint->bytes, sizeof(record->model));
    memcpy(record->tenant, tenant_id, sizeof(record->tenant));
    record->extra_bytes = desc->extra_bytes;
    record->token_count = desc->token_count;
    record->position = desc->position;
    record->variant = put->number;
    record->recipe_bytes = (uint16_t)recipe_bytes;
    memcpy(record->profile, desc->profile, sizeof(record->profile));
    record->quality = (uint8_t)desc->quality;
    record->computed_on = (uint8_t)desc->computed_on;
    if (desc->computed_on != LARDER_QUALITY_EXACT)
        record->computed_on_kl = larder_computed_on_kl_bits(desc->computed_on_kl);
    record->k_error = desc->k_error;
    record->v_error = desc->v_error;
    if (desc->extra_bytes > 0)
        memcpy(bytes + layout->extra, desc->extra, desc->extra_bytes);
    memcpy(bytes + layout->recipe, desc->recipe, recipe_bytes);
    if (desc->token_count > 0)
        memcpy(bytes + layout->tokens, desc->tokens, sizeof(uint32_t) * desc->token_count);
}

int larder_store_put_reserve(struct larder_store *store, struct larder_put **out,
                             const struct larder_put_desc *desc)
{
    *out = NULL;
    size_t recipe_bytes = strlen(desc->recipe);
    LARDER_TRY(check_desc(desc, recipe_bytes));
    struct larder_head_layout layout;
    larder_head_layout(&layout, desc->extra_bytes, (uint32_t)recipe_bytes, desc->token_count,
                       desc->section_count_max);
    uint64_t bytes = larder_round_up(layout.sections + desc->payload_bytes_max, LARDER_PAGE_BYTES);
    /* A segment also holds its header and a record of the model. */
    uint64_t bytes_max = larder_min_u64(host_record_bytes_max(&store->host),
                                        store->options.segment_bytes - 2 * LARDER_PAGE_BYTES);
    bytes_max = larder_min_u64(bytes_max, LARDER_RECORD_BYTES_MAX);
    if (bytes > bytes_max)
        return larder_fail(LARDER_EFULL,
                           "a record of %llu bytes, at most %llu fit; raise slab_bytes and "
                           "segment_bytes, or use smaller blocks",
                           (unsigned long long)bytes, (unsigned long long)bytes_max);
    struct larder_put *put = larder_alloc_zero(1, sizeof(*put));
    if (!put)
        return larder_fail(-ENOMEM, "put: no memory");

    int err;
    for (;;) {
        pthread_mutex_lock(&store->lock);
        err = reserve_locked(store, put, desc, bytes);
        if (err != -EAGAIN)
            break;
        pthread_mutex_unlock(&store->lock);
        err = evict_grow(store, desc->tenant);
        if (err < 0) {
            larder_free(put);
            return err;
        }
    }
    if (err < 0) {
        store->stats.puts_refused += err == -EBUSY || err == LARDER_EFULL;
        if (err == -EBUSY || err == LARDER_EFULL)
            history_note(&store->history, &desc->key, LARDER_EVENT_REFUSED);
        pthread_mutex_unlock(&store->lock);
        larder_free(put);
        return err;
    }
    put->append.record = host_record(&store->host, put->slot);
    const uint8_t *tenant_id = larder_identity_tenant(store->identity, desc->tenant)->id;
    struct larder_key fingerprint = store->models[desc->model]->info.fingerprint;
    pthread_mutex_unlock(&store->lock);

    put->completion.run = run_put;
    put->store = store;
    put->key = desc->key;
    put->tenant = desc->tenant;
    put->model = desc->model;
    put->idle_s = desc->idle_s;
    put->mark = desc->mark;
    put->payload_offset = layout.sections;
    put->payload_bytes_max = bytes - layout.sections;
    put->section_count_max = desc->section_count_max;
    write_head(put, desc, &layout, tenant_id, &fingerprint, recipe_bytes);
    *out = put;
    return 0;
}

void *larder_put_payload(struct larder_put *put, uint64_t *offset_in_record)
{
    *offset_in_record = put->payload_offset;
    return (uint8_t *)put->append.record + put->payload_offset;
}

struct larder_section *larder_put_directory(struct larder_put *put)
{
    return (struct larder_section *)larder_record_directory(put->append.record);
}

void larder_put_set_errors(struct larder_put *put, float k_error, float v_error)
{
    put->append.record->k_error = k_error;
    put->append.record->v_error = v_error;
}

/* --- publication ----------------------------------------------------------------------------- */

/* Completes the head, and zeroes what the sections leave open: slots are used again, and nothing of
 * an older record may go to disk in this one's padding. What the directory says came from outside
 * the store. */
static int complete_record(struct larder_put *put, uint32_t section_count, uint64_t payload_bytes)
{
    struct larder_record *record = put->append.record;
    struct larder_section *sections = larder_put_directory(put);
    if (section_count == 0 || section_count > put->section_count_max ||
        payload_bytes > put->payload_bytes_max)
        return larder_fail(LARDER_EPROTO, "%u sections, %llu bytes; reserved were %u and %llu",
                           section_count, (unsigned long long)payload_bytes, put->section_count_max,
                           (unsigned long long)put->payload_bytes_max);
    memset(sections + section_count, 0,
           (put->section_count_max - section_count) * sizeof(*sections));
    uint64_t payload_end = put->payload_offset + payload_bytes;
    struct larder_head_layout layout;
    larder_head_layout(&layout, record->extra_bytes, record->recipe_bytes, record->token_count,
                       section_count);
    record->section_count = (uint16_t)section_count;
    record->head_bytes = layout.head_bytes;
    record->record_bytes = larder_round_up(payload_end, LARDER_PAGE_BYTES);
    if (larder_record_check(record, record->record_bytes) < 0)
        return larder_fail(LARDER_EPROTO, "%s", larder_error_message());

    uint8_t *bytes = (uint8_t *)record;
    uint64_t end = put->payload_offset;
    for (uint32_t i = 0; i < section_count; i++) {
        if (sections[i].offset < end || sections[i].offset + sections[i].bytes > payload_end)
            return larder_fail(LARDER_EPROTO, "section %u lies outside of the payload", i);
        memset(bytes + end, 0, sections[i].offset - end);
        end = sections[i].offset + sections[i].bytes;
    }
    memset(bytes + end, 0, record->record_bytes - end);
    record->created_s = (uint64_t)time(NULL);
    return 0;
}

static void set_variant(struct larder_put *put)
{
    struct larder_record *record = put->append.record;
    put->variant.generation = record->generation;
    put->variant.created_s = table_narrow(record->created_s);
    put->variant.position = table_narrow(record->position);
    put->variant.raw_bytes = (uint32_t)record->raw_bytes;
    put->variant.record_pages = (uint32_t)(record->record_bytes / LARDER_PAGE_BYTES);
    put->variant.head_bytes = record->head_bytes;
    put->variant.quality = record->quality;
    put->variant.computed_on = record->computed_on;
    put->variant.computed_on_kl = record->computed_on_kl;
}

/* Nobody was, or will be, told that it is durable, and it is nowhere on SSD yet. */
static bool may_stay_cached(const struct larder_store *store, const struct larder_put *put,
                            enum larder_wait wait)
{
    const struct entry *entry = table_entry(&store->table, put->entry);
    const struct entry *primary =
        table_entry(&store->table, table_primary(&store->table, put->entry));
    return wait == LARDER_CACHED && !put->mark_write && !(entry->flags & ENTRY_DURABLE) &&
           !(primary->flags & (ENTRY_WATCHED | ENTRY_MARKED | ENTRY_HELD));
}

/* From here on everybody finds the entry, with this record. Inside a request, which ends. False: it
 * is not to be written. */
static bool publish_locked(struct larder_store *store, struct larder_put *put,
                           enum larder_wait wait)
{
    struct larder_record *record = put->append.record;
    struct entry *entry = table_entry(&store->table, put->entry);
    record->generation = store->next_generation++;
    set_variant(put);
    host_shrink(&store->host, put->slot, record->record_bytes);
    if (put->replaces && entry->slot != HOST_NONE)
        evict_detach_slot_locked(store, put->entry);
    stats_leave_locked(store, put->entry);
    put->old = entry->variant;
    entry->variant = put->variant;
    tiers_attach_locked(store, put->entry, put->slot);
    entry->used_s = store->request_s;
    bool written = true;
    if (may_stay_cached(store, put, wait))
        written = tiers_admit_locked(store, put->entry);
    else
        tiers_write_locked(store, put->entry);
    tiers_end_locked(store);
    if (put->idle_s > 0)
        tiers_age_locked(store, put->entry, put->idle_s);
    entry->flags |= ENTRY_VISIBLE;
    stats_enter_locked(store, put->entry);
    const struct host_slot *slot = host_slot(&store->host, put->slot);
    atomic_store_explicit(&slot->shared->published_sections, record->section_count,
                          memory_order_release);
    host_ready(&store->host, put->slot);
    store->stats.puts++;
    store->tenants[entry->tenant].stats.puts++;
    mark_published_locked(store, put->entry, &put->mark_write, &put->mark);
    larder_free(put->mark_write); /* it was not needed, or there was no memory for the mark */
    put->mark_write = NULL;
    put_watches_locked(store, put->entry, 0);
    return written;
}

/* Its entry stays in the host tier. */
static void end_cached_locked(struct larder_store *store, struct larder_put *put)
{
    struct entry *entry = table_entry(&store->table, put->entry);
    uint64_t bytes = (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
    history_note(&store->history, &put->key, LARDER_EVENT_NOT_ADMITTED);
    store->stats.bytes_not_admitted += bytes;
    store->tenants[entry->tenant].stats.bytes_not_admitted += bytes;
    entry->flags &= (uint16_t)~ENTRY_PUTTING;
    variant_order_locked(store, table_primary(&store->table, put->entry));
    unlink_put_locked(store, put);
    host_unpin(&store->host, put->slot);
}

static void drop_reserved_locked(struct larder_store *store, struct larder_put *put)
{
    unclaim_entry_locked(store, put);
    unlink_put_locked(store, put);
    host_drop(&store->host, put->slot);
    host_unpin(&store->host, put->slot);
    larder_free(put->mark_write);
}

void larder_store_put_commit(struct larder_store *store, struct larder_put *put,
                             uint32_t section_count, uint64_t payload_bytes, enum larder_wait wait,
                             larder_put_done done, void *context)
{
    int err = complete_record(put, section_count, payload_bytes);
    pthread_mutex_lock(&store->lock);
    assert(put->state == PUT_RESERVED);
    if (err == 0 && (put->entry == TABLE_NONE ||
                     (table_entry(&store->table, put->entry)->flags & ENTRY_DOOMED) ||
                     store->tenants[table_entry(&store->table, put->entry)->tenant].closed))
        err = larder_fail(LARDER_ENOPARENT, "the entry or its parent was removed meanwhile");
    if (err == 0)
        err = tiers_begin_locked(store, table_entry(&store->table, put->entry)->tenant);
    if (err < 0) {
        drop_reserved_locked(store, put);
        pthread_mutex_unlock(&store->lock);
        store_wake(store); /* others may have waited for this entry */
        larder_free(put);
        done(context, err);
        return;
    }
    bool written = publish_locked(store, put, wait);
    if (wait == LARDER_DURABLE) {
        put->done = done;
        put->context = context;
    }
    /* Read-only meanwhile: the storage thread takes it out of the queue again and says so. */
    if (written)
        queue_put_locked(store, put);
    else
        end_cached_locked(store, put);
    pthread_mutex_unlock(&store->lock);
    store_wake(store); /* others may have waited for this entry */
    if (!written)
        larder_free(put);
    if (wait == LARDER_CACHED)
        done(context, 0);
}

void larder_store_put_abort(struct larder_store *store, struct larder_put *put)
{
    pthread_mutex_lock(&store->lock);
    assert(put->state == PUT_RESERVED);
    drop_reserved_locked(store, put);
    pthread_mutex_unlock(&store->lock);
    store_wake(store); /* others may have waited for this entry */
    larder_free(put);
}

/* --- the end of a put ------------------------------------------------------------------------ */

struct larder_put *put_of_locked(const struct larder_store *store, uint32_t id)
{
    struct larder_put *put = store->puts;
    while (put->entry != id)
        put = put->all_next;
    return put;
}

struct larder_put *put_make_rewrite_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    assert(!(entry->flags & (ENTRY_PUTTING | ENTRY_DURABLE)));
    assert(entry->slot != HOST_NONE);
    struct larder_put *put = larder_alloc_zero(1, sizeof(*put));
    if (!put)
        return NULL;
    put->completion.run = run_put;
    put->store = store;
    put->entry = id;
    put->slot = entry->slot;
    put->number = entry->number;
    put->key = entry->key;
    put->tenant = entry->tenant;
    put->model = entry->model;
    put->variant = entry->variant;
    put->append.record = host_record(&store->host, entry->slot);
    host_slot(&store->host, entry->slot)->pins++;
    entry->flags |= ENTRY_PUTTING;
    entry->pending_quality = entry->variant.quality;
    link_put_locked(store, put);
    tiers_rewrite_locked(store, id);
    return put;
}

bool put_rewrite_locked(struct larder_store *store, uint32_t id)
{
    struct larder_put *put = put_make_rewrite_locked(store, id);
    if (put)
        queue_put_locked(store, put);
    return put != NULL;
}

static void settle_entry_locked(struct larder_store *store, struct larder_put *put, int err)
{
    struct entry *entry = table_entry(&store->table, put->entry);
    entry->flags &= (uint16_t) ~(ENTRY_PUTTING | ENTRY_GROUPED);
    bool was_durable = entry->flags & ENTRY_DURABLE;
    if (err == 0) {
        stats_leave_locked(store, put->entry);
        entry->variant = put->variant;
        entry->flags |= ENTRY_DURABLE;
        stats_enter_locked(store, put->entry);
        if (was_durable)
            writer_extent_dead_locked(store, &put->old);
    } else {
        history_note(&store->history, &put->key, LARDER_EVENT_WRITE_FAILED);
    }
    if (err < 0 && was_durable) {
        /* What the index names is the older, worse record: back to that one. */
        if (entry->slot != HOST_NONE)
            evict_detach_slot_locked(store, put->entry);
        stats_leave_locked(store, put->entry);
        entry->variant = put->old;
        stats_enter_locked(store, put->entry);
    } else if (err < 0) {
        tiers_unwrite_locked(store, put->entry);
    }
    put_watches_locked(store, put->entry, err);
    variant_order_locked(store, table_primary(&store->table, put->entry));
}

void put_finish_locked(struct larder_store *store, struct larder_put *put, int err)
{
    assert(put->state != PUT_RESERVED);
    uint64_t bytes = (uint64_t)put->variant.record_pages * LARDER_PAGE_BYTES;
    store->queued_bytes -= bytes;
    store->tenants[put->tenant].queued_bytes -= bytes;
    if (put->state == PUT_GROUPED)
        store->tenants[put->tenant].grouped_bytes -= bytes;
    if (put->entry != TABLE_NONE)
        settle_entry_locked(store, put, err);
    unlink_put_locked(store, put);
    host_unpin(&store->host, put->slot);
    put->err = err;
    if (put->done)
        store_complete_locked(store, &put->completion);
    else
        larder_free(put);
}

void put_orphan_locked(struct larder_store *store, uint32_t id)
{
    struct entry *entry = table_entry(&store->table, id);
    if (!(entry->flags & ENTRY_PUTTING))
        return;
    struct larder_put *put = put_of_locked(store, id);
    put->entry = TABLE_NONE;
    entry->flags &= (uint16_t) ~(ENTRY_PUTTING | ENTRY_GROUPED);
    if (put->state != PUT_RESERVED)
        entry->variant = put->old; /* what is on SSD, if anything */
}
