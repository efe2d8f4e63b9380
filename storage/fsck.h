/* SPDX-License-Identifier: Apache-2.0 */
/* fsck.h - is a store that no daemon uses sound? For larder fsck.
 *
 * Reads format and tenants, walks the index, reads every segment head by head, and compares: each
 * row of the index names a valid head that says the same, and is what the segments alone would give
 * (not removed by a tombstone, not without its parent). With `data` every section's tag is checked.
 * Without `repair` not a byte in the directory changes. With it: what the next start would mend is
 * mended; a bad index is made anew from the segments; damaged entries are dropped, with what is
 * behind them; then all is checked once more.
 *
 * Threads: one. It takes the directory's lock, and forks (index_check.h): before threads exist.
 */
#ifndef LARDER_STORAGE_FSCK_H
#define LARDER_STORAGE_FSCK_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/store.h"

struct larder_fsck_options {
    struct larder_store_options store; /* `directory`, and what opening it needs */
    bool data;
    bool repair;
    /* One thing that is wrong, in a sentence; at most 20 of each kind are told. */
    void (*finding)(void *context, const char *text);
    void (*progress)(void *context, const char *what, uint64_t done, uint64_t all);
    void *context;
};

enum larder_fsck_index {
    LARDER_FSCK_INDEX_SOUND,
    LARDER_FSCK_INDEX_MISSING, /* and there are segments */
    LARDER_FSCK_INDEX_DAMAGED,
};

struct larder_fsck_report {
    uint64_t tenants;
    uint64_t models;
    uint64_t segments;
    uint64_t segment_bytes;
    uint64_t entries;   /* that the next start finds by the index, or without one by the segments */
    uint64_t tail;      /* of them, written last and not in the index yet */
    uint64_t unindexed; /* valid records that the index does not name: evicted, or given up */
    uint64_t read_bytes; /* of entries' data */
    /* What is wrong. */
    uint32_t index; /* enum larder_fsck_index */
    uint64_t bad_tenant_copies;
    uint64_t bad_rows;    /* of the index: no sense, no valid head there, or another entry's */
    uint64_t stale_rows;  /* name what was removed, or has lost its parent */
    uint64_t bad_entries; /* a section's tag does not match, or it cannot be read */
    uint64_t unreadable;  /* need a profile that is not in DIR/profiles; no repair brings it back */
    /* Of a repair. */
    uint64_t findings_before; /* of the check before it */
    uint64_t dropped;         /* entries fewer than before */
};

/* Everything that is wrong, counted. */
uint64_t larder_fsck_findings(const struct larder_fsck_report *report);

/* 0 when the check was made, whatever it found. LARDER_ELOCKED while a daemon runs,
 * LARDER_ENOTFOUND, LARDER_EVERSION, LARDER_ECORRUPT (both copies of the tenants are bad: nothing
 * here can mend that), -errno. */
int larder_store_fsck(struct larder_fsck_report *report, const struct larder_fsck_options *options);

#endif
