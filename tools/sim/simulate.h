/* SPDX-License-Identifier: Apache-2.0 */
/* simulate.h - a trace through one full tier: what a policy of storage/ would have hit. */
#ifndef LARDER_TOOLS_SIM_SIMULATE_H
#define LARDER_TOOLS_SIM_SIMULATE_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/sim/trace.h"

/* Clairvoyant: evicts what is used last. Not in storage/. */
#define BELADY "belady"

struct simulation {
    const char *policy;
    uint32_t capacity_blocks;
    uint32_t mark;  /* hits of the first so many requests are given, too */
    bool admission; /* ask the policy before a full tier stores a block */
    bool holes;     /* the textbook's policy, which knows no chains */
};

struct simulation_result {
    uint64_t refs;
    uint64_t hits;    /* a block counts only if all before it in its prompt hit too */
    uint64_t written; /* blocks stored */
    uint64_t hits_marked;
    uint64_t refs_late; /* in the second half of the requests: what was learned, it knows then */
    uint64_t hits_late;
    uint64_t bytes_ram; /* of the policy */
    double seconds;
};

/* `step` is called now and then; may be NULL. */
int simulate(struct simulation_result *out, const struct trace *trace,
             const struct simulation *simulation, void (*step)(void *context, uint64_t done),
             void *context);
/* The same for BELADY. */
int simulate_belady(struct simulation_result *out, const struct trace *trace,
                    const struct simulation *simulation);

#endif
