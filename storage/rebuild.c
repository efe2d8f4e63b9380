/* SPDX-License-Identifier: Apache-2.0 */
/* rebuild.c - the table from segments alone, when there is no index or a damaged one.
 *
 * Every segment is read head by head, stepping over sections. Verified whole are those in which
 * writes may have been cut short: the newest (space.c), and one without a header, which was written
 * with its first group and lost with it, or damaged since. Where no valid head stands (a hole that
 * was punched, damage) the next page that begins like a record is looked for. Of two records of a
 * key with one number the newer one wins, after it was verified whole, and of two with one name;
 * tombstones remove what is older than they are, and what is behind it; what has no parent goes. A
 * record behind a place in the newest segment where nothing sound stands may have lost the mark
 * that was written before it: the one of the record that it was put to holds for it then
 * (recover_priv.h).
 *
 * A payload may hold bytes that look like a record. They are met only inside of a record whose own
 * head is damaged, and must then carry the right place and tags; those of plain stores do not
 * resist somebody who makes them on purpose (docs/FORMAT.md), those of encrypted stores do.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/recover_priv.h"

struct rebuild {
    struct recovery *recovery;
    struct removed_key *removed;
    uint32_t removed_count;
    uint32_t removed_capacity;
    bool gap; /* before the record, in a segment that may have been cut short */
};

static int note_removed(struct rebuild *rebuild, const struct larder_record *record)
{
    const struct larder_key *keys = (const void *)larder_record_extra(record);
    uint32_t count = record->extra_bytes / (uint32_t)sizeof(*keys);
    struct removed_key removed;
    if (!recovery_removed(rebuild->recovery, &removed, record))
        return 0;
    while (rebuild->removed_count + count > rebuild->removed_capacity) {
        uint32_t capacity = rebuild->removed_capacity ? rebuild->removed_capacity * 2 : 1024;
        struct removed_key *grown =
            larder_realloc(rebuild->removed, sizeof(*grown) * (size_t)capacity);
        if (!grown)
            return larder_fail(-ENOMEM, "rebuild: no memory");
        rebuild->removed = grown;
        rebuild->removed_capacity = capacity;
    }
    for (uint32_t i = 0; i < count; i++) {
        removed.key = keys[i];
        rebuild->removed[rebuild->removed_count++] = removed;
    }
    return 0;
}

/* Is the record of this variant whole? Uses the scan's buffer. */
static int is_whole(struct recovery *recovery, const struct entry_variant *variant, bool *whole)
{
    struct segment *segment = seglog_find(&recovery->store->log, variant->segment_id);
    const struct larder_record *record;
    int err = scan_record(&recovery->scan, &record, segment,
                          (uint64_t)variant->segment_page * LARDER_PAGE_BYTES);
    *whole = err == 0 && record->generation == variant->generation;
    return err == LARDER_ECORRUPT ? 0 : err;
}

/* A model that entries name before any record has described it: known by its fingerprint only,
 * until then. */
static int model_of(struct recovery *recovery, uint32_t *out, const struct larder_record *record)
{
    static const struct larder_model_desc unknown;
    struct larder_key fingerprint;
    memcpy(fingerprint.bytes, record->model, sizeof(fingerprint.bytes));
    return store_add_model_locked(recovery->store, out, &fingerprint, &unknown);
}

static int take_model(struct recovery *recovery, const struct larder_record *record)
{
    uint32_t model;
    int err = recovery_model(recovery, &model, record);
    if (err < 0)
        return err == -ENOMEM ? err : 0;
    memcpy(&recovery->store->models[model]->info.desc, larder_record_extra(record),
           sizeof(struct larder_model_desc));
    return 0;
}

/* Tombstones stand in the order of their writing, and so of their generations. */
static bool is_removed_since(const struct rebuild *rebuild, const struct larder_key *key,
                             uint64_t since)
{
    for (uint32_t i = rebuild->removed_count; i-- > 0;) {
        const struct removed_key *removed = &rebuild->removed[i];
        if (removed->generation <= since)
            return false;
        if (removed->all && larder_key_equal(&removed->key, key))
            return true;
    }
    return false;
}

/* A mark that was to go before the record may have stood where nothing sound stands now. */
static int carry_marks(struct rebuild *rebuild, const struct larder_key *key, uint64_t generation)
{
    const struct table *table = &rebuild->recovery->store->table;
    uint32_t primary = rebuild->gap ? table_find(table, key) : TABLE_NONE;
    if (primary == TABLE_NONE)
        return 0;
    uint64_t since = table_entry(table, primary)->variant.generation;
    if (is_removed_since(rebuild, key, since))
        return 0;
    return recovery_carry_marks(rebuild->recovery, generation, since);
}

static int take_entry(struct rebuild *rebuild, const struct larder_record *record)
{
    struct recovery *recovery = rebuild->recovery;
    struct larder_store *store = recovery->store;
    uint16_t tenant;
    if (record->variant >= LARDER_VARIANTS_MAX ||
        !recovery_tenant(recovery, record->tenant, &tenant))
        return 0;
    uint32_t model;
    LARDER_TRY(model_of(recovery, &model, record));
    struct recovered_entry found = {.tenant = tenant,
                                    .model = (uint16_t)model,
                                    .token_count = (uint16_t)record->token_count,
                                    .variant = record->variant};
    memcpy(found.key.bytes, record->key, sizeof(found.key.bytes));
    memcpy(found.parent.bytes, record->parent, sizeof(found.parent.bytes));
    struct entry_variant variant;
    recovery_variant(&variant, store, record);
    LARDER_TRY(carry_marks(rebuild, &found.key, variant.generation));

    uint32_t id = table_find_variant(&store->table, &found.key, found.variant);
    if (id != TABLE_NONE) {
        const struct entry *known = table_entry(&store->table, id);
        bool newer = variant.generation > known->variant.generation;
        bool whole;
        LARDER_TRY(is_whole(recovery, newer ? &variant : &known->variant, &whole));
        if (whole != newer || known->tenant != tenant || known->model != found.model ||
            known->token_count != found.token_count)
            return 0;
    } else {
        LARDER_TRY(recovery_add(recovery, &id, &found));
        if (id == TABLE_NONE)
            return 0;
    }
    table_entry(&store->table, id)->variant = variant;
    return 0;
}

static int scan_segment(struct rebuild *rebuild, struct segment *segment)
{
    struct recovery *recovery = rebuild->recovery;
    bool cut_short = segment->blank || segment == seglog_newest(&recovery->store->log);
    uint64_t offset = SEGMENT_HEADER_BYTES;
    uint64_t last_end = larder_min_u64(SEGMENT_HEADER_BYTES, segment->end_bytes);
    rebuild->gap = false;
    while (offset < segment->end_bytes) {
        const struct larder_record *record;
        int err =
            recovery_next(recovery, &record, segment, &offset, cut_short ? READ_WHOLE : READ_HEAD);
        if (err == LARDER_ECORRUPT) {
            LARDER_TRY(scan_resync(&recovery->scan, &offset, segment, offset + LARDER_PAGE_BYTES));
            continue;
        }
        LARDER_TRY(err);
        if (record->generation > recovery->generation)
            recovery->generation = record->generation;
        rebuild->gap = rebuild->gap || (cut_short && offset > last_end);
        offset += record->record_bytes;
        last_end = offset;
        if (record->type == LARDER_RECORD_TOMBSTONE) {
            segment->tombstone_bytes += record->record_bytes;
            err = note_removed(rebuild, record);
        } else if (record->type == LARDER_RECORD_MARK) {
            segment->tombstone_bytes += record->record_bytes;
            err = recovery_marks(recovery, record);
        } else if (record->type == LARDER_RECORD_MODEL) {
            err = take_model(recovery, record);
        } else if (record->type == LARDER_RECORD_ENTRY) {
            err = take_entry(rebuild, record);
        }
        LARDER_TRY(err);
    }
    segment->committed_bytes = segment->end_bytes = last_end;
    return 0;
}

static void apply_removed(struct rebuild *rebuild)
{
    for (uint32_t i = 0; i < rebuild->removed_count; i++) {
        uint32_t id;
        while ((id = recovery_find_removed(rebuild->recovery, &rebuild->removed[i])) != TABLE_NONE)
            recovery_forget(rebuild->recovery, id);
    }
}

/* A removal takes all that is behind its keys, but its tombstone names only what was still stored
 * then: what had been evicted before may stand in a segment yet. It is older than a tombstone of
 * one of its ancestors. The table is linked. */
static int drop_behind_removed(struct rebuild *rebuild)
{
    struct larder_store *store = rebuild->recovery->store;
    struct table *table = &store->table;
    if (rebuild->removed_count == 0)
        return 0;
    /* By entry: the newest tombstone of it or an ancestor. */
    uint64_t *newest = larder_alloc_zero(table->entry_end, sizeof(*newest));
    if (!newest)
        return larder_fail(-ENOMEM, "rebuild: no memory");
    for (uint32_t i = 0; i < rebuild->removed_count; i++) {
        const struct removed_key *removed = &rebuild->removed[i];
        uint32_t id = removed->all ? table_find(table, &removed->key) : TABLE_NONE;
        if (id != TABLE_NONE && table_entry(table, id)->tenant == removed->tenant &&
            newest[id] < removed->generation)
            newest[id] = removed->generation;
    }
    for (uint32_t i = 0; i < larder_identity_tenant_count(store->identity); i++) {
        uint32_t root = store->tenants[i].root;
        for (uint32_t id = root; id != TABLE_NONE; id = table_next_below(table, id, root)) {
            uint32_t parent = table_entry(table, id)->parent;
            if (id != root && newest[id] < newest[parent])
                newest[id] = newest[parent];
        }
    }
    int err = 0;
    for (uint32_t id = 1; id < table->entry_end && err == 0; id++) {
        const struct entry *entry = table_entry(table, id);
        if ((entry->flags & ENTRY_DURABLE) && entry->variant.generation < newest[id])
            err = recovery_drop_subtree(rebuild->recovery, id);
    }
    larder_free(newest);
    return err;
}

/* Entries of models that nothing described are of no use to anybody. */
static void drop_unknown_models(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t id = 1; id < store->table.entry_end; id++) {
        const struct entry *entry = table_entry(&store->table, id);
        if ((entry->flags & ENTRY_USED) && !(entry->flags & (ENTRY_ROOT | ENTRY_VARIANT)) &&
            store->models[entry->model]->info.desc.layers == 0) {
            recovery->dropped += table_variant_count(&store->table, id);
            recovery_forget_key(recovery, id);
        }
    }
    uint32_t kept = 0;
    uint16_t *moved = larder_alloc_zero(store->model_count + 1ul, sizeof(*moved));
    for (uint32_t i = 0; moved && i < store->model_count; i++) {
        struct model_state *model = store->models[i];
        if (model->info.desc.layers == 0) {
            larder_free(model);
            continue;
        }
        moved[i] = (uint16_t)kept;
        model->info.index = kept;
        store->models[kept++] = model;
    }
    if (!moved)
        return;
    for (uint32_t id = 1; id < store->table.entry_end; id++)
        table_entry(&store->table, id)->model = moved[table_entry(&store->table, id)->model];
    store->model_count = kept;
    larder_free(moved);
}

static int note_all_changed(struct recovery *recovery)
{
    struct table *table = &recovery->store->table;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        const struct entry *entry = table_entry(table, id);
        if ((entry->flags & ENTRY_USED) && !(entry->flags & ENTRY_ROOT))
            LARDER_TRY(recovery_changed(recovery, &entry->key, entry->number));
    }
    return 0;
}

int rebuild_table(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    struct rebuild rebuild = {.recovery = recovery};
    int err = 0;
    for (uint32_t i = 0; i < store->log.count && err == 0; i++)
        err = scan_segment(&rebuild, store->log.segments[i]);
    if (err == 0) {
        apply_removed(&rebuild);
        drop_unknown_models(recovery);
        err = recovery_link(recovery);
    }
    if (err == 0)
        err = drop_behind_removed(&rebuild);
    larder_free(rebuild.removed);
    LARDER_TRY(err);
    recovery->changed_count = 0; /* the index is empty: nothing has to be deleted */
    return note_all_changed(recovery);
}
