/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/staging.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

int staging_open(struct staging *out, uint64_t bytes)
{
    int err;
    out->fd = -1;
    out->bytes = 0;
    out->memory = NULL;
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = memfd_create("larder-staging", flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create("larder-staging", flags);
    if (fd < 0)
        return larder_fail(-errno, "memfd_create: %m");
    if (ftruncate(fd, (off_t)bytes) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        err = larder_fail(-errno, "staging of %llu bytes: %m", (unsigned long long)bytes);
        goto fail;
    }
    void *memory = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        err = larder_fail(-errno, "mmap of %llu bytes of staging: %m", (unsigned long long)bytes);
        goto fail;
    }
    /* Of no use in a core dump, and other people's prompts. */
    madvise(memory, bytes, MADV_DONTDUMP);
    out->fd = fd;
    out->bytes = bytes;
    out->memory = memory;
    return 0;

fail:
    close(fd);
    return err;
}

void staging_close(struct staging *staging)
{
    if (staging->fd < 0)
        return;
    munmap((void *)(uintptr_t)staging->memory, staging->bytes);
    close(staging->fd);
    staging->fd = -1;
    staging->bytes = 0;
    staging->memory = NULL;
}
