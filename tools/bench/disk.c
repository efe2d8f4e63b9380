/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench/disk.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"

static int ring_failed(int err, const char *what)
{
    return larder_fail(err, "io_uring %s: %s", what, strerror(-err));
}

/* What a completion belongs to. */
#define TAG_SYNC UINT64_MAX

/* Waits for one completion; its result must be the length it stands for. */
static int reap(struct io_uring *ring, uint64_t *tag)
{
    struct io_uring_cqe *cqe;
    int err;
    do
        err = io_uring_wait_cqe(ring, &cqe);
    while (err == -EINTR);
    if (err < 0)
        return ring_failed(err, "wait");
    *tag = io_uring_cqe_get_data64(cqe);
    int result = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    if (result < 0)
        return ring_failed(result, "request");
    if (*tag != TAG_SYNC && (uint64_t)result != *tag)
        return larder_fail(-EIO, "a request of %llu bytes moved %d", (unsigned long long)*tag,
                           result);
    return 0;
}

static struct io_uring_sqe *next_sqe(struct io_uring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
    assert(sqe); /* no more are prepared than there is depth */
    return sqe;
}

int disk_read(void *out, const struct disk_range *ranges, size_t count)
{
    struct io_uring ring;
    int err = io_uring_queue_init(DISK_DEPTH, &ring, 0);
    if (err < 0)
        return ring_failed(err, "setup");
    uint32_t in_flight = 0;
    uint8_t *at = out;
    size_t range = 0;
    uint64_t done = 0; /* of the range: submitted */
    while (err >= 0 && (range < count || in_flight > 0)) {
        while (range < count && in_flight < DISK_DEPTH) {
            uint64_t bytes = larder_min_u64(DISK_REQUEST_BYTES, ranges[range].bytes - done);
            struct io_uring_sqe *sqe = next_sqe(&ring);
            io_uring_prep_read(sqe, ranges[range].fd, at, (unsigned)bytes,
                               ranges[range].offset + done);
            io_uring_sqe_set_data64(sqe, bytes);
            in_flight++;
            at += bytes;
            done += bytes;
            if (done == ranges[range].bytes) {
                range++;
                done = 0;
            }
        }
        err = io_uring_submit(&ring);
        if (err < 0) {
            ring_failed(err, "submit");
            break;
        }
        uint64_t tag;
        err = reap(&ring, &tag);
        in_flight--;
    }
    io_uring_queue_exit(&ring);
    return err < 0 ? err : 0;
}

/* Writes [at, end) while a sync that was submitted before may still be running. */
static int write_group(struct io_uring *ring, int fd, const uint8_t *data, uint64_t at,
                       uint64_t end, bool *syncing)
{
    uint32_t writing = 0;
    while (at < end || writing > 0) {
        while (at < end && writing + 1 < DISK_DEPTH) {
            uint64_t bytes = larder_min_u64(DISK_REQUEST_BYTES, end - at);
            struct io_uring_sqe *sqe = next_sqe(ring);
            io_uring_prep_write(sqe, fd, data + at, (unsigned)bytes, at);
            io_uring_sqe_set_data64(sqe, bytes);
            at += bytes;
            writing++;
        }
        int err = io_uring_submit(ring);
        if (err < 0)
            return ring_failed(err, "submit");
        uint64_t tag;
        LARDER_TRY(reap(ring, &tag));
        if (tag == TAG_SYNC)
            *syncing = false;
        else
            writing--;
    }
    return 0;
}

static int finish_sync(struct io_uring *ring, bool *syncing)
{
    uint64_t tag;
    if (*syncing)
        LARDER_TRY(reap(ring, &tag));
    *syncing = false;
    return 0;
}

static int write_all(struct io_uring *ring, int fd, const uint8_t *data, uint64_t bytes,
                     uint64_t sync_bytes)
{
    bool syncing = false;
    for (uint64_t at = 0; at < bytes; at += sync_bytes) {
        uint64_t end = at + larder_min_u64(sync_bytes, bytes - at);
        LARDER_TRY(write_group(ring, fd, data, at, end, &syncing));
        LARDER_TRY(finish_sync(ring, &syncing));
        struct io_uring_sqe *sqe = next_sqe(ring);
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        io_uring_sqe_set_data64(sqe, TAG_SYNC);
        int err = io_uring_submit(ring);
        if (err < 0)
            return ring_failed(err, "submit");
        syncing = true;
    }
    return finish_sync(ring, &syncing);
}

int disk_write(int fd, const void *data, uint64_t bytes, uint64_t sync_bytes)
{
    struct io_uring ring;
    assert(sync_bytes > 0);
    int err = io_uring_queue_init(DISK_DEPTH, &ring, 0);
    if (err < 0)
        return ring_failed(err, "setup");
    err = write_all(&ring, fd, data, bytes, sync_bytes);
    io_uring_queue_exit(&ring);
    return err;
}

int disk_create(int *out_fd, const char *path, uint64_t bytes)
{
    *out_fd = -1;
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    unlink(path); /* the space comes back when the descriptor is closed */
    int err = fallocate(fd, 0, 0, (off_t)bytes) < 0 || fsync(fd) < 0 ? -errno : 0;
    if (err < 0) {
        close(fd);
        return larder_fail(err, "%s: %llu bytes: %s", path, (unsigned long long)bytes,
                           strerror(-err));
    }
    *out_fd = fd;
    return 0;
}

int disk_write_at(int fd, const void *data, uint64_t bytes, uint64_t offset)
{
    errno = 0;
    if (pwrite(fd, data, bytes, (off_t)offset) != (ssize_t)bytes)
        return larder_fail(errno ? -errno : -EIO, "a write: %s", strerror(errno));
    return 0;
}

int disk_write_page(int fd, const void *page_bytes, uint64_t page)
{
    LARDER_TRY(disk_write_at(fd, page_bytes, LARDER_PAGE_BYTES, page * LARDER_PAGE_BYTES));
    if (fdatasync(fd) < 0)
        return larder_fail(-errno, "a synced write: %s", strerror(errno));
    return 0;
}

/* --- ranges ---------------------------------------------------------------------------------- */

/* The written ranges of one open file: what was only preallocated reads as zeros, for nothing. */
static int add_ranges(struct disk_range *ranges, size_t *count, size_t capacity, int fd,
                      uint64_t *left)
{
    off_t at = 0;
    while (*left > 0) {
        off_t data = lseek(fd, at, SEEK_DATA);
        off_t end = data < 0 ? -1 : lseek(fd, data, SEEK_HOLE);
        if (data < 0 || end < 0)
            return errno == ENXIO ? 0 : larder_fail(-errno, "lseek: %s", strerror(errno));
        if (*count == capacity)
            return larder_fail(LARDER_ELIMIT, "more than %zu ranges on the disk", capacity);
        uint64_t bytes = larder_min_u64((uint64_t)(end - data) & ~4095ull, *left);
        ranges[*count] = (struct disk_range){.fd = fd, .offset = (uint64_t)data, .bytes = bytes};
        *count += bytes > 0;
        *left -= bytes;
        at = end;
    }
    return 0;
}

void disk_close_ranges(struct disk_range *ranges, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        /* Ranges of one file stand together. */
        if (i == 0 || ranges[i].fd != ranges[i - 1].fd)
            close(ranges[i].fd);
    }
}

int disk_open_ranges(struct disk_range *ranges, size_t *count, size_t capacity, const char *folder,
                     uint64_t bytes)
{
    struct dirent **names;
    *count = 0;
    int name_count = scandir(folder, &names, NULL, alphasort);
    if (name_count < 0)
        return larder_fail(-errno, "%s: %s", folder, strerror(errno));
    int err = 0;
    for (int i = 0; i < name_count; i++) {
        char path[512];
        snprintf(path, sizeof(path), "%s/%s", folder, names[i]->d_name);
        if (err == 0 && names[i]->d_name[0] != '.' && bytes > 0) {
            int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
            size_t before = *count;
            err = fd < 0 ? larder_fail(-errno, "%s: %s", path, strerror(errno))
                         : add_ranges(ranges, count, capacity, fd, &bytes);
            if (fd >= 0 && *count == before)
                close(fd);
        }
        free(names[i]);
    }
    free(names);
    if (err == 0 && bytes > 0)
        err = larder_fail(-EIO, "%s holds %llu bytes too few", folder, (unsigned long long)bytes);
    if (err < 0) {
        disk_close_ranges(ranges, *count);
        *count = 0;
    }
    return err;
}
