/* SPDX-License-Identifier: Apache-2.0 */
/* tally.h - what the crash rounds count. Anything in `lost` to the end is a bug of the store. */
#ifndef LARDER_TESTS_CRASHING_TALLY_H
#define LARDER_TESTS_CRASHING_TALLY_H

#include <stdbool.h>
#include <stdint.h>

struct tally {
    uint64_t rounds;       /* crash, start, verification */
    uint64_t acknowledged; /* entries promised durable, summed over the rounds that verified them */
    uint64_t verified;     /* of those, found exactly */
    uint64_t verified_min; /* fewest in a round */
    uint64_t cut_short;    /* starts that were crashed in their turn */
    uint64_t rebuilds;     /* starts without the index */
    uint64_t rotted;       /* starts after bytes were changed */
    uint64_t missing;      /* entries that are gone because their bytes were changed */
    uint64_t lost;         /* acknowledged, and not there */
    uint64_t wrong;        /* other bytes than were put */
    uint64_t removed_back; /* acknowledged removed, or never put, and there */
    uint64_t purged_back;  /* the same of a tenant that was purged */
    uint64_t corrupt;      /* records the store called corrupt after a mere loss of power */
    uint64_t unmarked;     /* acknowledged pins that are gone, or unpinned and pinned again */
    uint64_t failed_starts;
    uint64_t trials;    /* stores that were damaged and started */
    uint64_t refused;   /* of those, starts that said why not; allowed where `format` was damaged */
    uint64_t purges;    /* acknowledged */
    uint64_t demotions; /* the same: a smaller record stands for a larger one */
    uint64_t cleared;   /* records that the store moved by itself, so that tombstones can go */
    uint64_t clearing_lives; /* in which it did */
    uint64_t disagreeing;    /* larder_store_check() found the store's own structures at odds */
};

static inline uint64_t tally_bugs(const struct tally *tally)
{
    return tally->lost + tally->wrong + tally->removed_back + tally->purged_back + tally->corrupt +
           tally->unmarked + tally->failed_starts;
}

void tally_add(struct tally *sum, const struct tally *more);
/* One line on stdout. */
void tally_print_bugs(const struct tally *tally);

#endif
