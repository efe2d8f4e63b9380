/* SPDX-License-Identifier: Apache-2.0 */
/* io.h - the seam between the store and a disk: everything that touches segment files goes through
 * it, so that the same store runs over io_uring, a thread pool, or a simulated disk that tears,
 * loses and lies.
 *
 * Names are relative to the directory the backend was opened on. What survives power loss: bytes
 * and sizes after a SYNC of their file, names after sync_directory(); nothing earlier is sure, and
 * there is no order in it.
 * Threads: one thread (the storage thread, or the one that opens the store before it starts) calls
 *          everything except larder_io_wake(), which any thread may call, and what needs no queue
 *          (open_file to sync_directory), which one more thread may call at the same time: the
 *          keeper.
 */
#ifndef LARDER_STORAGE_IO_H
#define LARDER_STORAGE_IO_H

#include <stdbool.h>
#include <stdint.h>

struct larder_file;

enum larder_io_op {
    LARDER_IO_READ,
    LARDER_IO_WRITE,
    LARDER_IO_SYNC, /* fdatasync: everything whose write completed before this was submitted */
};

/* Belongs to the backend from submit until `done` has begun; `done` may free it or submit it again.
 * Buffer, offset and bytes are multiples of 4096 (O_DIRECT). */
struct larder_io_request {
    /* caller */
    enum larder_io_op op;
    struct larder_file *file;
    void *buffer;
    uint64_t offset;
    uint32_t bytes; /* <= LARDER_IO_BYTES_MAX; 0 for SYNC */
    /* Exactly once, on the storage thread, from larder_io_poll(). */
    void (*done)(struct larder_io_request *request);
    void *context;
    /* backend; `result` is for the caller when done: 0 or -errno. Short transfers, EINTR and EAGAIN
     * are continued by the backend; a read beyond the end of the file gives -ENODATA. */
    int result;
    uint32_t progress_bytes;
    uint32_t retry_count;
    struct larder_io_request *next;
};

enum larder_io_open {
    LARDER_IO_OPEN_EXISTING,
    LARDER_IO_CREATE_NEW, /* -EEXIST when there */
};

struct larder_io;

struct larder_io_ops {
    const char *name;
    /* Nothing is in flight and no file is open. */
    void (*close)(struct larder_io *io);
    int (*open_file)(struct larder_io *io, struct larder_file **out, const char *name,
                     enum larder_io_open how);
    /* No request on it is in flight. */
    void (*close_file)(struct larder_io *io, struct larder_file *file);
    int (*file_bytes)(struct larder_io *io, struct larder_file *file, uint64_t *out);
    /* What of it takes room on the disk. */
    int (*disk_bytes)(struct larder_io *io, struct larder_file *file, uint64_t *out);
    /* Makes the file at least that long, with its space reserved; what was not written reads as
     * zeros. -ENOSPC. */
    int (*preallocate)(struct larder_io *io, struct larder_file *file, uint64_t bytes);
    int (*truncate)(struct larder_io *io, struct larder_file *file, uint64_t bytes);
    /* Gives the space of a range back; it reads as zeros. -EOPNOTSUPP where that is unknown. */
    int (*punch)(struct larder_io *io, struct larder_file *file, uint64_t offset, uint64_t bytes);
    int (*unlink)(struct larder_io *io, const char *name);
    /* Calls `each` with every name in the directory; stops at its first negative value. */
    int (*list)(struct larder_io *io, int (*each)(void *context, const char *name), void *context);
    /* Makes creations and removals of names survive power loss. */
    int (*sync_directory)(struct larder_io *io);
    void (*submit)(struct larder_io *io, struct larder_io_request *request);
    /* Runs `done` of whatever has completed; waits for at least one completion, a wake or the time
     * (-1: no limit, 0: does not wait). Number of completions or -errno. */
    int (*poll)(struct larder_io *io, int timeout_ms);
    void (*wake)(struct larder_io *io);
};

/* Backends embed it as their first member. */
struct larder_io {
    const struct larder_io_ops *ops;
};

/* `directory` must exist. */
int larder_io_uring_open(struct larder_io **out, const char *directory, uint32_t depth);
int larder_io_threads_open(struct larder_io **out, const char *directory, uint32_t depth);
/* `name`: "uring", "threads", or "auto": uring where the kernel allows it, threads otherwise, with
 * a log line that says which and why. */
int larder_io_open(struct larder_io **out, const char *name, const char *directory, uint32_t depth);

static inline void larder_io_wake(struct larder_io *io)
{
    io->ops->wake(io);
}

/* One request, waited for. For start-up and tools, when nothing else is in flight. */
int larder_io_run(struct larder_io *io, enum larder_io_op op, struct larder_file *file,
                  void *buffer, uint64_t offset, uint32_t bytes);

#endif
