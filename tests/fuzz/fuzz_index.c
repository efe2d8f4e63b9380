/* SPDX-License-Identifier: Apache-2.0 */
/* Goal:   the walk of a damaged index ends, within the file's bytes; and what it calls sound LMDB
 *         can open, read and write without a crash and without a value whose check is wrong.
 * Input:  a list of edits of a sound file that is made at start, so that mutation is spent on what
 *         the walk looks at: a byte (bits 0-1: which file; bit 2: checks of values are made right
 *         again; bit 3: what is sound goes through LMDB, which takes milliseconds; bits 4-7: pages
 *         cut off the end), then edits of
 *           page (u16 LE, modulo the file's) | offset (u16 LE, modulo page) | count - 1 (u8, 4
 *           bits) | count bytes.
 *         Bits 4-5 of the count's byte say where an offset counts from: the page's start, its lower
 *         or upper bound, or the end of its head. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "storage/index.h"
#include "storage/index_check.h"
#include "tests/fuzz/fuzz.h"
#include "tests/storage/scratch.h"

#define PAGE_BYTES  4096u
#define PAGES_MAX   1024u
#define HEAD_BYTES  16u /* of a page */
#define NODE_BYTES  8u  /* in front of a key */
#define EDITS_MAX   64u
#define IMAGE_COUNT 4u

struct image {
    uint8_t *pristine;
    uint8_t *bytes; /* as edited */
    size_t pages;
};

static struct image images[IMAGE_COUNT];
static char scratch[SCRATCH_PATH_BYTES];

/* --- system calls that would be most of the work ---------------------------------------------- */

/* A process that a sanitizer watches forks slowly; the walk is then done in this one. */
__attribute__((visibility("default"))) pid_t fork(void)
{
    errno = EAGAIN;
    return -1;
}

__attribute__((visibility("default"))) int fdatasync(int fd)
{
    (void)fd; /* no power loss is at stake */
    return 0;
}

/* --- the sound files -------------------------------------------------------------------------- */

static void put_rows(struct larder_index *index, uint32_t first, uint32_t count, bool remove)
{
    assert(larder_index_begin(index) == 0);
    for (uint32_t i = first; i < first + count; i++) {
        struct larder_key key = {{(uint8_t)(i * 151), (uint8_t)(i >> 8), (uint8_t)i}};
        struct index_entry entry = {
            .generation = i + 1, .record_bytes = 4096, .segment_id = 1, .recipe = "exact"};
        assert((remove ? larder_index_delete_entry(index, &key, 0)
                       : larder_index_put_entry(index, &key, 0, &entry)) == 0);
    }
    struct index_segment segment = {.committed_bytes = 4096ull * count};
    assert(larder_index_put_segment(index, 1, &segment) == 0);
    struct larder_key fingerprint = {{1}};
    struct larder_model_desc desc = {.name = "fuzz", .layers = 2};
    assert(larder_index_put_model(index, &fingerprint, &desc) == 0);
    assert(larder_index_commit(index, 1000) == 0);
}

static uint64_t last_page(const uint8_t *meta_page)
{
    uint64_t page;
    memcpy(&page, meta_page + 136, sizeof(page));
    return page;
}

/* Memory with a page behind it that may not be touched. */
static uint8_t *map_pages(size_t pages)
{
    uint8_t *map = mmap(NULL, (pages + 1) * PAGE_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(map != MAP_FAILED);
    assert(mprotect(map + pages * PAGE_BYTES, PAGE_BYTES, PROT_NONE) == 0);
    return map;
}

static void read_image(struct image *image, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t metas[2 * PAGE_BYTES];
    assert(fd >= 0 && pread(fd, metas, sizeof(metas), 0) == sizeof(metas));
    /* What is reserved behind the last page is nothing to damage. */
    uint64_t even = last_page(metas), odd = last_page(metas + PAGE_BYTES);
    image->pages = (even > odd ? even : odd) + 1;
    assert(image->pages > 2 && image->pages <= PAGES_MAX);
    size_t bytes = image->pages * PAGE_BYTES;
    image->pristine = map_pages(image->pages);
    image->bytes = map_pages(image->pages);
    assert(pread(fd, image->pristine, bytes, 0) == (ssize_t)bytes);
    memcpy(image->bytes, image->pristine, bytes);
    close(fd);
}

/* 0: nothing in it. 1: a few rows, a leaf each. 2: branches. 3: a list of free pages so long that
 * it has pages of its own. */
static void make_image(unsigned which)
{
    static const uint32_t rows[IMAGE_COUNT] = {0, 8, 200, 3500};
    char path[SCRATCH_PATH_BYTES + 32], file[SCRATCH_PATH_BYTES + 48];
    snprintf(path, sizeof(path), "%s/made-%u", scratch, which);
    struct larder_index *index;
    bool created;
    assert(larder_index_open(&index, path, &created) == 0);
    if (rows[which])
        put_rows(index, 0, rows[which], false);
    if (which == 3)
        put_rows(index, 10, rows[which] - 10, true);
    larder_index_close(index);
    snprintf(file, sizeof(file), "%s/data.mdb", path);
    read_image(&images[which], file);
    /* Pages of lists of free pages, as the tree of free pages counts them in its meta page. */
    uint64_t overflow_pages[2];
    memcpy(&overflow_pages[0], images[which].bytes + 64, 8);
    memcpy(&overflow_pages[1], images[which].bytes + PAGE_BYTES + 64, 8);
    assert(which != 3 || overflow_pages[0] + overflow_pages[1] > 0);
    char reason[200];
    assert(index_check_image(images[which].bytes, images[which].pages * PAGE_BYTES, reason,
                             sizeof(reason)));
}

static void remove_scratch(void)
{
    scratch_remove(scratch);
}

static void set_up(void)
{
    if (scratch[0])
        return;
    larder_log_set_level(LARDER_LOG_ERROR);
    scratch_make(scratch);
    atexit(remove_scratch);
    for (unsigned i = 0; i < IMAGE_COUNT; i++)
        make_image(i);
}

/* --- edits ------------------------------------------------------------------------------------ */

static uint16_t load_u16(const uint8_t *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

/* Applies one edit; gives what of the input is behind it, NULL at the end. */
static const uint8_t *edit(struct image *image, const uint8_t *at, const uint8_t *end,
                           size_t *page_out)
{
    if (end - at < 6)
        return NULL;
    size_t number = load_u16(at) % image->pages;
    uint8_t *page = image->bytes + number * PAGE_BYTES;
    uint32_t offset = load_u16(at + 2);
    uint32_t count = (at[4] & 15) + 1u;
    unsigned from = at[4] >> 4 & 3;
    offset += from == 1 ? load_u16(page + 12) : from == 2 ? load_u16(page + 14) : 0;
    offset += from == 3 ? HEAD_BYTES : 0;
    at += 5;
    for (uint32_t i = 0; i < count && at < end; i++)
        page[(offset + i) % PAGE_BYTES] = *at++;
    *page_out = number;
    return at;
}

/* Makes right again the checks of what may be values in a leaf. */
static void reseal(uint8_t *page)
{
    uint32_t lower = load_u16(page + 12);
    for (uint32_t at = HEAD_BYTES; at + 2 <= lower && at + 2 <= PAGE_BYTES; at += 2) {
        uint32_t node = load_u16(page + at);
        if (node + NODE_BYTES > PAGE_BYTES)
            continue;
        uint32_t value_bytes = load_u16(page + node);
        uint32_t key_bytes = load_u16(page + node + 6);
        uint32_t value = node + NODE_BYTES + key_bytes;
        if (key_bytes > 64 || value_bytes < 16 || value_bytes > 256 ||
            value + value_bytes > PAGE_BYTES)
            continue;
        uint64_t check =
            index_value_check(page + node + NODE_BYTES, key_bytes, page + value, value_bytes);
        memcpy(page + value + value_bytes - 8, &check, sizeof(check));
    }
}

/* --- what is sound, through LMDB ------------------------------------------------------------- */

static int see_entry(void *context, const struct larder_key *key, uint32_t variant,
                     const struct index_entry *entry)
{
    (void)key;
    (void)variant;
    (void)entry;
    ++*(uint64_t *)context;
    return 0;
}

static int see_segment(void *context, uint32_t segment_id, const struct index_segment *segment)
{
    (void)segment_id;
    (void)segment;
    ++*(uint64_t *)context;
    return 0;
}

static int see_mark(void *context, const struct larder_key *key, const struct index_mark *mark)
{
    (void)key;
    (void)mark;
    ++*(uint64_t *)context;
    return 0;
}

static int see_model(void *context, const struct larder_key *fingerprint,
                     const struct larder_model_desc *desc)
{
    (void)fingerprint;
    (void)desc;
    ++*(uint64_t *)context;
    return 0;
}

static uint64_t load(struct larder_index *index)
{
    uint64_t seen = 0, generation;
    const struct index_visitor visitor = {.context = &seen,
                                          .entry = see_entry,
                                          .segment = see_segment,
                                          .mark = see_mark,
                                          .model = see_model};
    int err = larder_index_load(index, &visitor, &generation);
    assert(err == 0);
    return seen;
}

static void open_with_lmdb(const struct image *image, size_t pages)
{
    char path[SCRATCH_PATH_BYTES + 32], file[SCRATCH_PATH_BYTES + 48];
    snprintf(path, sizeof(path), "%s/index", scratch);
    snprintf(file, sizeof(file), "%s/data.mdb", path);
    assert(mkdir(path, 0700) == 0 || access(path, F_OK) == 0);
    int fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert(fd >= 0);
    assert(write(fd, image->bytes, pages * PAGE_BYTES) == (ssize_t)(pages * PAGE_BYTES));
    close(fd);

    struct larder_index *index;
    bool created;
    int err = larder_index_open(&index, path, &created);
    /* A format of the future is no damage. */
    assert(err == 0 || err == LARDER_EVERSION);
    if (err < 0)
        return;
    load(index);
    put_rows(index, 4000, 60, false);
    put_rows(index, 0, 60, true);
    uint64_t seen = load(index);
    larder_index_close(index);
    assert(index_check_file(file) == 0);
    assert(larder_index_open(&index, path, &created) == 0);
    assert(load(index) == seen);
    larder_index_close(index);
}

/* Of the pages that are cut off: the walk must see where the file ends. */
static void set_access(const struct image *image, size_t pages, int access)
{
    if (pages < image->pages)
        assert(mprotect(image->bytes + pages * PAGE_BYTES, (image->pages - pages) * PAGE_BYTES,
                        access) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    set_up();
    if (bytes < 1)
        return 0;
    struct image *image = &images[data[0] & 3];
    size_t edited[EDITS_MAX], edit_count = 0;
    const uint8_t *at = data + 1;
    while (edit_count < EDITS_MAX &&
           (at = edit(image, at, data + bytes, &edited[edit_count])) != NULL)
        edit_count++;
    for (size_t i = 0; i < edit_count && data[0] & 4; i++)
        reseal(image->bytes + edited[i] * PAGE_BYTES);

    size_t cut = data[0] >> 4;
    size_t pages = image->pages > cut ? image->pages - cut : 1;
    set_access(image, pages, PROT_NONE);
    char reason[200] = "";
    bool is_sound = index_check_image(image->bytes, pages * PAGE_BYTES, reason, sizeof(reason));
    assert(is_sound == !reason[0]);
    set_access(image, pages, PROT_READ | PROT_WRITE);
    if (is_sound && data[0] & 8)
        open_with_lmdb(image, pages);
    for (size_t i = 0; i < edit_count; i++)
        memcpy(image->bytes + edited[i] * PAGE_BYTES, image->pristine + edited[i] * PAGE_BYTES,
               PAGE_BYTES);
    return 0;
}
