/* SPDX-License-Identifier: Apache-2.0 */
/* sim_disk.c - see sim_disk.h. Each file has two images: what reads see, and what surely survives;
 * between them stands the list of changes that were not synced, in the order they were made. */
#include "sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/limits.h"

#define SECTOR_BYTES 512u
#define NAME_BYTES   64u

enum change_kind {
    CHANGE_WRITE,
    CHANGE_SIZE,
    CHANGE_PUNCH,
};

struct change {
    struct change *next;
    uint64_t sequence;
    enum change_kind kind;
    uint64_t offset; /* CHANGE_SIZE: the new size */
    uint64_t bytes;
    uint8_t data[];
};

struct image {
    uint8_t *bytes;
    uint64_t count;
    uint64_t capacity;
};

struct inode {
    struct inode *next;
    char name[NAME_BYTES];
    bool linked;
    bool linked_durably;
    uint32_t open_count;
    uint64_t punched_bytes;
    struct image live;
    struct image durable;
    struct change *changes;
    struct change *changes_last;
};

struct larder_file {
    struct inode *inode;
};

struct queued {
    struct larder_io_request *request;
    uint64_t sequence; /* of the disk when it was submitted */
};

struct sim_disk {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t random;
    struct inode *inodes; /* oldest first */
    uint64_t sequence;    /* of the last change */
    uint64_t steps;
    uint64_t power_fails_at;
    bool power_failed;
    struct sim_faults faults;
    uint64_t fault_count; /* requests since set_faults that error_op counts */
    struct sim_stats stats;
    bool is_open;
    bool woken;
    struct queued *queue;
    size_t queue_count;
    size_t queue_capacity;
};

struct sim_io {
    struct larder_io io;
    struct sim_disk *disk;
};

/* Tests have memory. */
static void *must(void *memory)
{
    assert(memory);
    return memory;
}

static struct sim_disk *disk_of(struct larder_io *io)
{
    return ((struct sim_io *)io)->disk;
}

/* splitmix64 */
static uint64_t draw(struct sim_disk *disk)
{
    uint64_t z = (disk->random += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint64_t draw_below(struct sim_disk *disk, uint64_t limit)
{
    return limit ? draw(disk) % limit : 0;
}

static bool chance(struct sim_disk *disk, uint32_t permille)
{
    return permille > 0 && draw_below(disk, 1000) < permille;
}

/* --- images ----------------------------------------------------------------------------------- */

static void image_resize(struct image *image, uint64_t bytes)
{
    if (bytes > image->capacity) {
        image->bytes = must(realloc(image->bytes, bytes));
        image->capacity = bytes;
    }
    if (bytes > image->count)
        memset(image->bytes + image->count, 0, bytes - image->count);
    image->count = bytes;
}

static void image_zero(struct image *image, uint64_t offset, uint64_t bytes)
{
    if (offset < image->count)
        memset(image->bytes + offset, 0, larder_min_u64(bytes, image->count - offset));
}

static void image_write(struct image *image, uint64_t offset, const uint8_t *data, uint64_t bytes)
{
    if (offset < image->count && bytes > 0)
        memcpy(image->bytes + offset, data, larder_min_u64(bytes, image->count - offset));
}

static void image_apply(struct image *image, const struct change *change)
{
    switch (change->kind) {
    case CHANGE_WRITE:
        image_write(image, change->offset, change->data, change->bytes);
        break;
    case CHANGE_SIZE:
        image_resize(image, change->offset);
        break;
    case CHANGE_PUNCH:
        image_zero(image, change->offset, change->bytes);
        break;
    }
}

static void add_change(struct sim_disk *disk, struct inode *inode, enum change_kind kind,
                       uint64_t offset, uint64_t bytes, const void *data)
{
    struct change *change = must(malloc(sizeof(*change) + (data ? bytes : 0)));
    *change = (struct change){
        .sequence = ++disk->sequence, .kind = kind, .offset = offset, .bytes = bytes};
    if (data)
        memcpy(change->data, data, bytes);
    if (inode->changes_last)
        inode->changes_last->next = change;
    else
        inode->changes = change;
    inode->changes_last = change;
}

static struct change *take_change(struct inode *inode)
{
    struct change *change = inode->changes;
    if (!change)
        return NULL;
    inode->changes = change->next;
    if (!inode->changes)
        inode->changes_last = NULL;
    return change;
}

/* Makes durable what was changed up to `sequence`. */
static void settle(struct inode *inode, uint64_t sequence)
{
    while (inode->changes && inode->changes->sequence <= sequence) {
        struct change *change = take_change(inode);
        image_apply(&inode->durable, change);
        free(change);
    }
}

static void free_inode(struct inode *inode)
{
    for (struct change *change; (change = take_change(inode)) != NULL;)
        free(change);
    free(inode->live.bytes);
    free(inode->durable.bytes);
    free(inode);
}

static struct inode *find(struct sim_disk *disk, const char *name)
{
    for (struct inode *inode = disk->inodes; inode; inode = inode->next)
        if (inode->linked && strcmp(inode->name, name) == 0)
            return inode;
    return NULL;
}

/* Frees files that neither a name nor a handle leads to, now or after power loss. */
static void sweep(struct sim_disk *disk)
{
    for (struct inode **at = &disk->inodes; *at;) {
        struct inode *inode = *at;
        if (inode->linked || inode->linked_durably || inode->open_count) {
            at = &inode->next;
        } else {
            *at = inode->next;
            free_inode(inode);
        }
    }
}

static uint64_t used_bytes(const struct sim_disk *disk)
{
    uint64_t used = 0;
    for (const struct inode *inode = disk->inodes; inode; inode = inode->next)
        if ((inode->linked || inode->open_count) && inode->live.count > inode->punched_bytes)
            used += inode->live.count - inode->punched_bytes;
    return used;
}

/* --- power ------------------------------------------------------------------------------------ */

enum step_outcome {
    STEP_DONE,
    STEP_CUT,  /* power fails during this one */
    STEP_DARK, /* power is off */
};

static void cut_power(struct sim_disk *disk)
{
    disk->power_failed = true;
    /* Of what was on its way, some had reached the disk. */
    for (size_t i = 0; i < disk->queue_count; i++) {
        struct larder_io_request *request = disk->queue[i].request;
        if (request->op == LARDER_IO_WRITE && draw(disk) % 2)
            add_change(disk, request->file->inode, CHANGE_WRITE, request->offset, request->bytes,
                       request->buffer);
    }
}

static enum step_outcome take_step(struct sim_disk *disk)
{
    if (disk->power_failed)
        return STEP_DARK;
    disk->steps++;
    if (!disk->power_fails_at || disk->steps < disk->power_fails_at)
        return STEP_DONE;
    cut_power(disk);
    return STEP_CUT;
}

/* For a change that is whole or not at all: does it happen? *err is what the caller gets. */
static bool step_happens(struct sim_disk *disk, int *err)
{
    switch (take_step(disk)) {
    case STEP_DONE:
        *err = 0;
        return true;
    case STEP_CUT:
        *err = -EIO;
        return draw(disk) % 2;
    default:
        *err = -EIO;
        return false;
    }
}

static void crash_inode(struct sim_disk *disk, struct inode *inode)
{
    uint32_t ordered = 0;
    for (const struct change *change = inode->changes; change; change = change->next)
        ordered += change->kind != CHANGE_WRITE;
    uint64_t survive = draw(disk) % 2 ? ordered : draw_below(disk, ordered + 1);
    static const uint32_t odds[] = {0, 100, 500, 900, 1000};
    uint32_t permille = odds[draw_below(disk, LARDER_COUNT_OF(odds))];

    uint64_t met = 0;
    for (struct change *change; (change = take_change(inode)) != NULL; free(change)) {
        if (change->kind != CHANGE_WRITE) {
            if (met < survive)
                image_apply(&inode->durable, change);
            else if (met == survive && change->kind == CHANGE_PUNCH)
                image_zero(&inode->durable, change->offset, draw_below(disk, change->bytes + 1));
            met++;
            continue;
        }
        for (uint64_t at = 0; at < change->bytes; at += SECTOR_BYTES) {
            bool kept = met <= survive && chance(disk, permille);
            if (kept)
                image_write(&inode->durable, change->offset + at, change->data + at, SECTOR_BYTES);
            disk->stats.sectors_kept += kept;
            disk->stats.sectors_lost += !kept;
        }
    }
    image_resize(&inode->live, 0);
    image_resize(&inode->live, inode->durable.count);
    image_write(&inode->live, 0, inode->durable.bytes, inode->durable.count);
}

void sim_disk_crash(struct sim_disk *disk)
{
    pthread_mutex_lock(&disk->mutex);
    assert(!disk->is_open);
    assert(disk->queue_count == 0);
    for (struct inode *inode = disk->inodes; inode; inode = inode->next) {
        assert(inode->open_count == 0);
        if (inode->linked != inode->linked_durably)
            inode->linked = draw(disk) % 2;
        inode->linked_durably = inode->linked;
        crash_inode(disk, inode);
        /* A name used again: the later file has it. */
        for (struct inode *older = disk->inodes; inode->linked && older != inode;
             older = older->next)
            if (strcmp(older->name, inode->name) == 0)
                older->linked = older->linked_durably = false;
    }
    sweep(disk);
    disk->power_failed = false;
    disk->power_fails_at = 0;
    pthread_mutex_unlock(&disk->mutex);
}

int sim_disk_gate(void *context)
{
    struct sim_disk *disk = context;
    pthread_mutex_lock(&disk->mutex);
    int err = take_step(disk) == STEP_DONE ? 0 : -EIO;
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

/* --- files and names -------------------------------------------------------------------------- */

static int sim_open_file(struct larder_io *io, struct larder_file **out, const char *name,
                         enum larder_io_open how)
{
    struct sim_disk *disk = disk_of(io);
    *out = NULL;
    assert(strlen(name) < NAME_BYTES);
    pthread_mutex_lock(&disk->mutex);
    int err = disk->power_failed ? -EIO : 0;
    struct inode *inode = find(disk, name);
    if (err == 0 && how == LARDER_IO_OPEN_EXISTING && !inode)
        err = -ENOENT;
    if (err == 0 && how == LARDER_IO_CREATE_NEW) {
        if (inode)
            err = -EEXIST;
        else if (step_happens(disk, &err)) {
            inode = must(calloc(1, sizeof(*inode)));
            snprintf(inode->name, sizeof(inode->name), "%s", name);
            inode->linked = true;
            struct inode **at = &disk->inodes;
            while (*at)
                at = &(*at)->next;
            *at = inode;
        }
    }
    if (err == 0) {
        struct larder_file *file = must(malloc(sizeof(*file)));
        file->inode = inode;
        inode->open_count++;
        *out = file;
    }
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static void sim_close_file(struct larder_io *io, struct larder_file *file)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    for (size_t i = 0; i < disk->queue_count; i++)
        assert(disk->queue[i].request->file != file);
    assert(file->inode->open_count > 0);
    file->inode->open_count--;
    pthread_mutex_unlock(&disk->mutex);
    free(file);
}

static int sim_file_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    *out = file->inode->live.count;
    int err = disk->power_failed ? -EIO : 0;
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

/* Pages of zeros are holes. */
static int sim_disk_bytes(struct larder_io *io, struct larder_file *file, uint64_t *out)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    const struct image *image = &file->inode->live;
    *out = 0;
    for (uint64_t at = 0; at < image->count; at += LARDER_PAGE_BYTES) {
        uint64_t bytes = larder_min_u64(LARDER_PAGE_BYTES, image->count - at);
        *out += larder_all_zero(image->bytes + at, bytes) ? 0 : bytes;
    }
    int err = disk->power_failed ? -EIO : 0;
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static bool has_room(const struct sim_disk *disk, const struct inode *inode, uint64_t bytes)
{
    uint64_t more = bytes > inode->live.count ? bytes - inode->live.count : 0;
    return !disk->faults.capacity_bytes || used_bytes(disk) + more <= disk->faults.capacity_bytes;
}

static void set_size(struct sim_disk *disk, struct inode *inode, uint64_t bytes)
{
    image_resize(&inode->live, bytes);
    add_change(disk, inode, CHANGE_SIZE, bytes, 0, NULL);
}

static int sim_preallocate(struct larder_io *io, struct larder_file *file, uint64_t bytes)
{
    struct sim_disk *disk = disk_of(io);
    struct inode *inode = file->inode;
    int err = 0;
    pthread_mutex_lock(&disk->mutex);
    if (bytes > inode->live.count) {
        if (!has_room(disk, inode, bytes))
            err = -ENOSPC;
        else if (step_happens(disk, &err))
            set_size(disk, inode, bytes);
    }
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static int sim_truncate(struct larder_io *io, struct larder_file *file, uint64_t bytes)
{
    struct sim_disk *disk = disk_of(io);
    int err;
    pthread_mutex_lock(&disk->mutex);
    if (step_happens(disk, &err))
        set_size(disk, file->inode, bytes);
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static int sim_punch(struct larder_io *io, struct larder_file *file, uint64_t offset,
                     uint64_t bytes)
{
    struct sim_disk *disk = disk_of(io);
    struct inode *inode = file->inode;
    int err;
    pthread_mutex_lock(&disk->mutex);
    if (step_happens(disk, &err)) {
        image_zero(&inode->live, offset, bytes);
        inode->punched_bytes += bytes;
        add_change(disk, inode, CHANGE_PUNCH, offset, bytes, NULL);
    }
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static int sim_unlink(struct larder_io *io, const char *name)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    struct inode *inode = find(disk, name);
    int err = inode ? 0 : -ENOENT;
    if (inode && step_happens(disk, &err))
        inode->linked = false;
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

static int sim_list(struct larder_io *io, int (*each)(void *context, const char *name),
                    void *context)
{
    struct sim_disk *disk = disk_of(io);
    char name[NAME_BYTES];
    uint64_t bytes;
    if (sim_disk_power_failed(disk))
        return -EIO;
    for (uint32_t i = 0; sim_disk_file(disk, i, name, &bytes); i++) {
        int err = each(context, name);
        if (err < 0)
            return err;
    }
    return 0;
}

static int sim_sync_directory(struct larder_io *io)
{
    struct sim_disk *disk = disk_of(io);
    int err;
    pthread_mutex_lock(&disk->mutex);
    if (step_happens(disk, &err)) {
        for (struct inode *inode = disk->inodes; inode; inode = inode->next)
            inode->linked_durably = inode->linked;
        sweep(disk);
    }
    pthread_mutex_unlock(&disk->mutex);
    return err;
}

/* --- requests --------------------------------------------------------------------------------- */

static void sim_submit(struct larder_io *io, struct larder_io_request *request)
{
    struct sim_disk *disk = disk_of(io);
    if (request->op != LARDER_IO_SYNC) {
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
    pthread_mutex_lock(&disk->mutex);
    if (disk->queue_count == disk->queue_capacity) {
        disk->queue_capacity = disk->queue_capacity ? 2 * disk->queue_capacity : 64;
        disk->queue = must(realloc(disk->queue, disk->queue_capacity * sizeof(*disk->queue)));
    }
    disk->queue[disk->queue_count++] = (struct queued){request, disk->sequence};
    pthread_mutex_unlock(&disk->mutex);
}

/* Reads that bring the wrong bytes: `true` when done. */
static bool read_wrongly(struct sim_disk *disk, struct larder_io_request *request)
{
    struct inode *inode = request->file->inode;
    uint64_t pages = inode->live.count / LARDER_PAGE_BYTES;
    uint64_t wanted = request->bytes / LARDER_PAGE_BYTES;
    if (chance(disk, disk->faults.misdirect_permille) && pages > wanted) {
        uint64_t other = draw_below(disk, pages - wanted + 1) * LARDER_PAGE_BYTES;
        memcpy(request->buffer, inode->live.bytes + other, request->bytes);
        disk->stats.misdirected += other != request->offset;
        return true;
    }
    if (chance(disk, disk->faults.stale_permille)) {
        /* What was there before: an earlier write if it is known, else never written. */
        memset(request->buffer, 0, request->bytes);
        if (inode->changes && request->offset + request->bytes <= inode->durable.count)
            memcpy(request->buffer, inode->durable.bytes + request->offset, request->bytes);
        disk->stats.stale++;
        return true;
    }
    return false;
}

static int do_read(struct sim_disk *disk, struct larder_io_request *request)
{
    struct inode *inode = request->file->inode;
    disk->stats.reads++;
    disk->stats.read_bytes += request->bytes;
    if (disk->power_failed)
        return -EIO;
    if (request->offset > inode->live.count || request->bytes > inode->live.count - request->offset)
        return -ENODATA;
    if (!read_wrongly(disk, request))
        memcpy(request->buffer, inode->live.bytes + request->offset, request->bytes);
    return 0;
}

static int do_write(struct sim_disk *disk, struct larder_io_request *request)
{
    struct inode *inode = request->file->inode;
    uint64_t end = request->offset + request->bytes;
    if (!disk->power_failed && !has_room(disk, inode, end))
        return -ENOSPC;
    enum step_outcome outcome = take_step(disk);
    if (outcome == STEP_DARK)
        return -EIO;
    if (end > inode->live.count)
        set_size(disk, inode, end);
    image_write(&inode->live, request->offset, request->buffer, request->bytes);
    add_change(disk, inode, CHANGE_WRITE, request->offset, request->bytes, request->buffer);
    return outcome == STEP_DONE ? 0 : -EIO;
}

static int do_sync(struct sim_disk *disk, const struct queued *queued)
{
    int err;
    bool happens = step_happens(disk, &err);
    disk->stats.syncs += happens;
    if (happens && !disk->faults.sync_lies)
        settle(queued->request->file->inode, queued->sequence);
    return err;
}

/* An error from the disk: a failed write may have changed any of its sectors. */
static int do_error(struct sim_disk *disk, struct larder_io_request *request)
{
    struct inode *inode = request->file->inode;
    disk->stats.errors++;
    if (request->op == LARDER_IO_WRITE && !disk->power_failed) {
        const uint8_t *from = request->buffer;
        for (uint64_t at = 0; at < request->bytes; at += SECTOR_BYTES) {
            if (draw(disk) % 2 || request->offset + at + SECTOR_BYTES > inode->live.count)
                continue;
            image_write(&inode->live, request->offset + at, from + at, SECTOR_BYTES);
            add_change(disk, inode, CHANGE_WRITE, request->offset + at, SECTOR_BYTES, from + at);
        }
    }
    return -EIO;
}

static void execute(struct sim_disk *disk, const struct queued *queued)
{
    struct larder_io_request *request = queued->request;
    bool counts = disk->faults.error_op == SIM_ANY_OP || disk->faults.error_op == (int)request->op;
    if (disk->faults.error_at && counts && ++disk->fault_count == disk->faults.error_at)
        request->result = do_error(disk, request);
    else if (request->op == LARDER_IO_READ && request->offset < disk->faults.bad_end &&
             request->offset + request->bytes > disk->faults.bad_from)
        request->result = do_error(disk, request);
    else if (request->op == LARDER_IO_READ)
        request->result = do_read(disk, request);
    else if (request->op == LARDER_IO_WRITE)
        request->result = do_write(disk, request);
    else
        request->result = do_sync(disk, queued);
}

/* Some, in any order; NULL when enough is done for now. */
static struct larder_io_request *complete_one(struct sim_disk *disk)
{
    while (disk->queue_count > 0) {
        size_t pick = draw_below(disk, disk->queue_count);
        struct queued queued = disk->queue[pick];
        if (queued.request->op != LARDER_IO_SYNC && chance(disk, disk->faults.short_permille)) {
            disk->stats.shorts++; /* its rest waits for another turn */
            continue;
        }
        disk->queue[pick] = disk->queue[--disk->queue_count];
        execute(disk, &queued);
        return queued.request;
    }
    return NULL;
}

static void wait_for_wake(struct sim_disk *disk, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (timeout_ms % 1000) * 1000000l;
    if (until.tv_nsec >= 1000000000l) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000l;
    }
    int rc = 0;
    while (!disk->woken && rc != ETIMEDOUT) {
        if (timeout_ms < 0)
            rc = pthread_cond_wait(&disk->changed, &disk->mutex);
        else
            rc = pthread_cond_timedwait(&disk->changed, &disk->mutex, &until);
    }
}

static int sim_poll(struct larder_io *io, int timeout_ms)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    if (disk->queue_count == 0 && timeout_ms != 0)
        wait_for_wake(disk, timeout_ms);
    disk->woken = false;
    uint64_t count = draw_below(disk, disk->queue_count + 1);
    if (count == 0 && timeout_ms != 0 && disk->queue_count > 0)
        count = 1;
    int done = 0;
    for (uint64_t i = 0; i < count; i++) {
        struct larder_io_request *request = complete_one(disk);
        if (!request)
            break;
        pthread_mutex_unlock(&disk->mutex);
        request->done(request);
        done++;
        pthread_mutex_lock(&disk->mutex);
    }
    pthread_mutex_unlock(&disk->mutex);
    return done;
}

static void sim_wake(struct larder_io *io)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    disk->woken = true;
    pthread_cond_signal(&disk->changed);
    pthread_mutex_unlock(&disk->mutex);
}

static void sim_close(struct larder_io *io)
{
    struct sim_disk *disk = disk_of(io);
    pthread_mutex_lock(&disk->mutex);
    assert(disk->queue_count == 0);
    for (const struct inode *inode = disk->inodes; inode; inode = inode->next)
        assert(inode->open_count == 0);
    disk->is_open = false;
    disk->woken = false;
    pthread_mutex_unlock(&disk->mutex);
    free(io);
}

static const struct larder_io_ops sim_ops = {
    .name = "sim",
    .close = sim_close,
    .open_file = sim_open_file,
    .close_file = sim_close_file,
    .file_bytes = sim_file_bytes,
    .disk_bytes = sim_disk_bytes,
    .preallocate = sim_preallocate,
    .truncate = sim_truncate,
    .punch = sim_punch,
    .unlink = sim_unlink,
    .list = sim_list,
    .sync_directory = sim_sync_directory,
    .submit = sim_submit,
    .poll = sim_poll,
    .wake = sim_wake,
};

/* --- the test's side -------------------------------------------------------------------------- */

struct sim_disk *sim_disk_create(uint64_t seed)
{
    struct sim_disk *disk = must(calloc(1, sizeof(*disk)));
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&disk->mutex, NULL);
    pthread_cond_init(&disk->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    disk->random = seed;
    disk->faults.error_op = SIM_ANY_OP;
    return disk;
}

void sim_disk_destroy(struct sim_disk *disk)
{
    assert(!disk->is_open);
    for (struct inode *inode = disk->inodes, *next; inode; inode = next) {
        next = inode->next;
        free_inode(inode);
    }
    pthread_cond_destroy(&disk->changed);
    pthread_mutex_destroy(&disk->mutex);
    free(disk->queue);
    free(disk);
}

struct larder_io *sim_disk_open_io(struct sim_disk *disk)
{
    struct sim_io *io = must(calloc(1, sizeof(*io)));
    io->io.ops = &sim_ops;
    io->disk = disk;
    pthread_mutex_lock(&disk->mutex);
    assert(!disk->is_open);
    disk->is_open = true;
    pthread_mutex_unlock(&disk->mutex);
    return &io->io;
}

uint64_t sim_disk_steps(struct sim_disk *disk)
{
    pthread_mutex_lock(&disk->mutex);
    uint64_t steps = disk->steps;
    pthread_mutex_unlock(&disk->mutex);
    return steps;
}

void sim_disk_fail_power_at(struct sim_disk *disk, uint64_t step)
{
    pthread_mutex_lock(&disk->mutex);
    disk->power_fails_at = step;
    pthread_mutex_unlock(&disk->mutex);
}

bool sim_disk_power_failed(struct sim_disk *disk)
{
    pthread_mutex_lock(&disk->mutex);
    bool failed = disk->power_failed;
    pthread_mutex_unlock(&disk->mutex);
    return failed;
}

void sim_disk_set_faults(struct sim_disk *disk, const struct sim_faults *faults)
{
    pthread_mutex_lock(&disk->mutex);
    disk->faults = *faults;
    disk->fault_count = 0;
    pthread_mutex_unlock(&disk->mutex);
}

void sim_disk_stats(struct sim_disk *disk, struct sim_stats *out)
{
    pthread_mutex_lock(&disk->mutex);
    *out = disk->stats;
    pthread_mutex_unlock(&disk->mutex);
}

bool sim_disk_file(struct sim_disk *disk, uint32_t index, char name[64], uint64_t *bytes)
{
    pthread_mutex_lock(&disk->mutex);
    const struct inode *inode = disk->inodes;
    while (inode && (!inode->linked || index > 0)) {
        index -= inode->linked;
        inode = inode->next;
    }
    if (inode) {
        memcpy(name, inode->name, NAME_BYTES);
        *bytes = inode->live.count;
    }
    pthread_mutex_unlock(&disk->mutex);
    return inode != NULL;
}

static struct inode *find_range(struct sim_disk *disk, const char *name, uint64_t offset,
                                uint64_t bytes)
{
    struct inode *inode = find(disk, name);
    return inode && offset <= inode->live.count && bytes <= inode->live.count - offset ? inode
                                                                                       : NULL;
}

bool sim_disk_peek(struct sim_disk *disk, const char *name, uint64_t offset, void *out,
                   uint64_t bytes)
{
    pthread_mutex_lock(&disk->mutex);
    const struct inode *inode = find_range(disk, name, offset, bytes);
    if (inode && bytes > 0)
        memcpy(out, inode->live.bytes + offset, bytes);
    pthread_mutex_unlock(&disk->mutex);
    return inode != NULL;
}

bool sim_disk_flip_bit(struct sim_disk *disk, const char *name, uint64_t offset, unsigned bit)
{
    pthread_mutex_lock(&disk->mutex);
    struct inode *inode = find_range(disk, name, offset, 1);
    if (inode) {
        inode->live.bytes[offset] ^= (uint8_t)(1u << bit);
        if (offset < inode->durable.count)
            inode->durable.bytes[offset] ^= (uint8_t)(1u << bit);
    }
    pthread_mutex_unlock(&disk->mutex);
    return inode != NULL;
}
