/* SPDX-License-Identifier: Apache-2.0 */
/* sim_rounds.h - the store over the simulated disk: power fails at a random step, again and again.
 * Threads: one at a time.
 */
#ifndef LARDER_TESTS_CRASHING_SIM_ROUNDS_H
#define LARDER_TESTS_CRASHING_SIM_ROUNDS_H

#include "tally.h"

struct sim_rounds_options {
    uint64_t seed;
    uint64_t rounds;
    bool sync_lies; /* the disk's planted bug */
    bool verbose;   /* a line for each bug met */
    bool stop_at_first_bug;
    void (*progress)(uint64_t done, uint64_t of);
};

/* Adds to the tally. */
void sim_rounds(const struct sim_rounds_options *options, struct tally *tally);

#endif
