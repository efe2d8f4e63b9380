/* SPDX-License-Identifier: Apache-2.0 */
/* loading.h - stored KV on its way into a cache, layer by layer, while layers before it are
 * computed.
 * Owns:    a thread, and a get in steps for each span that is stored.
 * Threads: one that blends; `loading_wait()` while the other one loads.
 */
#ifndef LARDER_DAEMON_WORKER_LOADING_H
#define LARDER_DAEMON_WORKER_LOADING_H

#include "daemon/worker/worker.h"

struct loading;

/* Begins to load what the spans name as stored. A span that turns out shorter is cut, the rest of
 * it is missing: *cut says whether one was. */
int loading_begin(struct loading **out, const struct worker *worker,
                  const struct worker_request *request, struct larder_blend_plan *plan, bool *cut);
/* Returns when all stored rows of the layer are in the cache; LARDER_ESTALE when some will not be:
 * loading_end() cuts the plan. */
int loading_wait(struct loading *loading, uint32_t layer);

struct loading_result {
    uint64_t bytes;
    uint64_t bytes_ssd;
    uint64_t wait_us; /* in loading_wait() */
    uint32_t prefix_quality;
    uint32_t quality; /* worst of all */
    float prefix_kl;
    float kl;
};
/* Stops, and cuts spans of the plan of which not all was loaded: *cut. NULL is allowed. */
void loading_end(struct loading *loading, struct loading_result *result, bool *cut);

#endif
