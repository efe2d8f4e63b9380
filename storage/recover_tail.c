/* SPDX-License-Identifier: Apache-2.0 */
/* recover_tail.c - what stands in segments behind their committed bytes, which the index does not
 * know: of the newest it is taken in, record by record, in the order of its writing; of others it
 * was given up. The table is linked.
 * Threads: the one that opens the store.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "storage/planted.h"
#include "storage/recover_priv.h"

/* What a tombstone says counts for its tenant's entries alone. */
static int take_tombstone(struct recovery *recovery, const struct larder_record *record)
{
    struct removed_key removed;
    if (!recovery_removed(recovery, &removed, record))
        return 0;
    const struct larder_key *keys = (const void *)larder_record_extra(record);
    uint32_t count = record->extra_bytes / (uint32_t)sizeof(*keys);
    for (uint32_t i = 0; i < count; i++) {
        removed.key = keys[i];
        uint32_t id;
        while ((id = recovery_find_removed(recovery, &removed)) != TABLE_NONE)
            LARDER_TRY(removed.all ? recovery_drop_subtree(recovery, id)
                                   : recovery_drop_record(recovery, id));
    }
    return 0;
}

static int take_entry(struct recovery *recovery, const struct larder_record *record)
{
    struct larder_store *store = recovery->store;
    struct larder_key key, parent_key, fingerprint;
    memcpy(key.bytes, record->key, sizeof(key.bytes));
    memcpy(parent_key.bytes, record->parent, sizeof(parent_key.bytes));
    memcpy(fingerprint.bytes, record->model, sizeof(fingerprint.bytes));
    uint32_t model = store_find_model_locked(store, &fingerprint);
    uint16_t tenant;
    if (record->variant >= LARDER_VARIANTS_MAX || model == store->model_count ||
        !recovery_tenant(recovery, record->tenant, &tenant))
        return 0;
    uint32_t parent = larder_key_equal(&parent_key, &larder_key_root)
                          ? store->tenants[tenant].root
                          : table_find(&store->table, &parent_key);
    if (parent == TABLE_NONE || table_entry(&store->table, parent)->tenant != tenant)
        return 0;
    uint32_t primary = table_find(&store->table, &key);
    uint32_t id = table_find_variant(&store->table, &key, record->variant);
    if (primary != TABLE_NONE && (table_entry(&store->table, primary)->parent != parent ||
                                  table_entry(&store->table, primary)->model != model))
        return 0;
    LARDER_TRY(tiers_expect(store, tenant));
    if (primary != TABLE_NONE)
        LARDER_TRY(recovery_carry_marks(recovery, record->generation,
                                        table_entry(&store->table, primary)->variant.generation));
    if (id != TABLE_NONE) {
        struct entry *entry = table_entry(&store->table, id);
        if (entry->variant.generation >= record->generation)
            return 0;
        recovery_extent_dead(store, &entry->variant);
        stats_leave_locked(store, id);
        tiers_unwrite_locked(store, id);
        entry->flags &= (uint16_t) ~(ENTRY_VISIBLE | ENTRY_DURABLE);
    } else {
        id = primary != TABLE_NONE
                 ? table_add_variant_as(&store->table, primary, (uint8_t)record->variant)
                 : table_add(&store->table, &key, parent, (uint16_t)record->token_count);
        if (id == TABLE_NONE)
            return larder_fail(-ENOMEM, "recovery: no memory");
    }
    struct entry *entry = table_entry(&store->table, id);
    entry->model = (uint16_t)model;
    entry->number = (uint8_t)record->variant;
    recovery_variant(&entry->variant, store, record);
    recovery_make_durable(store, id);
    variant_order_locked(store, table_primary(&store->table, id));
    store->stats.recovered_from_tail++;
    LARDER_TRY(recovery_changed(recovery, &key, record->variant));
    return recovery_drop_doubles(recovery, table_primary(&store->table, id));
}

static int take_record(struct recovery *recovery, struct segment *segment,
                       const struct larder_record *record)
{
    if (record->generation > recovery->generation)
        recovery->generation = record->generation;
    uint32_t model;
    switch (record->type) {
    case LARDER_RECORD_ENTRY:
        return take_entry(recovery, record);
    case LARDER_RECORD_TOMBSTONE:
        segment->tombstone_bytes += record->record_bytes;
        return take_tombstone(recovery, record);
    case LARDER_RECORD_MARK:
        segment->tombstone_bytes += record->record_bytes;
        return recovery_marks(recovery, record);
    case LARDER_RECORD_MODEL: {
        int err = recovery_model(recovery, &model, record);
        return err == -ENOMEM ? err : 0;
    }
    default:
        return 0;
    }
}

/* Behind it stands a sound record. */
static void tell_gap(const struct segment *segment, uint64_t from, uint64_t to)
{
    larder_log(LARDER_LOG_WARN,
               "segment %u: no sound record in %llu bytes at %llu, which the index does not know: "
               "damaged, or never acknowledged; passed over",
               segment->id, (unsigned long long)(to - from), (unsigned long long)from);
}

/* Takes in what is whole behind the committed bytes; *end is where the last of it ends. All that
 * was acknowledged was synced, so none of it stands behind what power loss tore; but a bit may have
 * flipped since, and costs its record only. */
static int take_records(struct recovery *recovery, struct segment *segment, uint64_t *end)
{
    uint64_t offset = *end;
    while (offset < segment->end_bytes) {
        const struct larder_record *record;
        int err = recovery_next(recovery, &record, segment, &offset, READ_WHOLE);
        if (err == LARDER_ECORRUPT) {
            LARDER_TRY(scan_resync(&recovery->scan, &offset, segment, offset + LARDER_PAGE_BYTES));
            continue;
        }
        LARDER_TRY(err);
        if (offset > *end)
            tell_gap(segment, *end, offset);
        uint64_t bytes = record->record_bytes;
        LARDER_TRY(take_record(recovery, segment, record));
        offset += bytes;
        *end = offset;
    }
    return 0;
}

static uint64_t tail_begin(const struct segment *segment)
{
    return segment->committed_bytes < SEGMENT_HEADER_BYTES
               ? larder_min_u64(SEGMENT_HEADER_BYTES, segment->end_bytes)
               : segment->committed_bytes;
}

int recovery_read_tail(struct recovery *recovery)
{
    struct segment *newest = seglog_newest(&recovery->store->log);
    if (!newest || newest->blank)
        return 0;
    uint64_t offset = tail_begin(newest);
    return take_records(recovery, newest, &offset);
}

/* True in *changed when there was a tail, good or bad. Only the newest segment's may be good: a
 * segment is begun when all of the one before it is committed or given up (space.c), and what was
 * given up there may have been removed since, by a tombstone in a newer one. */
static int take_tail(struct recovery *recovery, struct segment *segment, bool newest, bool *changed)
{
    struct larder_store *store = recovery->store;
    uint64_t offset = tail_begin(segment);
    if (segment->blank)
        return 0; /* removed as soon as the store runs */
    if (newest && !LARDER_PLANT(TAIL_UNREAD))
        LARDER_TRY(take_records(recovery, segment, &offset));
    if (offset > segment->committed_bytes || segment->file_bytes > offset) {
        *changed = true;
        LARDER_TRY(store->io->ops->truncate(store->io, segment->file, offset));
        /* Synced with what was taken in before the index names it: see recovery_commit(). */
        if (segment->in_index)
            LARDER_TRY(larder_io_run(store->io, LARDER_IO_SYNC, segment->file, NULL, 0, 0));
    }
    segment->committed_bytes = segment->end_bytes = segment->file_bytes = offset;
    return 0;
}

int recovery_take_tails(struct recovery *recovery, bool *changed)
{
    struct larder_store *store = recovery->store;
    *changed = false;
    const struct segment *newest = seglog_newest(&store->log);
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        LARDER_TRY(take_tail(recovery, segment, segment == newest, changed));
    }
    return 0;
}
