/* SPDX-License-Identifier: Apache-2.0 */
/* workers.h - threads for gathering and decoding.
 * Owns:    its threads (none when one thread is wanted: the caller's does the work) and their
 *          scratch memory, which is kept between runs.
 * Threads: any; runs take turns.
 */
#ifndef LARDER_CLIENT_WORKERS_H
#define LARDER_CLIENT_WORKERS_H

#include <stdint.h>

#define CLIENT_WORKERS_MAX 64u

struct client_workers;

/* threads: 0 and 1: the caller's own. */
int client_workers_open(struct client_workers **out, uint32_t threads);
void client_workers_close(struct client_workers *workers);

/* `scratch` is the running thread's, 64-aligned. */
typedef void (*client_task)(void *context, uint32_t index, void *scratch);

/* Runs the task for every index below `count`, in no particular order; returns when all have run.
 * -ENOMEM when there is no memory for the scratch: nothing ran. */
int client_workers_run(struct client_workers *workers, client_task task, void *context,
                       uint32_t count, uint64_t scratch_bytes);

#endif
