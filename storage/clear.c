/* SPDX-License-Identifier: Apache-2.0 */
/* clear.c - the oldest segments emptied, so that the tombstones and marks behind them can go.
 *
 * A segment with tombstones or marks stays until no older one is left (seglog.h, S2). One entry
 * that nobody drops, pinned or much used, would so keep every tombstone written after it, and
 * whoever puts and removes a small block again and again would fill the disk with them. So when
 * there is enough to gain, what still lives in the oldest segments is moved (move.c); their files
 * go, then those of the tombstones.
 *
 * It begins when segments in a row, from the oldest on, hold GAIN_SHARE of ssd_bytes in tombstones,
 * marks that say nothing any more and records that died before a crash and were not punched (they
 * count as tombstones here), and no more than PRICE times as much that lives. So a byte
 * of a tombstone costs at most PRICE bytes of moving, and in the long run tombstones take no more
 * than the larger of those two shares: of ssd_bytes, or of what lives in front of them.
 *
 * A pass over the table, some entries at a time, finds what is to be moved; a few moves are under
 * way at once, and after them there is a pause of REST times what they took: whatever the disk can
 * do, others have most of it. There is none above ssd_high, or when tombstones come faster than
 * they go.
 *
 * Threads: the storage thread.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/larder_base.h"
#include "base/log.h"
#include "storage/store_priv.h"

#define GAIN_SHARE 32u
#define PRICE      4u
#define REST       3u
/* Looked at in one go: the lock is held. */
#define ENTRIES_MAX 4096u
/* Under way at once. */
#define MOVES_MAX      64u
#define MOVE_BYTES_MAX (16ull << 20)
/* What one pass moves, about; the segments that it empties go before the next. */
#define PASS_BYTES (64ull << 20)
/* What is left may be gone when the index has learned of it. If not, a look is worth less each
 * time. */
#define AGAIN_US      50000u
#define DOUBLINGS_MAX 6u

static uint64_t tombstone_bytes(const struct larder_store *store)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < store->log.count; i++)
        bytes += store->log.segments[i]->tombstone_bytes + store->log.segments[i]->stale_bytes;
    return bytes;
}

/* Which marks hold is asked only when there is much, and then when there is more. */
static bool is_to_be_asked(struct larder_store *store)
{
    struct clear *clear = &store->clear;
    uint64_t share = store->options.ssd_bytes / GAIN_SHARE;
    uint64_t bytes = tombstone_bytes(store);
    clear->asked_bytes = larder_min_u64(clear->asked_bytes, bytes);
    if (bytes < share || bytes - clear->asked_bytes < share / 4)
        return false;
    clear->asked_bytes = bytes;
    return true;
}

static uint64_t bytes_to_gain(const struct segment *segment)
{
    uint64_t kept = (uint64_t)(segment->mark_count + LARDER_MARKS_MAX - 1) / LARDER_MARKS_MAX *
                    LARDER_PAGE_BYTES;
    uint64_t bytes = segment->tombstone_bytes + segment->stale_bytes;
    return bytes > kept ? bytes - kept : 0;
}

/* The last segment of the shortest row that is worth it; NULL: none is. */
static const struct segment *end_of_row(const struct larder_store *store)
{
    const struct seglog *log = &store->log;
    uint64_t gain = 0;
    uint64_t live = 0;
    for (uint32_t i = 0; i < log->count && log->segments[i] != log->open; i++) {
        const struct segment *segment = log->segments[i];
        gain += bytes_to_gain(segment);
        live += segment->live_bytes;
        if (gain >= store->options.ssd_bytes / GAIN_SHARE && gain >= live / PRICE)
            return segment;
    }
    return NULL;
}

/* Which segments the pass empties; false: there is nothing in them to be moved. */
static bool plan_pass(struct larder_store *store, const struct segment *end)
{
    const struct seglog *log = &store->log;
    uint64_t live = 0;
    for (uint32_t i = 0; i < log->count && log->segments[i]->id <= end->id; i++) {
        if (live > 0 && live + log->segments[i]->live_bytes > PASS_BYTES)
            break;
        live += log->segments[i]->live_bytes;
        store->clear.last_id = log->segments[i]->id;
    }
    return live > 0;
}

static void look_again(struct larder_store *store)
{
    struct clear *clear = &store->clear;
    clear->wait_us = commit_now_us() + ((uint64_t)AGAIN_US << clear->in_vain);
    clear->in_vain += clear->in_vain < DOUBLINGS_MAX;
    clear->resting = false;
    clear->look = true;
}

static void begin_pass(struct larder_store *store)
{
    struct clear *clear = &store->clear;
    clear->look = false;
    bool goes_on = clear->began_bytes > 0;
    if (!goes_on && !is_to_be_asked(store))
        return;
    pthread_mutex_lock(&store->lock);
    mark_count_homes_locked(store);
    pthread_mutex_unlock(&store->lock);
    const struct segment *end = end_of_row(store);
    if (!end) {
        clear->began_bytes = 0;
        clear->in_vain = 0;
        return;
    }
    if (!goes_on)
        clear->began_bytes = tombstone_bytes(store);
    if (!plan_pass(store, end)) {
        /* Marks that are to be moved, or a reader that was not gone yet. */
        store->sweep = true;
        look_again(store);
        return;
    }
    larder_log(LARDER_LOG_DEBUG,
               "storage: tombstones wait behind segment %u: what lives up to segment %u is moved",
               store->log.segments[0]->id, clear->last_id);
    clear->running = true;
    clear->failed = false;
    clear->cursor = 1;
    clear->begun = 0;
}

static bool is_urgent(const struct larder_store *store)
{
    const struct larder_store_options *options = &store->options;
    return seglog_usage(&store->log) > options->ssd_bytes / 100 * options->ssd_high ||
           tombstone_bytes(store) > store->clear.began_bytes + options->ssd_bytes / GAIN_SHARE / 4;
}

static void moved(void *context, int err)
{
    struct larder_store *store = context;
    struct clear *clear = &store->clear;
    clear->failed = clear->failed || (err < 0 && err != LARDER_ENOTFOUND && err != -EALREADY &&
                                      err != LARDER_ECORRUPT);
    if (err == 0) {
        pthread_mutex_lock(&store->lock);
        store->stats.cleared++;
        pthread_mutex_unlock(&store->lock);
    }
    if (--clear->in_flight > 0)
        return;
    clear->in_flight_bytes = 0;
    uint64_t now_us = commit_now_us();
    clear->wait_us = now_us + REST * (now_us - clear->begun_us);
    clear->resting = true;
}

/* Some layers in the host tier would keep it where it is. */
static bool let_layers_go_locked(struct larder_store *store, uint32_t id)
{
    const struct entry *entry = table_entry(&store->table, id);
    if (entry->slot == HOST_NONE)
        return true;
    const struct host_slot *slot = host_slot(&store->host, entry->slot);
    if (host_slot_is_whole(slot))
        return true;
    if (slot->state != HOST_SLOT_READY || slot->leases > 0 || slot->pins > 0)
        return false;
    evict_detach_slot_locked(store, id);
    return true;
}

static void move_locked(struct larder_store *store, uint32_t id)
{
    struct clear *clear = &store->clear;
    const struct entry *entry = table_entry(&store->table, id);
    const uint16_t wanted = ENTRY_USED | ENTRY_DURABLE;
    const uint16_t unwanted = ENTRY_ROOT | ENTRY_DOOMED | ENTRY_PUTTING;
    if ((entry->flags & (wanted | unwanted)) != wanted ||
        entry->variant.segment_id > clear->last_id || !let_layers_go_locked(store, id) ||
        move_begin_locked(store, id, MOVE_ALWAYS, moved, store) < 0)
        return;
    if (clear->in_flight++ == 0)
        clear->begun_us = commit_now_us();
    clear->in_flight_bytes += (uint64_t)entry->variant.record_pages * LARDER_PAGE_BYTES;
    clear->begun++;
}

static void walk(struct larder_store *store)
{
    struct clear *clear = &store->clear;
    pthread_mutex_lock(&store->lock);
    uint32_t end = clear->cursor + ENTRIES_MAX;
    end = end < store->table.entry_end ? end : store->table.entry_end;
    while (clear->cursor < end && clear->in_flight < MOVES_MAX &&
           clear->in_flight_bytes < MOVE_BYTES_MAX)
        move_locked(store, clear->cursor++);
    bool over = clear->cursor >= store->table.entry_end;
    pthread_mutex_unlock(&store->lock);
    if (!over || clear->in_flight > 0)
        return;
    clear->running = false;
    if (clear->begun == 0) {
        look_again(store);
        return;
    }
    clear->in_vain = 0;
    store->commits.hurry = true; /* and a look when the index has learned what was moved */
}

bool clear_step(struct larder_store *store)
{
    struct clear *clear = &store->clear;
    if (clear->in_flight > 0 || !(clear->running || clear->look))
        return false;
    pthread_mutex_lock(&store->lock);
    bool over = store->stopping || store->read_only;
    pthread_mutex_unlock(&store->lock);
    if (over) {
        clear->running = clear->look = false;
        return false;
    }
    if (commit_now_us() < clear->wait_us && !(clear->resting && is_urgent(store)))
        return false;
    if (clear->failed) {
        clear->running = clear->failed = false;
        look_again(store);
        return false;
    }
    if (!clear->running)
        begin_pass(store);
    if (!clear->running)
        return false;
    walk(store);
    /* What was begun is read next; the rest of the table is looked at when it is done. */
    return clear->running;
}

int clear_timeout_ms(const struct larder_store *store)
{
    const struct clear *clear = &store->clear;
    if (clear->in_flight > 0 || !(clear->running || clear->look))
        return -1;
    uint64_t now_us = commit_now_us();
    return clear->wait_us <= now_us ? 0 : (int)((clear->wait_us - now_us) / 1000 + 1);
}
