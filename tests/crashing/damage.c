/* SPDX-License-Identifier: Apache-2.0 */
#include "damage.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"

#define PAGE_BYTES   4096u
#define SECTOR_BYTES 512u
#define PATH_BYTES   512u

static uint64_t draw(uint64_t *random, uint64_t limit)
{
    uint64_t z = (*random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return limit ? (z ^ (z >> 31)) % limit : 0;
}

/* --- which file ------------------------------------------------------------------------------- */

static enum damage_class class_of(const char *file)
{
    if (strncmp(file, "segments/", 9) == 0)
        return DAMAGE_SEGMENT;
    if (strncmp(file, "index/", 6) == 0)
        return DAMAGE_INDEX;
    return strcmp(file, "format") == 0 || strncmp(file, "tenants", 7) == 0 ? DAMAGE_IDENTITY
                                                                           : DAMAGE_OTHER;
}

/* One file of a class, each with the same chance. */
static void pick(struct damage *damage, const char *directory, const char *folder,
                 enum damage_which which, uint64_t *random, uint32_t *met)
{
    char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s", directory, folder);
    DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir)) != NULL;) {
        struct stat status;
        char file[320];
        snprintf(file, sizeof(file), "%s%s", folder, entry->d_name);
        snprintf(path, sizeof(path), "%.180s/%s", directory, file);
        if (strlen(file) >= sizeof(damage->file) || class_of(file) != damage->class ||
            (which == DAMAGE_BUT_FORMAT && strcmp(file, "format") == 0) ||
            lstat(path, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0)
            continue;
        if (draw(random, ++*met) == 0)
            memcpy(damage->file, file, strlen(file) + 1);
    }
    if (dir)
        closedir(dir);
}

/* --- what becomes of it ----------------------------------------------------------------------- */

struct content {
    uint8_t *bytes;
    uint64_t count; /* of the file */
    uint64_t used;  /* up to the last byte that is not zero: what is preallocated does not count */
    uint64_t *random;
};

static uint64_t some_page(struct content *content)
{
    return draw(content->random, (content->used + PAGE_BYTES - 1) / PAGE_BYTES) * PAGE_BYTES;
}

static uint64_t page_end(const struct content *content, uint64_t page)
{
    return larder_min_u64(page + PAGE_BYTES, content->count);
}

static void flip_bit(struct content *content)
{
    content->bytes[draw(content->random, content->used)] ^=
        (uint8_t)(1u << draw(content->random, 8));
}

static void change_bytes(struct content *content)
{
    for (uint64_t left = 2 + draw(content->random, 63); left > 0; left--)
        content->bytes[draw(content->random, content->used)] = (uint8_t)draw(content->random, 256);
}

static void overwrite_run(struct content *content)
{
    uint64_t first = draw(content->random, content->used);
    uint64_t end =
        larder_min_u64(content->count, first + 1 + draw(content->random, 2 * PAGE_BYTES));
    for (uint64_t i = first; i < end; i++)
        content->bytes[i] = (uint8_t)draw(content->random, 256);
}

static void zero_sector(struct content *content)
{
    uint64_t first = draw(content->random, content->used) / SECTOR_BYTES * SECTOR_BYTES;
    memset(content->bytes + first, 0, larder_min_u64(SECTOR_BYTES, content->count - first));
}

static void zero_pages(struct content *content)
{
    uint64_t first = some_page(content);
    uint64_t end = page_end(content, first + draw(content->random, 4) * PAGE_BYTES);
    memset(content->bytes + first, 0, end - first);
}

static void swap_pages(struct content *content)
{
    uint8_t page[PAGE_BYTES];
    uint64_t one = some_page(content), other = some_page(content);
    uint64_t bytes = larder_min_u64(page_end(content, one) - one, page_end(content, other) - other);
    memcpy(page, content->bytes + one, bytes);
    memmove(content->bytes + one, content->bytes + other, bytes);
    memcpy(content->bytes + other, page, bytes);
}

static void misdirect_page(struct content *content)
{
    uint64_t to = some_page(content), from = some_page(content);
    uint64_t bytes = larder_min_u64(page_end(content, to) - to, page_end(content, from) - from);
    memmove(content->bytes + to, content->bytes + from, bytes);
}

/* Whole pages are gone, or any number of bytes. */
static void cut(struct content *content)
{
    content->count = draw(content->random, content->used);
    if (draw(content->random, 2))
        content->count = content->count / PAGE_BYTES * PAGE_BYTES;
}

/* The caller left room for it. */
static void extend(struct content *content)
{
    uint64_t more = 1 + draw(content->random, PAGE_BYTES);
    for (uint64_t i = 0; i < more; i++)
        content->bytes[content->count + i] = (uint8_t)draw(content->random, 256);
    content->count += more;
}

static const struct {
    const char *name;
    uint32_t weight;
    void (*apply)(struct content *content); /* NULL: the file is removed */
} ways[] = {
    {"a bit flipped", 30, flip_bit},
    {"bytes changed", 15, change_bytes},
    {"a run overwritten", 8, overwrite_run},
    {"a sector zeroed", 10, zero_sector},
    {"pages zeroed", 10, zero_pages},
    {"pages swapped", 10, swap_pages},
    {"a page of another place", 8, misdirect_page},
    {"cut", 6, cut},
    {"extended", 2, extend},
    {"removed", 1, NULL},
};

static void read_content(struct content *content, const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert(fd >= 0 && fstat(fd, &status) == 0);
    content->count = (uint64_t)status.st_size;
    content->bytes = malloc(content->count + PAGE_BYTES);
    assert(content->bytes);
    ssize_t got = read(fd, content->bytes, content->count);
    assert(got == status.st_size);
    close(fd);
    content->used = content->count;
    while (content->used > 1 && content->bytes[content->used - 1] == 0)
        content->used--;
}

/* Only what is not a hole: a store of many segments stays small. */
static void write_content(const struct content *content, const char *path)
{
    static const uint8_t zeros[PAGE_BYTES];
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    assert(fd >= 0);
    for (uint64_t at = 0; at < content->count; at += PAGE_BYTES) {
        size_t bytes = larder_min_u64(PAGE_BYTES, content->count - at);
        if (memcmp(content->bytes + at, zeros, bytes) == 0)
            continue;
        ssize_t put = pwrite(fd, content->bytes + at, bytes, (off_t)at);
        assert(put == (ssize_t)bytes);
    }
    int rc = ftruncate(fd, (off_t)content->count);
    assert(rc == 0);
    close(fd);
}

bool damage_store(struct damage *out, const char *directory, enum damage_which which,
                  uint64_t *random)
{
    static const char *const folders[] = {"", "segments/", "index/"};
    uint64_t drawn_class = draw(random, 100);
    *out = (struct damage){.class = drawn_class < 50   ? DAMAGE_SEGMENT
                                    : drawn_class < 88 ? DAMAGE_INDEX
                                    : drawn_class < 96 ? DAMAGE_IDENTITY
                                                       : DAMAGE_OTHER};
    uint32_t met = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(folders); i++)
        pick(out, directory, folders[i], which, random, &met);
    if (met == 0)
        return false;

    uint32_t weights = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(ways); i++)
        weights += ways[i].weight;
    uint64_t drawn = draw(random, weights);
    size_t way = 0;
    while (drawn >= ways[way].weight)
        drawn -= ways[way++].weight;
    char path[PATH_BYTES];
    snprintf(path, sizeof(path), "%s/%s", directory, out->file);
    snprintf(out->what, sizeof(out->what), "%s", ways[way].name);
    if (!ways[way].apply)
        return unlink(path) == 0;
    struct content content = {.random = random};
    read_content(&content, path);
    ways[way].apply(&content);
    write_content(&content, path);
    free(content.bytes);
    return true;
}
