/* SPDX-License-Identifier: Apache-2.0 */
/* sim_disk.h - a disk in memory that loses power, tears, reorders, lies and rots, from a seed.
 *
 * The disk is the test's and outlives the larder_io handles that stores open on it, as a real disk
 * outlives processes. What a store may count on after power loss is what storage/io.h promises:
 *   bytes and sizes  after a SYNC submitted after their write completed
 *   names            after sync_directory()
 * Everything else may survive or not, each 512-byte sector and each name for itself; changes of one
 * file's size and holes survive in order.
 *
 * Threads: any; the handle as storage/io.h says. From one thread, everything repeats for a seed.
 */
#ifndef LARDER_TESTS_SIM_DISK_H
#define LARDER_TESTS_SIM_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/io.h"

struct sim_disk;

struct sim_disk *sim_disk_create(uint64_t seed);
/* No handle is open. */
void sim_disk_destroy(struct sim_disk *disk);
/* One at a time. */
struct larder_io *sim_disk_open_io(struct sim_disk *disk);

/* Steps are writes, syncs and whatever else changes the disk, commits of the index included. */
uint64_t sim_disk_steps(struct sim_disk *disk);
/* During step `step` (counted as sim_disk_steps() does) power fails: it is done in part or not at
 * all, and it and everything after gives -EIO. 0: never. */
void sim_disk_fail_power_at(struct sim_disk *disk, uint64_t step);
bool sim_disk_power_failed(struct sim_disk *disk);
/* For larder_index_set_gate(): one step. */
int sim_disk_gate(void *disk);
/* What was not made durable survives or not, by chance; power is back. No handle is open. */
void sim_disk_crash(struct sim_disk *disk);

#define SIM_ANY_OP (-1)

struct sim_faults {
    bool sync_lies;              /* SYNC gives 0 and does nothing: a planted bug */
    uint64_t error_at;           /* the request of this number, from now on, gives -EIO; 0: none */
    int error_op;                /* counts only requests of this enum larder_io_op, or SIM_ANY_OP */
    uint64_t bad_from;           /* reads of bytes from here to bad_end - 1, of any file, give */
    uint64_t bad_end;            /* -EIO, however often; 0: none */
    uint32_t misdirect_permille; /* reads that bring other pages than asked for */
    uint32_t stale_permille;     /* reads that bring what was there before */
    uint32_t short_permille;     /* transfers that need a second attempt */
    uint64_t capacity_bytes;     /* 0: no limit */
};
void sim_disk_set_faults(struct sim_disk *disk, const struct sim_faults *faults);

struct sim_stats {
    uint64_t errors;
    uint64_t reads;
    uint64_t read_bytes;
    uint64_t misdirected;
    uint64_t stale;
    uint64_t shorts;
    uint64_t syncs;
    uint64_t sectors_lost; /* by crashes */
    uint64_t sectors_kept; /* by crashes, though they were not synced */
};
void sim_disk_stats(struct sim_disk *disk, struct sim_stats *out);

/* Number `index` of the files there are, in the order of their making; false at the end. */
bool sim_disk_file(struct sim_disk *disk, uint32_t index, char name[64], uint64_t *bytes);
/* Straight at the stored bytes, without a handle. False when outside. */
bool sim_disk_peek(struct sim_disk *disk, const char *name, uint64_t offset, void *out,
                   uint64_t bytes);
bool sim_disk_flip_bit(struct sim_disk *disk, const char *name, uint64_t offset, unsigned bit);

#endif
