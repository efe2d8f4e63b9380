/* SPDX-License-Identifier: Apache-2.0 */
/* demotion.h - one block that nobody uses is kept smaller: its best record is decoded and encoded
 * by another recipe, that is stored beside it, and when it is durable the larger ones go.
 *
 * A crash in between leaves both; whoever looks at the block again ends it. What is made of a lossy
 * record says so: by `computed_on`, and by the KL of what it was made of. A use of the block
 * meanwhile, a pin or a removal ends it with the larger record, or nothing, left.
 *
 * Owns:    while it goes on: a lease on the best record, its planes, a reservation.
 * Threads: started, continued and ended on the event thread; a section at a time on workers, so
 *          that PUTs come between.
 */
#ifndef LARDER_DAEMON_DEMOTION_H
#define LARDER_DAEMON_DEMOTION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/completions.h"
#include "daemon/encode.h"
#include "daemon/workers.h"
#include "storage/store.h"

struct larderd;

enum demotion_stage {
    DEMOTION_PLAN,
    DEMOTION_DECODE,
    DEMOTION_ENCODE,
    DEMOTION_STORE,
    DEMOTION_TAKE, /* what is larger away */
    DEMOTION_END,
};

struct demotion {
    /* the caller's; the event thread's */
    struct larderd *daemon;
    struct larder_key key;
    uint32_t tenant;
    uint32_t model;
    uint64_t idle_s; /* unused for so long at least */
    /* Bytes for one of raw KV that the recipe was seen to take: a record that takes no more stays.
     * 0: it was not seen. */
    float expected;
    char recipe[LARDER_RECIPE_BYTES_MAX + 1];
    void (*done)(void *context, int err); /* event thread */
    void *context;

    /* result */
    int err; /* 0 also when there was nothing to do */
    char message[LARDER_MESSAGE_BYTES_MAX];
    uint64_t bytes_moved;  /* read and written */
    uint64_t bytes_before; /* of all records of the key */
    uint64_t bytes_after;
    float made; /* as `expected`; 0: nothing was made */

    /* under way: of one thread at a time, which hands it on by queues */
    enum demotion_stage stage;
    bool running;
    struct job job;
    struct completion completion;
    /* Of the worker, which asks, and of the storage thread, which may be first. */
    atomic_int waits;
    struct larder_lease *lease;
    struct larder_ref ref;
    uint32_t loaded;
    uint32_t source_variant;
    uint64_t source_bytes;
    struct larder_model_info info;
    const struct larder_recipe *source;
    const struct larder_recipe *target;
    uint8_t *planes;
    void *tables;   /* of the source */
    uint32_t next;  /* section */
    uint64_t place; /* in the payload */
    struct larder_put_desc desc;
    uint8_t *head; /* copy of extra, padded to 4, and tokens */
    struct larder_put *slot;
    struct encoding encoding;
};

/* Whether the recipe would not make it smaller, by `expected`. */
bool demotion_is_small(const struct larder_entry_info *entry, float expected);
/* The caller's fields are set, and all others zero. `done` comes once, later. */
void demotion_start(struct demotion *demotion);
/* It is not continued: what it holds is given back. Workers have ended. */
void demotion_stop(struct demotion *demotion);

#endif
