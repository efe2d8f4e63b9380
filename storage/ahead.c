/* SPDX-License-Identifier: Apache-2.0 */
/* ahead.c - zeros written where small records will stand.
 *
 * Space that was only preallocated becomes the file's when it is first written, and the sync behind
 * that waits for the journal of the file system: twice as long as a sync of bytes that are
 * overwritten. For large groups that is nothing. In a stream of small ones that somebody waits for,
 * one in many also writes zeros behind its records, where zeros are read anyway; the next groups
 * then overwrite. The cost is that their bytes are written twice.
 *
 * They are part of that group, so they are on the disk before anything is written over them.
 *
 * Threads: the storage thread.
 */
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "storage/store_priv.h"

/* A group that gains by it, and how many of them come in a row before it is worth the bytes. */
#define GROUP_BYTES_SMALL (32u << 10)
#define GROUPS_IN_A_ROW   8u
#define AHEAD_BYTES       (256u << 10)

int ahead_open(struct larder_store *store)
{
    store->zeros = larder_alloc_aligned(LARDER_PAGE_BYTES, AHEAD_BYTES);
    if (!store->zeros)
        return -ENOMEM;
    memset(store->zeros, 0, AHEAD_BYTES);
    return 0;
}

bool ahead_wanted(struct larder_store *store, const struct group *group, struct append *out)
{
    if (group->bytes > GROUP_BYTES_SMALL || !group->puts || !group->puts->done) {
        store->small_groups = 0;
        return false;
    }
    struct segment *segment = group->segment;
    if (++store->small_groups < GROUPS_IN_A_ROW ||
        segment->end_bytes + GROUP_BYTES_SMALL <= segment->zeroed_bytes)
        return false;
    uint64_t bytes = larder_min_u64(AHEAD_BYTES, store->options.segment_bytes - segment->end_bytes);
    if (bytes == 0 || segment->end_bytes + bytes <= segment->zeroed_bytes)
        return false;
    *out = (struct append){.buffer = store->zeros, .offset = segment->end_bytes, .bytes = bytes};
    segment->zeroed_bytes = segment->end_bytes + bytes;
    return true;
}
