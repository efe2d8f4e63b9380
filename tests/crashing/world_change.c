/* SPDX-License-Identifier: Apache-2.0 */
/* world_change.c - what is asked of entries that are stored: removals, demotions, marks, moves,
 * a purge.
 */
#include <errno.h>
#include <string.h>

#include "world_priv.h"

/* --- removals --------------------------------------------------------------------------------- */

struct remove_wait {
    struct world *world;
    bool is_done;
    int err;
};

static void on_removed(void *context, int err, uint64_t removed)
{
    struct remove_wait *wait = context;
    (void)removed;
    pthread_mutex_lock(&wait->world->mutex);
    wait->is_done = true;
    wait->err = err;
    pthread_cond_broadcast(&wait->world->changed);
    pthread_mutex_unlock(&wait->world->mutex);
}

static bool is_below(const struct world *world, uint32_t item, uint32_t top)
{
    while (item != WORLD_NO_ITEM && item != top)
        item = world->items[item].parent;
    return item == top;
}

/* Nothing is promised any more of what a removal was asked for. Whether it was promised. */
static bool begin_removal(struct promise *promise)
{
    bool was_there = promise->must;
    promise->must = false;
    promise->removing = true;
    return was_there;
}

static void end_removal(struct promise *promise, int err)
{
    if (err == 0 || err == LARDER_ENOTFOUND)
        promise->may = false;
    if (err == 0 && promise->version > 0)
        promise->removed = true;
}

void world_remove(struct world *world, uint32_t top)
{
    pthread_mutex_lock(&world->mutex);
    bool was_there = false;
    for (uint32_t i = top; i < world->item_count; i++) {
        if (is_below(world, i, top)) {
            item_forget_marks(&world->items[i], false);
            world->items[i].either = false;
        }
        for (uint32_t quality = 0; quality < WORLD_VARIANTS && is_below(world, i, top); quality++) {
            bool was_promised = begin_removal(&world->items[i].variants[quality]);
            was_there = was_there || (i == top && was_promised);
        }
    }
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_remove(world->store, world->tenant.index, &world->items[top].key,
                        world_chance(world, 50) ? LARDER_KEEP_PINNED : LARDER_REMOVE_PINNED,
                        on_removed, &wait);
    pthread_mutex_lock(&world->mutex);
    world_wait(world, &wait.is_done, NULL, "a removal");
    if (wait.err == LARDER_ENOTFOUND && was_there && !world->evicts && !world->rotted) {
        world_say(world, "item %u: lost, says its removal", top);
        world->tally->lost++;
    }
    for (uint32_t i = top; i < world->item_count; i++) {
        for (uint32_t quality = 0; quality < WORLD_VARIANTS && is_below(world, i, top); quality++)
            end_removal(&world->items[i].variants[quality], wait.err);
    }
    pthread_mutex_unlock(&world->mutex);
}

void world_remove_variant(struct world *world, uint32_t number, enum larder_quality quality)
{
    int variant = world_variant_number(world, number, quality);
    if (variant < 0)
        return;
    struct promise *promise = &world->items[number].variants[quality];
    pthread_mutex_lock(&world->mutex);
    struct promise before = *promise;
    begin_removal(promise);
    world->items[number].either = false;
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_remove_variant(world->store, world->tenant.index, &world->items[number].key,
                                (uint32_t)variant, on_removed, &wait);
    pthread_mutex_lock(&world->mutex);
    world_wait(world, &wait.is_done, NULL, "the removal of a variant");
    end_removal(promise, wait.err);
    if (wait.err == -EBUSY) {
        /* It was refused: what was promised holds, and what a put in flight says counts. */
        promise->must = promise->must || before.must;
        promise->removing = before.removing;
    }
    pthread_mutex_unlock(&world->mutex);
}

/* --- demotions -------------------------------------------------------------------------------- */

/* What a demotion that ended with `err` says of the record that was to go. If it went, the other
 * one was durable. */
static void end_demotion(struct item *item, const struct promise *before, int err)
{
    struct promise *larger = &item->variants[LARDER_QUALITY_EXACT];
    switch (err) {
    case 0:
        end_removal(larger, 0);
        item->variants[LARDER_QUALITY_LOSSY].must = true;
        item->either = false;
        break;
    case LARDER_ENOTFOUND: /* it is not larger, counted in pages */
    case -EBUSY:
    case LARDER_EPINNED:
        larger->must = larger->must || before->must;
        larger->removing = before->removing;
        item->either = false;
        break;
    default:; /* the next start finds which */
    }
}

void world_demote(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    struct promise *larger = &item->variants[LARDER_QUALITY_EXACT];
    if (!larger->may)
        return;
    world_put_again(world, number, LARDER_QUALITY_LOSSY,
                    world_chance(world, 80) ? LARDER_DURABLE : LARDER_CACHED);
    if (world_chance(world, 80))
        world_settle(world);
    int kept = world_variant_number(world, number, LARDER_QUALITY_LOSSY);
    if (kept < 0)
        return;
    pthread_mutex_lock(&world->mutex);
    struct promise before = *larger;
    item->either = begin_removal(larger) || item->variants[LARDER_QUALITY_LOSSY].must;
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_demote(world->store, world->tenant.index, &item->key, (uint32_t)kept, 0,
                        on_removed, &wait);
    pthread_mutex_lock(&world->mutex);
    world_wait(world, &wait.is_done, NULL, "a demotion");
    end_demotion(item, &before, wait.err);
    world->tally->demotions += wait.err == 0;
    pthread_mutex_unlock(&world->mutex);
}

/* --- marks ------------------------------------------------------------------------------------ */

static void on_marked(void *context, int err)
{
    on_removed(context, err, 0);
}

static int mark_item(struct world *world, const struct item *item, const struct larder_mark *mark)
{
    struct remove_wait wait = {.world = world};
    larder_store_mark(world->store, world->tenant.index, &item->key, mark, on_marked, &wait);
    pthread_mutex_lock(&world->mutex);
    world_wait(world, &wait.is_done, NULL, "a mark");
    pthread_mutex_unlock(&world->mutex);
    return wait.err;
}

void world_pin(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    bool pins = item->pin != PIN_YES;
    const struct larder_mark mark = {.fields = pins ? LARDER_MARK_PIN : LARDER_MARK_UNPIN};
    item->pin = PIN_UNKNOWN;
    if (mark_item(world, item, &mark) == 0)
        item->pin = pins ? PIN_YES : PIN_NO;
}

#define YEAR_S 31536000u

/* When it ends is the store's clock's to say: what it says right after that must hold. */
static void end_item(struct world *world, struct item *item)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_TTL,
                                     .ttl_s = world_draw(world, 4) * YEAR_S};
    struct larder_entry_info info;
    item->expires_s.known = false;
    if (mark_item(world, item, &mark) < 0 || larder_store_find(world->store, &info, &item->key) < 0)
        return;
    if ((info.expires_s != 0) != (mark.ttl_s != 0)) {
        world_say(world, "a time of %llu s is not there", (unsigned long long)mark.ttl_s);
        world->tally->unmarked++;
    }
    item->expires_s = (struct marked){.known = true, .value = (int64_t)info.expires_s};
}

static void weigh_item(struct world *world, struct item *item)
{
    const struct larder_mark mark = {.fields = LARDER_MARK_PRIORITY,
                                     .priority = (int32_t)world_draw(world, 17) - 8};
    item->priority.known = false;
    if (mark_item(world, item, &mark) == 0)
        item->priority = (struct marked){.known = true, .value = mark.priority};
}

void world_mark(struct world *world, uint32_t number)
{
    struct item *item = &world->items[number];
    switch (world_draw(world, 3)) {
    case 0:
        end_item(world, item);
        break;
    case 1:
        weigh_item(world, item);
        break;
    default:
        world_pin(world, number);
    }
}

/* --- what has to be cleared away -------------------------------------------------------------- */

void world_pile_up(struct world *world, uint32_t pages)
{
    for (; pages > 0 && !world_power_failed(world); pages--) {
        uint32_t number = (uint32_t)world_draw(world, world->item_count);
        if (world_may(world, number) && world_chance(world, 80)) {
            weigh_item(world, &world->items[number]);
            continue;
        }
        world_put_again(world, number, LARDER_QUALITY_LOSSY, LARDER_DURABLE);
        world_settle(world);
        world_remove_variant(world, number, LARDER_QUALITY_LOSSY);
    }
}

/* --- moves ------------------------------------------------------------------------------------ */

/* Whatever becomes of it, what was promised of the item holds. */
void world_move(struct world *world, uint32_t number)
{
    struct remove_wait wait = {.world = world};
    larder_store_move(world->store, &world->items[number].key,
                      (uint32_t)world_draw(world, WORLD_VARIANTS), 101, on_marked, &wait);
    pthread_mutex_lock(&world->mutex);
    world_wait(world, &wait.is_done, NULL, "a move");
    pthread_mutex_unlock(&world->mutex);
}

/* --- purge ------------------------------------------------------------------------------------ */

/* All of it goes, or nothing does. */
static void all_purged_locked(struct world *world)
{
    for (uint32_t i = 0; i < world->item_count; i++) {
        for (uint32_t v = 0; v < WORLD_VARIANTS; v++) {
            struct promise *promise = &world->items[i].variants[v];
            promise->must = promise->may = false;
            promise->removed = promise->purged = true;
        }
        item_forget_marks(&world->items[i], false);
        world->items[i].either = false;
    }
}

void world_purge(struct world *world)
{
    pthread_mutex_lock(&world->mutex);
    for (uint32_t i = 0; i < world->item_count; i++) {
        for (uint32_t v = 0; v < WORLD_VARIANTS; v++)
            world->items[i].variants[v].removing = true;
    }
    pthread_mutex_unlock(&world->mutex);
    world->purging = true;
    uint64_t removed;
    int err = larder_store_purge(world->store, world->tenant.index, &removed);
    if (err < 0)
        return; /* what the next start finds says which */
    struct larder_tenant_info before = world->tenant;
    larder_store_tenant_at(world->store, &world->tenant, before.index);
    if (memcmp(before.id, world->tenant.id, sizeof(before.id)) == 0 ||
        memcmp(before.key, world->tenant.key, sizeof(before.key)) == 0) {
        world_say(world, "a purged tenant has its old keys");
        world->tally->purged_back++;
    }
    pthread_mutex_lock(&world->mutex);
    all_purged_locked(world);
    world->purging = false;
    world->tally->purges++;
    pthread_mutex_unlock(&world->mutex);
}

void world_judge_purge(struct world *world, const uint8_t id_before[16])
{
    if (memcmp(id_before, world->tenant.id, sizeof(world->tenant.id)) != 0) {
        if (!world->purging) {
            world_say(world, "the tenant has other keys, without a purge");
            world->tally->lost++;
        }
        pthread_mutex_lock(&world->mutex);
        all_purged_locked(world);
        pthread_mutex_unlock(&world->mutex);
    }
    world->purging = false;
}
