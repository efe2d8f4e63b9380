/* SPDX-License-Identifier: Apache-2.0 */
/* workers.h - a fixed pool of threads for what must not run on the event thread: encoding, and
 * store calls that wait.
 *
 * Each tenant has a queue, in the order of submission; the queues that have jobs take turns, a job
 * each. So a tenant that floods waits for itself: who refuses its requests in time looks at
 * workers_waiting(). A job is embedded in its operation and says itself, through completions.h,
 * that it is done.
 * Threads: submit() from any; open and close from the event thread.
 */
#ifndef LARDER_DAEMON_WORKERS_H
#define LARDER_DAEMON_WORKERS_H

#include <stdint.h>

#include "base/limits.h"

/* Owner of the jobs of no tenant: the operator's, and those that find out who a client is. */
#define WORKERS_OWN LARDER_TENANTS_MAX

struct workers;
struct scratch; /* memory of one worker, kept from job to job */

struct job {
    struct job *next;
    void (*run)(struct job *job, struct scratch *scratch); /* may free what holds the job */
};

int workers_open(struct workers **out, uint32_t thread_count);
/* Runs what is queued, then ends the threads. */
void workers_close(struct workers *workers);
uint32_t workers_count(const struct workers *workers);
/* `owner`: index of the tenant, or WORKERS_OWN. */
void workers_submit(struct workers *workers, uint32_t owner, struct job *job);
/* Jobs of that owner that have not begun. */
uint32_t workers_waiting(struct workers *workers, uint32_t owner);

/* At least `bytes`, aligned to 64, valid until the next call with the same scratch or the job's
 * end; NULL when there is no memory. */
void *scratch_reserve(struct scratch *scratch, uint64_t bytes);

#endif
