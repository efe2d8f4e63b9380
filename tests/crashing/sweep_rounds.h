/* SPDX-License-Identifier: Apache-2.0 */
/* sweep_rounds.h - a short script of a store's user, cut by loss of power at every single step.
 * Threads: one at a time.
 */
#ifndef LARDER_TESTS_CRASHING_SWEEP_ROUNDS_H
#define LARDER_TESTS_CRASHING_SWEEP_ROUNDS_H

#include "tally.h"

struct sweep_rounds_options {
    uint64_t seed;
    uint32_t patterns; /* of what survives, for each step */
    bool verbose;
    bool stop_at_first_bug;
    bool sync_lies; /* the disk's planted bug */
    void (*progress)(uint64_t done, uint64_t of);
};

/* Adds to the tally. */
void sweep_rounds(const struct sweep_rounds_options *options, struct tally *tally);

#endif
