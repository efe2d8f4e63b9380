/* SPDX-License-Identifier: Apache-2.0 */
/* crash.c - does the store keep its word through power cuts, kills and damage? Exit 0: nothing
 * lost, nothing wrong, nothing back from the dead. See tests/crash, which calls it.
 * Usage: larder-crash [--seed N] [--simulated ROUNDS] [--swept PATTERNS] [--killed ROUNDS]
 *                     [--corruption TRIALS] [--corruption-daemon TRIALS] [--jobs N] [--json]
 *                     [--memory FOLDER, for the stores of all but the killed daemon] */
#include <assert.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "corrupt_rounds.h"
#include "kill_rounds.h"
#include "sim_rounds.h"
#include "sweep_rounds.h"

#define ACKNOWLEDGED_MIN 60u
#define CLIENTS          4u
#define JOBS_MAX         64u
/* Seeds of one job do not meet those of the next. */
#define SEEDS_A_JOB 10000000ull

static const char *what_runs;

static void show_progress(uint64_t done, uint64_t of)
{
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r%s: %llu of %llu ", what_runs, (unsigned long long)done,
            (unsigned long long)of);
    if (done >= of)
        fputc('\n', stderr);
}

/* --- the kinds -------------------------------------------------------------------------------- */

static void simulate(uint64_t seed, uint64_t rounds, struct tally *tally)
{
    const struct sim_rounds_options options = {
        .seed = seed, .rounds = rounds, .verbose = true, .progress = show_progress};
    sim_rounds(&options, tally);
}

static void sweep(uint64_t seed, uint64_t patterns, struct tally *tally)
{
    const struct sweep_rounds_options options = {
        .seed = seed, .patterns = (uint32_t)patterns, .verbose = true, .progress = show_progress};
    sweep_rounds(&options, tally);
}

static void kill_again_and_again(uint64_t seed, uint64_t rounds, struct tally *tally)
{
    const struct kill_rounds_options options = {.seed = seed,
                                                .rounds = rounds,
                                                .clients = CLIENTS,
                                                .acknowledged_min = ACKNOWLEDGED_MIN,
                                                .verbose = true,
                                                .progress = show_progress};
    kill_rounds(&options, tally);
}

static void corrupt(uint64_t seed, uint64_t trials, struct tally *tally)
{
    const struct corrupt_rounds_options options = {
        .seed = seed, .trials = trials, .verbose = true, .progress = show_progress};
    corrupt_rounds(&options, tally);
}

/* A real daemon, each time on damaged files. */
static void corrupt_killed(uint64_t seed, uint64_t trials, struct tally *tally)
{
    const struct kill_rounds_options options = {.seed = seed,
                                                .rounds = trials,
                                                .clients = CLIENTS,
                                                .acknowledged_min = ACKNOWLEDGED_MIN,
                                                .damage_always = true,
                                                .verbose = true,
                                                .progress = show_progress};
    kill_rounds(&options, tally);
}

enum kind {
    SIMULATED,
    SWEPT,
    KILLED,
    CORRUPTED,
    CORRUPTED_DAEMON,
    KINDS,
};

static const struct {
    const char *name;
    void (*run)(uint64_t seed, uint64_t count, struct tally *tally);
} kinds[KINDS] = {
    {"simulated", simulate},
    {"swept", sweep},
    {"kill", kill_again_and_again},
    {"corruption", corrupt},
    {"corruption, daemon", corrupt_killed},
};

/* --- several processes ------------------------------------------------------------------------ */

/* Shares of `count`, each with seeds of its own; the tallies are added up. */
static struct tally run_kind(enum kind kind, const char *memory, uint64_t seed, uint64_t count,
                             uint64_t jobs)
{
    what_runs = kinds[kind].name;
    struct tally *tallies = mmap(NULL, sizeof(*tallies) * JOBS_MAX, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert(tallies != MAP_FAILED);
    struct tally sum = {.verified_min = UINT64_MAX};
    pid_t pids[JOBS_MAX];
    for (uint64_t i = 0; i < jobs; i++) {
        tallies[i].verified_min = UINT64_MAX;
        uint64_t share = count / jobs + (i < count % jobs);
        pids[i] = fork();
        assert(pids[i] >= 0);
        if (pids[i] == 0) {
            if (memory) {
                setenv("TMPDIR", memory, 1);
                unsetenv("LARDER_BUILD"); /* scratch.h would prefer it */
            }
            if (share > 0)
                kinds[kind].run(seed + i * SEEDS_A_JOB, share, &tallies[i]);
            _exit(0);
        }
    }
    for (uint64_t i = 0; i < jobs; i++) {
        int status;
        pid_t got = waitpid(pids[i], &status, 0);
        /* A store that hangs or aborts is one that fails to start. */
        if (got != pids[i] || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            printf("%s: job %llu ended with status %x\n", what_runs, (unsigned long long)i,
                   (unsigned)status);
            sum.failed_starts++;
        }
        tally_add(&sum, &tallies[i]);
    }
    munmap(tallies, sizeof(*tallies) * JOBS_MAX);
    return sum;
}

/* --- what is printed -------------------------------------------------------------------------- */

static void print_tally(enum kind kind, const struct tally *tally)
{
    printf("%s: %llu rounds; entries acknowledged durable %llu, verified %llu; starts cut short "
           "%llu, without index %llu, after changed bytes %llu (entries missing then: %llu)\n",
           kinds[kind].name, (unsigned long long)tally->rounds,
           (unsigned long long)tally->acknowledged, (unsigned long long)tally->verified,
           (unsigned long long)tally->cut_short, (unsigned long long)tally->rebuilds,
           (unsigned long long)tally->rotted, (unsigned long long)tally->missing);
    if (tally->trials > 0)
        printf("%s: trials %llu, starts refused for a damaged `format` %llu\n", kinds[kind].name,
               (unsigned long long)tally->trials, (unsigned long long)tally->refused);
    if (tally->purges > 0)
        printf("%s: purges acknowledged %llu\n", kinds[kind].name,
               (unsigned long long)tally->purges);
    if (tally->demotions > 0)
        printf("%s: demotions acknowledged %llu\n", kinds[kind].name,
               (unsigned long long)tally->demotions);
    if (tally->clearing_lives > 0)
        printf("%s: oldest segments cleared in %llu lives, %llu records moved\n", kinds[kind].name,
               (unsigned long long)tally->clearing_lives, (unsigned long long)tally->cleared);
    printf("%s: ", kinds[kind].name);
    tally_print_bugs(tally);
    fflush(stdout);
}

static void print_json(uint64_t seed, const struct tally *tallies)
{
    struct tally sum = {.verified_min = UINT64_MAX};
    for (int i = 0; i < KINDS; i++)
        tally_add(&sum, &tallies[i]);
    const struct tally *kill = &tallies[KILLED];
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"seed", seed},
        {"simulated_rounds", tallies[SIMULATED].rounds + tallies[SWEPT].rounds},
        {"swept_rounds", tallies[SWEPT].rounds},
        {"kill_rounds", kill->rounds},
        {"corruption_trials", tallies[CORRUPTED].trials + tallies[CORRUPTED_DAEMON].trials},
        {"acknowledged", sum.acknowledged},
        {"verified", sum.verified},
        {"verified_min_a_kill_round", kill->rounds ? kill->verified_min : 0},
        {"missing_after_damage", sum.missing},
        {"refused_for_format", sum.refused},
        {"lost", sum.lost},
        {"wrong", sum.wrong},
        {"removed_back", sum.removed_back},
        {"called_corrupt", sum.corrupt},
        {"unmarked", sum.unmarked},
        {"failed_starts", sum.failed_starts},
        {"disagreeing", sum.disagreeing},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(fields); i++)
        printf("%c\"%s\":%llu", i ? ',' : '{', fields[i].name, (unsigned long long)fields[i].value);
    printf("}\n");
}

int main(int argc, char **argv)
{
    enum { SEED = KINDS, JOBS, JSON, MEMORY };
    static const struct option options[] = {
        {"simulated", required_argument, NULL, SIMULATED},
        {"swept", required_argument, NULL, SWEPT},
        {"killed", required_argument, NULL, KILLED},
        {"corruption", required_argument, NULL, CORRUPTED},
        {"corruption-daemon", required_argument, NULL, CORRUPTED_DAEMON},
        {"seed", required_argument, NULL, SEED},
        {"jobs", required_argument, NULL, JOBS},
        {"json", no_argument, NULL, JSON},
        {"memory", required_argument, NULL, MEMORY},
        {0},
    };
    const char *memory = NULL;
    uint64_t counts[KINDS] = {0}, seed = 1, jobs = 1;
    bool json = false;
    for (int what; (what = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (what == '?')
            return 2;
        uint64_t number = optarg ? strtoull(optarg, NULL, 10) : 0;
        json = json || what == JSON;
        memory = what == MEMORY ? optarg : memory;
        seed = what == SEED ? number : seed;
        jobs = what == JOBS ? larder_min_u64(number, JOBS_MAX) : jobs;
        if (what < KINDS)
            counts[what] = number;
    }
    if (jobs == 0 || optind < argc)
        return 2;
    larder_log_set_level(LARDER_LOG_ERROR - 1);
    printf("seed %llu, jobs %llu\n", (unsigned long long)seed, (unsigned long long)jobs);
    fflush(stdout);
    struct tally tallies[KINDS] = {0};
    uint64_t bugs = 0;
    for (int i = 0; i < KINDS; i++) {
        if (counts[i] == 0)
            continue;
        tallies[i] = run_kind((enum kind)i, i == KILLED ? NULL : memory, seed, counts[i], jobs);
        print_tally((enum kind)i, &tallies[i]);
        bugs += tally_bugs(&tallies[i]);
    }
    if (counts[KILLED] > 0) {
        bool enough = tallies[KILLED].verified_min >= 50;
        printf("kill: fewest entries verified in a round: %llu%s\n",
               (unsigned long long)tallies[KILLED].verified_min, enough ? "" : " (50 are wanted)");
        bugs += !enough;
    }
    if (json)
        print_json(seed, tallies);
    return bugs == 0 ? 0 : 1;
}
