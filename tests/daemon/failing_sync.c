/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   a disk whose syncs fail from a moment on that the test chooses.
 * Method: preloaded into larderd; fdatasync and fsync give EIO while the file that
 *         LARDER_TEST_FAIL_SYNC names exists.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int fails(void)
{
    const char *path = getenv("LARDER_TEST_FAIL_SYNC");
    if (!path || access(path, F_OK) != 0)
        return 0;
    errno = EIO;
    return 1;
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
