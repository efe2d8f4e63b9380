/* SPDX-License-Identifier: Apache-2.0 */
/* recover_index.c - the index at a start: its rows into the table, each checked whether it makes
 * sense, and what changed since back into it.
 * Threads: the one that opens the store.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/recover_priv.h"

/* Members of one transaction (index.h). */
#define COMMIT_MAX 400u

/* --- load ------------------------------------------------------------------------------------- */

static int load_model(void *context, const struct larder_key *fingerprint,
                      const struct larder_model_desc *desc)
{
    struct recovery *recovery = context;
    struct larder_key actual;
    if (larder_model_check(desc) < 0 || larder_model_fingerprint(&actual, desc) < 0 ||
        !larder_key_equal(&actual, fingerprint))
        return larder_fail(LARDER_ECORRUPT, "index: a model does not fit its fingerprint");
    uint32_t index;
    LARDER_TRY(store_add_model_locked(recovery->store, &index, fingerprint, desc));
    recovery->store->models[index]->in_index = true;
    return 0;
}

static int load_segment(void *context, uint32_t id, const struct index_segment *row)
{
    struct recovery *recovery = context;
    struct larder_store *store = recovery->store;
    if (id == REBUILD_MARK) {
        recovery->rebuild_again = true;
        return 0;
    }
    seglog_saw(&store->log, id);
    struct segment *segment = seglog_find(&store->log, id);
    if (!segment) {
        uint32_t *gone = larder_realloc(store->gone, sizeof(*gone) * (store->gone_count + 1ul));
        if (!gone)
            return larder_fail(-ENOMEM, "recovery: no memory");
        store->gone = gone;
        gone[store->gone_count++] = id;
        return 0;
    }
    segment->in_index = true;
    segment->blank = false; /* its header may have been overwritten since */
    segment->committed_bytes =
        larder_min_u64(row->committed_bytes, segment->end_bytes) & ~(LARDER_PAGE_BYTES - 1ull);
    if (segment->committed_bytes < row->committed_bytes)
        larder_log(LARDER_LOG_WARN, "segment %u: %llu bytes, the index knows %llu", id,
                   (unsigned long long)segment->end_bytes,
                   (unsigned long long)row->committed_bytes);
    segment->tombstone_bytes = row->tombstone_bytes;
    return 0;
}

/* The index is whole, but does the entry make sense? A start that was cut short between two
 * transactions has left entries of a tail whose row is written with the last: dropped, they would
 * take with them what is behind them, although the tail has them still. */
static bool entry_fits(const struct recovery *recovery, const struct index_entry *value)
{
    const struct seglog *log = &recovery->store->log;
    const struct segment *segment = seglog_find(log, value->segment_id);
    uint64_t offset = (uint64_t)value->segment_page * LARDER_PAGE_BYTES;
    if (!segment)
        return false;
    uint64_t end_bytes =
        segment == seglog_newest(log) ? segment->end_bytes : segment->committed_bytes;
    return offset >= SEGMENT_HEADER_BYTES && value->record_bytes % LARDER_PAGE_BYTES == 0 &&
           value->record_bytes <= LARDER_RECORD_BYTES_MAX &&
           value->head_bytes >= sizeof(struct larder_record) &&
           value->head_bytes <= value->record_bytes && offset + value->record_bytes <= end_bytes &&
           value->raw_bytes <= LARDER_RECORD_BYTES_MAX &&
           value->token_count <= LARDER_BLOCK_TOKENS_MAX &&
           value->quality <= LARDER_QUALITY_BLENDED && value->computed_on <= LARDER_QUALITY_BLENDED;
}

/* A purge that was cut short behind its point of no return. */
static void punch_purged(struct recovery *recovery, const struct index_entry *value)
{
    struct larder_store *store = recovery->store;
    if (entry_fits(recovery, value) && store->log.punches) /* larder fsck changes nothing */
        seglog_punch(&store->log, seglog_find(&store->log, value->segment_id),
                     (uint64_t)value->segment_page * LARDER_PAGE_BYTES, value->record_bytes);
}

static int load_entry(void *context, const struct larder_key *key, uint32_t variant,
                      const struct index_entry *value)
{
    struct recovery *recovery = context;
    struct larder_store *store = recovery->store;
    int order = memcmp(key->bytes, recovery->last_key.bytes, sizeof(key->bytes));
    if (order < 0)
        return larder_fail(LARDER_ECORRUPT, "index: its keys are out of order");
    recovery->last_key = *key;
    struct larder_key fingerprint;
    memcpy(fingerprint.bytes, value->model, sizeof(fingerprint.bytes));
    uint32_t model = store_find_model_locked(store, &fingerprint);
    uint16_t tenant;
    if (value->generation > recovery->generation)
        recovery->generation = value->generation;
    uint32_t id = TABLE_NONE;
    if (variant < LARDER_VARIANTS_MAX && model < store->model_count &&
        recovery_tenant(recovery, value->tenant, &tenant) && entry_fits(recovery, value)) {
        struct recovered_entry found = {.key = *key,
                                        .tenant = tenant,
                                        .model = (uint16_t)model,
                                        .token_count = (uint16_t)value->token_count,
                                        .variant = variant,
                                        .is_first = order > 0};
        memcpy(found.parent.bytes, value->parent, sizeof(found.parent.bytes));
        LARDER_TRY(recovery_add(recovery, &id, &found));
    }
    if (id == TABLE_NONE) {
        bool purged = !recovery_tenant(recovery, value->tenant, &tenant);
        history_note(&store->history, key, purged ? LARDER_EVENT_PURGED : LARDER_EVENT_LOST);
        if (purged)
            punch_purged(recovery, value);
        recovery->dropped += !purged;
        return recovery_changed(recovery, key, variant);
    }
    table_entry(&store->table, id)->variant = (struct entry_variant){
        .generation = value->generation,
        .created_s = table_narrow(value->created_s),
        .position = table_narrow(value->position),
        .raw_bytes = (uint32_t)value->raw_bytes,
        .record_pages = (uint32_t)(value->record_bytes / LARDER_PAGE_BYTES),
        .head_bytes = value->head_bytes,
        .segment_id = value->segment_id,
        .segment_page = value->segment_page,
        .recipe =
            table_recipe(&store->table, value->recipe,
                         (uint32_t)strnlen(value->recipe, sizeof(value->recipe)), value->profile),
        .quality = value->quality,
        .computed_on = value->computed_on,
        .computed_on_kl = value->computed_on_kl,
    };
    return 0;
}

static void entry_comes(void *context, const struct larder_key *key)
{
    const struct recovery *recovery = context;
    table_prefetch(&recovery->store->table, key);
}

static int load_mark(void *context, const struct larder_key *key, const struct index_mark *row)
{
    struct recovery *recovery = context;
    if (!mark_is_valid(&row->value))
        return recovery_changed(recovery, key, CHANGED_MARK);
    if (row->value.generation > recovery->generation)
        recovery->generation = row->value.generation;
    const struct recovered_mark mark = {
        .key = *key, .value = row->value, .segment_id = row->segment_id, .in_index = true};
    return recovery_mark(recovery, &mark);
}

int recovery_load_index(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    const struct index_visitor visitor = {.context = recovery,
                                          .entry = load_entry,
                                          .segment = load_segment,
                                          .mark = load_mark,
                                          .model = load_model,
                                          .soon = entry_comes};
    uint64_t generation;
    table_expect(&store->table, larder_index_entry_count(store->index));
    LARDER_TRY(larder_index_load(store->index, &visitor, &generation));
    if (generation > recovery->generation)
        recovery->generation = generation;
    if (recovery->rebuild_again)
        return larder_fail(LARDER_ECORRUPT, "index: its making anew was cut short");
    return recovery_link(recovery);
}

/* --- commit ----------------------------------------------------------------------------------- */

int recovery_changed(struct recovery *recovery, const struct larder_key *key, uint64_t variant)
{
    if (recovery->changed_count == recovery->changed_capacity) {
        uint32_t capacity = recovery->changed_capacity ? recovery->changed_capacity * 2 : 1024;
        struct changed_record *changed =
            larder_realloc(recovery->changed, sizeof(*changed) * (size_t)capacity);
        if (!changed)
            return larder_fail(-ENOMEM, "recovery: no memory");
        recovery->changed = changed;
        recovery->changed_capacity = capacity;
    }
    recovery->changed[recovery->changed_count++] =
        (struct changed_record){.key = *key, .variant = variant};
    return 0;
}

static int put_changed_mark(struct larder_store *store, const struct larder_key *key)
{
    uint32_t id = table_find(&store->table, key);
    struct index_mark row;
    if (id != TABLE_NONE && mark_stored_locked(store, id, &row))
        return larder_index_put_mark(store->index, key, &row);
    return larder_index_delete_mark(store->index, key);
}

static int put_changes(struct recovery *recovery, uint32_t first, uint32_t end, uint32_t mark)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = first; i < end; i++) {
        const struct larder_key *key = &recovery->changed[i].key;
        if (recovery->changed[i].variant == CHANGED_MARK) {
            LARDER_TRY(put_changed_mark(store, key));
            continue;
        }
        uint32_t variant = (uint32_t)recovery->changed[i].variant;
        uint32_t id = table_find_variant(&store->table, key, variant);
        if (id != TABLE_NONE) {
            const struct entry *entry = table_entry(&store->table, id);
            struct index_entry value;
            commit_fill_value_locked(store, &value, id, entry->model, &entry->variant);
            LARDER_TRY(larder_index_put_entry(store->index, key, variant, &value));
        } else {
            LARDER_TRY(larder_index_delete_entry(store->index, key, variant));
        }
    }
    if (mark) {
        struct index_segment row = {0};
        LARDER_TRY(larder_index_put_segment(store->index, mark, &row));
    }
    return 0;
}

static int put_rows(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < store->model_count; i++) {
        struct model_state *model = store->models[i];
        LARDER_TRY(
            larder_index_put_model(store->index, &model->info.fingerprint, &model->info.desc));
        model->in_index = true;
    }
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        struct index_segment row = {.committed_bytes = segment->committed_bytes,
                                    .tombstone_bytes = segment->tombstone_bytes};
        LARDER_TRY(larder_index_put_segment(store->index, segment->id, &row));
        segment->in_index = true;
    }
    /* The row of the highest id stays: it keeps the id from being used again. */
    for (uint32_t i = 0; i < store->gone_count; i++) {
        if (store->gone[i] + 1 < store->log.next_id)
            LARDER_TRY(larder_index_delete_segment(store->index, store->gone[i]));
    }
    return larder_index_delete_segment(store->index, REBUILD_MARK);
}

static int commit_part(struct recovery *recovery, uint32_t first, uint32_t end, uint32_t mark)
{
    struct larder_store *store = recovery->store;
    int err = -EAGAIN;
    for (int attempt = 0; attempt < 3 && err == -EAGAIN; attempt++) {
        LARDER_TRY(larder_index_begin(store->index));
        err = put_changes(recovery, first, end, mark);
        if (err == 0 && end == recovery->changed_count)
            err = put_rows(recovery);
        if (err < 0)
            larder_index_abort(store->index);
        else
            err = larder_index_commit(store->index, store->next_generation);
    }
    return err;
}

int recovery_commit(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        if (!segment->in_index && segment->end_bytes > 0)
            LARDER_TRY(larder_io_run(store->io, LARDER_IO_SYNC, segment->file, NULL, 0, 0));
    }
    uint32_t mark = store->stats.index_rebuilt ? REBUILD_MARK : 0;
    uint32_t first = 0;
    do {
        uint32_t end = (uint32_t)larder_min_u64(first + COMMIT_MAX, recovery->changed_count);
        LARDER_TRY(commit_part(recovery, first, end, end < recovery->changed_count ? mark : 0));
        first = end;
    } while (first < recovery->changed_count);
    store->gone_count = 0;
    return 0;
}
