/* SPDX-License-Identifier: Apache-2.0 */
/* put.h - one PUT: staging is checked and encoded into a reserved slot, on workers.
 *
 * Staging is the client's to change at any time, so that every byte of it is read once: tokens and
 * extra are copied, then checked and hashed from the copy; a section is copied before it is
 * encoded, except by the recipe raw, which is that copy.
 * Threads: started on the event thread; runs on workers; ends on the event thread, in two steps:
 *          `idle` when staging is not read any more, then or before that `answer` when the client
 *          can be told. The operation belongs to itself until both were called.
 */
#ifndef LARDER_DAEMON_PUT_H
#define LARDER_DAEMON_PUT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/wire.h"
#include "daemon/session_priv.h"

struct put {
    /* the session's, event thread */
    struct put *next;
    struct session *session;
    struct session_model *model;
    uint64_t request;
    uint64_t began_us;
    struct wire_put wire;
    bool reads_staging;
    /* result: whole when `answer` is called */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
    uint64_t stored_bytes;
    uint32_t existed;
    uint32_t quality;
    float kl;
    bool unmeasured;
    char recipe[64];
    uint32_t fell_back; /* sections that were stored exact in place of their recipe's way */
};

/* Where the parts of a PUT lie from staging_offset on. */
struct put_region {
    uint64_t tokens;
    uint64_t planes;
    uint64_t importance; /* these two where the flags say so */
    uint64_t q_max;
    uint64_t importance_bytes;
    uint64_t q_max_bytes;
    uint64_t bytes; /* of all */
};
void put_region(struct put_region *out, const struct larder_model_desc *model,
                const struct wire_put *wire);

/* NULL without memory. The frame's values must fit the session: model and staging range. */
struct put *put_new(struct session *session, struct session_model *model, uint64_t request,
                    const struct wire_put *wire, void (*idle)(struct put *put),
                    void (*answer)(struct put *put));
/* Puts of one model handle must not run at the same time. */
void put_start(struct put *put);

#endif
