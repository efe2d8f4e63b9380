/* SPDX-License-Identifier: Apache-2.0 */
/* crash_planted.c - does the harness find bugs? Runs rounds over a store, or a disk, with one
 * deliberate bug at a time (storage/planted.h), until it is found. Exit 0: all found. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "corrupt_rounds.h"
#include "sim_rounds.h"
#include "storage/planted.h"
#include "sweep_rounds.h"

#define ROUNDS_DEFAULT 3000u

/* By which kind of rounds each is to be found. */
enum finder {
    BY_SIMULATION,
    BY_SWEEP,
    BY_CORRUPTION,
};

static const struct {
    const char *name;
    enum larder_planted_bug bug;
    enum finder finder;
    bool sync_lies;
} plants[] = {
    {"fdatasync skipped", LARDER_PLANTED_NONE, BY_SIMULATION, true},
    {"entry published early", LARDER_PLANTED_EARLY_PUBLISH, BY_SIMULATION, false},
    {"tag unchecked", LARDER_PLANTED_TAG_UNCHECKED, BY_SIMULATION, false},
    {"index before data", LARDER_PLANTED_INDEX_BEFORE_DATA, BY_SIMULATION, false},
    {"fdatasync skipped, swept", LARDER_PLANTED_NONE, BY_SWEEP, true},
    {"index before data, swept", LARDER_PLANTED_INDEX_BEFORE_DATA, BY_SWEEP, false},
    {"tag unchecked, damaged", LARDER_PLANTED_TAG_UNCHECKED, BY_CORRUPTION, false},
    {"index's checks ignored", LARDER_PLANTED_CHECK_IGNORED, BY_CORRUPTION, false},
    {"freed before it is named", LARDER_PLANTED_FREED_BEFORE_NAMED, BY_SIMULATION, false},
    {"cleared, not named", LARDER_PLANTED_CLEARED_UNNAMED, BY_SIMULATION, false},
    {"tail unread", LARDER_PLANTED_TAIL_UNREAD, BY_SIMULATION, false},
};

static void run(struct tally *tally, enum finder finder, uint64_t seed, uint64_t rounds,
                bool sync_lies)
{
    if (finder == BY_SIMULATION) {
        const struct sim_rounds_options options = {
            .seed = seed, .rounds = rounds, .sync_lies = sync_lies, .stop_at_first_bug = true};
        sim_rounds(&options, tally);
    } else if (finder == BY_SWEEP) {
        const struct sweep_rounds_options options = {
            .seed = seed, .patterns = 2, .sync_lies = sync_lies, .stop_at_first_bug = true};
        sweep_rounds(&options, tally);
    } else {
        const struct corrupt_rounds_options options = {
            .seed = seed, .trials = rounds, .stop_at_first_bug = true};
        corrupt_rounds(&options, tally);
    }
}

/* In a process of its own: a store that aborts or hangs has met the bug too. */
static bool find(struct tally *tally, size_t plant, uint64_t seed, uint64_t rounds)
{
    *tally = (struct tally){0};
    pid_t pid = fork();
    if (pid == 0) {
        larder_planted = plants[plant].bug;
        run(tally, plants[plant].finder, seed, rounds, plants[plant].sync_lies);
        _exit(0);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        perror("a process for a planted bug");
        exit(2);
    }
    return status != 0 || tally_bugs(tally) > 0;
}

int main(int argc, char **argv)
{
    uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : ROUNDS_DEFAULT;
    larder_log_set_level(LARDER_LOG_ERROR - 1);
    struct tally *tally =
        mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tally == MAP_FAILED) {
        perror("memory for the tally");
        return 2;
    }
    unsigned found = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(plants); i++) {
        bool is_found = find(tally, i, seed, rounds);
        found += is_found;
        uint64_t count = tally->trials ? tally->trials : tally->rounds;
        printf("planted: %-24s %s after %llu rounds: ", plants[i].name,
               is_found ? "found" : "NOT FOUND", (unsigned long long)count);
        tally_print_bugs(tally);
        fflush(stdout);
    }
    printf("planted bugs found: %u of %zu\n", found, LARDER_COUNT_OF(plants));
    return found == LARDER_COUNT_OF(plants) ? 0 : 1;
}
