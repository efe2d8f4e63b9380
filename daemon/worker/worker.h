/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h - larder-worker: a model's weights, and the blends that larderd hands to it.
 *
 * It is a client of larderd as engines are, connected to the control socket, where it becomes the
 * tenant that asked (ADMIN_ACT); work itself comes over the socket pair that larderd started it
 * with (daemon/work.h).
 *
 * Owns:    everything; a worker is a process.
 * Threads: main; loading of a blend has one of its own.
 */
#ifndef LARDER_DAEMON_WORKER_WORKER_H
#define LARDER_DAEMON_WORKER_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/larder.h"
#include "daemon/work.h"
#include "kernels/llama.h"

struct worker_options {
    const char *name;
    const char *directory;
    const char *control_socket;
    const char *method; /* of blends that name none */
    uint32_t threads;   /* 0: one a CPU */
    uint32_t kv_dtype;
    bool core_dumps;
};

struct worker {
    const struct worker_options *options;
    struct larder_device *device;
    struct larder_llama *llama;
    const struct larder_model_config *config;
    struct larder_model_desc desc;
    struct work_rates rates;

    /* The tenant of the last blend, as whom it is connected still. */
    char tenant[LARDER_TENANT_NAME_MAX];
    struct larder *larder;
    struct larder_model *model;

    /* The blend that is being done, or whose KV is kept. */
    uint64_t serial; /* 0: none */
    uint8_t *staging;
    uint64_t staging_bytes;
    struct larder_kv_cache *cache;
    bool ended;     /* larderd has closed its end */
    bool cancelled; /* a WORK_END came while it was being done */
};

/* A blend as it came in, in memory of our own: the client may change its staging meanwhile. */
struct worker_request {
    struct larder_blend_request blend; /* points into what follows */
    struct larder_prompt *pieces;
    uint32_t *tokens;
    uint8_t *extras;
    uint32_t token_count;
};

/* -EINVAL for a region that does not hold what it should; to be freed all the same. */
int worker_request_read(struct worker_request *out, const struct worker *worker,
                        const struct wire_blend *wire);
void worker_request_free(struct worker_request *request);

/* Blends what is asked for into a new worker->cache, and writes the answer's region. */
int worker_blend(struct worker *worker, struct wire_blend_ok *ok, const struct wire_blend *wire);

/* Canonical planes of a rectangle of worker->cache, to the place that is named. */
int worker_read(const struct worker *worker, const struct wire_blend_read *read);

/* Has larderd taken the blend back? Looks at the socket. */
bool worker_is_cancelled(struct worker *worker);

/* Times a few tokens, so that plans know what computing takes. */
int worker_measure(struct worker *worker);

#endif
