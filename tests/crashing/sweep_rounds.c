/* SPDX-License-Identifier: Apache-2.0 */
/* sweep_rounds.c - power fails at step 1 of the script, at step 2, and so on until it ends; a step
 * is a write, a sync, or whatever else changes the disk, in segments or in the index. Each time
 * the store starts from what survived, by several draws of chance, and is compared. Starts are
 * swept the same way: the first of all, and one after a crash.
 *
 * The script puts chains durably and not, fills segments so that new ones are begun, reads, removes
 * from the middle of a chain, puts again what was removed, pins, and lets a small SSD tier evict.
 * Another finds tombstones and marks piled up behind a pinned item, and a smaller SSD tier than
 * before: the store empties its oldest segments.
 */
#include "sweep_rounds.h"

#include <assert.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "world.h"

/* More than any script has. */
#define STEPS_MAX 5000u
/* More than a 32nd of the small tier are in segments that are not open. */
#define PAGES_PILED   400u
#define SMALL_BYTES   (16u << 20)
#define SEGMENTS_LEFT 2u
#define CLEARING_MS   1000

enum where {
    FIRST_START,
    IN_SCRIPT,
    IN_SCRIPT_EVICTING,
    IN_CLEARING,
    LATER_START,
    WHERE_COUNT,
};

static const char *const where_names[WHERE_COUNT] = {"first start", "script", "script, evicting",
                                                     "clearing", "later start"};

static void put_chain(struct world *world, uint32_t count, enum larder_wait wait)
{
    uint32_t parent = WORLD_NO_ITEM;
    for (uint32_t i = 0; i < count; i++) {
        parent = world_put(world, parent, wait);
        if (parent == WORLD_NO_ITEM || !world_may(world, parent))
            return;
    }
    world_settle(world);
}

static void run_script(struct world *world)
{
    put_chain(world, 1, LARDER_DURABLE);
    put_chain(world, 4, LARDER_CACHED);
    put_chain(world, 5, LARDER_DURABLE);
    if (world->item_count > 6) {
        world_pin(world, 1);
        world_remove(world, 2);
        world_read(world, 1);
        world_put_again(world, 2, LARDER_QUALITY_EXACT, LARDER_DURABLE);
        world_settle(world);
        world_put_again(world, 3, LARDER_QUALITY_LOSSY, LARDER_DURABLE);
        world_put_again(world, 1, LARDER_QUALITY_LOSSY, LARDER_DURABLE);
        world_settle(world);
        world_remove_variant(world, 1, LARDER_QUALITY_EXACT);
        world_put_again(world, 1, LARDER_QUALITY_EXACT, LARDER_DURABLE);
        world_demote(world, 2);
        world_pin(world, 2);
        world_pin(world, 1);
        world_remove(world, 5);
    }
    /* Records of up to 1.2 MB among them: several segments. */
    for (uint32_t i = 0; i < 12 && !world_power_failed(world); i++)
        put_chain(world, 2, i % 3 ? LARDER_DURABLE : LARDER_CACHED);
    for (uint32_t i = 0; i < world->item_count && !world_power_failed(world); i += 5)
        world_read(world, i);
    if (world->item_count > 8)
        world_remove(world, 8);
    world_settle(world);
    if (world_chance(world, 50) && !world_power_failed(world)) {
        world_purge(world);
        put_chain(world, 2, LARDER_DURABLE);
        world_settle(world);
    }
}

/* Nothing is cut yet; a large store does not mind. */
static void pile_up(struct world *world)
{
    int err = world_open(world);
    assert(err == 0);
    put_chain(world, 2, LARDER_DURABLE);
    world_pin(world, 0);
    put_chain(world, 3, LARDER_DURABLE);
    world_pile_up(world, PAGES_PILED);
    world_close(world);
    world->life++;
    world->options.ssd_bytes = SMALL_BYTES;
}

static void run_clearing(struct world *world)
{
    put_chain(world, 2, LARDER_DURABLE);
    for (int i = 0; i < CLEARING_MS && !world_power_failed(world); i++) {
        struct larder_store_stats stats;
        larder_store_stats(world->store, &stats);
        if (stats.cleared > 0 && stats.segments <= SEGMENTS_LEFT)
            break;
        usleep(1000);
    }
    if (!world_power_failed(world))
        world_pin(world, 0);
    put_chain(world, 2, LARDER_DURABLE);
}

/* A start that power does not cut, and its comparison. */
static void start_and_compare(struct world *world)
{
    int err = world_open(world);
    if (err < 0) {
        world_say(world, "does not start: %s", larder_error_message());
        world->tally->failed_starts++;
        return;
    }
    world_verify(world);
}

/* Power fails at step `step` of what is swept; false when it was over before. */
static bool cut_at(struct world *world, enum where where, uint64_t step)
{
    world->evicts = where == IN_SCRIPT_EVICTING;
    world->options.ssd_bytes = 8u << 20;
    world_draw_options(world);
    world->options.io_depth = 8;
    world->options.segment_bytes = where == IN_CLEARING ? 1u << 20 : 2u << 20;
    bool cuts_start = where == FIRST_START || where == LATER_START;
    if (where == LATER_START) {
        /* Cut somewhere: what that start has to do differs from seed to seed. */
        int err = world_open(world);
        assert(err == 0);
        sim_disk_fail_power_at(world->disk,
                               sim_disk_steps(world->disk) + 20 + world_draw(world, 100));
        run_script(world);
        world_close(world);
        world_crash(world);
    }
    if (where == IN_CLEARING)
        pile_up(world);
    world->life++;
    if (cuts_start)
        sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + step);
    int err = world_open(world);
    if (!cuts_start && err == 0) {
        sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + step);
        if (where == IN_CLEARING)
            run_clearing(world);
        else
            run_script(world);
    }
    if (world->store) {
        world_count_corrupt(world);
        world_close(world);
    }
    bool was_cut = world_power_failed(world);
    world_crash(world);
    world->life++;
    start_and_compare(world);
    if (world->store)
        world_close(world);
    return was_cut;
}

static void sweep_one(const struct sweep_rounds_options *options, struct tally *tally,
                      enum where where)
{
    bool was_cut = true;
    for (uint64_t step = 1; was_cut && step < STEPS_MAX; step++) {
        was_cut = false;
        for (uint32_t pattern = 0; pattern < options->patterns; pattern++) {
            struct world *world =
                world_begin(tally, options->seed + pattern, true, options->verbose);
            const struct sim_faults faults = {.error_op = SIM_ANY_OP,
                                              .sync_lies = options->sync_lies};
            sim_disk_set_faults(world->disk, &faults);
            uint64_t bugs = tally_bugs(tally);
            was_cut |= cut_at(world, where, step);
            if (tally_bugs(tally) > bugs)
                world_say(world, "that was %s, step %llu", where_names[where],
                          (unsigned long long)step);
            world_end(world);
            if (options->stop_at_first_bug && tally_bugs(tally) > 0)
                return;
        }
    }
    if (was_cut)
        tally->failed_starts++; /* the script does not end */
}

void sweep_rounds(const struct sweep_rounds_options *options, struct tally *tally)
{
    for (int where = 0; where < WHERE_COUNT; where++) {
        sweep_one(options, tally, (enum where)where);
        if (options->stop_at_first_bug && tally_bugs(tally) > 0)
            return;
        if (options->progress)
            options->progress((uint64_t)where + 1, WHERE_COUNT);
    }
}
