/* SPDX-License-Identifier: Apache-2.0 */
/* served.h - models whose weights are here: a larder-worker for each, and the blends that wait for
 * it.
 *
 * A worker is a child of larderd, which dies with it; it speaks frames over a socket pair
 * (daemon/work.h), and as a client of its own it gets and puts for the tenant that asked. One that
 * ends is started again, later each time. It does one blend at a time; those of other tenants than
 * the last one's come first.
 *
 * Owns:    the processes, their sockets, and the order of blends. A blend is its session's.
 * Threads: event thread.
 * I1  Closing a session frees no blend: that is done from the tick, so that an answer that closes
 *     one leaves what is being answered alone.
 */
#ifndef LARDER_DAEMON_SERVED_H
#define LARDER_DAEMON_SERVED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/key.h"
#include "base/wire.h"

struct larderd;
struct served;
struct served_models;
struct session;

enum blend_state {
    BLEND_WAITING, /* for the worker */
    BLEND_RUNNING,
    BLEND_HELD, /* done; the worker keeps the KV */
    BLEND_READING,
};

/* A client's blend, from its frame to its end. */
struct blend {
    struct blend *next; /* that waits too */
    struct served *served;
    struct session *session;
    uint64_t request;
    uint64_t read_request; /* while BLEND_READING */
    uint64_t serial;       /* on the worker's socket */
    uint64_t until_ms;     /* the deadline */
    uint64_t held_ms;      /* since when */
    uint64_t began_us;
    uint64_t wait_us;
    uint64_t staging_bytes;
    int staging_fd; /* our own: the connection may take other staging */
    enum blend_state state;
    uint32_t tries; /* that ended with their worker */
    bool answered;
    bool abandoned; /* its session is closed: to be let go with the next tick */
    bool let_go;    /* by the client, or for it: WORK_END is on its way */
    struct wire_blend wire;
};

/* Starts the workers of the configuration. */
int served_open(struct served_models **out, struct larderd *daemon);
/* Nothing is taken any more; whoever waits is told so, and the workers end. */
void served_stop(struct served_models *models);
/* Ends what served_stop() did not. NULL is allowed. */
void served_close(struct served_models *models);
/* Deadlines, workers that ended, and those to be started again. */
void served_tick(struct served_models *models, uint64_t now_ms);

/* The worker for a model. LARDER_EUNSUPPORTED when there is none, LARDER_EMODEL when one of that
 * name has other weights, -EBUSY when it may be one that is loading still. */
int served_find(struct served_models *models, struct served **out, const char *name,
                const struct larder_key *fingerprint);
void served_describe(const struct served *served, struct wire_worker_ok *out);
/* By index; LARDER_ENOTFOUND behind the last one. */
int served_at(const struct served_models *models, struct wire_admin_worker_ok *out, uint32_t index);

/* Queues a blend; -EBUSY when enough wait. */
int served_submit(struct served *served, struct blend *blend);
/* Asks for a part of what is BLEND_HELD. */
void served_read(struct blend *blend, uint64_t request, const struct wire_blend_read *read);
/* It is wanted no more: frees it, now or when its worker says so. */
void served_let_go(struct blend *blend);

/* Of session_blend.c, for what a worker answers. `error` NULL: no error. */
void blend_let_go(struct blend *blend);
void blend_answer(struct blend *blend, const struct wire_error *error,
                  const struct wire_blend_ok *ok);
void blend_read_answer(struct blend *blend, const struct wire_error *error);
void blend_free(struct blend *blend);

#endif
