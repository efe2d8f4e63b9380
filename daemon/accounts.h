/* SPDX-License-Identifier: Apache-2.0 */
/* accounts.h - what each UID holds of the daemon, so that one cannot take it all.
 * Threads: event thread.
 */
#ifndef LARDER_DAEMON_ACCOUNTS_H
#define LARDER_DAEMON_ACCOUNTS_H

#include <stdint.h>

struct account {
    struct account *next;
    uint32_t uid;
    uint32_t sessions; /* that point here, closed ones with work in flight included */
    uint32_t connections;
    uint32_t leases;
    uint32_t in_flight; /* requests not yet answered */
};

struct accounts {
    struct account *first;
};

/* The account of a UID with one session more; NULL when there is no memory. */
struct account *accounts_join(struct accounts *accounts, uint32_t uid);
/* One session less; the last one frees it. */
void accounts_leave(struct accounts *accounts, struct account *account);

#endif
