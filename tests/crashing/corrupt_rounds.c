/* SPDX-License-Identifier: Apache-2.0 */
/* corrupt_rounds.c - trials: a store is put back as it was, one of its files is damaged, and then
 * it must start, serve what is left exactly, store something new durably and serve that.
 *
 * A store is made by a child process, in a few lives of random work; it closes it or just ends, as
 * by SIGKILL. Then many trials start from the same bytes. After damage of the index nothing may be
 * missing or back: the segments tell everything. After damage of a segment entries may be missing.
 * A store whose `format` was damaged may refuse to start, with an error.
 */
#include "corrupt_rounds.h"

#include <assert.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "base/larder_base.h"
#include "damage.h"
#include "world.h"

#define TRIALS_A_STORE 100u
#define FILES_MAX      256u
#define STEPS_MAX      120u
#define HANG_SECONDS   120

/* --- a store's files, kept -------------------------------------------------------------------- */

struct kept_file {
    char path[SCRATCH_PATH_BYTES + 64];
    bool is_folder;
    uint64_t bytes; /* of the file */
    uint64_t used;  /* zeros behind */
    uint8_t *content;
};

static struct {
    struct kept_file files[FILES_MAX];
    uint32_t count;
} kept;

static int keep_one(const char *path, const struct stat *status, int type, struct FTW *at)
{
    (void)at;
    assert(kept.count < FILES_MAX);
    struct kept_file *file = &kept.files[kept.count++];
    *file = (struct kept_file){.is_folder = type == FTW_D, .bytes = (uint64_t)status->st_size};
    assert(strlen(path) < sizeof(file->path));
    memcpy(file->path, path, strlen(path) + 1);
    if (file->is_folder)
        return 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    file->content = malloc(file->bytes + 1);
    assert(fd >= 0 && file->content);
    ssize_t got = read(fd, file->content, file->bytes);
    assert(got == status->st_size);
    close(fd);
    file->used = file->bytes;
    while (file->used > 0 && file->content[file->used - 1] == 0)
        file->used--;
    return 0;
}

static void forget_files(void)
{
    for (uint32_t i = 0; i < kept.count; i++)
        free(kept.files[i].content);
    kept.count = 0;
}

static void put_back(const char *directory)
{
    scratch_remove(directory);
    for (uint32_t i = 0; i < kept.count; i++) {
        const struct kept_file *file = &kept.files[i];
        if (file->is_folder) {
            int rc = mkdir(file->path, 0700);
            assert(rc == 0);
            continue;
        }
        int fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert(fd >= 0);
        ssize_t put = write(fd, file->content, file->used);
        assert(put == (ssize_t)file->used);
        int rc = ftruncate(fd, (off_t)file->bytes);
        assert(rc == 0);
        close(fd);
    }
}

/* --- a store ---------------------------------------------------------------------------------- */

static void live_in_child(struct world *world)
{
    uint32_t lives = 1 + (uint32_t)world_draw(world, 3);
    for (world->life = 1;; world->life++) {
        world_draw_options(world);
        int err = world_open(world);
        assert(err == 0);
        for (uint64_t left = 20 + world_draw(world, STEPS_MAX); left > 0; left--)
            world_do_something(world);
        if (world->life == lives && world_chance(world, 50))
            _exit(0); /* everything that runs ends here */
        world_close(world);
        if (world->life == lives)
            _exit(0);
    }
}

static void make_store(struct world *world)
{
    pid_t child = fork();
    assert(child >= 0);
    if (child == 0) {
        alarm(HANG_SECONDS);
        live_in_child(world);
    }
    int status;
    pid_t got = waitpid(child, &status, 0);
    assert(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    world_adopt(world);
    forget_files();
    int rc = nftw(world->directory, keep_one, 16, FTW_PHYS);
    assert(rc == 0);
}

/* --- a trial ---------------------------------------------------------------------------------- */

/* Stores something, and reads it back. */
static void put_and_read(struct world *world)
{
    uint32_t number = world_put(world, WORLD_NO_ITEM, LARDER_DURABLE);
    if (number == WORLD_NO_ITEM)
        return;
    /* A put is given up now and then. */
    while (world->put_error == 0 && !world->items[number].variants[0].may)
        world_put_again(world, number, LARDER_QUALITY_EXACT, LARDER_DURABLE);
    world_settle(world);
    if (!world->items[number].variants[0].must) {
        world_say(world, "stores nothing any more (%d)", world->put_error);
        world->tally->failed_starts++;
        return;
    }
    bool was_rotted = world->rotted;
    world->rotted = false; /* this one was not damaged */
    world_read(world, number);
    world->rotted = was_rotted;
}

static void open_and_compare(struct world *world, const struct damage *damage)
{
    int err = world_open(world);
    if (err < 0 && strcmp(damage->file, "format") == 0 &&
        (err == LARDER_EVERSION || err == LARDER_ECORRUPT)) {
        world->tally->refused++;
        return;
    }
    if (err < 0) {
        world_say(world, "does not start with %s in %s: %s", damage->what, damage->file,
                  larder_error_message());
        world->tally->failed_starts++;
        return;
    }
    uint64_t bugs = tally_bugs(world->tally);
    world_verify(world);
    put_and_read(world);
    for (int i = 0; i < 5; i++)
        world_do_something(world);
    world_settle(world);
    world_count_corrupt(world);
    world_close(world);
    if (tally_bugs(world->tally) > bugs)
        world_say(world, "that was with %s in %s", damage->what, damage->file);
}

static void try_once(struct world *world)
{
    struct damage damage;
    put_back(world->directory);
    world->life++;
    if (!damage_store(&damage, world->directory, DAMAGE_ANY_FILE, &world->random))
        return;
    world->rotted = damage.class == DAMAGE_SEGMENT;
    world->spoiled = false;
    world->tally->trials++;
    world->tally->rotted += world->rotted;
    world_draw_options(world);
    open_and_compare(world, &damage);
    if (world_chance(world, 20) && world->tally->failed_starts == 0)
        open_and_compare(world, &damage);
}

static void run_store(const struct corrupt_rounds_options *options, struct tally *tally,
                      uint64_t seed, uint64_t trials)
{
    struct world *world = world_begin(tally, seed, false, options->verbose);
    make_store(world);
    struct item *items = malloc(sizeof(world->items));
    assert(items);
    memcpy(items, world->items, sizeof(world->items));
    uint32_t item_count = world->item_count;
    struct larder_tenant_info tenant = world->tenant;
    bool purging = world->purging;
    for (uint64_t i = 0; i < trials; i++) {
        alarm(HANG_SECONDS);
        memcpy(world->items, items, sizeof(world->items));
        world->item_count = item_count;
        /* A trial may have purged it. */
        world->tenant = tenant;
        world->purging = purging;
        try_once(world);
        if (options->stop_at_first_bug && tally_bugs(tally) > 0)
            break;
    }
    free(items);
    forget_files();
    world_end(world);
}

void corrupt_rounds(const struct corrupt_rounds_options *options, struct tally *tally)
{
    for (uint64_t done = 0, seed = options->seed; done < options->trials; seed++) {
        uint64_t trials = options->trials - done;
        trials = trials < TRIALS_A_STORE ? trials : TRIALS_A_STORE;
        run_store(options, tally, seed, trials);
        done += trials;
        if (options->stop_at_first_bug && tally_bugs(tally) > 0)
            return;
        if (options->progress)
            options->progress(done, options->trials);
    }
}
