/* SPDX-License-Identifier: Apache-2.0 */
/* connection.h - a connection to the daemon: frames out and in, slabs, leases, and the way back
 * after the daemon died.
 *
 * struct larder is what the program holds; struct larder_link is one life of its socket. A link
 * that fails is left: calls that wait on it end with its code, what was mapped through it stays
 * mapped until its last user lets go, and the next call opens another.
 *
 * Owns:    the socket, mapped slabs and staging, what waits for answers.
 * Threads: any. One waiting thread at a time reads the socket and hands out what came for others.
 * Locks:   larder->put_turn, then workers->turn, then larder->lock; the last is never held while
 *          waiting for the daemon, except by the one thread that connects.
 * I1  Nothing the daemon sends is trusted: sizes, counts, ids and descriptors are checked here or
 *     by the caller that asked; what breaks a rule ends the link with LARDER_EPROTO.
 * I2  Every wait ends: by an answer, by the link's end, or by the timeout.
 */
#ifndef LARDER_CLIENT_CONNECTION_H
#define LARDER_CLIENT_CONNECTION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/key.h"
#include "base/limits.h"
#include "base/slab.h"
#include "base/wire.h"
#include "client/larder.h"

struct client_workers;
struct client_jobs;
struct larder_recipe;

/* A slab as mapped; lives as long as its link, or until the daemon has retired it and no operation
 * uses the link. */
struct client_slab {
    const char *map;
    uint64_t bytes;
    uint64_t data_offset;
    uint32_t id;
    uint32_t slot_count;
};

static inline const struct larder_slot *client_slab_slot(const struct client_slab *slab,
                                                         uint32_t slot)
{
    return (const struct larder_slot *)(const void *)(slab->map + LARDER_PAGE_BYTES) + slot;
}

/* A request on its way, on its caller's stack. The answer's body is copied to `answer`. */
struct client_call {
    /* filled in by the caller */
    uint16_t type;
    uint16_t answer_type;
    void *answer;
    uint32_t answer_capacity;
    uint64_t until_ns;         /* not waited for beyond; 0: only the connection's timeout */
    const atomic_bool *cancel; /* not waited for once it is set; NULL: never */
    uint32_t patience_ms;      /* waited for so much longer than the connection's timeout */
    /* filled in by the link, under larder->lock */
    uint32_t answer_bytes;
    uint64_t id;
    int fd; /* that came with the answer; -1: none */
    bool done;
    int err;
    char message[LARDER_MESSAGE_WIRE_MAX];
    struct client_call *next;
};

/* A GET's hold on slots, from its request to its release. */
struct client_lease {
    uint64_t id;
    bool held;  /* the daemon granted it: to be released */
    bool ended; /* WIRE_LOADED came, or the link is down */
    uint32_t loaded;
    int32_t err;
    struct client_lease *next;
};

/* Of a link; a call that would be one more waits for its answer. */
#define CLIENT_ORPHANS_MAX 256u

struct larder_link {
    struct larder *larder;
    int fd;
    uint64_t epoch; /* counts links of a connection, from 1 */
    struct wire_hello_ok hello;

    /* under larder->lock */
    uint32_t refs;
    int down; /* why it ended; 0: alive */
    bool reading;
    uint64_t read_ns;  /* when it was last read */
    uint64_t sweep_ns; /* when retired slabs were last looked for */
    struct client_call *calls;
    struct client_lease *leases;
    uint64_t orphans[CLIENT_ORPHANS_MAX]; /* requests whose answers nobody waits for any more */
    uint32_t orphan_count;
    struct client_slab **slabs; /* by rising id */
    uint32_t slab_count;
    uint32_t slab_capacity;

    /* whoever has larder->put_turn */
    char *staging;
    uint64_t staging_bytes;

    /* the reader */
    _Alignas(64) char frame[LARDER_FRAME_BYTES_MAX];
};

/* Recipes met so far: kept open, since records name few. */
#define CLIENT_RECIPES_MAX 256u

struct client_recipe_slot {
    char *text;          /* as it was asked for */
    uint8_t profile[32]; /* that it was opened with; zeros: none */
    struct larder_recipe *recipe;
};

/* Profiles met so far, kept mapped: a model has one or a few, and a connection may serve many
 * models. */
#define CLIENT_PROFILES_MAX LARDER_PROFILES_MAX

struct client_profile {
    const void *map;
    uint64_t bytes;
    struct larder_profile *profile;
    uint8_t name[32];
};

struct larder {
    pid_t pid;
    char *socket;
    char *tenant; /* to be asked for on a control socket; NULL: the socket says which */
    uint32_t timeout_ms;
    struct client_workers *workers;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a call or lease ended, or the reader's seat is free */
    pthread_mutex_t put_turn;

    /* under lock */
    struct larder_link *link; /* NULL: none */
    uint64_t epochs;
    uint64_t next_id;
    uint64_t retry_at_ns; /* no attempt to connect before */
    struct client_recipe_slot recipes[CLIENT_RECIPES_MAX];
    uint32_t recipe_count;
    struct client_profile profiles[CLIENT_PROFILES_MAX];
    uint32_t profile_count;
    double host_ns_per_byte; /* of loads so far, smoothed; 0: none yet */
    double ssd_ns_per_byte;
    struct client_jobs *jobs; /* NULL: no job yet */
};

struct larder_model {
    struct larder *larder;
    struct larder_model_desc desc;
    struct larder_key fingerprint;
    uint64_t token_bytes; /* K and V of one token */

    /* under larder->lock */
    uint64_t epoch; /* of the link that `handle` and `hasher` belong to */
    uint32_t handle;
    enum larder_quality quality; /* of what is put without a recipe, and what it keeps */
    float max_kl;
    bool registered;
    struct larder_hasher *hasher; /* resting here between calls */
};

uint64_t client_now_ns(void);

/* A live link, connecting if there is none. LARDER_EDOWN; LARDER_EUNSUPPORTED after fork(). */
int client_link_acquire(struct larder *larder, struct larder_link **out);
void client_link_release(struct larder_link *link);
/* Ends the link: its peer broke the protocol or does not answer. */
void client_link_fail(struct larder_link *link, int code, const char *why);

/* Sends the request: frame header, then the parts. `lease` is listed from here on, when given. */
struct client_part {
    const void *bytes;
    size_t count;
};
int client_send(struct larder_link *link, struct client_call *call, struct client_lease *lease,
                const struct client_part *parts, uint32_t part_count);
/* Waits for the answer of a call that was sent. Always to be called after client_send(): the call
 * is unlisted when it returns. -ETIMEDOUT at its until_ns, -ECANCELED by its `cancel`: the link
 * goes on, the answer will be passed over, and a lease that it grants given back. */
int client_wait(struct larder_link *link, struct client_call *call);
/* Both. */
int client_call(struct larder_link *link, struct client_call *call, struct client_lease *lease,
                const struct client_part *parts, uint32_t part_count);

/* Hands out what has arrived, or waits up to `wait_us` for something to. */
void client_poll(struct larder_link *link, uint32_t wait_us);

/* The answer to its request granted `ref_count` refs; `ready`: all are loaded already. */
void client_lease_granted(struct larder_link *link, struct client_lease *lease, uint32_t ref_count,
                          bool ready);
/* Reads a lease's state. */
struct client_lease client_lease_state(struct larder_link *link, const struct client_lease *lease);
/* Unlists the leases and tells the daemon in one frame, without an answer. */
void client_leases_end(struct larder_link *link, struct client_lease **leases, uint32_t count);

/* Is this memory of at least `bytes` that cannot shrink? If it could, an access would raise SIGBUS:
 * only such is mapped. LARDER_EPROTO. */
int client_check_sealed(int fd, uint64_t bytes);
/* At least so many bytes of staging in link->staging. The caller has larder->put_turn. */
int client_staging(struct larder_link *link, uint64_t bytes);
/* The daemon may still write into it: the next call asks for another. */
void client_staging_drop(struct larder_link *link);
/* The slab of that id, or NULL: then the daemon named one it never sent. */
const struct client_slab *client_find_slab(struct larder_link *link, uint32_t slab_id);

/* The model's handle on this link: registers it there when that has not been done. */
int client_model_handle(struct larder_model *model, struct larder_link *link, uint32_t *handle);
/* A hasher for this model's keys on this link; to be given back. */
int client_hasher_take(struct larder_model *model, struct larder_link *link,
                       struct larder_hasher **out);
void client_hasher_give(struct larder_model *model, struct larder_link *link,
                        struct larder_hasher *hasher);

/* The recipe of that text with that profile (zeros: none), opened once a connection; the profile is
 * asked for over the link when it is met first, until `call`'s time is over or it is cancelled
 * (NULL: no such limit). LARDER_ENOPROFILE when the daemon has none of that name. */
int client_recipe(struct larder_link *link, const struct larder_recipe **out, const char *text,
                  size_t bytes, const uint8_t profile[32], const struct client_call *limits);
void client_recipes_close(struct larder *larder);

#endif
