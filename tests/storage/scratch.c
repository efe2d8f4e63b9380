/* SPDX-License-Identifier: Apache-2.0 */
#include "scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void scratch_make(char path[SCRATCH_PATH_BYTES])
{
    const char *base = getenv("LARDER_BUILD");
    if (!base || access(base, W_OK) != 0)
        base = getenv("TMPDIR");
    int bytes = snprintf(path, SCRATCH_PATH_BYTES, "%s/larder-test-XXXXXX", base ? base : "/tmp");
    if (bytes >= SCRATCH_PATH_BYTES || !mkdtemp(path)) {
        perror(path);
        exit(2);
    }
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

void scratch_remove(const char *path)
{
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        perror(path);
}
