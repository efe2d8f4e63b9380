/* SPDX-License-Identifier: Apache-2.0 */
/* io_posix.h - what the backends over a real file system share: files, names, and how a transfer
 * that came back short or interrupted goes on.
 * Threads: as io.h.
 */
#ifndef LARDER_STORAGE_IO_POSIX_H
#define LARDER_STORAGE_IO_POSIX_H

#include "storage/io.h"

struct larder_file {
    int fd;
};

/* Backends embed it as their first member. */
struct io_posix {
    struct larder_io io;
    int directory_fd;
    bool buffered_said; /* the log line about O_DIRECT was written */
};

int io_posix_open(struct io_posix *posix, const char *directory);
void io_posix_close(struct io_posix *posix);

/* The members of larder_io_ops that need no queue. */
int io_posix_open_file(struct larder_io *io, struct larder_file **out, const char *name,
                       enum larder_io_open how);
void io_posix_close_file(struct larder_io *io, struct larder_file *file);
int io_posix_file_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out);
int io_posix_disk_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out);
int io_posix_preallocate(struct larder_io *io, struct larder_file *file, uint64_t bytes);
int io_posix_truncate(struct larder_io *io, struct larder_file *file, uint64_t bytes);
int io_posix_punch(struct larder_io *io, struct larder_file *file, uint64_t offset, uint64_t bytes);
int io_posix_unlink(struct larder_io *io, const char *name);
int io_posix_list(struct larder_io *io, int (*each)(void *context, const char *name),
                  void *context);
int io_posix_sync_directory(struct larder_io *io);

enum io_posix_step {
    IO_POSIX_DONE,  /* request->result is set */
    IO_POSIX_AGAIN, /* go on from request->progress_bytes */
};

/* Checks a request and makes its backend fields ready. */
void io_posix_start(struct larder_io_request *request);
/* One attempt by a plain system call: bytes, 0, or -errno. */
int64_t io_posix_attempt(struct larder_io_request *request);
/* Takes what one attempt gave: bytes, 0, or -errno. */
enum io_posix_step io_posix_advance(struct larder_io_request *request, int64_t transferred);

#endif
