/* SPDX-License-Identifier: Apache-2.0 */
/* jobs.h - gets and puts without waiting: one thread a connection, started with the first job,
 * which runs them in the order they came.
 * Owns:    the thread and its queue. A job is its submitter's, who ends it; it may outlive the
 *          connection.
 * Threads: any.
 */
#ifndef LARDER_CLIENT_JOBS_H
#define LARDER_CLIENT_JOBS_H

struct client_jobs;

/* Cancels what is queued and running, and stops the thread. NULL is allowed. */
void client_jobs_close(struct client_jobs *jobs);

#endif
