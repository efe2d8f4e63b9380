/* SPDX-License-Identifier: Apache-2.0 */
/* lmdb_disk.c - keeps what each write replaced until a sync, so that a crash can bring it back. */
#include "lmdb_disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "sim_disk.h"

#define SECTOR_BYTES 512u

/* What a sector held before an unsynced write. */
struct replaced {
    struct replaced *next; /* newest first */
    off_t offset;
    uint8_t bytes[SECTOR_BYTES];
};

static struct {
    pthread_mutex_t mutex;
    struct sim_disk *disk;
    uint64_t random;
    ino_t inode; /* of the file the list is about */
    off_t durable_bytes;
    struct replaced *replaced;
} state = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static uint64_t draw(uint64_t limit)
{
    uint64_t z = (state.random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (z ^ (z >> 31)) % limit;
}

static ssize_t plain_pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    return syscall(SYS_pwrite64, fd, bytes, count, offset);
}

static void forget_replaced(void)
{
    while (state.replaced) {
        struct replaced *next = state.replaced->next;
        free(state.replaced);
        state.replaced = next;
    }
}

/* Is it the index's file? Begins a new list when it is another than before. */
static bool is_index(int fd)
{
    char link[64], path[512];
    struct stat st;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof(path) - 1);
    if (!state.disk || bytes < 9 || memcmp(path + bytes - 9, "/data.mdb", 9) != 0 ||
        fstat(fd, &st) != 0)
        return false;
    if (st.st_ino != state.inode) {
        forget_replaced();
        state.inode = st.st_ino;
        state.durable_bytes = st.st_size;
    }
    return true;
}

static void keep_replaced(int fd, size_t count, off_t offset)
{
    off_t first = offset / SECTOR_BYTES * SECTOR_BYTES;
    for (off_t at = first; at < offset + (off_t)count; at += SECTOR_BYTES) {
        struct replaced *sector = calloc(1, sizeof(*sector));
        assert(sector);
        sector->offset = at;
        /* Beyond the end: zeros. */
        if (pread(fd, sector->bytes, SECTOR_BYTES, at) < 0)
            perror("pread");
        sector->next = state.replaced;
        state.replaced = sector;
    }
}

/* 0: write on; 1: power fails with this one; negative: it is off. */
static int step(void)
{
    bool was_off = sim_disk_power_failed(state.disk);
    return sim_disk_gate(state.disk) == 0 ? 0 : was_off ? -1 : 1;
}

static ssize_t write_index(int fd, const void *bytes, size_t count, off_t offset)
{
    int what = step();
    /* LMDB's second descriptor writes through (O_DSYNC), one sector: whole or not at all. */
    bool through = fcntl(fd, F_GETFL) & O_DSYNC;
    if (what < 0 || (what == 1 && through && draw(2))) {
        errno = EIO;
        return -1;
    }
    if (!through)
        keep_replaced(fd, count, offset);
    ssize_t written = plain_pwrite(fd, bytes, count, offset);
    if (what == 0)
        return written;
    errno = EIO;
    return -1;
}

/* --- the system calls ------------------------------------------------------------------------- */

#define INTERPOSED __attribute__((visibility("default")))

INTERPOSED ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    pthread_mutex_lock(&state.mutex);
    ssize_t written = is_index(fd) ? write_index(fd, bytes, count, offset)
                                   : plain_pwrite(fd, bytes, count, offset);
    pthread_mutex_unlock(&state.mutex);
    return written;
}

INTERPOSED ssize_t writev(int fd, const struct iovec *parts, int part_count)
{
    pthread_mutex_lock(&state.mutex);
    ssize_t total = 0;
    if (is_index(fd)) {
        for (int i = 0; i < part_count && total >= 0; i++) {
            off_t at = lseek(fd, 0, SEEK_CUR);
            ssize_t written = write_index(fd, parts[i].iov_base, parts[i].iov_len, at);
            if (written >= 0)
                lseek(fd, written, SEEK_CUR);
            total = written < 0 ? written : total + written;
        }
    } else {
        total = syscall(SYS_writev, fd, parts, part_count);
    }
    pthread_mutex_unlock(&state.mutex);
    return total;
}

INTERPOSED int fdatasync(int fd)
{
    int rc = 0;
    pthread_mutex_lock(&state.mutex);
    if (is_index(fd)) {
        int what = step();
        struct stat st;
        if (what == 0 || (what == 1 && draw(2))) {
            forget_replaced();
            if (fstat(fd, &st) == 0)
                state.durable_bytes = st.st_size;
        }
        rc = what == 0 ? 0 : -1;
        errno = what == 0 ? errno : EIO;
    } else {
        rc = (int)syscall(SYS_fdatasync, fd);
    }
    pthread_mutex_unlock(&state.mutex);
    return rc;
}

/* --- the test's side -------------------------------------------------------------------------- */

void lmdb_disk_attach(struct sim_disk *disk, uint64_t seed)
{
    pthread_mutex_lock(&state.mutex);
    forget_replaced();
    state.disk = disk;
    state.random = seed;
    state.inode = 0;
    pthread_mutex_unlock(&state.mutex);
}

void lmdb_disk_crash(const char *path)
{
    pthread_mutex_lock(&state.mutex);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == state.inode) {
        static const unsigned odds[] = {0, 100, 500, 900, 1000};
        unsigned permille = odds[draw(sizeof(odds) / sizeof(odds[0]))];
        for (struct replaced *sector = state.replaced; sector; sector = sector->next)
            if (draw(1000) >= permille &&
                plain_pwrite(fd, sector->bytes, SECTOR_BYTES, sector->offset) < 0)
                perror(path);
        if (state.replaced && draw(2) && ftruncate(fd, state.durable_bytes) != 0)
            perror(path);
    }
    if (fd >= 0)
        close(fd);
    forget_replaced();
    state.inode = 0;
    pthread_mutex_unlock(&state.mutex);
}
