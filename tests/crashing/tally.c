/* SPDX-License-Identifier: Apache-2.0 */
#include "tally.h"

#include <stdio.h>

void tally_print_bugs(const struct tally *tally)
{
    printf("lost %llu, wrong %llu, removed back %llu, called corrupt %llu, failed starts %llu, "
           "disagreeing %llu\n",
           (unsigned long long)tally->lost, (unsigned long long)tally->wrong,
           (unsigned long long)tally->removed_back, (unsigned long long)tally->corrupt,
           (unsigned long long)tally->failed_starts, (unsigned long long)tally->disagreeing);
}
