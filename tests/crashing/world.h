/* SPDX-License-Identifier: Apache-2.0 */
/* world.h - a store and what its user knows of it: of each variant of each item whether it must,
 * may or must not be there, and which version of its bytes. Everything follows from a seed: what an
 * item holds, what is done next, how the store is configured in each life.
 *
 * The store lies on a simulated disk, or, without one, on real files.
 * Threads: one; callbacks of the store come from its own.
 */
#ifndef LARDER_TESTS_CRASHING_WORLD_H
#define LARDER_TESTS_CRASHING_WORLD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/key.h"
#include "storage/store.h"
#include "tally.h"
#include "tests/storage/scratch.h"
#include "tests/storage/sim_disk.h"

#define WORLD_ITEMS_MAX 160u
#define WORLD_NO_ITEM   UINT32_MAX

/* By quality: enum larder_quality. */
#define WORLD_VARIANTS 2u

struct promise {
    uint32_t version; /* of the bytes last put; 0: never. Other bytes after each removal */
    bool must;        /* promised durable */
    bool may;         /* put, and not known to be gone */
    bool removed;     /* promised: it does not come back */
    bool purged;      /* with its tenant; removed too */
    bool removing;    /* what a put still in flight says does not count */
};

enum pin {
    PIN_NO, /* known not to be pinned */
    PIN_YES,
    PIN_UNKNOWN,
};

/* A time or a priority, as it was promised. */
struct marked {
    bool known;
    int64_t value;
};

struct item {
    uint32_t parent; /* WORLD_NO_ITEM: a chain's first */
    uint32_t depth;
    struct larder_key key;
    struct promise variants[WORLD_VARIANTS];
    bool either;  /* a demotion was cut short: one of them must be there, whichever */
    enum pin pin; /* what was promised */
    struct marked expires_s;
    struct marked priority;
};

struct world {
    struct tally *tally;
    uint64_t seed;
    uint64_t random;
    bool verbose; /* a line for each bug met */
    char directory[SCRATCH_PATH_BYTES];
    char key_file[SCRATCH_PATH_BYTES + 8]; /* empty: not encrypted */
    struct sim_disk *disk;                 /* NULL: real files */
    struct larder_store *store;
    struct larder_store_options options;
    struct larder_hasher *hasher;
    struct larder_tenant_info tenant;
    struct larder_model_info model;
    bool purging; /* a purge began and nobody said how it ended */
    bool piles;   /* much is marked and removed behind what is old (world_pile_up()) */
    bool evicts;  /* the SSD tier is too small for everything: absence is no bug */
    bool rotted;  /* bytes were changed: neither is absence, nor a record called corrupt */
    /* In this life the index was made anew, from heads alone: a record whose sections were torn is
     * met only when it is read, and then called corrupt. */
    bool spoiled;
    uint32_t life;
    uint64_t corrupt_seen; /* in this life; so is the next */
    uint64_t cleared_seen;
    int put_error; /* why the last put was refused; 0: it was not */
    /* under mutex, and by the storage thread */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct item items[WORLD_ITEMS_MAX];
    uint32_t item_count;
    uint32_t outstanding; /* puts whose DURABLE is awaited */
};

/* Makes the directory; `on_disk`: and a simulated disk. Nothing is stored yet. */
struct world *world_begin(struct tally *tally, uint64_t seed, bool on_disk, bool verbose);
/* What a child process did with it, which has ended in whatever state. */
void world_adopt(struct world *world);
/* The store is closed. */
void world_end(struct world *world);

uint64_t world_mix(uint64_t number);
uint64_t world_draw(struct world *world, uint64_t limit);
bool world_chance(struct world *world, unsigned percent);
void world_say(const struct world *world, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Sizes of the next life. */
void world_draw_options(struct world *world);
int world_open(struct world *world);
void world_close(struct world *world);
/* The simulated disk's power is off: nothing that happens now says anything. */
bool world_power_failed(const struct world *world);
/* With the store closed: what was not synced is lost by chance, in segments and in the index. */
void world_crash(struct world *world);
void world_index_path(const struct world *world, char *out, size_t bytes);

/* A new item behind `parent`; its number, or WORLD_NO_ITEM when there are too many. */
uint32_t world_put(struct world *world, uint32_t parent, enum larder_wait wait);
/* Again, when it is not there any more: the exact one, or a lossy one beside it or alone. */
void world_put_again(struct world *world, uint32_t number, enum larder_quality quality,
                     enum larder_wait wait);
void world_remove(struct world *world, uint32_t number);
/* Pins it, or takes the pin away; or gives it another end, far away, or another priority. */
void world_mark(struct world *world, uint32_t number);
/* The first of these alone. */
void world_pin(struct world *world, uint32_t number);
void world_move(struct world *world, uint32_t number);
/* As many pages of marks and tombstones, about. */
void world_pile_up(struct world *world, uint32_t pages);
/* Removes one variant and keeps the other, if there is one. */
void world_remove_variant(struct world *world, uint32_t number, enum larder_quality quality);
/* Puts a lossy one beside the exact one, if it is not there, and has it stand for that. */
void world_demote(struct world *world, uint32_t number);
/* Whether some variant may be there. */
bool world_may(const struct world *world, uint32_t number);
/* Everything, for good. */
void world_purge(struct world *world);
/* Reads the chain that ends in an item, and compares; absence may be a bug. */
void world_read(struct world *world, uint32_t number);
/* Until nothing is outstanding. */
void world_settle(struct world *world);
/* Something by chance. */
void world_do_something(struct world *world);

/* After a start: compares everything, and takes what is there as what must be there from now on.
 * False when power failed meanwhile: nothing is known then. */
bool world_verify(struct world *world);
/* What the store called corrupt since it was asked last, and what its structures say of each
 * other. */
void world_count_corrupt(struct world *world);

#endif
