/* SPDX-License-Identifier: Apache-2.0 */
/* disk.h - the plainest way to move bytes to and from the disk: io_uring, O_DIRECT, one thread.
 * What larder's own I/O is measured against.
 * Threads: one.
 */
#ifndef LARDER_TOOLS_BENCH_DISK_H
#define LARDER_TOOLS_BENCH_DISK_H

#include <stddef.h>
#include <stdint.h>

/* The store's own request size and depth (limits.h, larderd.conf). */
#define DISK_REQUEST_BYTES (1u << 20)
#define DISK_DEPTH         64u

/* One range of a file for each; buffers are 4096-aligned, sizes multiples of 4096. */
struct disk_range {
    int fd;
    uint64_t offset;
    uint64_t bytes;
};

/* Reads all ranges, one behind the other, into `out`. */
int disk_read(void *out, const struct disk_range *ranges, size_t count);

/* A preallocated file without a name: its space comes back when the descriptor is closed. */
int disk_create(int *out_fd, const char *path, uint64_t bytes);

/* Writes from offset 0 on, with an fdatasync after each `sync_bytes`; the next group is written
 * while one is being synced. */
int disk_write(int fd, const void *data, uint64_t bytes, uint64_t sync_bytes);

/* One write: 4096-aligned, a multiple of 4096. */
int disk_write_at(int fd, const void *data, uint64_t bytes, uint64_t offset);

/* One 4 KiB write at `page` and fdatasync. */
int disk_write_page(int fd, const void *page_bytes, uint64_t page);

/* The first `bytes` of what was written to the files of a folder, in the order of their names,
 * opened with O_DIRECT. disk_close_ranges() closes them. */
int disk_open_ranges(struct disk_range *ranges, size_t *count, size_t capacity, const char *folder,
                     uint64_t bytes);
void disk_close_ranges(struct disk_range *ranges, size_t count);

#endif
