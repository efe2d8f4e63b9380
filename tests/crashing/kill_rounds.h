/* SPDX-License-Identifier: Apache-2.0 */
/* kill_rounds.h - a real larderd, killed at random moments under load.
 * Threads: the main one (the daemon dies with the thread that started it).
 */
#ifndef LARDER_TESTS_CRASHING_KILL_ROUNDS_H
#define LARDER_TESTS_CRASHING_KILL_ROUNDS_H

#include "tally.h"

struct kill_rounds_options {
    uint64_t seed;
    uint64_t rounds;
    uint32_t clients;
    uint32_t acknowledged_min; /* blocks a round, before the kill may come */
    bool damage_always;        /* after each kill a file of the store: tally->trials */
    bool verbose;
    void (*progress)(uint64_t done, uint64_t of);
};

/* Adds to the tally. */
void kill_rounds(const struct kill_rounds_options *options, struct tally *tally);

#endif
