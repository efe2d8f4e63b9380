/* SPDX-License-Identifier: Apache-2.0 */
/* accounts.h - what each UID and each tenant holds of the daemon, so that one cannot take it all.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_ACCOUNTS_H
#define LARDER_DAEMON_ACCOUNTS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"

/* What one tenant may add to the models known: they are kept until the daemon ends. */
#define ACCOUNTS_TENANT_MODELS_MAX (LARDER_MODELS_MAX / 4)

struct account {
    struct account *next;
    uint32_t uid;
    uint32_t sessions; /* that point here, closed ones with work in flight included */
    uint32_t connections;
    uint32_t leases;
    uint32_t in_flight; /* requests not yet answered */
};

struct tenant_account {
    uint64_t staging_bytes;
    uint64_t fell_back;   /* sections stored exact, in place of their recipe's way, since start */
    uint32_t model_count; /* that it was the first to describe, or is describing */
};

struct accounts {
    struct account *first;
    struct tenant_account tenants[LARDER_TENANTS_MAX]; /* by the store's index */
    uint8_t models_seen[LARDER_MODELS_MAX / 8];        /* a bit a model of the store's */
};

/* The account of a UID with one session more; NULL when there is no memory. */
struct account *accounts_join(struct accounts *accounts, uint32_t uid);
/* One session less; the last one frees it. */
void accounts_leave(struct accounts *accounts, struct account *account);

/* Counts a model that this tenant is about to describe; false: it has as many as it may have. */
bool accounts_model_begin(struct accounts *accounts, uint32_t tenant);
/* What came of it: the model's index, or LARDER_MODELS_MAX for none. */
void accounts_model_end(struct accounts *accounts, uint32_t tenant, uint32_t model);

#endif
