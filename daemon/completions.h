/* SPDX-License-Identifier: Apache-2.0 */
/* completions.h - how workers and the storage thread hand results to the event thread.
 *
 * A completion is embedded in the operation it ends. post() never waits beyond a short lock and
 * never allocates; the eventfd becomes readable; the event thread drains.
 * Threads: post() from any; the rest from the event thread.
 */
#ifndef LARDER_DAEMON_COMPLETIONS_H
#define LARDER_DAEMON_COMPLETIONS_H

struct completion {
    struct completion *next;
    void (*run)(struct completion *completion); /* on the event thread; may free what holds it */
};

struct completions;

int completions_open(struct completions **out);
void completions_close(struct completions *completions);
/* Readable when something was posted. */
int completions_fd(const struct completions *completions);
/* `completion` belongs to the queue until it runs: exactly once. */
void completions_post(struct completions *completions, struct completion *completion);
/* Runs what was posted, in order. */
void completions_drain(struct completions *completions);

#endif
