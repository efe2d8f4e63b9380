/* SPDX-License-Identifier: Apache-2.0 */
/* space.c - room for what is to be written: in the open segment, in ssd_bytes, on the disk.
 *
 * A segment is begun only when all of the one before it is in the index: so none but the newest
 * can hold records that were cut short or that the index does not know, and a start reads only its
 * tail.
 * Whatever takes time (a commit, a file made, space given back) is done by the keeper; who needs
 * room comes again when its round is over.
 *
 * Threads: the storage thread.
 */
#include <errno.h>

#include "base/error.h"
#include "base/log.h"
#include "storage/store_priv.h"

/* What the disk refuses although ssd_bytes allows it is made room for in the same way, but not
 * forever. */
#define ATTEMPTS_MAX 3u
/* What a start may have to read again. A group that is under way comes on top. */
#define TAIL_BYTES_MAX (128ull << 20)

static int come_again(struct larder_store *store)
{
    store->commits.hurry = true;
    return 1;
}

static int refuse(struct larder_store *store, int err)
{
    store->attempts = 0;
    if (!store->no_space)
        larder_log(LARDER_LOG_ERROR, "storage: no new segment: %s", larder_error_text(err));
    store->no_space = true;
    return err;
}

/* What has died is given back first, what else is needed is evicted, then the file is made. */
static int make_segment(struct larder_store *store)
{
    struct commits *commits = &store->commits;
    int err = commits->make_err;
    commits->make_err = 0;
    if (err < 0 && (err != -ENOSPC || ++store->attempts >= ATTEMPTS_MAX))
        return refuse(store, err);
    pthread_mutex_lock(&store->lock);
    bool dying = store->dead.count > 0;
    pthread_mutex_unlock(&store->lock);
    if (dying || store->sweep)
        return come_again(store);
    uint64_t need = seglog_usage(&store->log) + store->options.segment_bytes;
    uint64_t too_much = need > store->options.ssd_bytes ? need - store->options.ssd_bytes : 0;
    if (err == -ENOSPC && too_much == 0)
        too_much = store->options.segment_bytes;
    if (too_much > 0) {
        uint64_t freed;
        int evict_err = evict_ssd(store, EVICT_ANY, too_much, &freed);
        if (freed > 0)
            return come_again(store);
        /* What was evicted may be in use for a while yet: its segments still count. */
        if (evict_err < 0)
            return refuse(store, evict_err);
    }
    commits->want_segment = true;
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
    pthread_mutex_unlock(&store->lock);
    store->attempts = 0;
    store->no_space = false;
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
