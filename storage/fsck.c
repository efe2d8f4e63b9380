/* SPDX-License-Identifier: Apache-2.0 */
/* fsck.c - two stores of the same directory are loaded as a start would, one from the index and one
 * from the segments alone, and compared. Neither is written back.
 */
#include "storage/fsck.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/crypt.h"
#include "storage/fsck_priv.h"
#include "storage/recover_priv.h"

#define TOLD_MAX 20u
/* A store must not evict while it is mended, whatever the configuration says. */
#define SSD_BYTES_ANY (1ull << 60)

struct check {
    const struct larder_fsck_options *options;
    struct larder_fsck_report *report;
    struct larder_identity *identity;
    struct larder_io *io;
    char *index_path;
    struct larder_store *indexed; /* from the index; NULL: there is no usable one */
    struct larder_store *scanned; /* from the segments */
    struct recovery scanning;
};

uint64_t larder_fsck_findings(const struct larder_fsck_report *report)
{
    return (report->index != LARDER_FSCK_INDEX_SOUND) + report->bad_tenant_copies +
           report->bad_rows + report->stale_rows + report->bad_entries + report->unreadable;
}

/* `counted`: of this kind, this one included. */
static void tell(const struct check *check, uint64_t counted, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void tell(const struct check *check, uint64_t counted, const char *format, ...)
{
    char text[LARDER_MESSAGE_BYTES_MAX];
    if (!check->options->finding || counted > TOLD_MAX + 1)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    check->options->finding(check->options->context,
                            counted > TOLD_MAX ? "... and more of this kind" : text);
}

static void step(const struct check *check, const char *what, uint64_t done, uint64_t all)
{
    if (check->options->progress)
        check->options->progress(check->options->context, what, done, all);
}

/* --- loading ---------------------------------------------------------------------------------- */

/* A store with tenants and segments, and an empty table; identity and io stay the check's. */
static int make_bare(struct check *check, struct larder_store **out)
{
    struct larder_store_options options = check->options->store;
    options.ssd_bytes = SSD_BYTES_ANY;
    LARDER_TRY(store_make(out, &options));
    struct larder_store *store = *out;
    store->identity = check->identity;
    store->io = check->io;
    LARDER_TRY(table_open(&store->table));
    LARDER_TRY(tiers_open(store));
    LARDER_TRY(history_open(&store->history));
    LARDER_TRY(store_add_tenants(store));
    LARDER_TRY(seglog_open(&store->log, store->io, larder_identity_store_id(store->identity),
                           store->options.segment_bytes));
    LARDER_TRY(store_open_seal(store));
    store->log.punches = false; /* or a rebuild would take torn records out of their files */
    return 0;
}

static void free_bare(struct larder_store *store)
{
    if (!store)
        return;
    /* Before the backend, which its files need, is closed by whoever owns it. */
    if (store->log.io) {
        seglog_close(&store->log);
        store->log.io = NULL;
    }
    store->io = NULL;
    store->identity = NULL;
    store_free(store);
}

static int load_indexed(struct check *check)
{
    struct larder_fsck_report *report = check->report;
    struct larder_store *store;
    int err = make_bare(check, &check->indexed);
    LARDER_TRY(err);
    store = check->indexed;
    struct recovery recovery;
    LARDER_TRY(recovery_begin(&recovery, store));
    err = larder_index_open_to_read(&store->index, check->index_path);
    if (err == 0)
        err = recovery_load_index(&recovery);
    uint64_t dropped = recovery.dropped;
    if (err == 0)
        err = recovery_read_tail(&recovery);
    recovery_end(&recovery);
    if (err == 0) {
        report->bad_rows += dropped;
        report->tail = store->stats.recovered_from_tail;
        if (dropped > 0)
            tell(check, 1, "index: %llu entries make no sense, or lead to no root",
                 (unsigned long long)dropped);
        return 0;
    }
    if (err == -ENOENT && store->log.count > 0) {
        report->index = LARDER_FSCK_INDEX_MISSING;
        tell(check, 1, "index: there is none, but %u segments", store->log.count);
    } else if (err == LARDER_ECORRUPT) {
        report->index = LARDER_FSCK_INDEX_DAMAGED;
        tell(check, 1, "%s", larder_error_message());
    } else if (err != -ENOENT) {
        return err;
    }
    free_bare(store);
    check->indexed = NULL;
    return 0;
}

static int load_scanned(struct check *check)
{
    step(check, "segments", 0, 1);
    LARDER_TRY(make_bare(check, &check->scanned));
    LARDER_TRY(recovery_begin(&check->scanning, check->scanned));
    LARDER_TRY(rebuild_table(&check->scanning));
    step(check, "segments", 1, 1);
    return 0;
}

/* --- comparing -------------------------------------------------------------------------------- */

static bool is_entry(const struct entry *entry)
{
    return (entry->flags & ENTRY_USED) && !(entry->flags & ENTRY_ROOT);
}

static uint64_t count_entries(const struct table *table)
{
    uint64_t count = 0;
    for (uint32_t id = 1; id < table->entry_end; id++)
        count += is_entry(table_entry(table, id));
    return count;
}

static bool head_fits(const struct larder_store *store, uint32_t id,
                      const struct larder_record *record)
{
    const struct entry *entry = table_entry(&store->table, id);
    const struct larder_key *parent =
        &table_entry(&store->table, table_above(&store->table, id))->key;
    return record->type == LARDER_RECORD_ENTRY && record->generation == entry->variant.generation &&
           record->variant == entry->number && record->head_bytes == entry->variant.head_bytes &&
           record->record_bytes / LARDER_PAGE_BYTES == entry->variant.record_pages &&
           record->token_count == entry->token_count && record->quality == entry->variant.quality &&
           memcmp(record->key, entry->key.bytes, 32) == 0 &&
           memcmp(record->parent, parent->bytes, 32) == 0 &&
           memcmp(record->tenant, larder_identity_tenant(store->identity, entry->tenant)->id, 16) ==
               0 &&
           memcmp(record->model, store->models[entry->model]->info.fingerprint.bytes, 32) == 0;
}

/* LARDER_ECORRUPT: what stands there is not that entry, or not whole. */
static int look_at(struct check *check, const struct larder_store *store, uint32_t id, bool whole)
{
    const struct entry *entry = table_entry(&store->table, id);
    const struct segment *segment = seglog_find(&store->log, entry->variant.segment_id);
    uint64_t offset = (uint64_t)entry->variant.segment_page * LARDER_PAGE_BYTES;
    const struct larder_record *record;
    if (!segment)
        return LARDER_ECORRUPT;
    LARDER_TRY(whole ? scan_record(&check->scanning.scan, &record, segment, offset)
                     : scan_head(&check->scanning.scan, &record, segment, offset));
    return head_fits(store, id, record) ? 0 : LARDER_ECORRUPT;
}

static void tell_damaged(struct check *check, const struct entry *entry)
{
    char hex[17];
    larder_hex(hex, entry->key.bytes, 8);
    check->report->bad_entries++;
    tell(check, check->report->bad_entries,
         "entry %s...: its data in segment %u at page %u is damaged", hex,
         entry->variant.segment_id, entry->variant.segment_page);
}

static int check_row(struct check *check, uint32_t id)
{
    const struct entry *entry = table_entry(&check->indexed->table, id);
    struct larder_fsck_report *report = check->report;
    char hex[17];
    larder_hex(hex, entry->key.bytes, 8);
    int err = look_at(check, check->indexed, id, false);
    if (err == LARDER_ECORRUPT) {
        report->bad_rows++;
        tell(check, report->bad_rows, "entry %s...: no valid record of it in segment %u at page %u",
             hex, entry->variant.segment_id, entry->variant.segment_page);
        return 0;
    }
    LARDER_TRY(err);
    /* The newest segment is verified whole: there, damaged data ends what the scan takes. */
    bool scanned =
        table_find_variant(&check->scanned->table, &entry->key, entry->number) != TABLE_NONE;
    if (scanned && !check->options->data)
        return 0;
    err = look_at(check, check->indexed, id, true);
    report->read_bytes += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    if (err == LARDER_ECORRUPT) {
        tell_damaged(check, entry);
        return 0;
    }
    LARDER_TRY(err);
    if (!scanned) {
        report->stale_rows++;
        tell(check, report->stale_rows,
             "entry %s...: the index names it, but it was removed, or its parent is gone", hex);
    }
    return 0;
}

static int check_rows(struct check *check)
{
    const struct table *table = &check->indexed->table;
    uint64_t done = 0;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        const struct entry *entry = table_entry(table, id);
        if (!is_entry(entry))
            continue;
        step(check, "entries", done++, check->report->entries);
        LARDER_TRY(check_row(check, id));
    }
    return 0;
}

/* Records that the index does not name are no fault: evicting forgets rows and leaves records. */
static void count_unindexed(struct check *check)
{
    const struct table *table = &check->scanned->table;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        const struct entry *entry = table_entry(table, id);
        check->report->unindexed +=
            is_entry(entry) &&
            table_find_variant(&check->indexed->table, &entry->key, entry->number) == TABLE_NONE;
    }
}

/* Without an index: the data of what the segments give. */
static int check_scanned_data(struct check *check)
{
    const struct table *table = &check->scanned->table;
    struct larder_fsck_report *report = check->report;
    uint64_t done = 0;
    for (uint32_t id = 1; id < table->entry_end; id++) {
        const struct entry *entry = table_entry(table, id);
        if (!is_entry(entry))
            continue;
        step(check, "entries", done++, check->report->entries);
        int err = look_at(check, check->scanned, id, true);
        report->read_bytes += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
        if (err == LARDER_ECORRUPT) {
            tell_damaged(check, entry);
        } else if (err < 0) {
            return err;
        }
    }
    return 0;
}

static int compare(struct check *check)
{
    struct larder_fsck_report *report = check->report;
    const struct larder_store *store = check->indexed ? check->indexed : check->scanned;
    report->tenants = larder_identity_tenant_count(check->identity);
    report->models = store->model_count;
    report->segments = store->log.count;
    report->segment_bytes = seglog_usage(&store->log);
    report->entries = count_entries(&store->table);
    report->unreadable = fsck_count_unreadable(store, check->options->store.directory);
    if (report->unreadable > 0)
        tell(check, 1,
             "profiles: %llu entries need one that is missing or damaged; larder profile add "
             "brings it back",
             (unsigned long long)report->unreadable);
    if (!check->indexed)
        return check->options->data ? check_scanned_data(check) : 0;
    LARDER_TRY(check_rows(check));
    count_unindexed(check);
    return 0;
}

/* --- the whole -------------------------------------------------------------------------------- */

static int open_segments(struct check *check)
{
    size_t bytes = strlen(check->options->store.directory) + sizeof("/segments");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "fsck: no memory");
    snprintf(path, bytes, "%s/segments", check->options->store.directory);
    const struct larder_store_options *store = &check->options->store;
    int err = larder_io_open(&check->io, store->io ? store->io : "auto", path, 16);
    larder_free(path);
    return err;
}

static int inspect_identity(struct check *check, unsigned *bad_copies)
{
    const struct larder_store_options *store = &check->options->store;
    if (!store->key_file)
        return larder_identity_inspect(&check->identity, store->directory, NULL, bad_copies);
    uint8_t key[CRYPT_KEY_BYTES];
    int err = crypt_read_key_file(key, store->key_file);
    if (err == 0)
        err = larder_identity_inspect(&check->identity, store->directory, key, bad_copies);
    crypt_wipe(key, sizeof(key));
    return err;
}

static int check_once(struct check *check)
{
    unsigned bad_copies = 0;
    LARDER_TRY(inspect_identity(check, &bad_copies));
    check->report->bad_tenant_copies = bad_copies;
    if (bad_copies > 0)
        tell(check, 1, "one of the files tenants and tenants.copy is damaged, old or missing");
    int err = open_segments(check);
    if (err == -ENOENT)
        return 0; /* a store whose making was cut short: nothing is in it */
    LARDER_TRY(err);
    LARDER_TRY(load_indexed(check));
    LARDER_TRY(load_scanned(check));
    return compare(check);
}

static int run_check(const struct larder_fsck_options *options, struct larder_fsck_report *report)
{
    struct check check = {.options = options, .report = report};
    memset(report, 0, sizeof(*report));
    size_t bytes = strlen(options->store.directory) + sizeof("/index");
    check.index_path = larder_alloc(bytes);
    if (!check.index_path)
        return larder_fail(-ENOMEM, "fsck: no memory");
    snprintf(check.index_path, bytes, "%s/index", options->store.directory);
    int err = check_once(&check);
    recovery_end(&check.scanning);
    free_bare(check.scanned);
    free_bare(check.indexed);
    if (check.io)
        check.io->ops->close(check.io);
    larder_identity_close(check.identity);
    larder_free(check.index_path);
    return err;
}

/* --- repair ----------------------------------------------------------------------------------- */

struct verified {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool done;
    int err;
};

static void verify_done(void *context, int err)
{
    struct verified *verified = context;
    pthread_mutex_lock(&verified->lock);
    verified->done = true;
    verified->err = err;
    pthread_cond_signal(&verified->changed);
    pthread_mutex_unlock(&verified->lock);
}

static int verify_one(struct larder_store *store, struct verified *verified,
                      const struct larder_entry_info *entry)
{
    verified->done = false;
    larder_store_verify(store, &entry->key, entry->variant, verify_done, verified);
    pthread_mutex_lock(&verified->lock);
    while (!verified->done)
        pthread_cond_wait(&verified->changed, &verified->lock);
    pthread_mutex_unlock(&verified->lock);
    /* What went meanwhile, with its parent, is gone as it should be. */
    return verified->err == LARDER_ENOTFOUND || verified->err == LARDER_ECORRUPT ? 0
                                                                                 : verified->err;
}

/* Reading an entry is what drops a damaged one. */
static int verify_all(struct larder_store *store)
{
    struct verified verified = {.lock = PTHREAD_MUTEX_INITIALIZER,
                                .changed = PTHREAD_COND_INITIALIZER};
    uint64_t cursor = 0;
    int err = 0;
    do {
        struct larder_entry_info entries[32];
        uint32_t count;
        err = larder_store_list(store, entries, &count, &cursor, LARDER_COUNT_OF(entries));
        for (uint32_t i = 0; err == 0 && i < count; i++)
            err = verify_one(store, &verified, &entries[i]);
    } while (err == 0 && cursor != 0);
    return err;
}

static int repair(const struct larder_fsck_options *options, const struct larder_fsck_report *found)
{
    struct larder_store_options with = options->store;
    with.must_exist = true;
    with.ssd_bytes = SSD_BYTES_ANY;
    struct larder_store *store;
    if (found->index == LARDER_FSCK_INDEX_DAMAGED || found->bad_rows > 0 || found->stale_rows > 0) {
        size_t bytes = strlen(with.directory) + sizeof("/index");
        char *path = larder_alloc(bytes);
        if (!path)
            return larder_fail(-ENOMEM, "fsck: no memory");
        snprintf(path, bytes, "%s/index", with.directory);
        int err = larder_index_destroy(path);
        larder_free(path);
        LARDER_TRY(err);
    }
    /* Opening mends the tenants' copies, and makes an index where there is none. */
    LARDER_TRY(larder_store_open(&store, &with));
    int err = found->bad_entries > 0 ? verify_all(store) : 0;
    larder_store_close(store);
    return err;
}

int larder_store_fsck(struct larder_fsck_report *report, const struct larder_fsck_options *options)
{
    LARDER_TRY(run_check(options, report));
    uint64_t findings = larder_fsck_findings(report);
    if (findings == 0 || !options->repair)
        return 0;
    struct larder_fsck_report before = *report;
    LARDER_TRY(repair(options, report));
    LARDER_TRY(run_check(options, report));
    report->findings_before = findings;
    report->dropped = before.entries > report->entries ? before.entries - report->entries : 0;
    return 0;
}
