/* SPDX-License-Identifier: Apache-2.0 */
/* larderd.h - the daemon's own state, shared by its parts.
 *
 * One event thread owns everything here but the store, the workers and the completion queue, which
 * lock for themselves. Whatever may wait - the store's durable steps, encoding - runs on a worker
 * or on the storage thread and comes back through `completions`.
 */
#ifndef LARDER_DAEMON_LARDERD_H
#define LARDER_DAEMON_LARDERD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/wire.h"
#include "daemon/accounts.h"
#include "daemon/config.h"
#include "daemon/notify.h"
#include "daemon/scrub.h"
#include "storage/store.h"

struct completions;
struct event_base;
struct lease;
struct measures_table;
struct profiles;
struct recipes;
struct served_models;
struct session;
struct workers;

struct larderd {
    struct config config;
    struct larder_store *store;
    struct profiles *profiles;
    struct recipes *recipes;
    struct measures_table *measures;
    struct workers *workers;
    struct served_models *served; /* the models whose weights are here */
    struct completions *completions;
    struct event_base *events;
    struct accounts accounts;
    struct notify notify;
    struct scrub scrub;
    struct scrub gc;
    struct scrub demote;

    struct session *sessions; /* open ones */
    uint32_t session_count;
    uint32_t busy_count; /* closed ones with work in flight included */

    /* Leases by age: the oldest first. */
    struct lease *lease_oldest;
    struct lease *lease_newest;
    struct lease *lease_free;
    uint32_t lease_count;
    uint64_t lease_hash; /* odd and random: no client can fill one bucket */

    /* Tenants seen since start, by the store's index. */
    struct larder_tenant_info *tenants;
    uint32_t tenant_count;

    uint32_t in_flight; /* requests not yet answered */
    uint64_t staging_bytes;
    uint64_t frames_refused;
    struct wire_latency latencies[WIRE_LATENCY_KINDS];
    uint64_t started_ms;
    bool stopping;
};

/* Tells the store the quotas of all its tenants. */
void larderd_set_quotas(struct larderd *daemon);

/* Milliseconds that no clock change moves. */
uint64_t larderd_now_ms(void);
uint64_t larderd_now_us(void);

/* A request that began then is answered. */
void larderd_note_latency(struct larderd *daemon, enum wire_latency_kind kind, uint64_t began_us);

#endif
