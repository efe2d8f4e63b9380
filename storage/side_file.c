/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/side_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

bool side_file_read(int fd, void *data, size_t bytes)
{
    uint8_t *at = data;
    while (bytes > 0) {
        ssize_t got = read(fd, at, bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        at += got;
        bytes -= (size_t)got;
    }
    return true;
}

bool side_file_write(int fd, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    while (bytes > 0) {
        ssize_t put = write(fd, at, bytes);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        at += put;
        bytes -= (size_t)put;
    }
    return true;
}

bool side_file_load(const char *directory, const char *name, bool (*read)(void *context, int fd),
                    void *context, const char *loss)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path))
        return true;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return true;
    bool good = fd >= 0 && read(context, fd);
    if (!good)
        larder_log(LARDER_LOG_WARN, "%s cannot be read or is damaged: %s", path, loss);
    if (fd >= 0)
        close(fd);
    return good;
}

void side_file_replace(const char *directory, const char *name,
                       bool (*write)(void *context, int fd), void *context, const char *loss)
{
    char path[PATH_MAX], fresh[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", directory, name) >= (int)sizeof(path) ||
        snprintf(fresh, sizeof(fresh), "%s/%s.new", directory, name) >= (int)sizeof(fresh))
        return;
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool good = fd >= 0 && write(context, fd) && fdatasync(fd) == 0;
    if (fd >= 0 && close(fd) < 0)
        good = false;
    if (good && rename(fresh, path) == 0)
        return;
    larder_log(LARDER_LOG_WARN, "%s cannot be written (%s): %s", path, strerror(errno), loss);
    unlink(fresh);
}
