/* SPDX-License-Identifier: Apache-2.0 */
/* commit.c - what the index is to learn, and when: batches of changes, handed to the keeper.
 *
 * The open segment is the log. A record is durable when its group is synced; the index names it
 * some time later, with many others: after COMMIT_AGE_US, or COMMIT_BYTES, or a batch full of
 * changes, before the next segment is begun, and at close. Until then it stands in the tail of the
 * newest segment, behind the bytes that the index knows of, where a start after a crash finds it
 * (recover_tail.c).
 *
 *   - A batch ends where a group of records ends; it names them, and says up to where.
 *   - What has died waits in store->dead until every batch there is now has been committed: so
 *     nothing behind committed_bytes is ever punched (a hole would cut the tail), and no space is
 *     given back while the index still names it.
 *   - A removal is durable through its tombstone in the tail, and told when the index has it too:
 *     nothing else would say so if a bit of the tombstone flipped. An eviction has none: undone by
 *     a crash before the next commit it only gives back what is there anyway. Who removes what was
 *     evicted is told that it is not there after that commit.
 *   - The tail is bounded (TAIL_BYTES_MAX), so that a start stays fast.
 *
 * Threads: the storage thread.
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

#define COMMIT_AGE_US  100000u
#define COMMIT_BYTES   (32ull << 20)
#define COMMIT_CHANGES 400u
/* Attempts at an index that has no room on the disk, or no memory; at files that stay. */
#define RETRY_US 100000u
#define SWEEP_US 1000000u

uint64_t commit_now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* --- batches ---------------------------------------------------------------------------------- */

struct batch *batch_new(void)
{
    struct batch *batch = larder_alloc(sizeof(*batch));
    if (!batch) {
        larder_fail(-ENOMEM, "index: no memory for changes");
        return NULL;
    }
    batch->next = NULL;
    batch->segment_id = 0;
    batch->bytes = 0;
    batch->count = 0;
    return batch;
}

static struct index_change *next_change(struct batch *batch, enum index_change_kind kind,
                                        const struct larder_key *key, uint32_t variant)
{
    assert(batch->count < BATCH_CHANGES_MAX);
    struct index_change *change = &batch->changes[batch->count++];
    change->kind = kind;
    change->variant = variant;
    change->key = *key;
    return change;
}

void batch_put(struct batch *batch, const struct larder_key *key, uint32_t variant,
               const struct index_entry *value)
{
    next_change(batch, CHANGE_PUT, key, variant)->value = *value;
}

void batch_delete(struct batch *batch, const struct larder_key *key, uint32_t variant)
{
    next_change(batch, CHANGE_DELETE, key, variant);
}

void batch_put_mark(struct batch *batch, const struct larder_key *key,
                    const struct index_mark *mark)
{
    next_change(batch, CHANGE_PUT_MARK, key, 0)->mark = *mark;
}

void batch_delete_mark(struct batch *batch, const struct larder_key *key)
{
    next_change(batch, CHANGE_DELETE_MARK, key, 0);
}

void batch_model(struct batch *batch, const struct larder_model_info *info)
{
    next_change(batch, CHANGE_MODEL, &info->fingerprint, 0)->desc = &info->desc;
}

/* Into the one before, if it fits: fewer transactions. */
static bool merge(struct batch *into, const struct batch *batch)
{
    if (into->count + batch->count > GROUP_MEMBERS_MAX)
        return false;
    memcpy(&into->changes[into->count], batch->changes, sizeof(batch->changes[0]) * batch->count);
    into->count += batch->count;
    into->bytes += batch->bytes;
    if (batch->segment_id != 0) {
        assert(into->segment_id == 0 || into->segment_id == batch->segment_id);
        into->segment_id = batch->segment_id;
        into->row = batch->row;
    }
    return true;
}

void commit_add(struct larder_store *store, struct batch *batch)
{
    struct commits *commits = &store->commits;
    if (!commits->batches)
        commits->since_us = commit_now_us();
    commits->tail_bytes += batch->bytes;
    commits->waiting_bytes += batch->bytes;
    commits->waiting_changes += batch->count;
    if (commits->batches && merge(commits->last, batch)) {
        larder_free(batch);
        return;
    }
    if (commits->batches)
        commits->last->next = batch;
    else
        commits->batches = batch;
    commits->last = batch;
}

static void free_batches(struct batch *batch)
{
    while (batch) {
        struct batch *next = batch->next;
        larder_free(batch);
        batch = next;
    }
}

bool commit_is_behind(const struct larder_store *store)
{
    return store->commits.batches || store->commits.round.batches;
}

/* --- removals --------------------------------------------------------------------------------- */

void commit_hold_locked(struct larder_store *store, struct removal *removal)
{
    removal->next = store->commits.held;
    store->commits.held = removal;
}

static void let_go(struct larder_store *store, struct removal **list, int err)
{
    pthread_mutex_lock(&store->lock);
    while (*list) {
        struct removal *removal = *list;
        *list = removal->next;
        removal->err = err < 0 ? err : removal->err;
        store_complete_locked(store, &removal->completion);
    }
    pthread_mutex_unlock(&store->lock);
}

void commit_fill_value_locked(struct larder_store *store, struct index_entry *value, uint32_t id,
                              uint32_t model, const struct entry_variant *variant)
{
    const struct entry *entry = table_entry(&store->table, id);
    memset(value, 0, sizeof(*value));
    uint32_t above = table_above(&store->table, id);
    memcpy(value->parent, table_entry(&store->table, above)->key.bytes, 32);
    memcpy(value->tenant, larder_identity_tenant(store->identity, entry->tenant)->id, 16);
    memcpy(value->model, store->models[model]->info.fingerprint.bytes, 32);
    value->generation = variant->generation;
    value->record_bytes = (uint64_t)variant->record_pages * LARDER_PAGE_BYTES;
    value->raw_bytes = variant->raw_bytes;
    value->created_s = variant->created_s;
    value->position = variant->position;
    value->segment_id = variant->segment_id;
    value->segment_page = variant->segment_page;
    value->token_count = entry->token_count;
    value->head_bytes = variant->head_bytes;
    value->quality = variant->quality;
    value->computed_on = variant->computed_on;
    value->computed_on_kl = variant->computed_on_kl;
    value->profile = table_recipe_profile(&store->table, variant->recipe);
    const char *recipe = table_recipe_text(&store->table, variant->recipe);
    size_t bytes = strlen(recipe);
    memcpy(value->recipe, recipe, larder_min_u64(bytes, sizeof(value->recipe)));
}

/* --- what has died ---------------------------------------------------------------------------- */

int dead_add(struct dead_list *list, struct dead_extent extent)
{
    if (list->count == list->capacity) {
        uint32_t capacity = list->capacity ? list->capacity * 2 : 256;
        struct dead_extent *extents = larder_realloc(list->extents, sizeof(*extents) * capacity);
        if (!extents)
            return -ENOMEM;
        list->extents = extents;
        list->capacity = capacity;
    }
    list->extents[list->count++] = extent;
    return 0;
}

void writer_extent_dead_locked(struct larder_store *store, const struct entry_variant *variant)
{
    struct dead_extent extent = {
        .segment_id = variant->segment_id,
        .segment_page = variant->segment_page,
        .pages = variant->record_pages,
    };
    assert(extent.segment_id != 0);
    if (load_takes_dead_locked(store, &extent))
        return;
    if (dead_add(&store->dead, extent) < 0)
        larder_log(LARDER_LOG_WARN, "storage: no memory to give %u pages of segment %u back",
                   extent.pages, extent.segment_id);
}

static void segment_gone(struct larder_store *store, struct segment *segment)
{
    if (segment->in_index) {
        uint32_t *gone = larder_realloc(store->gone, sizeof(*gone) * (store->gone_count + 1ul));
        if (gone) { /* else: a row without a file and without entries goes at the next start */
            store->gone = gone;
            gone[store->gone_count++] = segment->id;
        }
    }
    seglog_forget(&store->log, segment);
}

void commit_publish_usage(struct larder_store *store)
{
    uint64_t usage = seglog_usage(&store->log); /* a walk over all segments: without the lock */
    pthread_mutex_lock(&store->lock);
    store->stats.segment_bytes = usage;
    store->stats.segments = store->log.count;
    store->stats.tail_bytes = store->commits.tail_bytes;
    pthread_mutex_unlock(&store->lock);
}

/* --- a round ---------------------------------------------------------------------------------- */

/* Its share of live_bytes goes, or comes back when the round did not get to it. */
static void count_dead(struct larder_store *store, const struct dead_list *dead, bool back)
{
    for (uint32_t i = 0; i < dead->count; i++) {
        struct segment *segment = seglog_find(&store->log, dead->extents[i].segment_id);
        if (!segment)
            continue;
        uint64_t bytes = (uint64_t)dead->extents[i].pages * LARDER_PAGE_BYTES;
        assert(back || segment->live_bytes >= bytes);
        segment->live_bytes = back ? segment->live_bytes + bytes : segment->live_bytes - bytes;
        if (segment->live_bytes == 0)
            store->sweep = true;
    }
}

/* Marks that hold keep their segment; those of the oldest, of which nothing else is left, move. */
static void count_marks(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    mark_count_homes_locked(store);
    const struct segment *oldest = store->log.count > 0 ? store->log.segments[0] : NULL;
    if (oldest && oldest != store->log.open && oldest->live_bytes == 0 && oldest->mark_count > 0)
        mark_move_out_locked(store, oldest->id);
    pthread_mutex_unlock(&store->lock);
}

static void take_dead(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    struct round *round = &commits->round;
    pthread_mutex_lock(&store->lock);
    commits->dead = store->dead;
    store->dead = (struct dead_list){0};
    pthread_mutex_unlock(&store->lock);
    const struct dead_list *dead = &commits->dead;
    count_dead(store, dead, false);
    /* Which marks hold is asked under the lock, for every segment. */
    if (store->sweep && seglog_may_have_dead(&store->log)) {
        count_marks(store);
        round->remove_count = seglog_dead(&store->log, round->removes, ROUND_REMOVES_MAX);
    }
    store->sweep = round->remove_count == ROUND_REMOVES_MAX;
    for (uint32_t i = 0; i < round->remove_count; i++)
        round->removes[i]->leaving = true;
    if (dead->count == 0 || !store->log.punches)
        return;
    round->punches = larder_alloc(sizeof(*round->punches) * dead->count);
    if (!round->punches) {
        larder_log(LARDER_LOG_WARN, "storage: no memory to give %u records back", dead->count);
        return;
    }
    for (uint32_t i = 0; i < dead->count; i++) {
        const struct dead_extent *extent = &dead->extents[i];
        struct segment *segment = seglog_find(&store->log, extent->segment_id);
        if (!segment || segment->leaving)
            continue;
        segment->users++;
        round->punches[round->punch_count++] =
            (struct punch){.segment = segment,
                           .offset = (uint64_t)extent->segment_page * LARDER_PAGE_BYTES,
                           .bytes = (uint64_t)extent->pages * LARDER_PAGE_BYTES};
    }
}

static void take_gone(struct larder_store *store)
{
    struct round *round = &store->commits.round;
    if (!round->batches || round->batches->segment_id == 0)
        return;
    while (store->gone_count > 0 && round->gone_count < ROUND_GONE_MAX)
        round->gone[round->gone_count++] = store->gone[--store->gone_count];
}

static void begin_round(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    struct round *round = &commits->round;
    memset(round, 0, sizeof(*round));
    round->batches = commits->batches;
    commits->batches = commits->last = NULL;
    commits->waiting_bytes = 0;
    commits->waiting_changes = 0;
    commits->hurry = false;
    commits->retry_us = 0;
    assert(!commits->held_round);
    commits->held_round = commits->held;
    commits->held = NULL;
    pthread_mutex_lock(&store->lock);
    round->next_generation = store->next_generation;
    pthread_mutex_unlock(&store->lock);
    take_dead(store);
    take_gone(store);
    if (commits->want_segment && !store->log.ahead)
        round->make_id = store->log.next_id;
    commits->want_segment = false;
    commits->busy = true;
    keeper_give(store->keeper, round);
}

static void batch_committed(struct larder_store *store, const struct batch *batch)
{
    store->commits.tail_bytes -= batch->bytes;
    struct segment *segment = seglog_find(&store->log, batch->segment_id);
    if (!segment)
        return;
    segment->committed_bytes = batch->row.committed_bytes;
    segment->in_index = true;
}

/* The index had no room, or no memory: what it did not get waits, in front of what came since. */
static void put_back(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    struct round *round = &commits->round;
    struct batch **end = &round->batches;
    struct batch *last = NULL;
    for (; *end; end = &(*end)->next) {
        last = *end;
        commits->waiting_bytes += last->bytes;
        commits->waiting_changes += last->count;
    }
    *end = commits->batches;
    commits->batches = round->batches;
    if (!commits->last)
        commits->last = last;
    round->batches = NULL;
    struct removal **held_end = &commits->held_round;
    while (*held_end)
        held_end = &(*held_end)->next;
    *held_end = commits->held;
    commits->held = commits->held_round;
    commits->held_round = NULL;
    count_dead(store, &commits->dead, true);
    pthread_mutex_lock(&store->lock);
    for (uint32_t i = 0; i < commits->dead.count; i++)
        if (dead_add(&store->dead, commits->dead.extents[i]) < 0)
            larder_log(LARDER_LOG_WARN, "storage: no memory to give a record back");
    pthread_mutex_unlock(&store->lock);
    commits->retry_us = commit_now_us() + RETRY_US;
}

static void end_round(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    struct round *round = &commits->round;
    commits->busy = false;
    for (uint32_t i = 0; i < round->committed; i++) {
        struct batch *batch = round->batches;
        round->batches = batch->next;
        batch_committed(store, batch);
        larder_free(batch);
    }
    /* The rows go with the first transaction. */
    if (round->committed > 0)
        round->gone_count = 0;
    while (round->gone_count > 0)
        store->gone[store->gone_count++] = round->gone[--round->gone_count];
    for (uint32_t i = 0; i < round->punch_count; i++)
        round->punches[i].segment->users--;
    for (uint32_t i = 0; i < round->remove_count; i++) {
        round->removes[i]->leaving = false;
        if (i < round->removed)
            segment_gone(store, round->removes[i]);
    }
    if (round->removed < round->remove_count)
        commits->sweep_us = commit_now_us() + SWEEP_US;
    if (keeper_may_try_again(round->commit_err)) {
        put_back(store);
    } else if (round->commit_err < 0) {
        free_batches(round->batches);
        round->batches = NULL;
        store_fail_writes(store, "commit of the index", round->commit_err);
    }
    let_go(store, &commits->held_round, round->commit_err < 0 ? LARDER_EREADONLY : 0);
    if (round->punch_err == -EOPNOTSUPP && store->log.punches) {
        store->log.punches = false;
        larder_log(LARDER_LOG_WARN, "segments: this file system cannot punch holes; only whole "
                                    "segments give space back");
    }
    commits->index_full = round->room_err == -ENOSPC;
    if (round->made)
        seglog_add_ahead(&store->log, round->made, round->make_id);
    /* One that nobody waits for is asked for again when it is needed. */
    if (round->make_id != 0 && !commits->is_ahead)
        commits->make_err = round->make_err;
    commits->is_ahead = false;
    commits->look = true;
    store->clear.look = true;
    larder_free(round->punches);
    larder_free(commits->dead.extents);
    commits->dead = (struct dead_list){0};
    commit_publish_usage(store);
}

/* --- when ------------------------------------------------------------------------------------- */

static bool has_dead(struct larder_store *store)
{
    pthread_mutex_lock(&store->lock);
    bool any = store->dead.count > 0;
    pthread_mutex_unlock(&store->lock);
    return any;
}

/* Nothing is committed any more: after a failure, or at a close that finds no room. */
static void give_up(struct larder_store *store)
{
    free_batches(store->commits.batches);
    store->commits.batches = store->commits.last = NULL;
    store->commits.waiting_bytes = 0;
    store->commits.waiting_changes = 0;
    let_go(store, &store->commits.held, LARDER_EREADONLY);
    store->sweep = false;
    store->commits.look_us = store->commits.sweep_us = 0;
    pthread_mutex_lock(&store->lock);
    store->dead.count = 0;
    pthread_mutex_unlock(&store->lock);
}

static bool is_due(struct larder_store *store, bool stopping)
{
    const struct commits *commits = &store->commits;
    if (commits->hurry || commits->want_segment)
        return true;
    if (commits->retry_us != 0)
        return commit_now_us() >= commits->retry_us;
    if (!commits->batches)
        return store->sweep || commits->held || has_dead(store);
    return stopping || commits->held || commits->waiting_bytes >= COMMIT_BYTES ||
           commits->waiting_changes >= COMMIT_CHANGES ||
           commit_now_us() - commits->since_us >= COMMIT_AGE_US;
}

void commit_take_round(struct larder_store *store)
{
    if (store->commits.busy && keeper_take(store->keeper))
        end_round(store);
}

void commit_give_round(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    if (commits->busy)
        return;
    if (commits->sweep_us != 0 && commit_now_us() >= commits->sweep_us) {
        commits->sweep_us = 0;
        store->sweep = true;
    }
    pthread_mutex_lock(&store->lock);
    bool stopping = store->stopping;
    bool read_only = store->read_only;
    pthread_mutex_unlock(&store->lock);
    if (read_only || (stopping && commits->retry_us != 0))
        give_up(store);
    else if (is_due(store, stopping))
        begin_round(store);
}

bool commit_idle(struct larder_store *store)
{
    return !store->commits.busy && !store->commits.batches && !store->sweep && !has_dead(store);
}

static void be_earlier(uint64_t *due_us, uint64_t us)
{
    if (us != 0 && us < *due_us)
        *due_us = us;
}

int commit_timeout_ms(const struct larder_store *store)
{
    const struct commits *commits = &store->commits;
    uint64_t due_us = UINT64_MAX;
    if (commits->busy)
        return -1;
    be_earlier(&due_us, commits->retry_us);
    be_earlier(&due_us, commits->look_us);
    be_earlier(&due_us, commits->sweep_us);
    if (commits->batches && commits->retry_us == 0)
        be_earlier(&due_us, commits->since_us + COMMIT_AGE_US);
    if (due_us == UINT64_MAX)
        return -1;
    uint64_t now = commit_now_us();
    return due_us <= now ? 0 : (int)((due_us - now) / 1000 + 1);
}

void commit_close(struct larder_store *store)
{
    if (store->keeper)
        keeper_close(store->keeper);
    free_batches(store->commits.batches);
    larder_free(store->dead.extents);
    larder_free(store->gone);
}
