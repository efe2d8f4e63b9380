/* SPDX-License-Identifier: Apache-2.0 */
#include "tally.h"

#include <stdio.h>

void tally_add(struct tally *sum, const struct tally *more)
{
    sum->rounds += more->rounds;
    sum->acknowledged += more->acknowledged;
    sum->verified += more->verified;
    if (more->rounds > 0 && more->verified_min < sum->verified_min)
        sum->verified_min = more->verified_min;
    sum->cut_short += more->cut_short;
    sum->rebuilds += more->rebuilds;
    sum->rotted += more->rotted;
    sum->missing += more->missing;
    sum->lost += more->lost;
    sum->wrong += more->wrong;
    sum->removed_back += more->removed_back;
    sum->purged_back += more->purged_back;
    sum->purges += more->purges;
    sum->demotions += more->demotions;
    sum->cleared += more->cleared;
    sum->clearing_lives += more->clearing_lives;
    sum->corrupt += more->corrupt;
    sum->unmarked += more->unmarked;
    sum->failed_starts += more->failed_starts;
    sum->trials += more->trials;
    sum->refused += more->refused;
    sum->disagreeing += more->disagreeing;
}

void tally_print_bugs(const struct tally *tally)
{
    printf("lost %llu, wrong %llu, removed back %llu, purged back %llu, called corrupt %llu, "
           "unmarked %llu, failed starts %llu, disagreeing %llu\n",
           (unsigned long long)tally->lost, (unsigned long long)tally->wrong,
           (unsigned long long)tally->removed_back, (unsigned long long)tally->purged_back,
           (unsigned long long)tally->corrupt, (unsigned long long)tally->unmarked,
           (unsigned long long)tally->failed_starts, (unsigned long long)tally->disagreeing);
}
