/* SPDX-License-Identifier: Apache-2.0 */
/* learned.h - DIR/learned: what the SSD's eviction policy learned, and what it knows of each
 * durable entry, over a restart (docs/FORMAT.md). Written whole beside the old one and renamed. A
 * file that is missing, damaged or another policy's is as none: learning begins anew, and nothing
 * else hangs on it.
 *
 * Entries are named by the generation of their record, which a record keeps when it is moved.
 *
 * Threads: plain functions.
 */
#ifndef LARDER_STORAGE_LEARNED_H
#define LARDER_STORAGE_LEARNED_H

#include <assert.h>
#include <stdint.h>

struct learned_entry {
    uint64_t generation; /* 00-07 */
    uint64_t recalled;   /* 08-15  larder_policy_recall() */
};
static_assert(sizeof(struct learned_entry) == 16, "on-disk size");

struct learned {
    uint8_t *state; /* larder_policy_save() */
    uint32_t state_bytes;
    uint32_t capacity_entries; /* of the policy */
    struct learned_entry *entries;
    uint32_t entry_count;
    uint32_t next; /* of learned_recall() */
};

void learned_free(struct learned *learned);

/* Empty when there is none that can be read, which is logged. */
void learned_load(struct learned *learned, const char *directory);
/* Sorts the entries. A failure is logged. */
void learned_save(struct learned *learned, const char *directory);

/* What is known of a record; 0: nothing. Fast when asked in the order of generations. */
uint64_t learned_recall(struct learned *learned, uint64_t generation);

#endif
