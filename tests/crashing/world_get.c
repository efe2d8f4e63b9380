/* SPDX-License-Identifier: Apache-2.0 */
/* world_get.c - reads, and after a start the comparison of all there is with what was promised.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/larder_base.h"
#include "world_priv.h"

/* --- reads ------------------------------------------------------------------------------------ */

struct lease_wait {
    struct world *world;
    bool is_done;
    uint32_t loaded;
    int err;
};

static void on_loaded(void *context, uint32_t loaded, int err)
{
    struct lease_wait *wait = context;
    pthread_mutex_lock(&wait->world->mutex);
    wait->is_done = true;
    wait->loaded = loaded;
    wait->err = err;
    pthread_cond_broadcast(&wait->world->changed);
    pthread_mutex_unlock(&wait->world->mutex);
}

enum presence {
    ABSENT,
    PRESENT,
    WRONG,
    UNKNOWN, /* the store is busy, or the disk failed */
};

/* Reads what of the keys fits the host tier at once; *loaded of them are right, the last of them of
 * that quality. */
static enum presence read_run(struct world *world, const uint32_t *chain,
                              const struct larder_key *keys, uint32_t count, bool smallest,
                              uint32_t *loaded, uint32_t *quality)
{
    unsigned worst = LARDER_QUALITY_BLENDED | (smallest ? LARDER_QUALITY_SMALLEST : 0);
    struct larder_ref refs[DEPTH_MAX];
    struct lease_wait wait = {.world = world};
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    *loaded = 0;
    int err = larder_store_lease(world->store, &lease, refs, &ref_count, &ready,
                                 &(struct larder_want){.tenant = world->tenant.index,
                                                       .keys = keys,
                                                       .key_count = count,
                                                       .worst = (enum larder_quality)worst},
                                 on_loaded, &wait);
    if (err < 0 || !lease)
        return err == -EBUSY ? UNKNOWN : ABSENT;
    if (ready) {
        wait.loaded = ref_count;
    } else {
        pthread_mutex_lock(&world->mutex);
        world_wait(world, &wait.is_done, NULL, "a read");
        pthread_mutex_unlock(&world->mutex);
    }
    enum presence found = wait.loaded > 0 ? PRESENT : wait.err == -EIO ? UNKNOWN : ABSENT;
    for (uint32_t i = 0; i < wait.loaded; i++) {
        const struct larder_record *record =
            larder_store_ref_record(world->store, world->tenant.index, &refs[i]);
        *quality = record->quality;
        if (!item_is_right(world, record, chain[i])) {
            world_say(world, "item %u quality %u: wrong bytes", chain[i], *quality);
            world->tally->wrong++;
            found = WRONG;
        }
    }
    *loaded = wait.loaded;
    larder_store_release(world->store, lease);
    return found;
}

/* Reads the chain that ends in an item: its best variants, or its smallest. */
static enum presence read_item(struct world *world, uint32_t number, bool smallest,
                               uint32_t *quality)
{
    uint32_t chain[DEPTH_MAX];
    struct larder_key keys[DEPTH_MAX];
    uint32_t count = world->items[number].depth + 1;
    for (uint32_t i = count, at = number; i-- > 0; at = world->items[at].parent) {
        chain[i] = at;
        keys[i] = world->items[at].key;
    }
    enum presence found = PRESENT;
    uint32_t loaded;
    for (uint32_t at = 0; at < count && found == PRESENT; at += loaded)
        found = read_run(world, chain + at, keys + at, count - at, smallest, &loaded, quality);
    return found;
}

/* Whether each variant of an item is there. The lossy one is always the smallest, but may take as
 * many pages as the exact one; then its bytes are not compared. */
static void read_variants(struct world *world, uint32_t number, enum presence *found)
{
    uint32_t quality = 0;
    enum presence best = read_item(world, number, false, &quality);
    found[LARDER_QUALITY_EXACT] = found[LARDER_QUALITY_LOSSY] = best;
    if (best != PRESENT)
        return;
    if (quality != LARDER_QUALITY_EXACT) {
        found[LARDER_QUALITY_EXACT] = ABSENT;
        return;
    }
    best = read_item(world, number, true, &quality);
    found[LARDER_QUALITY_LOSSY] = best;
    if (best == PRESENT && quality == LARDER_QUALITY_EXACT)
        found[LARDER_QUALITY_LOSSY] =
            world_variant_number(world, number, LARDER_QUALITY_LOSSY) < 0 ? ABSENT : PRESENT;
}

static bool is_removed(const struct world *world, uint32_t number)
{
    const struct promise *variants = world->items[number].variants;
    return !world_may(world, number) &&
           (variants[LARDER_QUALITY_EXACT].removed || variants[LARDER_QUALITY_LOSSY].removed);
}

void world_read(struct world *world, uint32_t number)
{
    pthread_mutex_lock(&world->mutex);
    const struct promise *variants = world->items[number].variants;
    bool must = variants[LARDER_QUALITY_EXACT].must || variants[LARDER_QUALITY_LOSSY].must;
    bool must_exact = variants[LARDER_QUALITY_EXACT].must;
    pthread_mutex_unlock(&world->mutex);
    uint32_t quality = LARDER_QUALITY_EXACT;
    enum presence found = read_item(world, number, false, &quality);
    if (world_power_failed(world))
        return;
    bool lost = (found == ABSENT && must) || (found == PRESENT && must_exact && quality > 0);
    if (lost && !world->evicts && !world->rotted) {
        world_say(world, "item %u: lost while running", number);
        world->tally->lost++;
    } else if (found == PRESENT && is_removed(world, number)) {
        world_say(world, "item %u: came back while running", number);
        world->tally->removed_back++;
    }
}

/* --- judgement -------------------------------------------------------------------------------- */

void world_count_corrupt(struct world *world)
{
    if (larder_store_check(world->store) < 0) {
        world_say(world, "%s", larder_error_message());
        world->tally->disagreeing++;
    }
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->tally->clearing_lives += stats.cleared > 0 && world->cleared_seen == 0;
    world->tally->cleared += stats.cleared - world->cleared_seen;
    world->cleared_seen = stats.cleared;
    if (stats.corrupt > world->corrupt_seen && !world->rotted && !world->spoiled) {
        world_say(world, "%llu records called corrupt", (unsigned long long)stats.corrupt);
        world->tally->corrupt += stats.corrupt - world->corrupt_seen;
    }
    world->corrupt_seen = stats.corrupt;
}

static void judge(struct world *world, uint32_t number, uint32_t quality, enum presence found)
{
    struct promise *promise = &world->items[number].variants[quality];
    struct tally *tally = world->tally;
    if (found == UNKNOWN)
        return;
    /* With the index lost, and the tombstone among the bytes that were changed, nothing is left
     * that says so. */
    if (found == PRESENT && promise->removed && !(world->rotted && world->spoiled)) {
        world_say(world, "item %u quality %u: came back", number, quality);
        tally->removed_back += !promise->purged;
        tally->purged_back += promise->purged;
    }
    if (found == ABSENT && promise->must) {
        if (world->rotted) {
            tally->missing++;
        } else if (!world->evicts) {
            world_say(world, "item %u quality %u at depth %u: lost", number, quality,
                      world->items[number].depth);
            tally->lost++;
        }
    }
    /* What is there after a start stays there. */
    promise->must = found == PRESENT;
    promise->may = found == PRESENT;
    promise->removing = false;
}

/* Whichever step of a demotion was the last, the block has a record. */
static void judge_either(struct world *world, uint32_t number, const enum presence *found)
{
    struct item *item = &world->items[number];
    if (found[LARDER_QUALITY_EXACT] == UNKNOWN || found[LARDER_QUALITY_LOSSY] == UNKNOWN)
        return;
    if (item->either && !world_may(world, number) && !world->rotted && !world->evicts) {
        world_say(world, "item %u: lost, while it was kept smaller", number);
        world->tally->lost++;
    }
    item->either = false;
}

/* Each start reads two clocks in whole seconds. */
#define SLACK_S 2

static void judge_marked(struct world *world, uint32_t number, const char *what,
                         struct marked *marked, int64_t found, int64_t slack)
{
    if (!marked->known)
        return;
    bool right = llabs(marked->value - found) <= slack;
    marked->value = right ? found : marked->value;
    if (right)
        return;
    world_say(world, "item %u: %s %lld, and was promised %lld", number, what, (long long)found,
              (long long)marked->value);
    world->tally->unmarked++;
    marked->known = false;
}

static void judge_marks(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    struct larder_entry_info info;
    if (!world_may(world, number) || world->rotted)
        return;
    bool there = larder_store_find(world->store, &info, &item->key) == 0;
    if (there) {
        judge_marked(world, number, "ends at", &item->expires_s, (int64_t)info.expires_s, SLACK_S);
        judge_marked(world, number, "has priority", &item->priority, info.priority, 0);
    }
    if (item->pin == PIN_UNKNOWN)
        return;
    /* What is pinned must be there, however small the disk. */
    bool wrong = there ? info.pinned != (item->pin == PIN_YES) : item->pin == PIN_YES;
    if (wrong) {
        world_say(world, "item %u: %s", number,
                  !there        ? "pinned, and gone"
                  : info.pinned ? "pinned"
                                : "not pinned any more");
        world->tally->unmarked++;
        item->pin = PIN_UNKNOWN;
    }
}

bool world_verify(struct world *world)
{
    enum presence found[WORLD_ITEMS_MAX][WORLD_VARIANTS];
    for (uint32_t i = 0; i < world->item_count; i++)
        read_variants(world, i, found[i]);
    if (world_power_failed(world))
        return false;
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->tally->rebuilds += stats.index_rebuilt;
    uint64_t promised = 0, verified = 0;
    bool excused = world->evicts || world->rotted;
    for (uint32_t i = 0; i < world->item_count * WORLD_VARIANTS; i++) {
        uint32_t number = i / WORLD_VARIANTS;
        uint32_t quality = i % WORLD_VARIANTS;
        bool must = world->items[number].variants[quality].must;
        bool there = found[number][quality] == PRESENT;
        promised += must && (there || !excused);
        verified += must && there;
        judge(world, number, quality, found[number][quality]);
    }
    for (uint32_t i = 0; i < world->item_count; i++) {
        judge_either(world, i, found[i]);
        judge_marks(world, i);
    }
    world_count_corrupt(world);
    world->tally->rounds++;
    world->tally->acknowledged += promised;
    world->tally->verified += verified;
    return true;
}
