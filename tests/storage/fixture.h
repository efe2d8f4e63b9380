/* SPDX-License-Identifier: Apache-2.0 */
/* fixture.h - a store in a scratch directory, and entries whose bytes follow from a number.
 * Threads: a fixture belongs to one test; put, get and remove may be called from several.
 */
#ifndef LARDER_TESTS_FIXTURE_H
#define LARDER_TESTS_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "scratch.h"
#include "storage/store.h"

struct TCase;
struct sim_disk;

/* What a test asserts in threads: Check's own assertions are for its one thread. */
#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition))                                                                          \
            must_fail(#condition, __FILE__, __LINE__);                                             \
    } while (0)
_Noreturn void must_fail(const char *condition, const char *file, int line);

struct fixture {
    char path[SCRATCH_PATH_BYTES];
    char key_path[SCRATCH_PATH_BYTES + 16];
    struct larder_store_options options;
    struct sim_disk *disk; /* NULL: real files */
    struct larder_store *store;
    struct larder_tenant_info tenant;
    struct larder_model_info model;
};

/* Small sizes: 4 MiB of host tier in slabs of 1 MiB, 16 MiB of SSD in segments of 1 MiB. Encrypted
 * when LARDER_TEST_ENCRYPTED is in the environment: the suites of the store run both ways. */
void fixture_begin(struct fixture *fixture);
/* Each test of the case finds a store that is open, and leaves one that is checked. */
void fixture_add(struct TCase *tcase, struct fixture *fixture);
/* Its segments lie on a simulated disk from the next opening on, unless options.io_override says
 * otherwise for that one; and nothing is logged: what goes wrong there does so on purpose. */
struct sim_disk *fixture_use_disk(struct fixture *fixture);
/* Makes a key file, beside the store's own files, and gives its path. */
const char *fixture_make_key(struct fixture *fixture);
/* Opens with fixture->options; the tenant "a" and the model are there then. */
int fixture_open(struct fixture *fixture);
void fixture_close(struct fixture *fixture);
void fixture_reopen(struct fixture *fixture);
/* Do the store's structures agree with one another? */
void fixture_check(const struct fixture *fixture);
/* Checks the store, if it is open, and takes it away. */
void fixture_end(struct fixture *fixture);

/* What is stored under number `seed`: its key, and everything in its record, follow from it. */
struct block {
    uint64_t seed;
    struct larder_key parent;
    uint32_t token_count;
    uint32_t section_bytes; /* of each of two sections */
    enum larder_quality quality;
    uint32_t tenant;
    bool beside;        /* as a further variant */
    const char *recipe; /* NULL: "raw" */
    const uint8_t *profile;
    enum larder_quality computed_on;
    float computed_on_kl;
    float max_kl;
    uint64_t made_of;
    uint32_t idle_s;
    struct larder_mark mark;
};

struct larder_key block_key(uint64_t seed);
/* Token i of a block; a block of fewer tokens with the same `seed / 1000` is a prefix. */
uint32_t block_token(uint64_t seed, uint32_t index);

/* Waits for the level asked for. The reservation's error, or what `done` was told. */
int fixture_put(struct fixture *fixture, const struct block *block, enum larder_wait wait);
/* Blocks first to first + count - 1 as a chain behind the root; each must be stored. */
void fixture_put_chain(struct fixture *fixture, uint64_t first, uint32_t count,
                       uint32_t section_bytes, enum larder_wait wait);

/* Leases the chain of `count` keys, waits, compares every byte of what is good with what was put,
 * and lets go. Number of blocks that were good; *err: why not all. */
uint32_t fixture_get_chain(struct fixture *fixture, uint64_t first, uint32_t count, int *err);
/* The same at the quality `worst`, perhaps with LARDER_QUALITY_SMALLEST; heads[] gets the fixed
 * headers. */
uint32_t fixture_get_variants(struct fixture *fixture, struct larder_record *heads, uint64_t first,
                              uint32_t count, uint32_t worst, int *err);
/* Compares a record with what was put under `seed`. */
bool record_is(const struct larder_record *record, uint64_t seed);

int fixture_remove(struct fixture *fixture, uint64_t seed, uint64_t *removed);
int fixture_remove_variant(struct fixture *fixture, uint64_t seed, uint32_t variant);
/* The same although something is pinned. */
int fixture_remove_pinned(struct fixture *fixture, uint64_t seed, uint64_t *removed);
int fixture_demote(struct fixture *fixture, uint64_t seed, uint32_t kept, uint64_t idle_s);
/* What `done` was told. */
int fixture_mark(struct fixture *fixture, uint64_t seed, const struct larder_mark *mark);
/* Of its first variant, as larder_store_move(). */
int fixture_move(struct fixture *fixture, uint64_t seed, uint32_t live_percent);
int fixture_verify(struct fixture *fixture, uint64_t seed);
int fixture_verify_variant(struct fixture *fixture, uint64_t seed, uint32_t variant);
int fixture_when(struct fixture *fixture, uint64_t seed, enum larder_wait wait);
/* What is stored. */
struct larder_entry_info fixture_info(struct fixture *fixture, uint64_t seed);
/* Stored at all? */
bool fixture_has(struct fixture *fixture, uint64_t seed);
struct larder_store_stats fixture_stats(struct fixture *fixture);
/* Waits until nothing is queued for SSD: the entry is durable. */
void fixture_settle(struct fixture *fixture, uint64_t seed);

/* Waits until the index names all that is durable. */
void fixture_commit(struct fixture *fixture);

/* Changes bytes of a segment file of a closed store. */
void fixture_flip(const struct fixture *fixture, uint32_t segment, uint64_t offset);
void fixture_truncate(const struct fixture *fixture, uint32_t segment, uint64_t bytes);
void fixture_remove_index(const struct fixture *fixture);
/* Opens without it: it is made anew from the segments. */
void fixture_rebuild(struct fixture *fixture);

#endif
