/* SPDX-License-Identifier: Apache-2.0 */
/* store.c - open and close, the storage thread, tenants, models, statistics. */
#include "storage/store.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/crypt.h"
#include "storage/store_priv.h"

#define IO_DEPTH_DEFAULT 64u

/* --- completions ------------------------------------------------------------------------------ */

void store_wake(struct larder_store *store)
{
    store->io->ops->wake(store->io);
}

void store_complete_locked(struct larder_store *store, struct completion *completion)
{
    completion->next = NULL;
    *store->completions.end = completion;
    store->completions.end = &completion->next;
}

/* Whether there was any. */
static bool run_completions(struct larder_store *store)
{
    bool any = false;
    for (;;) {
        pthread_mutex_lock(&store->lock);
        struct completion *completion = store->completions.first;
        if (completion) {
            store->completions.first = completion->next;
            if (!completion->next)
                store->completions.end = &store->completions.first;
        }
        pthread_mutex_unlock(&store->lock);
        if (!completion)
            return any;
        any = true;
        completion->run(store, completion);
    }
}

/* --- the storage thread ----------------------------------------------------------------------- */

/* Whether the store is closing is asked first: what was queued before that is then seen below. */
static bool may_stop(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    bool stopping = store->stopping;
    pthread_mutex_unlock(&store->lock);
    if (!stopping || !writer_idle(store))
        return false;
    pthread_mutex_lock(&store->lock);
    bool stop = load_idle(store) && !store->completions.first;
    pthread_mutex_unlock(&store->lock);
    return stop;
}

/* Until time alone brings something to do; -1: never. */
static int timeout_ms(const struct larder_store *store)
{
    int commit_ms = commit_timeout_ms(store);
    int clear_ms = clear_timeout_ms(store);
    return commit_ms < 0 || (clear_ms >= 0 && clear_ms < commit_ms) ? clear_ms : commit_ms;
}

static void *storage_thread(void *argument)
{
    struct larder_store *store = argument;
    for (;;) {
        writer_step(store);
        load_pump(store);
        /* A completion may have queued something; a step may have left something to do at once. */
        bool again = run_completions(store);
        again = purge_step(store) || again;
        again = clear_step(store) || again || writer_must_step(store);
        if (may_stop(store))
            break;
        int count = store->io->ops->poll(store->io, again ? 0 : timeout_ms(store));
        if (count < 0) {
            /* The disk may still write to slots, and nobody could be told anything any more: what
             * is left is what a power loss leaves, and a start mends that. */
            larder_log(LARDER_LOG_ERROR,
                       "ALARM: waiting for the disk failed (%s): stopping at once",
                       larder_error_text(count));
            abort();
        }
    }
    return NULL;
}

void store_fail_writes(struct larder_store *store, const char *what, int err)
{
    pthread_mutex_lock(&store->lock);
    bool first = !store->read_only;
    store->read_only = true;
    store->stats.read_only = 1;
    store->stats.io_errors++;
    pthread_mutex_unlock(&store->lock);
    if (first)
        larder_log(LARDER_LOG_ERROR,
                   "ALARM: %s failed (%s): the store is read-only until it is started again; what "
                   "was acknowledged as durable is safe",
                   what, larder_error_text(err));
}

/* --- statistics ------------------------------------------------------------------------------- */

static void count_entry(struct larder_store_stats *stats, const struct entry *entry, int sign)
{
    uint64_t one = (uint64_t)(int64_t)sign; /* adds or takes, modulo 2^64 */
    uint64_t bytes = (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    if (entry->flags & ENTRY_VISIBLE) {
        stats->entries += one;
        stats->raw_bytes += one * entry->variant.raw_bytes;
        stats->record_bytes_held += entry->flags & ENTRY_HELD ? one * bytes : 0;
    }
    if (entry->slot != HOST_NONE) {
        stats->entries_host += one;
        stats->record_bytes_host += one * bytes;
    }
    if (entry->flags & ENTRY_DURABLE) {
        stats->entries_durable += one;
        stats->record_bytes_ssd += one * bytes;
    }
}

void stats_leave_locked(struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    count_entry(&store->stats, entry, -1);
    count_entry(&store->tenants[entry->tenant].stats, entry, -1);
}

void stats_enter_locked(struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    count_entry(&store->stats, entry, 1);
    count_entry(&store->tenants[entry->tenant].stats, entry, 1);
}

void larder_store_stats(struct larder_store *store, struct larder_store_stats *out)
{
    pthread_mutex_lock(&store->lock);
    *out = store->stats;
    out->slab_bytes_mapped = store->host.bytes;
    out->slab_bytes_retired = store->host.retired_count * store->options.slab_bytes;
    pthread_mutex_unlock(&store->lock);
    out->host_bytes_max = store->options.host_bytes;
    out->ssd_bytes_max = store->options.ssd_bytes;
    snprintf(out->io, sizeof(out->io), "%s", store->io->ops->name);
}

int larder_store_tenant_stats(struct larder_store *store, struct larder_store_stats *out,
                              uint32_t tenant)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&store->lock);
    bool there = tenant < LARDER_TENANTS_MAX && store->tenants[tenant].root != TABLE_NONE;
    if (there) {
        *out = store->tenants[tenant].stats;
        const struct host_tenant *slabs = &store->host.tenants[tenant];
        out->slab_bytes_mapped = slabs->slab_count * store->options.slab_bytes;
        out->slab_bytes_retired = slabs->retired_count * store->options.slab_bytes;
        out->host_bytes_max = store->tenants[tenant].quota.host_bytes;
        out->ssd_bytes_max = store->tenants[tenant].quota.ssd_bytes;
    }
    pthread_mutex_unlock(&store->lock);
    return there ? 0 : larder_fail(LARDER_ENOTFOUND, "tenant=%u does not exist", tenant);
}

/* --- tenants and models ----------------------------------------------------------------------- */

int store_add_tenants(struct larder_store *store)
{
    uint32_t count = larder_identity_tenant_count(store->identity);
    for (uint32_t i = 0; i < count; i++) {
        if (store->tenants[i].root != TABLE_NONE)
            continue;
        store->tenants[i].root = table_add_root(&store->table, (uint16_t)i);
        if (store->tenants[i].root == TABLE_NONE)
            return larder_fail(-ENOMEM, "table: no memory");
    }
    return 0;
}

int larder_store_tenant(struct larder_store *store, struct larder_tenant_info *out,
                        const char *name)
{
    uint32_t index;
    LARDER_TRY(larder_identity_add_tenant(store->identity, &index, name));
    pthread_mutex_lock(&store->lock);
    int err = store_add_tenants(store);
    if (err == 0)
        *out = *larder_identity_tenant(store->identity, index);
    pthread_mutex_unlock(&store->lock);
    return err;
}

int larder_store_tenant_at(struct larder_store *store, struct larder_tenant_info *out,
                           uint32_t index)
{
    pthread_mutex_lock(&store->lock);
    bool there = index < larder_identity_tenant_count(store->identity);
    if (there)
        *out = *larder_identity_tenant(store->identity, index);
    pthread_mutex_unlock(&store->lock);
    return there ? 0 : larder_fail(LARDER_ENOTFOUND, "tenant=%u does not exist", index);
}

uint32_t store_find_model_locked(const struct larder_store *store,
                                 const struct larder_key *fingerprint)
{
    uint32_t index = 0;
    while (index < store->model_count &&
           !larder_key_equal(&store->models[index]->info.fingerprint, fingerprint))
        index++;
    return index;
}

int store_add_model_locked(struct larder_store *store, uint32_t *out,
                           const struct larder_key *fingerprint,
                           const struct larder_model_desc *desc)
{
    *out = store_find_model_locked(store, fingerprint);
    if (*out < store->model_count)
        return 0;
    if (store->model_count == LARDER_MODELS_MAX)
        return larder_fail(LARDER_ELIMIT, "%u models are known; that is the most",
                           LARDER_MODELS_MAX);
    struct model_state *model = larder_alloc_zero(1, sizeof(*model));
    if (!model)
        return larder_fail(-ENOMEM, "models: no memory");
    model->info.index = store->model_count;
    model->info.fingerprint = *fingerprint;
    model->info.desc = *desc;
    store->models[store->model_count++] = model;
    return 0;
}

/* Marks those whose place may be taken: held by nobody, nothing stored of them, no row in the
 * index. A walk over all entries under the lock, so at most once a second. */
static void sweep_models_locked(struct larder_store *store)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (store->models_swept_s == (uint64_t)now.tv_sec + 1)
        return;
    store->models_swept_s = (uint64_t)now.tv_sec + 1; /* 0: never */
    for (uint32_t i = 0; i < store->model_count; i++)
        store->models[i]->is_spare = store->models[i]->users == 0 && !store->models[i]->in_index;
    for (uint32_t id = 1; id < store->table.entry_end; id++) {
        const struct entry *entry = table_entry(&store->table, id);
        if ((entry->flags & ENTRY_USED) && !(entry->flags & ENTRY_ROOT))
            store->models[entry->model]->is_spare = false;
    }
    for (const struct larder_put *put = store->puts; put; put = put->all_next)
        store->models[put->model]->is_spare = false;
}

/* Its place and number go to another model; LARDER_MODELS_MAX when there is none to spare. */
static uint32_t spare_model_locked(struct larder_store *store)
{
    for (int attempt = 0; attempt < 2; attempt++) {
        for (uint32_t i = 0; i < store->model_count; i++) {
            if (store->models[i]->is_spare)
                return i;
        }
        sweep_models_locked(store);
    }
    return LARDER_MODELS_MAX;
}

static int add_or_replace_model_locked(struct larder_store *store, uint32_t *out,
                                       const struct larder_key *fingerprint,
                                       const struct larder_model_desc *desc)
{
    *out = store_find_model_locked(store, fingerprint);
    if (*out < store->model_count)
        return 0;
    uint32_t spare =
        store->model_count == LARDER_MODELS_MAX ? spare_model_locked(store) : LARDER_MODELS_MAX;
    if (spare == LARDER_MODELS_MAX)
        return store_add_model_locked(store, out, fingerprint, desc);
    *store->models[spare] =
        (struct model_state){.info = {.index = spare, .fingerprint = *fingerprint, .desc = *desc}};
    *out = spare;
    return 0;
}

int larder_store_model(struct larder_store *store, struct larder_model_info *out,
                       const struct larder_model_desc *desc)
{
    LARDER_TRY(larder_model_check(desc));
    struct larder_key fingerprint;
    LARDER_TRY(larder_model_fingerprint(&fingerprint, desc));
    uint32_t index;
    pthread_mutex_lock(&store->lock);
    int err = add_or_replace_model_locked(store, &index, &fingerprint, desc);
    if (err == 0) {
        store->models[index]->users++;
        store->models[index]->is_spare = false;
        *out = store->models[index]->info;
    }
    pthread_mutex_unlock(&store->lock);
    return err;
}

void larder_store_model_release(struct larder_store *store, uint32_t index)
{
    pthread_mutex_lock(&store->lock);
    assert(store->models[index]->users > 0);
    store->models[index]->users--;
    pthread_mutex_unlock(&store->lock);
}

int larder_store_model_at(struct larder_store *store, struct larder_model_info *out, uint32_t index)
{
    pthread_mutex_lock(&store->lock);
    bool there = index < store->model_count;
    if (there)
        *out = store->models[index]->info;
    pthread_mutex_unlock(&store->lock);
    return there ? 0 : larder_fail(LARDER_ENOTFOUND, "model=%u does not exist", index);
}

/* --- open and close --------------------------------------------------------------------------- */

static void set_defaults(struct larder_store_options *options)
{
    if (!options->io)
        options->io = "auto";
    if (options->io_depth == 0)
        options->io_depth = IO_DEPTH_DEFAULT;
    if (options->host_bytes == 0)
        options->host_bytes = LARDER_HOST_BYTES_DEFAULT;
    if (options->ssd_bytes == 0)
        options->ssd_bytes = LARDER_SSD_BYTES_DEFAULT;
    if (options->slab_bytes == 0)
        options->slab_bytes = LARDER_SLAB_BYTES_DEFAULT;
    if (options->ssd_high == 0)
        options->ssd_high = LARDER_SSD_HIGH_DEFAULT;
    if (options->ssd_low == 0)
        options->ssd_low = LARDER_SSD_LOW_DEFAULT < options->ssd_high ? LARDER_SSD_LOW_DEFAULT
                                                                      : options->ssd_high - 1;
    if (options->segment_bytes == 0)
        options->segment_bytes = LARDER_SEGMENT_BYTES_DEFAULT;
}

static int check_size(const char *name, uint64_t bytes, uint64_t least)
{
    if (bytes < least)
        return larder_fail(LARDER_ECONFIG, "%s=%llu is below %llu", name, (unsigned long long)bytes,
                           (unsigned long long)least);
    if (bytes % LARDER_PAGE_BYTES != 0)
        return larder_fail(LARDER_ECONFIG, "%s=%llu is not a multiple of 4096; try %llu", name,
                           (unsigned long long)bytes,
                           (unsigned long long)larder_round_up(bytes, LARDER_PAGE_BYTES));
    return 0;
}

static int check_options(const struct larder_store_options *options)
{
    if (!larder_policy_knows_groups(options->eviction))
        return larder_fail(LARDER_ECONFIG, "eviction=%s is not known; use value, lru or fifo",
                           options->eviction);
    LARDER_TRY(check_size("slab_bytes", options->slab_bytes, LARDER_SLAB_BYTES_MIN));
    LARDER_TRY(check_size("segment_bytes", options->segment_bytes, LARDER_SEGMENT_BYTES_MIN));
    LARDER_TRY(check_size("host_bytes", options->host_bytes, options->slab_bytes));
    /* One to append to, one to evict from. */
    LARDER_TRY(check_size("ssd_bytes", options->ssd_bytes, 2 * options->segment_bytes));
    if (options->ssd_high > 100 || options->ssd_low >= options->ssd_high)
        return larder_fail(LARDER_ECONFIG,
                           "ssd_high=%u and ssd_low=%u: not above 100, and the low "
                           "one below the high one",
                           options->ssd_high, options->ssd_low);
    if (options->segment_bytes / LARDER_PAGE_BYTES > UINT32_MAX ||
        options->slab_bytes / LARDER_PAGE_BYTES > UINT32_MAX)
        return larder_fail(LARDER_ECONFIG, "segment_bytes or slab_bytes is above 16 TiB");
    return 0;
}

/* The index is opened in between: after the folder exists, so that its first commit makes the names
 * of both durable, and before the disk's threads, because it forks. */
static int open_disk(struct larder_store *store)
{
    size_t bytes = strlen(store->directory) + sizeof("/segments");
    char *path = larder_alloc(bytes);
    if (!path)
        return larder_fail(-ENOMEM, "store: no memory");
    snprintf(path, bytes, "%s/segments", store->directory);
    int err = 0;
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        err = larder_fail(-errno, "%s: %s", path, strerror(errno));
    if (err == 0)
        err = recover_open_index(store);
    if (err == 0 && !store->io)
        err = larder_io_open(&store->io, store->options.io, path, store->options.io_depth);
    larder_free(path);
    return err;
}

static int open_requests(struct larder_store *store)
{
    uint32_t depth = store->options.io_depth;
    store->load_requests = larder_alloc_zero(depth, sizeof(*store->load_requests));
    store->append_requests =
        larder_alloc_zero(WRITES_IN_FLIGHT_MAX, sizeof(*store->append_requests));
    if (!store->load_requests || !store->append_requests)
        return larder_fail(-ENOMEM, "store: no memory");
    if (ahead_open(store) < 0)
        return larder_fail(-ENOMEM, "store: no memory");
    for (uint32_t i = 0; i < depth; i++) {
        store->load_requests[i].next = store->free_load_requests;
        store->free_load_requests = &store->load_requests[i];
    }
    for (uint32_t i = 0; i < WRITES_IN_FLIGHT_MAX; i++) {
        store->append_requests[i].next = store->free_append_requests;
        store->free_append_requests = &store->append_requests[i];
    }
    /* Fewer do as well. */
    for (uint32_t i = 0; i < MERGES_IN_FLIGHT_MAX && i < depth; i++) {
        void *buffer = larder_alloc_aligned(LARDER_PAGE_BYTES, LARDER_IO_BYTES_MAX);
        if (!buffer)
            break;
        store->merge_buffers[store->merge_buffer_count++] = buffer;
    }
    return 0;
}

static int open_identity(struct larder_identity **out, const char *directory, bool must_exist,
                         const char *key_file)
{
    uint8_t key[CRYPT_KEY_BYTES];
    *out = NULL;
    if (!key_file)
        return larder_identity_open(out, directory, must_exist, NULL);
    int err = crypt_read_key_file(key, key_file);
    if (err == 0)
        err = larder_identity_open(out, directory, must_exist, key);
    crypt_wipe(key, sizeof(key));
    return err;
}

int larder_store_rewrap(const char *directory, const char *key_file, const char *new_key_file)
{
    uint8_t key[CRYPT_KEY_BYTES];
    struct larder_identity *identity = NULL;
    int err = crypt_read_key_file(key, new_key_file);
    if (err == 0)
        err = open_identity(&identity, directory, true, key_file);
    if (err == 0)
        err = larder_identity_rewrap(identity, key);
    larder_identity_close(identity);
    crypt_wipe(key, sizeof(key));
    return err;
}

int store_open_seal(struct larder_store *store)
{
    if (!larder_identity_encrypted(store->identity))
        return 0;
    store->log.tag_kind = LARDER_TAG_AES_256_GCM;
    return seal_create(&store->seal, store->identity, &store->log);
}

static void round_over(void *context)
{
    store_wake(context);
}

static int open_parts(struct larder_store *store)
{
    const struct larder_store_options *options = &store->options;
    LARDER_TRY(
        open_identity(&store->identity, store->directory, options->must_exist, options->key_file));
    LARDER_TRY(table_open(&store->table));
    LARDER_TRY(history_open(&store->history));
    history_load(&store->history, store->directory);
    LARDER_TRY(
        host_open(&store->host, options->host_bytes, options->slab_bytes, &store->next_generation));
    LARDER_TRY(tiers_open(store));
    LARDER_TRY(store_add_tenants(store));
    LARDER_TRY(open_disk(store));
    LARDER_TRY(seglog_open(&store->log, store->io, larder_identity_store_id(store->identity),
                           options->segment_bytes));
    LARDER_TRY(store_open_seal(store));
    LARDER_TRY(open_requests(store));
    LARDER_TRY(recover_store(store));
    LARDER_TRY(keeper_open(&store->keeper, store->index, &store->log, round_over, store));
    LARDER_TRY(tiers_start_saver(store));
    int err = pthread_create(&store->thread, NULL, storage_thread, store);
    if (err != 0) {
        pthread_mutex_lock(&store->lock);
        store->stopping = true;
        pthread_mutex_unlock(&store->lock);
        tiers_stop_saver(store);
        return larder_fail(-err, "store: thread: %s", strerror(err));
    }
    store->thread_runs = true;
    return 0;
}

void store_free(struct larder_store *store)
{
    lease_free_all(store);
    while (store->puts) {
        struct larder_put *put = store->puts;
        store->puts = put->all_next;
        larder_free(put->mark_write);
        larder_free(put);
    }
    while (store->watches) {
        struct watch *watch = store->watches;
        store->watches = watch->next;
        larder_free(watch);
    }
    if (store->tenants)
        mark_free_queued(store);
    larder_free(store->mark_rows);
    commit_close(store);
    marks_close(&store->marks);
    if (store->log.io)
        seglog_close(&store->log);
    if (store->index)
        larder_index_close(store->index);
    if (store->io)
        store->io->ops->close(store->io);
    seal_close(store->seal);
    larder_free(store->append_requests);
    larder_free(store->zeros);
    for (uint32_t i = 0; i < store->merge_buffer_count; i++)
        larder_free(store->merge_buffers[i]);
    larder_free(store->load_requests);
    for (uint32_t i = 0; i < store->model_count; i++)
        larder_free(store->models[i]);
    larder_free(store->models);
    tiers_close(store);
    if (store->host.tenants)
        host_close(&store->host);
    if (store->table.buckets)
        table_close(&store->table);
    measure_close(&store->measures);
    history_close(&store->history);
    larder_free(store->tenants);
    if (store->identity)
        larder_identity_close(store->identity);
    pthread_cond_destroy(&store->purged);
    pthread_cond_destroy(&store->grown);
    pthread_mutex_destroy(&store->lock);
    larder_free(store->directory);
    larder_free(store);
}

int store_make(struct larder_store **out, const struct larder_store_options *options)
{
    *out = NULL;
    struct larder_store *store = larder_alloc_zero(1, sizeof(*store));
    if (!store) {
        if (options->io_override)
            options->io_override->ops->close(options->io_override);
        return larder_fail(-ENOMEM, "store: no memory");
    }
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->grown, NULL);
    pthread_cond_init(&store->purged, NULL);
    store->options = *options;
    set_defaults(&store->options);
    store->io = options->io_override;
    store->next_generation = 1;
    clock_open(&store->clock, options->clock, options->clock_context);
    store->move_queue_end = &store->move_queue;
    store->put_queue_end = &store->put_queue;
    store->removals_end = &store->removals;
    store->completions.end = &store->completions.first;
    store->directory = larder_strdup(options->directory);
    store->tenants = larder_alloc_zero(LARDER_TENANTS_MAX, sizeof(*store->tenants));
    store->models = larder_alloc_zero(LARDER_MODELS_MAX, sizeof(struct model_state *));
    int err = store->directory && store->tenants && store->models
                  ? check_options(&store->options)
                  : larder_fail(-ENOMEM, "store: no memory");
    if (err < 0) {
        store_free(store);
        return err;
    }
    *out = store;
    return 0;
}

int larder_store_open(struct larder_store **out, const struct larder_store_options *options)
{
    *out = NULL;
    struct larder_store *store;
    LARDER_TRY(store_make(&store, options));
    int err = open_parts(store);
    if (err < 0) {
        store_free(store);
        return err;
    }
    *out = store;
    return 0;
}

void larder_store_close(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    store->stopping = true;
    pthread_mutex_unlock(&store->lock);
    store_wake(store);
    pthread_join(store->thread, NULL);
    tiers_stop_saver(store);
    if (!store->read_only)
        tiers_save(store);
    if (!store->read_only)
        history_save(&store->history, store->directory);
    store_free(store);
}
