/* SPDX-License-Identifier: Apache-2.0 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"

static int read_all(int fd, uint8_t *out, size_t bytes, const char *path)
{
    for (size_t at = 0; at < bytes;) {
        ssize_t got = read(fd, out + at, bytes - at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return larder_fail(-errno, "cannot read %s: %m", path);
        if (got == 0)
            return larder_fail(-EIO, "%s became shorter while it was read", path);
        at += (size_t)got;
    }
    return 0;
}

int larder_file_read(void **out, size_t *out_bytes, const char *path, size_t bytes_max)
{
    *out = NULL;
    *out_bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return larder_fail(-errno, "cannot open %s: %m", path);
    struct stat stat;
    uint8_t *bytes = NULL;
    int err = 0;
    if (fstat(fd, &stat) < 0)
        err = larder_fail(-errno, "cannot look at %s: %m", path);
    else if (!S_ISREG(stat.st_mode))
        err = larder_fail(-EINVAL, "%s is no plain file", path);
    else if ((uint64_t)stat.st_size > bytes_max)
        err = larder_fail(LARDER_ELIMIT, "%s has %lld bytes, at most %zu are read", path,
                          (long long)stat.st_size, bytes_max);
    if (err == 0) {
        bytes = larder_alloc((size_t)stat.st_size + 1);
        err = bytes ? read_all(fd, bytes, (size_t)stat.st_size, path)
                    : larder_fail(-ENOMEM, "no memory to read %s", path);
    }
    close(fd);
    if (err < 0) {
        larder_free(bytes);
        return err;
    }
    bytes[stat.st_size] = 0;
    *out = bytes;
    *out_bytes = (size_t)stat.st_size;
    return 0;
}

static int write_all(int fd, const uint8_t *bytes, size_t count)
{
    while (count > 0) {
        ssize_t put = write(fd, bytes, count);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        bytes += put;
        count -= (size_t)put;
    }
    return 0;
}

static int write_file(const char *path, const void *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -errno;
    int err = write_all(fd, bytes, count);
    if (err == 0 && fdatasync(fd) < 0)
        err = -errno;
    if (close(fd) < 0 && err == 0)
        err = -errno;
    return err;
}

static int sync_directory(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = fsync(fd) < 0 ? -errno : 0;
    close(fd);
    return err;
}

int larder_file_replace(const char *directory, const char *name, const void *bytes, size_t count)
{
    char path[PATH_MAX], fresh[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path) ||
        snprintf(fresh, sizeof(fresh), "%s/%s.new", directory, name) >= (int)sizeof(fresh))
        return larder_fail(-ENAMETOOLONG, "%s: the path of %s is too long", directory, name);
    int err = write_file(fresh, bytes, count);
    if (err == 0 && rename(fresh, path) < 0)
        err = -errno;
    if (err < 0)
        unlink(fresh);
    else
        err = sync_directory(directory);
    if (err < 0) {
        errno = -err;
        return larder_fail(err, "cannot write %s: %m", path);
    }
    return 0;
}
