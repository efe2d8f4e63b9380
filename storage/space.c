/* SPDX-License-Identifier: Apache-2.0 */
/* space.c - room for what is to be written: in the open segment, in ssd_bytes, on the disk.
 *
 * A segment is begun only when all of the one before it is in the index: so none but the newest
 * can hold records that were cut short or that the index does not know, and a start reads only its
 * tail.
 * Whatever takes time (a commit, a file made, space given back) is done by the keeper; who needs
 * room comes again when its round is over. So that this is rare, the next file is made when the
 * open one is almost full, and entries are evicted a part at a round as soon as use is above
 * ssd_high, until it is below ssd_low.
 *
 * Threads: the storage thread.
 */
#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "storage/store_priv.h"

/* What the disk refuses although ssd_bytes allows it is made room for in the same way, but not
 * forever. */
#define ATTEMPTS_MAX 3u
/* What a start may have to read again. A group that is under way comes on top. */
#define TAIL_BYTES_MAX (128ull << 20)
/* A smaller store has no segment to spare for what is to come. */
#define SEGMENTS_MIN 16u
/* What is evicted ahead of need at once: punching much of a file at once holds up its disk. */
#define DRAIN_BYTES   (32ull << 20)
#define LOOK_AGAIN_US 500000u

static int come_again(struct larder_store *store)
{
    store->commits.hurry = true;
    return 1;
}

static int refuse(struct larder_store *store, int err)
{
    store->attempts = 0;
    pthread_mutex_lock(&store->lock);
    bool said = store->no_space;
    store->no_space = true;
    pthread_mutex_unlock(&store->lock);
    if (!said)
        larder_log(LARDER_LOG_ERROR, "storage: no new segment: %s", larder_error_text(err));
    return err;
}

/* What goes with segments that go; each is an open file. */
static bool is_shortage(int err)
{
    return err == -ENOSPC || err == -EMFILE || err == -ENFILE;
}

/* What has died is given back first, what else is needed is evicted, then the file is made. */
static int make_segment(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    int err = commits->make_err;
    commits->make_err = 0;
    if (err < 0 && (!is_shortage(err) || ++store->attempts >= ATTEMPTS_MAX))
        return refuse(store, err);
    pthread_mutex_lock(&store->lock);
    bool dead = store->dead.count > 0;
    uint64_t dying_bytes = store->dying_bytes;
    pthread_mutex_unlock(&store->lock);
    if (dead || store->sweep)
        return come_again(store);
    uint64_t need = seglog_usage(&store->log) + store->options.segment_bytes;
    uint64_t too_much = need > store->options.ssd_bytes ? need - store->options.ssd_bytes : 0;
    if (err < 0 && too_much == 0)
        too_much = store->options.segment_bytes;
    if (too_much > 0) {
        /* What was evicted and is being read comes back as its readers end. */
        if (dying_bytes >= too_much)
            return 1;
        uint64_t freed;
        int evict_err = evict_ssd(store, EVICT_ANY, too_much - dying_bytes, &freed);
        if (freed > 0)
            return come_again(store);
        if (evict_err < 0)
            return dying_bytes > 0 ? 1 : refuse(store, evict_err);
    }
    commits->want_segment = true;
    commits->is_ahead = false;
    return 1;
}

static int next_segment(struct larder_store *store)
{
    struct seglog *log = &store->log;
    if (store->commits.busy)
        return 1;
    if (log->open) {
        seglog_seal(log);
        store->sweep = true;
    }
    if (!log->ahead)
        return make_segment(store);
    LARDER_TRY(seglog_begin(log));
    pthread_mutex_lock(&store->lock);
    for (uint32_t i = 0; i < store->model_count; i++)
        store->models[i]->in_segment = false;
    store->no_space = false;
    pthread_mutex_unlock(&store->lock);
    store->attempts = 0;
    store->commits.look = true;
    return 0;
}

int space_make_room(struct larder_store *store, const struct group *group, uint64_t bytes)
{
    const struct commits *commits = &store->commits;
    struct seglog *log = &store->log;
    /* A full disk is to be met before anything is written, not after: asked once a refusal, so that
     * it is seen when there is room again. */
    if (commits->index_full && !group->segment) {
        store->probed = !store->probed;
        return store->probed ? come_again(store)
                             : larder_fail(-ENOSPC, "the index has no room on the disk");
    }
    store->probed = false;
    if (commits->tail_bytes + group->bytes > TAIL_BYTES_MAX && commits->tail_bytes > 0)
        return come_again(store);
    if (log->open && log->open->end_bytes + bytes <= store->options.segment_bytes)
        return 0;
    if (group->segment || store->syncing)
        return 1;
    if (commit_is_behind(store))
        return come_again(store);
    int room = next_segment(store);
    commit_publish_usage(store);
    return room;
}

/* --- ahead ------------------------------------------------------------------------------------ */

static void make_ahead(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    const struct seglog *log = &store->log;
    uint64_t segment_bytes = store->options.segment_bytes;
    if (!log->open || log->ahead || commits->ahead_for == log->open->id ||
        log->open->end_bytes < segment_bytes / 4 * 3 ||
        seglog_usage(log) + segment_bytes > store->options.ssd_bytes)
        return;
    commits->ahead_for = log->open->id;
    commits->want_segment = true;
    commits->is_ahead = true;
}

/* Where holes cannot be punched, evicting here and there gives no room: it is not done ahead. */
static void evict_ahead(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    const struct larder_store_options *options = &store->options;
    if (!commits->look || !store->log.punches)
        return;
    commits->look = false;
    uint64_t use = seglog_usage(&store->log) + (store->log.ahead ? 0 : options->segment_bytes);
    uint64_t low = options->ssd_bytes / 100 * options->ssd_low;
    if (use > options->ssd_bytes / 100 * options->ssd_high)
        commits->draining = true;
    if (use <= low)
        commits->draining = false;
    if (!commits->draining)
        return;
    /* What may not go now may go after the next round, or in a while. */
    uint64_t freed;
    (void)evict_ssd_part(store, EVICT_ANY, larder_min_u64(use - low, DRAIN_BYTES), &freed);
    commits->hurry = commits->hurry || freed > 0;
    commits->look_us = freed > 0 ? 0 : commit_now_us() + LOOK_AGAIN_US;
}

void space_look_ahead(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    if (commits->look_us != 0 && commit_now_us() >= commits->look_us) {
        commits->look = true;
        commits->look_us = 0;
    }
    if (commits->busy || commits->want_segment || commits->retry_us != 0 || commits->index_full ||
        store->options.ssd_bytes / store->options.segment_bytes < SEGMENTS_MIN)
        return;
    pthread_mutex_lock(&store->lock);
    bool wait = store->stopping || store->read_only || store->dead.count > 0;
    pthread_mutex_unlock(&store->lock);
    if (wait)
        return;
    evict_ahead(store);
    make_ahead(store);
}
