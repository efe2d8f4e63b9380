/* SPDX-License-Identifier: Apache-2.0 */
/* corrupt_rounds.h - stores whose files were damaged: they start, serve no wrong byte, and store
 * again.
 * Threads: one at a time. Stores are made by child processes.
 */
#ifndef LARDER_TESTS_CRASHING_CORRUPT_ROUNDS_H
#define LARDER_TESTS_CRASHING_CORRUPT_ROUNDS_H

#include "tally.h"

struct corrupt_rounds_options {
    uint64_t seed;
    uint64_t trials;
    bool verbose;
    bool stop_at_first_bug;
    void (*progress)(uint64_t done, uint64_t of);
};

/* Adds to the tally. */
void corrupt_rounds(const struct corrupt_rounds_options *options, struct tally *tally);

#endif
