/* SPDX-License-Identifier: Apache-2.0 */
/* sim_rounds.c - lives of a store on one simulated disk.
 *
 * A world is a disk, a directory and what its user knows: of each item whether it must, may or must
 * not be there, and which version of its bytes. In a life the store opens, puts, reads, removes,
 * and ends by a power cut at a random step or a clean close; then unsynced sectors and names
 * survive by chance, in segments and in the index's file, and the next life begins with comparing
 * everything. Starts are cut short too; requests fail, disks are full; the index is taken away or
 * damaged at times; a world's last life may begin with flipped bits in segments, and reads that
 * bring other pages.
 */
#include "sim_rounds.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/larder_base.h"
#include "lmdb_disk.h"
#include "scratch.h"
#include "sim_disk.h"
#include "storage/index.h"
#include "storage/store.h"

#define ITEMS_MAX     160u
#define DEPTH_MAX     6u
#define SECTIONS      4u
#define NO_ITEM       UINT32_MAX
#define TENANT        "crash"
#define LIVES_MAX     5u
#define HANG_SECONDS  60
#define RECIPE        "raw"
#define BIG_BYTES_MAX (300u << 10)
#define MESSAGES_MAX  30

struct item {
    uint32_t parent; /* NO_ITEM: a chain's first */
    uint32_t depth;
    uint32_t version; /* of the bytes last put; 0: never. Other bytes after each removal */
    bool must;        /* promised durable */
    bool may;         /* put, and not known to be gone */
    bool removed;     /* promised: it does not come back */
    bool removing;    /* what a put still in flight says does not count */
    struct larder_key key;
};

struct world {
    const struct sim_rounds_options *options;
    struct tally *tally;
    uint64_t seed;
    uint64_t random;
    struct sim_disk *disk;
    char directory[SCRATCH_PATH_BYTES];
    struct larder_store *store;
    struct larder_hasher *hasher;
    struct larder_tenant_info tenant;
    struct larder_model_info model;
    bool evicts;        /* the SSD tier is too small for everything: absence is no bug */
    uint64_t ssd_bytes; /* then */
    bool rotted;        /* bytes were changed: neither is absence, nor a record called corrupt */
    /* In this life the index was made anew, from heads alone: a record whose sections were torn is
     * met only when it is read, and then called corrupt. */
    bool spoiled;
    uint32_t life;
    uint64_t corrupt_seen; /* in this life */
    /* under mutex, and by the storage thread */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct item items[ITEMS_MAX];
    uint32_t item_count;
    uint32_t outstanding;
};

static int messages_left = MESSAGES_MAX;

static void __attribute__((format(printf, 2, 3)))
say(const struct world *world, const char *format, ...)
{
    if (!world->options->verbose || messages_left-- <= 0)
        return;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "seed %llu life %u: ", (unsigned long long)world->seed, world->life);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t draw(struct world *world, uint64_t limit)
{
    world->random += 0x9e3779b97f4a7c15ull;
    return mix(world->random) % limit;
}

static bool chance(struct world *world, unsigned percent)
{
    return draw(world, 100) < percent;
}

/* --- what an item holds: all from the seed, the item's number and its version ----------------- */

static uint64_t item_seed(const struct world *world, uint32_t item, uint32_t version)
{
    return mix(world->seed ^ mix((uint64_t)item << 32 | version));
}

static uint32_t token_count_of(uint32_t item)
{
    return 1 + item * 7 % 64;
}

static void fill_tokens(uint32_t item, uint32_t *tokens)
{
    tokens[0] = item; /* no item's tokens are the start of another's */
    for (uint32_t i = 1; i < token_count_of(item); i++)
        tokens[i] = (uint32_t)(mix(item * 1000ull + i) % 50000);
}

static uint32_t section_bytes_of(uint64_t seed, uint32_t section)
{
    uint64_t bits = mix(seed + section);
    uint32_t bytes_max = bits % 16 == 0 ? BIG_BYTES_MAX : 3000;
    return 1 + (uint32_t)(bits >> 8) % bytes_max;
}

static void fill_section(uint64_t seed, uint32_t section, uint8_t *out, uint32_t bytes)
{
    uint64_t state = mix(seed ^ (section + 77));
    uint32_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        memcpy(out + at, &state, 8);
    }
    for (; at < bytes; at++)
        out[at] = (uint8_t)(state >> (at % 8 * 8));
}

/* Is this record the item, exactly? */
static bool is_exact(const struct world *world, const struct larder_record *record, uint32_t item,
                     uint32_t version)
{
    const struct item *of = &world->items[item];
    const struct larder_key *parent =
        of->parent == NO_ITEM ? &larder_key_root : &world->items[of->parent].key;
    uint64_t seed = item_seed(world, item, version);
    uint32_t tokens[64];
    fill_tokens(item, tokens);
    if (record->type != LARDER_RECORD_ENTRY || record->token_count != token_count_of(item) ||
        record->section_count != SECTIONS || memcmp(record->key, of->key.bytes, 32) != 0 ||
        memcmp(record->parent, parent->bytes, 32) != 0 ||
        memcmp(record->model, world->model.fingerprint.bytes, 32) != 0 ||
        memcmp(larder_record_tokens(record), tokens, record->token_count * sizeof(*tokens)) != 0)
        return false;
    static uint8_t expected[BIG_BYTES_MAX];
    for (uint32_t i = 0; i < SECTIONS; i++) {
        const struct larder_section *section = &larder_record_directory(record)[i];
        uint32_t bytes = section_bytes_of(seed, i);
        fill_section(seed, i, expected, bytes);
        if (section->bytes != bytes ||
            memcmp((const uint8_t *)record + section->offset, expected, bytes) != 0)
            return false;
    }
    return true;
}

/* --- waiting ---------------------------------------------------------------------------------- */

/* A store that does not answer cannot be closed either: the program ends here. */
static void wait_for(struct world *world, const bool *flag, const uint32_t *count, const char *what)
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

/* --- put -------------------------------------------------------------------------------------- */

struct put_wait {
    struct world *world;
    uint32_t item;
    uint32_t version;
};

static void on_durable(void *context, int err)
{
    struct put_wait *wait = context;
    struct world *world = wait->world;
    pthread_mutex_lock(&world->mutex);
    struct item *item = &world->items[wait->item];
    if (err == 0 && !item->removing && item->version == wait->version)
        item->must = true;
    world->outstanding--;
    pthread_cond_broadcast(&world->changed);
    pthread_mutex_unlock(&world->mutex);
    free(wait);
}

static void on_cached(void *context, int err)
{
    (void)context;
    (void)err;
}

static uint64_t write_payload(struct larder_put *put, uint64_t seed)
{
    uint64_t offset;
    uint8_t *payload = larder_put_payload(put, &offset);
    struct larder_section *directory = larder_put_directory(put);
    uint64_t at = 0;
    for (uint32_t i = 0; i < SECTIONS; i++) {
        uint32_t bytes = section_bytes_of(seed, i);
        fill_section(seed, i, payload + at, bytes);
        directory[i] = (struct larder_section){
            .layer_first = (uint16_t)(i / 2),
            .layer_count = 1,
            .head_count = 1,
            .kind = i % 2 ? LARDER_SECTION_V : LARDER_SECTION_K,
            .offset = offset + at,
            .bytes = bytes,
        };
        at += larder_round_up(bytes, LARDER_SECTION_ALIGN);
    }
    return at;
}

static uint64_t payload_bytes_of(uint64_t seed)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < SECTIONS; i++)
        bytes += larder_round_up(section_bytes_of(seed, i), LARDER_SECTION_ALIGN);
    return bytes;
}

/* Starts a put of an item that is not there as far as is known. */
static void start_put(struct world *world, uint32_t number, enum larder_wait wait)
{
    struct item *item = &world->items[number];
    uint32_t version = item->version + (item->version == 0 || item->removed);
    uint64_t seed = item_seed(world, number, version);
    uint32_t tokens[64];
    fill_tokens(number, tokens);
    struct larder_put_desc desc = {
        .tenant = world->tenant.index,
        .model = world->model.index,
        .key = item->key,
        .parent = item->parent == NO_ITEM ? larder_key_root : world->items[item->parent].key,
        .tokens = tokens,
        .token_count = token_count_of(number),
        .recipe = RECIPE,
        .raw_bytes = payload_bytes_of(seed),
        .section_count_max = SECTIONS,
        .payload_bytes_max = payload_bytes_of(seed),
    };
    struct larder_put *put;
    if (larder_store_put_reserve(world->store, &put, &desc) < 0)
        return;
    uint64_t bytes = write_payload(put, seed);
    if (draw(world, 30) == 0) {
        larder_store_put_abort(world->store, put);
        return;
    }
    pthread_mutex_lock(&world->mutex);
    item->version = version;
    item->may = true;
    item->must = false;
    item->removed = false;
    item->removing = false;
    if (wait == LARDER_DURABLE)
        world->outstanding++;
    pthread_mutex_unlock(&world->mutex);
    if (wait == LARDER_CACHED) {
        larder_store_put_commit(world->store, put, SECTIONS, bytes, wait, on_cached, NULL);
        return;
    }
    struct put_wait *context = malloc(sizeof(*context));
    assert(context);
    *context = (struct put_wait){world, number, version};
    larder_store_put_commit(world->store, put, SECTIONS, bytes, wait, on_durable, context);
}

/* A new item behind one that is there, or a first one; or one again that is not there any more. */
static void put_something(struct world *world)
{
    enum larder_wait wait = chance(world, 60) ? LARDER_DURABLE : LARDER_CACHED;
    if (world->item_count > 0 && chance(world, 15)) {
        uint32_t again = (uint32_t)draw(world, world->item_count);
        if (!world->items[again].may)
            start_put(world, again, wait);
        return;
    }
    if (world->item_count == ITEMS_MAX)
        return;
    uint32_t parent = NO_ITEM;
    if (world->item_count > 0 && chance(world, 65)) {
        parent = (uint32_t)draw(world, world->item_count);
        if (!world->items[parent].may || world->items[parent].depth + 1 == DEPTH_MAX)
            parent = NO_ITEM;
    }
    uint32_t number = world->item_count;
    struct item *item = &world->items[number];
    *item = (struct item){.parent = parent,
                          .depth = parent == NO_ITEM ? 0 : world->items[parent].depth + 1};
    uint32_t tokens[64];
    fill_tokens(number, tokens);
    int err = larder_hasher_block(world->hasher, &item->key,
                                  parent == NO_ITEM ? &larder_key_root : &world->items[parent].key,
                                  NULL, 0, tokens, token_count_of(number));
    assert(err == 0);
    world->item_count++;
    start_put(world, number, wait);
}

/* --- get -------------------------------------------------------------------------------------- */

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

/* Reads what of the keys fits the host tier at once; *loaded of them are exact. */
static enum presence read_run(struct world *world, const uint32_t *chain,
                              const struct larder_key *keys, uint32_t count, uint32_t *loaded)
{
    struct larder_ref refs[DEPTH_MAX];
    struct lease_wait wait = {.world = world};
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    *loaded = 0;
    int err =
        larder_store_lease(world->store, &lease, refs, &ref_count, &ready, world->tenant.index,
                           keys, count, LARDER_QUALITY_BLENDED, on_loaded, &wait);
    if (err < 0 || !lease)
        return err == -EBUSY ? UNKNOWN : ABSENT;
    if (ready) {
        wait.loaded = ref_count;
    } else {
        pthread_mutex_lock(&world->mutex);
        wait_for(world, &wait.is_done, NULL, "a read");
        pthread_mutex_unlock(&world->mutex);
    }
    enum presence found = wait.loaded > 0 ? PRESENT : wait.err == -EIO ? UNKNOWN : ABSENT;
    for (uint32_t i = 0; i < wait.loaded; i++) {
        const struct larder_record *record =
            larder_store_ref_record(world->store, world->tenant.index, &refs[i]);
        if (!is_exact(world, record, chain[i], world->items[chain[i]].version)) {
            say(world, "item %u version %u: wrong bytes", chain[i], world->items[chain[i]].version);
            world->tally->wrong++;
            found = WRONG;
        }
    }
    *loaded = wait.loaded;
    larder_store_release(world->store, lease);
    return found;
}

/* Reads the chain that ends in an item. */
static enum presence read_item(struct world *world, uint32_t number)
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
        found = read_run(world, chain + at, keys + at, count - at, &loaded);
    return found;
}

static void read_something(struct world *world)
{
    if (world->item_count == 0)
        return;
    uint32_t number = (uint32_t)draw(world, world->item_count);
    pthread_mutex_lock(&world->mutex);
    bool must = world->items[number].must;
    pthread_mutex_unlock(&world->mutex);
    enum presence found = read_item(world, number);
    if (sim_disk_power_failed(world->disk))
        return;
    if (found == ABSENT && must && !world->evicts && !world->rotted) {
        say(world, "item %u: lost while running", number);
        world->tally->lost++;
    } else if (found == PRESENT && world->items[number].removed) {
        say(world, "item %u: came back while running", number);
        world->tally->removed_back++;
    }
}

/* --- remove ----------------------------------------------------------------------------------- */

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
    while (item != NO_ITEM && item != top)
        item = world->items[item].parent;
    return item == top;
}

static void remove_something(struct world *world)
{
    if (world->item_count == 0)
        return;
    uint32_t top = (uint32_t)draw(world, world->item_count);
    pthread_mutex_lock(&world->mutex);
    bool was_there = world->items[top].must;
    for (uint32_t i = top; i < world->item_count; i++) {
        if (is_below(world, i, top)) {
            world->items[i].must = false;
            world->items[i].removing = true;
        }
    }
    pthread_mutex_unlock(&world->mutex);
    struct remove_wait wait = {.world = world};
    larder_store_remove(world->store, world->tenant.index, &world->items[top].key, on_removed,
                        &wait);
    pthread_mutex_lock(&world->mutex);
    wait_for(world, &wait.is_done, NULL, "a removal");
    if (wait.err == LARDER_ENOTFOUND && was_there && !world->evicts && !world->rotted) {
        say(world, "item %u: lost, says its removal", top);
        world->tally->lost++;
    }
    for (uint32_t i = top; i < world->item_count; i++) {
        if (!is_below(world, i, top))
            continue;
        if (wait.err == 0 || wait.err == LARDER_ENOTFOUND)
            world->items[i].may = false;
        if (wait.err == 0)
            world->items[i].removed = true;
    }
    pthread_mutex_unlock(&world->mutex);
}

/* --- lives ------------------------------------------------------------------------------------ */

static int open_store(struct world *world)
{
    struct larder_store_options options = {
        .directory = world->directory,
        .io_depth = 8,
        .host_bytes = 4u << 20,
        .slab_bytes = 2u << 20,
        .segment_bytes = 2u << 20,
        .ssd_bytes = world->evicts ? world->ssd_bytes : 256u << 20,
        .io_override = sim_disk_open_io(world->disk),
    };
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
    LARDER_TRY(larder_store_open(&world->store, &options));
    int err = larder_store_tenant(world->store, &world->tenant, TENANT);
    if (err == 0)
        err = larder_store_model(world->store, &world->model, &desc);
    if (err == 0 && !world->hasher)
        err = larder_hasher_open(&world->hasher, world->tenant.key, &world->model.fingerprint);
    if (err < 0) {
        larder_store_close(world->store);
        world->store = NULL;
    }
    return err;
}

static void count_corrupt(struct world *world)
{
    if (larder_store_check(world->store) < 0) {
        say(world, "%s", larder_error_message());
        world->tally->disagreeing++;
    }
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    if (stats.corrupt > world->corrupt_seen && !world->rotted && !world->spoiled) {
        say(world, "%llu records called corrupt", (unsigned long long)stats.corrupt);
        world->tally->corrupt += stats.corrupt - world->corrupt_seen;
    }
    world->corrupt_seen = stats.corrupt;
}

static void judge(struct world *world, uint32_t number, enum presence found)
{
    struct item *item = &world->items[number];
    struct tally *tally = world->tally;
    if (found == UNKNOWN)
        return;
    /* With the index lost, and the tombstone among the bytes that were changed, nothing is left
     * that says so. */
    if (found == PRESENT && item->removed && !(world->rotted && world->spoiled)) {
        say(world, "item %u: came back", number);
        tally->removed_back++;
    }
    if (found == ABSENT && item->must) {
        if (world->rotted) {
            tally->missing++;
        } else if (!world->evicts) {
            say(world, "item %u at depth %u: lost", number, item->depth);
            tally->lost++;
        }
    }
    /* What is there after a start stays there. */
    item->must = found == PRESENT;
    item->may = found == PRESENT;
    item->removing = false;
}

/* Compares everything. False when power failed meanwhile: nothing is known then. */
static bool verify(struct world *world)
{
    enum presence found[ITEMS_MAX];
    for (uint32_t i = 0; i < world->item_count; i++)
        found[i] = read_item(world, i);
    if (sim_disk_power_failed(world->disk))
        return false;
    struct larder_store_stats stats;
    larder_store_stats(world->store, &stats);
    world->tally->rebuilds += stats.index_rebuilt;
    /* Also when power failed before the index's first commit of all. */
    world->spoiled = world->spoiled || stats.index_rebuilt;
    uint64_t promised = 0, verified = 0;
    for (uint32_t i = 0; i < world->item_count; i++) {
        bool excused = world->evicts || world->rotted;
        promised += world->items[i].must && (found[i] == PRESENT || !excused);
        verified += world->items[i].must && found[i] == PRESENT;
        judge(world, i, found[i]);
    }
    count_corrupt(world);
    world->tally->rounds++;
    world->tally->acknowledged += promised;
    world->tally->verified += verified;
    return true;
}

static void work(struct world *world)
{
    uint32_t steps = 20 + (uint32_t)draw(world, 80);
    while (steps-- > 0 && !sim_disk_power_failed(world->disk)) {
        uint64_t what = draw(world, 100);
        if (what < 70)
            put_something(world);
        else if (what < 88)
            read_something(world);
        else if (what < 93)
            remove_something(world);
        else {
            pthread_mutex_lock(&world->mutex);
            wait_for(world, NULL, &world->outstanding, "a put");
            pthread_mutex_unlock(&world->mutex);
        }
    }
}

static void crash(struct world *world)
{
    char path[SCRATCH_PATH_BYTES + 32];
    snprintf(path, sizeof(path), "%s/index/data.mdb", world->directory);
    sim_disk_crash(world->disk);
    lmdb_disk_crash(path);
}

static void end_life(struct world *world)
{
    if (!sim_disk_power_failed(world->disk) && chance(world, 50))
        sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + 1 + draw(world, 3));
    count_corrupt(world);
    larder_store_close(world->store);
    world->store = NULL;
    assert(world->outstanding == 0);
    crash(world);
}

/* The index is only a help: without it, or with a damaged one, everything is found again. */
static void spoil_index(struct world *world)
{
    char path[SCRATCH_PATH_BYTES + 32];
    uint64_t what = draw(world, 10);
    world->spoiled = what < 2;
    if (what == 0) {
        snprintf(path, sizeof(path), "%s/index", world->directory);
        larder_index_destroy(path);
    } else if (what == 1) {
        snprintf(path, sizeof(path), "%s/index/data.mdb", world->directory);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        struct stat st;
        if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size > 0) {
            off_t at = (off_t)draw(world, (uint64_t)st.st_size);
            uint8_t byte = 0;
            if (pread(fd, &byte, 1, at) == 1) {
                byte ^= (uint8_t)(1u << draw(world, 8));
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
                draw(world, 8) > 0)
                continue;
            sim_disk_flip_bit(world->disk, name, at + draw(world, LARDER_PAGE_BYTES),
                              (unsigned)draw(world, 8));
        }
    }
    if (chance(world, 50)) {
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
        if (attempt < 3 && chance(world, 35))
            sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + 1 + draw(world, 12));
        world->corrupt_seen = 0;
        int err = open_store(world);
        bool power_failed = sim_disk_power_failed(world->disk);
        if (err < 0 && !power_failed) {
            say(world, "does not start: %s", larder_error_message());
            world->tally->failed_starts++;
            return false;
        }
        if (err == 0 && verify(world))
            return true;
        world->tally->cut_short++;
        if (err == 0)
            larder_store_close(world->store);
        world->store = NULL;
        crash(world);
    }
}

/* What a disk does while power is on: one request fails, of any kind or a sync; or it is full. */
static void set_faults(struct world *world, bool starts)
{
    struct sim_faults faults = {.error_op = SIM_ANY_OP,
                                .sync_lies = world->options->sync_lies,
                                .short_permille = chance(world, 30) ? 100 : 0};
    if (world->evicts && chance(world, 50))
        faults.capacity_bytes = 9u << 20;
    if (!starts && chance(world, 25)) {
        faults.error_at = 1 + draw(world, 150);
        faults.error_op = chance(world, 30) ? (int)LARDER_IO_SYNC : SIM_ANY_OP;
    }
    sim_disk_set_faults(world->disk, &faults);
}

static void live(struct world *world)
{
    uint32_t lives = 2 + (uint32_t)draw(world, LIVES_MAX - 1);
    for (world->life = 1; world->life <= lives; world->life++) {
        set_faults(world, true);
        if (world->life > 1)
            spoil_index(world);
        if (world->life == lives && chance(world, 40))
            rot(world);
        if (!begin_life(world))
            return;
        if (!world->rotted)
            set_faults(world, false);
        if (chance(world, 70))
            sim_disk_fail_power_at(world->disk, sim_disk_steps(world->disk) + 1 + draw(world, 250));
        work(world);
        end_life(world);
    }
}

/* Waiting for a store that never answers again, or that does not close. */
static void on_hang(int signal_number)
{
    static const char text[] = "\nthe store hangs: see the last seed\n";
    (void)signal_number;
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
        _exit(4);
    _exit(3);
}

static void run_world(const struct sim_rounds_options *options, struct tally *tally, uint64_t seed)
{
    struct world *world = calloc(1, sizeof(*world));
    assert(world);
    *world = (struct world){.options = options, .tally = tally, .seed = seed, .random = mix(seed)};
    signal(SIGALRM, on_hang);
    alarm(2 * HANG_SECONDS);
    pthread_mutex_init(&world->mutex, NULL);
    pthread_cond_init(&world->changed, NULL);
    scratch_make(world->directory);
    world->disk = sim_disk_create(mix(seed + 1));
    lmdb_disk_attach(world->disk, mix(seed + 2));
    world->evicts = chance(world, 15);
    world->ssd_bytes = chance(world, 50) ? 8u << 20 : 64u << 20;
    live(world);
    larder_hasher_close(world->hasher);
    lmdb_disk_attach(NULL, 0);
    sim_disk_destroy(world->disk);
    scratch_remove(world->directory);
    pthread_cond_destroy(&world->changed);
    pthread_mutex_destroy(&world->mutex);
    free(world);
    alarm(0);
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
