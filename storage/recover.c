/* SPDX-License-Identifier: Apache-2.0 */
/* recover.c - what happens at every start.
 *
 *   1. The index is opened and loaded into the table, each value checked (recover_index.c). Any
 *      damage: it is set aside and made anew from the segments (rebuild.c).
 *   2. Entries that name a segment that is not there, or bytes outside of what was committed or,
 *      in the newest, written, go, with everything below them.
 *   3. What stands in the newest segment behind its committed bytes was written, acknowledged or
 *      not, and the index did not learn of it (recover_tail.c). Record by record it is taken in if
 *      whole, in the order of its writing; the file is cut behind the last. If the index does not
 *      know that segment, all of it is such a tail. What stands there in an older segment was given
 *      up: it is cut.
 *   4. What changed is synced and committed, in this order.
 *
 * Generations of this life begin far above all that were seen: records that were written and lost
 * had higher ones than the index knows of.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/recover_priv.h"

#define GENERATIONS_SKIPPED (1ull << 20)

static void forget_all(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->model_count; i++)
        larder_free(store->models[i]);
    store->model_count = 0;
    store->gone_count = 0;
    store->dead.count = 0;
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        segment->in_index = false;
        segment->committed_bytes = segment->live_bytes = segment->tombstone_bytes = 0;
    }
    table_close(&store->table);
    tiers_close(store);
    marks_close(&store->marks);
    memset(&store->stats, 0, sizeof(store->stats));
    for (uint32_t i = 0; i < LARDER_TENANTS_MAX; i++)
        store->tenants[i] = (struct tenant_state){0};
}

/* All entries are known. */
static int finish(struct recovery *recovery, bool changed)
{
    recovery->store->next_generation = recovery->generation + GENERATIONS_SKIPPED;
    LARDER_TRY(recovery_set_marks(recovery));
    return changed || recovery->changed_count > 0 ? recovery_commit(recovery) : 0;
}

static int start_anew(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    forget_all(store);
    recovery_free_parents(recovery);
    recovery->changed_count = 0;
    recovery->dropped = 0;
    recovery->mark_count = 0;
    recovery->carried_count = 0;
    LARDER_TRY(table_open(&store->table));
    LARDER_TRY(tiers_open(store));
    LARDER_TRY(store_add_tenants(store));
    store->stats.index_rebuilt = 1;
    LARDER_TRY(rebuild_table(recovery));
    return finish(recovery, true);
}

int recover_open_index(struct larder_store *store)
{
    size_t bytes = strlen(store->directory) + sizeof("/index");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "store: no memory");
    snprintf(path, bytes, "%s/index", store->directory);
    bool created;
    int err = larder_index_open(&store->index, path, &created);
    if (err == LARDER_ECORRUPT) {
        larder_log(LARDER_LOG_ERROR, "%s; the index is made anew from the segments",
                   larder_error_message());
        err = larder_index_destroy(path);
        if (err == 0)
            err = larder_index_open(&store->index, path, &created);
    }
    store->index_is_new = created;
    larder_free(path);
    return err;
}

static int replace_index(struct larder_store *store)
{
    larder_log(LARDER_LOG_ERROR, "%s; the index is made anew from the segments",
               larder_error_message());
    larder_index_close(store->index);
    store->index = NULL;
    size_t bytes = strlen(store->directory) + sizeof("/index");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "store: no memory");
    snprintf(path, bytes, "%s/index", store->directory);
    int err = larder_index_destroy(path);
    larder_free(path);
    return err < 0 ? err : recover_open_index(store);
}

static int start_from_index(struct recovery *recovery)
{
    struct larder_store *store = recovery->store;
    if (store->index_is_new && store->log.count > 0)
        return start_anew(recovery);
    int err = recovery_load_index(recovery);
    if (err == LARDER_ECORRUPT) {
        LARDER_TRY(replace_index(store));
        return start_anew(recovery);
    }
    LARDER_TRY(err);
    bool changed;
    LARDER_TRY(recovery_take_tails(recovery, &changed));
    return finish(recovery, changed || store->gone_count > 0);
}

int recovery_begin(struct recovery *recovery, struct larder_store *store)
{
    *recovery = (struct recovery){.store = store};
    return scan_open(&recovery->scan, store->io, store->seal);
}

void recovery_end(struct recovery *recovery)
{
    if (recovery->store)
        learned_free(&recovery->store->learned);
    scan_close(&recovery->scan);
    recovery_free_parents(recovery);
    larder_free(recovery->changed);
    larder_free(recovery->marks);
    larder_free(recovery->carried);
}

/* Records that were dead when the last life ended, and not punched yet: they count until their
 * segment goes. What else takes room is little: records of models, the file system's own. */
static int count_stale(struct larder_store *store)
{
    for (uint32_t i = 0; i < store->log.count; i++) {
        struct segment *segment = store->log.segments[i];
        uint64_t known = segment->live_bytes + segment->tombstone_bytes + SEGMENT_HEADER_BYTES +
                         (uint64_t)store->model_count * LARDER_PAGE_BYTES;
        uint64_t bytes;
        LARDER_TRY(store->io->ops->disk_bytes(store->io, segment->file, &bytes));
        segment->stale_bytes = bytes > known + bytes / 256 ? bytes - known : 0;
    }
    return 0;
}

int recover_store(struct larder_store *store)
{
    uint64_t began_us = commit_now_us();
    struct recovery recovery;
    LARDER_TRY(recovery_begin(&recovery, store));
    if (store->options.index_gate)
        larder_index_set_gate(store->index, store->options.index_gate,
                              store->options.index_gate_context);
    int err = start_from_index(&recovery);
    recovery_end(&recovery);
    if (err == 0)
        err = count_stale(store);
    if (err < 0)
        return err;
    /* Much that was held until all was linked lies between what stays. */
    larder_mem_trim();
    store->sweep = true; /* segments that died in the last life */
    store->stats.recovered_entries = store->stats.entries;
    store->stats.io_errors += recovery.scan.io_errors;
    store->stats.recovery_us = commit_now_us() - began_us;
    store->stats.segments = store->log.count;
    store->stats.segment_bytes = seglog_usage(&store->log);
    if (recovery.dropped > 0)
        larder_log(LARDER_LOG_WARN, "recovery: %llu entries could not be kept",
                   (unsigned long long)recovery.dropped);
    if (store->log.count > 0)
        larder_log(LARDER_LOG_INFO,
                   "recovery: %llu entries, %llu of them not in the index before, %llu ms%s",
                   (unsigned long long)store->stats.entries,
                   (unsigned long long)store->stats.recovered_from_tail,
                   (unsigned long long)(store->stats.recovery_us / 1000),
                   store->stats.index_rebuilt ? "; the index was made anew" : "");
    return 0;
}
