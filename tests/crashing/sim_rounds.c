/* SPDX-License-Identifier: Apache-2.0 */
/* sim_rounds.c - lives of a store on one simulated disk.
 *
 * In a life the store opens, puts, reads, removes, and ends by a power cut at a random step or a
 * clean close; then unsynced sectors and names survive by chance, in segments and in the index's
 * file, and the next life begins with comparing everything. Starts are cut short too; requests
 * fail, disks are full; the index is taken away or damaged at times; a world's last life may begin
 * with flipped bits in segments, and reads that bring other pages.
 */
#include "sim_rounds.h"

#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "storage/index.h"
#include "world.h"

#define LIVES_MAX 5u

static void work(struct world *world)
{
    uint32_t steps = 20 + (uint32_t)world_draw(world, 80);
    while (steps-- > 0 && !world_power_failed(world))
        world_do_something(world);
}

/* Something old that stays, and then what waits for it to go. */
static void pile_up(struct world *world)
{
    for (uint32_t i = 0; i < 4; i++)
        world_put(world, WORLD_NO_ITEM, LARDER_DURABLE);
    world_settle(world);
    if (world->life == 1)
        world_pin(world, 0);
    world_pile_up(world, 150 + (uint32_t)world_draw(world, 200));
}

static void end_life(struct world *world)
{
    if (!world_power_failed(world) && world_chance(world, 50))
        sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + 1 + world_draw(world, 3));
    world_count_corrupt(world);
    world_close(world);
    assert(world->outstanding == 0);
    world_crash(world);
}

/* The index is only a help: without it, or with a damaged one, everything is found again. */
static void spoil_index(struct world *world)
{
    char path[SCRATCH_PATH_BYTES + 32];
    uint64_t what = world_draw(world, 10);
    world->spoiled = what < 2;
    if (what == 0) {
        snprintf(path, sizeof(path), "%s/index", world->directory);
        larder_index_destroy(path);
    } else if (what == 1) {
        world_index_path(world, path, sizeof(path));
        int fd = open(path, O_RDWR | O_CLOEXEC);
        struct stat st;
        if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0) {
            off_t at = (off_t)world_draw(world, (uint64_t)st.st_size);
            uint8_t byte = 0;
            if (pread(fd, &byte, 1, at) == 1) {
                byte ^= (uint8_t)(1u << world_draw(world, 8));
                /* Not pwrite(), which lmdb_disk.c takes for LMDB's. */
                if (lseek(fd, at, SEEK_SET) != at || write(fd, &byte, 1) != 1)
                    perror(path);
            }
        }
        if (fd >= 0)
            close(fd);
    }
}

/* Bits of records that were written, and reads that go wrong. */
static void rot(struct world *world)
{
    world->rotted = true;
    world->tally->rotted++;
    char name[64];
    uint64_t bytes;
    for (uint32_t i = 0; sim_disk_file(world->disk, i, name, &bytes); i++) {
        for (uint64_t page = 1; page < bytes / LARDER_PAGE_BYTES; page++) {
            uint64_t first;
            uint64_t at = page * LARDER_PAGE_BYTES;
            if (!sim_disk_peek(world->disk, name, at, &first, sizeof(first)) || first == 0 ||
                world_draw(world, 8) > 0)
                continue;
            sim_disk_flip_bit(world->disk, name, at + world_draw(world, LARDER_PAGE_BYTES),
                              (unsigned)world_draw(world, 8));
        }
    }
    if (world_chance(world, 50)) {
        struct sim_faults faults = {.error_op = SIM_ANY_OP,
                                    .misdirect_permille = 30,
                                    .stale_permille = 30,
                                    .short_permille = 100};
        sim_disk_set_faults(world->disk, &faults);
    }
}

/* Opens and compares; its start may be cut short by another loss of power, a few times. False: the
 * world ends here. */
static bool begin_life(struct world *world)
{
    for (int attempt = 0;; attempt++) {
        if (attempt < 3 && world_chance(world, 35))
            sim_disk_fail_power_at(world->disk,
                                   sim_disk_steps(world->disk) + 1 + world_draw(world, 12));
        int err = world_open(world);
        bool power_failed = world_power_failed(world);
        if (err < 0 && !power_failed) {
            world_say(world, "does not start: %s", larder_error_message());
            world->tally->failed_starts++;
            return false;
        }
        if (err == 0 && world_verify(world))
            return true;
        world->tally->cut_short++;
        if (err == 0)
            world_close(world);
        world_crash(world);
    }
}

/* What a disk does while power is on: one request fails, of any kind or a sync; or it is full. */
static void set_faults(struct world *world, bool starts, bool sync_lies)
{
    struct sim_faults faults = {.error_op = SIM_ANY_OP,
                                .sync_lies = sync_lies,
                                .short_permille = world_chance(world, 30) ? 100 : 0};
    if (world->evicts && world_chance(world, 50))
        faults.capacity_bytes = 9u << 20;
    if (!starts && world_chance(world, 25)) {
        faults.error_at = 1 + world_draw(world, 150);
        faults.error_op = world_chance(world, 30) ? (int)LARDER_IO_SYNC : SIM_ANY_OP;
    }
    sim_disk_set_faults(world->disk, &faults);
}

static void live(struct world *world, bool sync_lies)
{
    uint32_t lives = 2 + (uint32_t)world_draw(world, LIVES_MAX - 1);
    for (world->life = 1; world->life <= lives; world->life++) {
        set_faults(world, true, sync_lies);
        world_draw_options(world);
        if (world->life > 1)
            spoil_index(world);
        if (world->life == lives && world_chance(world, 40))
            rot(world);
        if (!begin_life(world))
            return;
        if (world->piles)
            pile_up(world);
        if (!world->rotted)
            set_faults(world, false, sync_lies);
        if (world_chance(world, 70))
            sim_disk_fail_power_at(world->disk,
                                   sim_disk_steps(world->disk) + 1 + world_draw(world, 250));
        work(world);
        end_life(world);
    }
}

static void run_world(const struct sim_rounds_options *options, struct tally *tally, uint64_t seed)
{
    struct world *world = world_begin(tally, seed, true, options->verbose);
    world->evicts = world_chance(world, 15);
    world->piles = world_chance(world, 25);
    world->options.ssd_bytes = world_chance(world, 50) ? 8u << 20 : 64u << 20;
    live(world, options->sync_lies);
    world_end(world);
}

void sim_rounds(const struct sim_rounds_options *options, struct tally *tally)
{
    uint64_t first = tally->rounds;
    for (uint64_t seed = options->seed; tally->rounds - first < options->rounds; seed++) {
        run_world(options, tally, seed);
        if (options->stop_at_first_bug && tally_bugs(tally) > 0)
            return;
        if (options->progress)
            options->progress(tally->rounds - first, options->rounds);
    }
}
