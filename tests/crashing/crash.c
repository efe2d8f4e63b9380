/* SPDX-License-Identifier: Apache-2.0 */
/* crash.c - does the store keep its word through power cuts and kills? Simulated rounds over the
 * store itself, then rounds with a real larderd. Exit 0: nothing lost, nothing wrong, nothing back
 * from the dead. Usage: larder-crash SEED SIMULATED_ROUNDS KILL_ROUNDS [json] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "kill_rounds.h"
#include "sim_rounds.h"

#define ACKNOWLEDGED_MIN 60u
#define CLIENTS          4u

static const char *what_runs;

static void show_progress(uint64_t done, uint64_t of)
{
    if (!isatty(STDERR_FILENO))
        return;
    fprintf(stderr, "\r%s: %llu of %llu rounds ", what_runs, (unsigned long long)done,
            (unsigned long long)of);
    if (done >= of)
        fputc('\n', stderr);
}

static void print_tally(const char *name, const struct tally *tally)
{
    printf("%s: %llu rounds; entries acknowledged durable %llu, verified %llu; starts cut short "
           "%llu, without index %llu, after changed bytes %llu (entries missing then: %llu)\n",
           name, (unsigned long long)tally->rounds, (unsigned long long)tally->acknowledged,
           (unsigned long long)tally->verified, (unsigned long long)tally->cut_short,
           (unsigned long long)tally->rebuilds, (unsigned long long)tally->rotted,
           (unsigned long long)tally->missing);
    printf("%s: ", name);
    tally_print_bugs(tally);
    fflush(stdout);
}

static void print_json(uint64_t seed, const struct tally *sim, const struct tally *kill)
{
    printf("{\"seed\":%llu,\"simulated_rounds\":%llu,\"kill_rounds\":%llu,\"acknowledged\":%llu,"
           "\"verified\":%llu,\"verified_min_a_kill_round\":%llu,\"lost\":%llu,\"wrong\":%llu,"
           "\"removed_back\":%llu,\"called_corrupt\":%llu,\"failed_starts\":%llu,\"disagreeing\":%"
           "llu}\n",
           (unsigned long long)seed, (unsigned long long)sim->rounds,
           (unsigned long long)kill->rounds,
           (unsigned long long)(sim->acknowledged + kill->acknowledged),
           (unsigned long long)(sim->verified + kill->verified),
           (unsigned long long)(kill->rounds ? kill->verified_min : 0),
           (unsigned long long)(sim->lost + kill->lost),
           (unsigned long long)(sim->wrong + kill->wrong),
           (unsigned long long)(sim->removed_back + kill->removed_back),
           (unsigned long long)(sim->corrupt + kill->corrupt),
           (unsigned long long)(sim->failed_starts + kill->failed_starts),
           (unsigned long long)sim->disagreeing);
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s SEED SIMULATED_ROUNDS KILL_ROUNDS [json]\n", argv[0]);
        return 2;
    }
    const uint64_t seed = strtoull(argv[1], NULL, 10);
    const struct sim_rounds_options sim_options = {
        .seed = seed,
        .rounds = strtoull(argv[2], NULL, 10),
        .verbose = true,
        .progress = show_progress,
    };
    const struct kill_rounds_options kill_options = {
        .seed = seed,
        .rounds = strtoull(argv[3], NULL, 10),
        .clients = CLIENTS,
        .acknowledged_min = ACKNOWLEDGED_MIN,
        .verbose = true,
        .progress = show_progress,
    };
    struct tally sim = {0};
    struct tally kill = {.verified_min = UINT64_MAX};
    larder_log_set_level(LARDER_LOG_ERROR);
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout); /* the index is checked by child processes */
    if (sim_options.rounds > 0) {
        what_runs = "simulated";
        sim_rounds(&sim_options, &sim);
        print_tally("simulated", &sim);
    }
    bool enough = true;
    if (kill_options.rounds > 0) {
        what_runs = "kill";
        kill_rounds(&kill_options, &kill);
        print_tally("kill", &kill);
        enough = kill.verified_min >= 50;
        printf("kill: fewest entries verified in a round: %llu%s\n",
               (unsigned long long)kill.verified_min, enough ? "" : " (50 are wanted)");
    }
    if (argc > 4 && strcmp(argv[4], "json") == 0)
        print_json(seed, &sim, &kill);
    return tally_bugs(&sim) + tally_bugs(&kill) == 0 && enough ? 0 : 1;
}
