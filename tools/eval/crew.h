/* SPDX-License-Identifier: Apache-2.0 */
/* crew.h - items of work spread over threads, each with memory of its own.
 * Owns:    its threads, for the time of the call.
 * Threads: eval_crew_run() returns when all have ended; eval_crew_step() from any of them, the rest
 *          as said below.
 * I1  Each item is run once, by one thread, as long as none has failed; items begin in order.
 */
#ifndef LARDER_TOOLS_EVAL_CREW_H
#define LARDER_TOOLS_EVAL_CREW_H

#include <stdint.h>

#define EVAL_JOBS_MAX 64u

struct eval_crew;

struct eval_progress {
    void (*step)(void *context, uint64_t done, uint64_t all); /* on the caller's thread */
    void *context;
};

struct eval_crew_work {
    /* A thread's memory, opened and closed on it; close takes what a failed open left, or NULL. */
    int (*open)(void **hand, struct eval_crew *crew, void *context);
    int (*run)(void *hand, uint32_t item);
    void (*close)(void *hand);
    void *context;
    uint32_t items;
    uint32_t steps_of_item; /* that run() counts */
    uint32_t jobs;          /* threads, 1..EVAL_JOBS_MAX */
    struct eval_progress progress;
};

/* The first error of any thread, with its message. */
int eval_crew_run(const struct eval_crew_work *work);
void eval_crew_step(struct eval_crew *crew);

#endif
