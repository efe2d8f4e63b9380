/* SPDX-License-Identifier: Apache-2.0 */
/* get.h - a GET in progress; shared by get.c (the calls), get_window.c (asking the daemon) and
 * get_decode.c (slots to engine memory) only.
 *
 * The blocks of a prompt are held a window at a time: as many as the host tier has room for, mostly
 * all. Within a window, sections are decoded as the daemon publishes them; `good` is the number of
 * leading blocks nothing has spoken against yet, and only falls. While more is stored than the host
 * tier has room for, the window moves: its first lease is done in all layers, released, and counted
 * in `tokens_done`; the room is asked for at once, so that what follows is read while the rest of
 * the window is decoded.
 *
 * Threads: an operation belongs to one call at a time; while it decodes, workers share it.
 * I1  What is read from a slab is copied before it is checked, so that what was checked is what is
 *     used: a daemon may be hostile, and a slot may be used anew at any time.
 * I2  A block counts only if its slot's generation was still the one of the lease after its last
 *     section was decoded.
 */
#ifndef LARDER_CLIENT_GET_H
#define LARDER_CLIENT_GET_H

#include "base/bytes.h"
#include "base/error.h"
#include "base/record.h"
#include "client/chain.h"
#include "client/layout.h"
#include "client/operations.h"

/* Sections decoded in one run: enough for many threads, few enough to notice a cancel. */
#define GET_ITEMS_MAX 256u

struct get_block {
    const struct client_slab *slab;
    const struct larder_slot *slot;
    uint64_t generation;
    const struct client_lease *lease;
    uint32_t lease_index; /* among the lease's refs */
    uint32_t token_count;
    uint64_t token_first;
    struct larder_key key;
    /* once its head was read */
    const char *record;    /* NULL: not yet */
    uint64_t record_bytes; /* checked against the slab */
    uint64_t directory;    /* from the record's start */
    const struct larder_recipe *recipe;
    void *tables; /* larder_recipe_fill_tables(); NULL when the recipe needs none */
    uint32_t section_count;
    uint32_t section_next; /* of those asked for, the ones before it were handed to decode */
    uint32_t section_stop; /* the first behind those asked for */
    uint64_t bytes;        /* of the sections handed to decode; of the record when all are wanted */
    uint8_t quality;
};

/* A section to decode. */
struct get_item {
    uint32_t block;
    uint32_t section;
    struct larder_section at; /* private copy, checked */
    int err;
};

struct larder_get_op {
    struct larder_model *model;
    struct larder_link *link;
    struct client_chain chain;
    struct layout_view view;
    struct client_accept accept;
    float kl; /* worst of what the daemon named */
    uint32_t handle;
    const atomic_bool *cancel;
    uint64_t started_ns;
    uint64_t until_ns;    /* the deadline; 0: none */
    uint32_t layer_first; /* layers asked for */
    uint32_t layer_end;
    uint32_t layer_count; /* as the daemon is told: 0: all from layer_first on */
    uint64_t token_first; /* the engine has what is before */
    uint64_t token_end;   /* nothing from here on is written */
    uint32_t key_end;     /* keys worth asking for */
    bool past_cache;      /* more is written than caches hold */

    /* the window */
    uint32_t key_next;     /* the first key not asked for or not granted */
    uint32_t keys_at_once; /* in a request */
    bool more;             /* the host tier was full: another window follows */
    struct get_block *blocks;
    uint32_t block_count;
    uint32_t block_capacity;
    uint32_t good;
    uint32_t front; /* decode only so many of them; 0: all */
    struct client_lease **leases;
    uint32_t lease_count;
    uint32_t lease_capacity;
    uint32_t layers_done; /* those before it */

    /* over all windows */
    uint64_t tokens_done;
    struct larder_get_result result; /* of finished windows */
    uint64_t bytes_ssd;
    bool stopped;
    int stop_error;
    char stop_message[LARDER_MESSAGE_BYTES_MAX];

    char *head; /* a record's head, copied for checking */
    uint64_t head_capacity;
    struct get_item items[GET_ITEMS_MAX];
};

/* Fills the window with what is stored and fits the host tier now. LARDER_EFULL when the daemon has
 * no room for even one block. */
int get_ask(struct larder_get_op *op);
/* How many tokens are stored, those beyond a window that the host tier had no room for included? */
int get_count_rest(struct larder_get_op *op, uint64_t *tokens);
/* Empties the window and gives its leases back. */
void get_release(struct larder_get_op *op);
/* The blocks of the window's first lease that has some, and of those before it. */
uint32_t get_front(const struct larder_get_op *op);
/* Takes so many blocks, as get_front() counts them, out of the window, and gives their leases back.
 */
void get_release_front(struct larder_get_op *op, uint32_t count);

/* -EINVAL for options that cannot be; NULL is allowed. */
int get_check_options(const struct larder_model *model, const struct larder_get_options *options);

/* Decodes the window up to and with `layer`, as it is published. Negative only for trouble of our
 * own (no memory); everything else lowers op->good. */
int get_decode(struct larder_get_op *op, uint32_t layer);

/* The get ends with this window, for `err`, whose message is the thread's last. */
void get_stop(struct larder_get_op *op, int err);
/* Block `index` of the window will not be valid, for `err`. */
void get_cut(struct larder_get_op *op, uint32_t index, int err);

static inline bool get_is_late(const struct larder_get_op *op)
{
    return op->until_ns > 0 && client_now_ns() >= op->until_ns;
}

static inline bool get_is_cancelled(const struct larder_get_op *op)
{
    return op->cancel && atomic_load_explicit(op->cancel, memory_order_relaxed);
}

/* Tokens written once the block is. */
static inline uint64_t get_block_end(const struct larder_get_op *op, const struct get_block *block)
{
    return larder_min_u64(op->token_end, block->token_first + block->token_count);
}

#endif
