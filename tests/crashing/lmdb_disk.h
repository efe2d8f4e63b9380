/* SPDX-License-Identifier: Apache-2.0 */
/* lmdb_disk.h - the index's file loses power together with the simulated disk. LMDB writes it with
 * system calls of its own, which are interposed here: each is a step of the disk; what was not
 * followed by fdatasync survives a crash or not, each 512-byte sector for itself. Names, and the
 * file's making, count as durable at once.
 * Threads: those of one store at a time.
 */
#ifndef LARDER_TESTS_CRASHING_LMDB_DISK_H
#define LARDER_TESTS_CRASHING_LMDB_DISK_H

#include <stdint.h>

struct sim_disk;

/* From now on; NULL: no more. Every file named data.mdb is meant. */
void lmdb_disk_attach(struct sim_disk *disk, uint64_t seed);
/* With the index closed. `path` is its file; it may be missing. */
void lmdb_disk_crash(const char *path);

#endif
