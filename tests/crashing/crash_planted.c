/* SPDX-License-Identifier: Apache-2.0 */
/* crash_planted.c - does the harness find bugs? Runs the simulated rounds over a store, or a disk,
 * with one deliberate bug at a time (storage/planted.h), until it is found. Exit 0: all found. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "sim_rounds.h"
#include "storage/planted.h"

#define ROUNDS_DEFAULT 3000u

static const struct {
    const char *name;
    enum larder_planted_bug bug;
    bool sync_lies;
} plants[] = {
    {"fdatasync skipped", LARDER_PLANTED_NONE, true},
    {"entry published early", LARDER_PLANTED_EARLY_PUBLISH, false},
    {"tag unchecked", LARDER_PLANTED_TAG_UNCHECKED, false},
    {"index before data", LARDER_PLANTED_INDEX_BEFORE_DATA, false},
};

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : ROUNDS_DEFAULT;
    larder_log_set_level(LARDER_LOG_ERROR - 1);
    unsigned found = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(plants); i++) {
        struct sim_rounds_options options = {.seed = seed,
                                             .rounds = rounds,
                                             .sync_lies = plants[i].sync_lies,
                                             .stop_at_first_bug = true};
        struct tally tally = {0};
        larder_planted = plants[i].bug;
        sim_rounds(&options, &tally);
        bool is_found = tally_bugs(&tally) > 0;
        found += is_found;
        printf("planted: %-22s %s after %llu rounds: ", plants[i].name,
               is_found ? "found" : "NOT FOUND", (unsigned long long)tally.rounds);
        tally_print_bugs(&tally);
        fflush(stdout);
    }
    printf("planted bugs found: %u of %zu\n", found, LARDER_COUNT_OF(plants));
    return found == LARDER_COUNT_OF(plants) ? 0 : 1;
}
