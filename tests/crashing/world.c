/* SPDX-License-Identifier: Apache-2.0 */
/* world.c - chance, lives, and what is done in them.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "lmdb_disk.h"
#include "world_priv.h"

#define TENANT       "crash"
#define HANG_SECONDS 60
#define MESSAGES_MAX 30

static int messages_left = MESSAGES_MAX;

void world_say(const struct world *world, const char *format, ...)
{
    if (!world->verbose || messages_left-- <= 0)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "seed %llu life %u: ", (unsigned long long)world->seed, world->life);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

uint64_t world_mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t world_draw(struct world *world, uint64_t limit)
{
    world->random += 0x9e3779b97f4a7c15ull;
    return world_mix(world->random) % limit;
}

bool world_chance(struct world *world, unsigned percent)
{
    return world_draw(world, 100) < percent;
}

bool world_power_failed(const struct world *world)
{
    return world->disk && sim_disk_power_failed(world->disk);
}

/* --- waiting ---------------------------------------------------------------------------------- */

void world_wait(struct world *world, const bool *flag, const uint32_t *count, const char *what)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += HANG_SECONDS;
    while (flag ? !*flag : *count > 0) {
        if (pthread_cond_timedwait(&world->changed, &world->mutex, &until) == ETIMEDOUT) {
            fprintf(stderr, "seed %llu life %u: %s did not end in %d s\n",
                    (unsigned long long)world->seed, world->life, what, HANG_SECONDS);
            abort();
        }
    }
}

void world_settle(struct world *world)
{
    pthread_mutex_lock(&world->mutex);
    world_wait(world, NULL, &world->outstanding, "a put");
    pthread_mutex_unlock(&world->mutex);
}

/* --- what is done ----------------------------------------------------------------------------- */

/* A new item behind one that is there, or a first one; or one again that is not there any more. */
static void put_something(struct world *world)
{
    enum larder_wait wait = world_chance(world, 60) ? LARDER_DURABLE : LARDER_CACHED;
    if (world->item_count > 0 && world_chance(world, 25)) {
        enum larder_quality quality =
            world_chance(world, 60) ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY;
        world_put_again(world, (uint32_t)world_draw(world, world->item_count), quality, wait);
        return;
    }
    uint32_t parent = WORLD_NO_ITEM;
    if (world->item_count > 0 && world_chance(world, 65)) {
        parent = (uint32_t)world_draw(world, world->item_count);
        if (!world_may(world, parent) || world->items[parent].depth + 1 == DEPTH_MAX)
            parent = WORLD_NO_ITEM;
    }
    world_put(world, parent, wait);
}

void world_do_something(struct world *world)
{
    uint64_t what = world_draw(world, 100);
    if (world->piles && world->item_count > 0 && world_chance(world, 10))
        world_pile_up(world, 1 + (uint32_t)world_draw(world, 40));
    if (what < 70 || world->item_count == 0)
        put_something(world);
    else if (what < 88)
        world_read(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 92)
        world_remove(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 94)
        world_demote(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 95)
        world_remove_variant(world, (uint32_t)world_draw(world, world->item_count),
                             world_chance(world, 50) ? LARDER_QUALITY_EXACT : LARDER_QUALITY_LOSSY);
    else if (what < 96)
        for (uint32_t i = 0; i < 8; i++)
            world_move(world, (uint32_t)world_draw(world, world->item_count));
    else if (what < 97)
        world_mark(world, (uint32_t)world_draw(world, world->item_count));
    else if (what == 97 && world_chance(world, 50))
        world_purge(world);
    else
        world_settle(world);
}

/* --- lives ------------------------------------------------------------------------------------ */

void world_draw_options(struct world *world)
{
    /* An SSD tier that is too small holds at least two segments. */
    static const char *const evictions[] = {"value", "lru", "fifo"};
    static const uint64_t host_mib[] = {4, 4, 6, 12};
    static const uint64_t segment_mib[] = {2, 2, 3, 5};
    static const uint32_t depths[] = {8, 1, 3, 64};
    world->options = (struct larder_store_options){
        .directory = world->directory,
        .io = "threads",
        .io_depth = depths[world_draw(world, LARDER_COUNT_OF(depths))],
        .host_bytes = host_mib[world_draw(world, LARDER_COUNT_OF(host_mib))] << 20,
        .slab_bytes = 2u << 20,
        .eviction = evictions[world_draw(world, LARDER_COUNT_OF(evictions))],
        .segment_bytes =
            segment_mib[world->evicts ? 0 : world_draw(world, LARDER_COUNT_OF(segment_mib))] << 20,
        .ssd_bytes = world->evicts ? world->options.ssd_bytes : 256u << 20,
        .ssd_high = world->evicts && world_chance(world, 50) ? 15 : 0,
        .key_file = world->key_file[0] ? world->key_file : NULL,
    };
    /* Room for all there can be, and in half of the lives so little more that the store begins to
     * clear at once what it did not mind before. */
    if (world->piles) {
        world->options.segment_bytes = 1u << 20;
        if (!world->evicts)
            world->options.ssd_bytes = world_chance(world, 50) ? 24u << 20 : 64u << 20;
    }
}

int world_open(struct world *world)
{
    struct larder_model_desc desc = {
        .name = "crash",
        .weights = {1},
        .layers = 2,
        .kv_heads = 1,
        .k_dims = 16,
        .v_dims = 16,
        .dtype = LARDER_BF16,
        .vocab = 65536,
    };
    world->corrupt_seen = world->cleared_seen = 0;
    world->options.io_override = world->disk ? sim_disk_open_io(world->disk) : NULL;
    struct larder_tenant_info before = world->tenant;
    LARDER_TRY(larder_store_open(&world->store, &world->options));
    int err = larder_store_tenant(world->store, &world->tenant, TENANT);
    if (err == 0 && before.name[0])
        world_judge_purge(world, before.id);
    if (err == 0)
        err = larder_store_model(world->store, &world->model, &desc);
    if (err == 0 && !world->hasher)
        err = larder_hasher_open(&world->hasher, world->tenant.key, &world->model.fingerprint);
    /* Also when power failed before the index's first commit of all; and a start that is cut short
     * leaves its index to the next one. */
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->spoiled = world->spoiled || stats.index_rebuilt;
    if (err < 0) {
        larder_store_close(world->store);
        world->store = NULL;
    }
    return err;
}

void world_close(struct world *world)
{
    larder_store_close(world->store);
    world->store = NULL;
}

void world_index_path(const struct world *world, char *out, size_t bytes)
{
    snprintf(out, bytes, "%s/index/data.mdb", world->directory);
}

void world_crash(struct world *world)
{
    char path[SCRATCH_PATH_BYTES + 32];
    world_index_path(world, path, sizeof(path));
    sim_disk_crash(world->disk);
    lmdb_disk_crash(path);
}

/* --- beginning and end ------------------------------------------------------------------------ */

/* Waiting for a store that never answers again, or that does not close. */
static void on_hang(int signal_number)
{
    static const char text[] = "\nthe store hangs: see the last seed\n";
    (void)signal_number;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        _exit(4);
    _exit(3);
}

static void init_locks(struct world *world)
{
    pthread_mutex_init(&world->mutex, NULL);
    pthread_cond_init(&world->changed, NULL);
}

static void make_key(struct world *world)
{
    uint8_t key[32];
    for (size_t i = 0; i < sizeof(key); i++)
        key[i] = (uint8_t)world_draw(world, 256);
    snprintf(world->key_file, sizeof(world->key_file), "%s.key", world->directory);
    int fd = open(world->key_file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, key, sizeof(key)) != (ssize_t)sizeof(key)) {
        perror(world->key_file);
        exit(2);
    }
    close(fd);
}

struct world *world_begin(struct tally *tally, uint64_t seed, bool on_disk, bool verbose)
{
    /* A child's work in it is the parent's too. */
    struct world *world =
        mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(world != MAP_FAILED);
    *world =
        (struct world){.tally = tally, .seed = seed, .random = world_mix(seed), .verbose = verbose};
    signal(SIGALRM, on_hang);
    alarm(2 * HANG_SECONDS);
    init_locks(world);
    scratch_make(world->directory);
    if (world_chance(world, 50))
        make_key(world);
    if (on_disk) {
        world->disk = sim_disk_create(world_mix(seed + 1));
        lmdb_disk_attach(world->disk, world_mix(seed + 2));
    }
    return world;
}

void world_adopt(struct world *world)
{
    world->store = NULL;
    world->hasher = NULL; /* opened again with the store */
    world->outstanding = 0;
    init_locks(world);
}

void world_end(struct world *world)
{
    assert(!world->store);
    larder_hasher_close(world->hasher);
    if (world->disk) {
        lmdb_disk_attach(NULL, 0);
        sim_disk_destroy(world->disk);
    }
    scratch_remove(world->directory);
    if (world->key_file[0])
        unlink(world->key_file);
    pthread_cond_destroy(&world->changed);
    pthread_mutex_destroy(&world->mutex);
    munmap(world, sizeof(*world));
    alarm(0);
}
