/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/io_posix.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/mem.h"

/* Attempts of one request that moved nothing. A disk that answers EAGAIN for longer is broken. */
#define RETRIES_MAX 100u

static struct io_posix *posix_of(struct larder_io *io)
{
    return (struct io_posix *)io;
}

static int fail_errno(const char *what, const char *name)
{
    int err = -errno;
    return larder_fail(err, "%s %s: %s", what, name, strerror(-err));
}

int io_posix_open(struct io_posix *posix, const char *directory)
{
    posix->buffered_said = false;
    posix->directory_fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return posix->directory_fd < 0 ? fail_errno("cannot open directory", directory) : 0;
}

void io_posix_close(struct io_posix *posix)
{
    close(posix->directory_fd);
}

int io_posix_open_file(struct larder_io *io, struct larder_file **out, const char *name,
                       enum larder_io_open how)
{
    struct io_posix *posix = posix_of(io);
    assert(!strchr(name, '/'));
    *out = NULL;

    struct larder_file *file = larder_alloc(sizeof(*file));
    if (!file)
        return larder_fail(-ENOMEM, "no memory to open %s", name);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    if (how == LARDER_IO_CREATE_NEW)
        flags |= O_CREAT | O_EXCL;
    file->fd = openat(posix->directory_fd, name, flags | O_DIRECT, 0600);
    if (file->fd < 0 && errno == EINVAL) {
        /* No O_DIRECT here (tmpfs of older kernels). The kernel may have created the name before it
         * looked at the flag. */
        if (how == LARDER_IO_CREATE_NEW)
            unlinkat(posix->directory_fd, name, 0);
        file->fd = openat(posix->directory_fd, name, flags, 0600);
        if (file->fd >= 0 && !posix->buffered_said) {
            posix->buffered_said = true;
            larder_log(LARDER_LOG_WARN, "storage: no O_DIRECT on this file system: segments go "
                                        "through the page cache");
        }
    }
    if (file->fd < 0) {
        int err = fail_errno("cannot open", name);
        larder_free(file);
        return err;
    }
    *out = file;
    return 0;
}

void io_posix_close_file(struct larder_io *io, struct larder_file *file)
{
    (void)io;
    close(file->fd);
    larder_free(file);
}

int io_posix_file_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out)
{
    (void)io;
    struct stat st;
    if (fstat(file->fd, &st) != 0)
        return fail_errno("cannot stat", "segment file");
    *out = (uint64_t)st.st_size;
    return 0;
}

int io_posix_disk_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out)
{
    (void)io;
    struct stat st;
    if (fstat(file->fd, &st) != 0)
        return fail_errno("cannot stat", "segment file");
    *out = (uint64_t)st.st_blocks * 512;
    return 0;
}

int io_posix_preallocate(struct larder_io *io, struct larder_file *file, uint64_t bytes)
{
    uint64_t now;
    LARDER_TRY(io_posix_file_bytes(io, file, &now));
    if (now >= bytes)
        return 0;
    int rc;
    do
        rc = fallocate(file->fd, 0, 0, (off_t)bytes);
    while (rc != 0 && errno == EINTR);
    /* Without reservation a full disk is met at a write instead, which the store survives too. */
    if (rc != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
        rc = ftruncate(file->fd, (off_t)bytes);
    return rc != 0 ? fail_errno("cannot reserve", "space for a segment") : 0;
}

int io_posix_truncate(struct larder_io *io, struct larder_file *file, uint64_t bytes)
{
    (void)io;
    return ftruncate(file->fd, (off_t)bytes) != 0 ? fail_errno("cannot truncate", "segment file")
                                                  : 0;
}

int io_posix_punch(struct larder_io *io, struct larder_file *file, uint64_t offset, uint64_t bytes)
{
    (void)io;
    if (fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                  (off_t)bytes) == 0)
        return 0;
    if (errno == ENOSYS)
        errno = EOPNOTSUPP;
    return fail_errno("cannot punch a hole in", "segment file");
}

int io_posix_unlink(struct larder_io *io, const char *name)
{
    return unlinkat(posix_of(io)->directory_fd, name, 0) != 0 ? fail_errno("cannot remove", name)
                                                              : 0;
}

int io_posix_list(struct larder_io *io, int (*each)(void *context, const char *name), void *context)
{
    /* A fresh open: fdopendir() takes the descriptor, and a shared one would share its position. */
    int fd = openat(posix_of(io)->directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int err = fail_errno("cannot list", "segments");
        if (fd >= 0)
            close(fd);
        return err;
    }
    int err = 0;
    while (err >= 0) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (!entry) {
            err = errno ? fail_errno("cannot list", "segments") : 0;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            err = each(context, entry->d_name);
    }
    closedir(dir);
    return err < 0 ? err : 0;
}

int io_posix_sync_directory(struct larder_io *io)
{
    return fsync(posix_of(io)->directory_fd) != 0 ? fail_errno("cannot sync", "directory") : 0;
}

void io_posix_start(struct larder_io_request *request)
{
    assert(request->file);
    assert(request->done);
    if (request->op == LARDER_IO_SYNC) {
        assert(request->bytes == 0);
    } else {
        assert(request->bytes > 0);
        assert(request->bytes <= LARDER_IO_BYTES_MAX);
        assert(request->bytes % LARDER_PAGE_BYTES == 0);
        assert(request->offset % LARDER_PAGE_BYTES == 0);
        assert((uintptr_t)request->buffer % LARDER_PAGE_BYTES == 0);
    }
    request->result = 0;
    request->progress_bytes = 0;
    request->retry_count = 0;
    request->next = NULL;
}

static enum io_posix_step retry(struct larder_io_request *request, int err)
{
    if (++request->retry_count <= RETRIES_MAX)
        return IO_POSIX_AGAIN;
    request->result = err;
    return IO_POSIX_DONE;
}

int64_t io_posix_attempt(struct larder_io_request *request)
{
    int fd = request->file->fd;
    off_t offset = (off_t)(request->offset + request->progress_bytes);
    size_t bytes = request->bytes - request->progress_bytes;
    char *at = (char *)request->buffer + request->progress_bytes;
    ssize_t rc = 0;
    switch (request->op) {
    case LARDER_IO_READ:
        rc = pread(fd, at, bytes, offset);
        break;
    case LARDER_IO_WRITE:
        rc = pwrite(fd, at, bytes, offset);
        break;
    case LARDER_IO_SYNC:
        rc = fdatasync(fd);
        break;
    }
    return rc < 0 ? -errno : rc;
}

enum io_posix_step io_posix_advance(struct larder_io_request *request, int64_t transferred)
{
    if (transferred == -EINTR || transferred == -EAGAIN) {
        /* A sync that was interrupted may have reported, and cleared, an error of the disk that the
         * next one would hide. */
        if (request->op != LARDER_IO_SYNC)
            return retry(request, (int)transferred);
    }
    if (transferred < 0 || request->op == LARDER_IO_SYNC) {
        request->result = transferred < 0 ? (int)transferred : 0;
        return IO_POSIX_DONE;
    }
    assert(transferred <= request->bytes - request->progress_bytes);
    if (transferred == 0 && request->op == LARDER_IO_READ) {
        request->result = -ENODATA;
        return IO_POSIX_DONE;
    }
    /* O_DIRECT goes on at a whole page only. Less than one is the end of the file when reading;
     * the next attempt then moves nothing either. */
    uint32_t whole = (uint32_t)transferred & ~(LARDER_PAGE_BYTES - 1);
    request->progress_bytes += whole;
    if (request->progress_bytes == request->bytes) {
        request->result = 0;
        return IO_POSIX_DONE;
    }
    if (whole > 0)
        return IO_POSIX_AGAIN;
    if (request->op == LARDER_IO_READ) {
        request->result = -ENODATA;
        return IO_POSIX_DONE;
    }
    return retry(request, -EIO);
}
