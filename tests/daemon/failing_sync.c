/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a disk whose syncs fail from a moment on that the test chooses, or whose reads take long.
 * Method: preloaded into larderd; fdatasync and fsync give EIO while the file that
 *         LARDER_TEST_FAIL_SYNC names exists, and a pread waits while that exists which
 *         LARDER_TEST_SLOW_READ names, a second at most.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

static bool is_on(const char *name)
{
    const char *path = getenv(name);
    return path && access(path, F_OK) == 0;
}

static bool fails(void)
{
    if (!is_on("LARDER_TEST_FAIL_SYNC"))
        return false;
    errno = EIO;
    return true;
}

static int call(const char *name, int fd)
{
    int (*next)(int);
    *(void **)&next = dlsym(RTLD_NEXT, name);
    return next(fd);
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    return fails() ? -1 : call("fdatasync", fd);
}

__attribute__((visibility("default"))) int fsync(int fd)
{
    return fails() ? -1 : call("fsync", fd);
}

__attribute__((visibility("default"))) ssize_t pread(int fd, void *buffer, size_t bytes, off_t at)
{
    for (int i = 0; i < 100 && is_on("LARDER_TEST_SLOW_READ"); i++)
        usleep(10000);
    ssize_t (*next)(int, void *, size_t, off_t);
    *(void **)&next = dlsym(RTLD_NEXT, "pread");
    return next(fd, buffer, bytes, at);
}
