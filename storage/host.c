/* SPDX-License-Identifier: Apache-2.0 */
#include "storage/host.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/table.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

struct extent {
    uint32_t page;
    uint32_t pages;
};

struct host_slab {
    struct host_slab *next; /* of those retired */
    uint8_t *map;           /* NULL: retired */
    uint64_t bytes;
    int fd;
    bool tells; /* H5 */
    uint32_t tenant;
    uint32_t slab_id;
    uint32_t slot_count;
    uint32_t free_slot; /* first of the list; slot_count: none */
    uint32_t used_slots;
    uint32_t extent_count;
    struct extent *extents; /* free runs by page, never touching; slot_count + 1 of them at most */
    struct host_slot *slots;
};

/* Slots of all slabs share one numbering, in which 0 is HOST_NONE. */
static uint32_t id_of(uint32_t slab_index, uint32_t slot)
{
    return slab_index * LARDER_SLAB_SLOTS_MAX + slot + 1;
}

static struct host_slab *slab_of(const struct host *host, uint32_t id)
{
    assert(id != HOST_NONE);
    uint32_t index = (id - 1) / LARDER_SLAB_SLOTS_MAX;
    assert(index < host->slab_end);
    assert(host->slabs[index]);
    return host->slabs[index];
}

struct host_slot *host_slot(const struct host *host, uint32_t id)
{
    return &slab_of(host, id)->slots[(id - 1) % LARDER_SLAB_SLOTS_MAX];
}

bool host_slot_is_whole(const struct host_slot *slot)
{
    return slot->state == HOST_SLOT_READY && host_layers_are_all(slot->layers);
}

struct larder_record *host_record(const struct host *host, uint32_t id)
{
    struct host_slab *slab = slab_of(host, id);
    const struct host_slot *slot = &slab->slots[(id - 1) % LARDER_SLAB_SLOTS_MAX];
    return (struct larder_record *)(void *)(slab->map + (uint64_t)slot->page * LARDER_PAGE_BYTES);
}

uint32_t host_slot_tenant(const struct host *host, uint32_t id)
{
    return slab_of(host, id)->tenant;
}

void host_address(const struct host *host, uint32_t id, uint32_t *slab_id, uint32_t *slot)
{
    *slab_id = slab_of(host, id)->slab_id;
    *slot = (id - 1) % LARDER_SLAB_SLOTS_MAX;
}

static uint32_t find_slab(const struct host *host, uint32_t tenant, uint32_t slab_id)
{
    for (uint32_t i = 0; i < host->slab_end; i++) {
        const struct host_slab *slab = host->slabs[i];
        if (slab && slab->tenant == tenant && slab->slab_id == slab_id)
            return i;
    }
    return UINT32_MAX;
}

uint32_t host_slot_at(const struct host *host, uint32_t tenant, uint32_t slab_id, uint32_t slot)
{
    uint32_t index = find_slab(host, tenant, slab_id);
    if (index == UINT32_MAX || slot >= host->slabs[index]->slot_count)
        return HOST_NONE;
    return id_of(index, slot);
}

/* --- slabs ----------------------------------------------------------------------------------- */

/* One slot a page until the limit: no slab can hold more records than pages. */
static uint32_t slots_for(uint64_t slab_bytes)
{
    return (uint32_t)larder_min_u64(slab_bytes / LARDER_PAGE_BYTES, LARDER_SLAB_SLOTS_MAX);
}

static uint64_t data_offset_for(uint64_t slab_bytes)
{
    uint64_t table_bytes = (uint64_t)slots_for(slab_bytes) * sizeof(struct larder_slot);
    return LARDER_PAGE_BYTES + larder_round_up(table_bytes, LARDER_PAGE_BYTES);
}

uint64_t host_record_bytes_max(const struct host *host)
{
    return host->slab_bytes - data_offset_for(host->slab_bytes);
}

static int make_memfd(void)
{
    int fd = memfd_create("larder-slab", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    /* Kernels before 6.3 do not know the last one. */
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("larder-slab", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd;
}

/* All but the descriptor. */
static void shut_slab(struct host_slab *slab)
{
    if (slab->map)
        munmap(slab->map, slab->bytes);
    slab->map = NULL;
    larder_free(slab->extents);
    larder_free(slab->slots);
    slab->extents = NULL;
    slab->slots = NULL;
}

void host_slab_free(struct host_slab *slab)
{
    shut_slab(slab);
    if (slab->fd >= 0)
        close(slab->fd);
    larder_free(slab);
}

/* --- who keeps one ---------------------------------------------------------------------------- */

static int reopen(int fd, int flags)
{
    char path[32];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return open(path, flags | O_CLOEXEC);
}

/* Has anybody but this descriptor the file open, or mapped? Nobody can from then on. */
static bool is_kept(const struct host_slab *slab)
{
    if (!slab->tells || fcntl(slab->fd, F_SETLEASE, F_WRLCK) == 0) {
        (void)fcntl(slab->fd, F_SETLEASE, F_UNLCK);
        return false;
    }
    return errno == EAGAIN;
}

/* Of a descriptor that memfd_create() made the kernel does not count that it writes: of one opened
 * by name it does. */
static void find_out_who_keeps(struct host_slab *slab)
{
    int fd = reopen(slab->fd, O_RDWR);
    if (fd < 0)
        return;
    close(slab->fd);
    slab->fd = fd;
    slab->tells = true;
    slab->tells = !is_kept(slab);
}

int host_slab_open(const struct host *host, int *out_fd, uint32_t tenant, uint32_t slab_id)
{
    *out_fd = -1;
    uint32_t index = find_slab(host, tenant, slab_id);
    if (index == UINT32_MAX)
        return larder_fail(LARDER_ENOTFOUND, "slab=%u does not exist", slab_id);
    const struct host_slab *slab = host->slabs[index];
    *out_fd = slab->tells ? reopen(slab->fd, O_RDONLY) : fcntl(slab->fd, F_DUPFD_CLOEXEC, 0);
    return *out_fd >= 0
               ? 0
               : larder_fail(-errno, "a descriptor of slab %u: %s", slab_id, strerror(errno));
}

struct host_slab *host_take_released(struct host *host)
{
    for (struct host_slab **at = &host->retired; *at; at = &(*at)->next) {
        struct host_slab *slab = *at;
        if (is_kept(slab))
            continue;
        *at = slab->next;
        host->retired_count--;
        host->tenants[slab->tenant].retired_count--;
        return slab;
    }
    return NULL;
}

/* --- making and retiring ---------------------------------------------------------------------- */

/* Populated before it is sealed and used: first touch while reading into it would halve the
 * speed. */
static int map_slab(struct host_slab *slab)
{
    slab->fd = make_memfd();
    if (slab->fd < 0)
        return larder_fail(-errno, "host tier: memfd_create: %s", strerror(errno));
    int err = ftruncate(slab->fd, (off_t)slab->bytes) < 0 ? errno : 0;
    if (err == 0)
        err = fallocate(slab->fd, 0, 0, (off_t)slab->bytes) < 0 ? errno : 0;
    if (err != 0)
        return larder_fail(-err,
                           "host tier: %llu bytes of shared memory: %s; host_bytes is too "
                           "large for this machine",
                           (unsigned long long)slab->bytes, strerror(err));
    void *map = mmap(NULL, slab->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, slab->fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "host tier: mmap of %llu bytes: %s",
                           (unsigned long long)slab->bytes, strerror(errno));
    slab->map = map;
    /* Of no use in a core dump, and other people's prompts. */
    madvise(map, slab->bytes, MADV_DONTDUMP);
    /* MAP_POPULATE would map shared pages for reading only, and each first write would fault. Where
     * the kernel is older than 5.14 they do. */
    madvise(map, slab->bytes, MADV_POPULATE_WRITE);
    if (fcntl(slab->fd, F_ADD_SEALS,
              F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0)
        return larder_fail(-errno, "host tier: sealing a slab: %s", strerror(errno));
    find_out_who_keeps(slab);
    return 0;
}

int host_slab_make(struct host_slab **out, uint32_t tenant, uint32_t slab_id, uint64_t slab_bytes)
{
    *out = NULL;
    struct host_slab *slab = larder_alloc_zero(1, sizeof(*slab));
    if (!slab)
        return larder_fail(-ENOMEM, "host tier: no memory");
    slab->fd = -1;
    slab->bytes = slab_bytes;
    slab->tenant = tenant;
    slab->slab_id = slab_id;
    slab->slot_count = slots_for(slab_bytes);
    slab->slots = larder_alloc_zero(slab->slot_count, sizeof(*slab->slots));
    slab->extents = larder_alloc_zero(slab->slot_count + 1, sizeof(*slab->extents));
    int err = slab->slots && slab->extents ? map_slab(slab) : -ENOMEM;
    if (err < 0) {
        host_slab_free(slab);
        return err;
    }
    uint64_t data_offset = data_offset_for(slab_bytes);
    struct larder_slab *header = (struct larder_slab *)(void *)slab->map;
    *header = (struct larder_slab){.magic = LARDER_SLAB_MAGIC,
                                   .slab_bytes = slab_bytes,
                                   .data_offset = data_offset,
                                   .slab_id = slab_id,
                                   .slot_count = slab->slot_count};
    struct larder_slot *shared = (struct larder_slot *)(void *)(slab->map + LARDER_PAGE_BYTES);
    for (uint32_t i = 0; i < slab->slot_count; i++) {
        slab->slots[i].shared = &shared[i];
        slab->slots[i].next_free = i + 1;
    }
    slab->extents[0].page = (uint32_t)(data_offset / LARDER_PAGE_BYTES);
    slab->extents[0].pages = (uint32_t)((slab_bytes - data_offset) / LARDER_PAGE_BYTES);
    slab->extent_count = 1;
    *out = slab;
    return 0;
}

int host_grow_begin(struct host *host, uint32_t tenant, uint32_t *out_slab_id)
{
    if (host->bytes + host->slab_bytes > host->bytes_max)
        return -ENOBUFS;
    host->bytes += host->slab_bytes;
    *out_slab_id = host->tenants[tenant].next_slab_id++;
    return 0;
}

int host_grow_end(struct host *host, struct host_slab *slab)
{
    if (!slab) {
        host->bytes -= host->slab_bytes;
        return 0;
    }
    uint32_t index = 0;
    while (index < host->slab_end && host->slabs[index])
        index++;
    if (index == host->slab_end) {
        struct host_slab **slabs =
            larder_realloc(host->slabs, sizeof(struct host_slab *) * (host->slab_end + 1ul));
        if (!slabs) {
            host->bytes -= host->slab_bytes;
            host_slab_free(slab);
            return larder_fail(-ENOMEM, "host tier: no memory");
        }
        host->slabs = slabs;
        host->slab_end++;
    }
    host->slabs[index] = slab;
    host->tenants[slab->tenant].slab_count++;
    return 0;
}

bool host_slab_slots(const struct host *host, uint32_t index, uint32_t *tenant, uint32_t *first,
                     uint32_t *count)
{
    const struct host_slab *slab = host->slabs[index];
    if (!slab)
        return false;
    *tenant = slab->tenant;
    *first = id_of(index, 0);
    *count = slab->slot_count;
    return true;
}

static struct host_slab *take_out(struct host *host, uint32_t index)
{
    struct host_slab *slab = host->slabs[index];
    assert(slab->used_slots == 0);
    struct larder_slab *header = (struct larder_slab *)(void *)slab->map;
    atomic_store_explicit(&header->retired, 1, memory_order_release);
    host->tenants[slab->tenant].slab_count--;
    host->bytes -= host->slab_bytes;
    host->slabs[index] = NULL;
    return slab;
}

struct host_slab *host_give_up_slab(struct host *host, struct host_slab *slab)
{
    if (!is_kept(slab))
        return slab;
    shut_slab(slab);
    slab->next = host->retired;
    host->retired = slab;
    host->retired_count++;
    host->tenants[slab->tenant].retired_count++;
    return NULL;
}

void host_retire(struct host *host, uint32_t index)
{
    struct host_slab *released = host_give_up_slab(host, take_out(host, index));
    if (released)
        host_slab_free(released);
}

struct host_slab *host_take_slab(struct host *host, uint32_t tenant)
{
    for (uint32_t i = 0; i < host->slab_end; i++) {
        if (host->slabs[i] && host->slabs[i]->tenant == tenant)
            return take_out(host, i);
    }
    return NULL;
}

void host_slab_wipe(struct host_slab *slab)
{
    uint64_t data_offset = data_offset_for(slab->bytes);
    memset(slab->map + data_offset, 0, slab->bytes - data_offset);
}

int host_open(struct host *host, uint64_t bytes_max, uint64_t slab_bytes, uint64_t *next_generation)
{
    memset(host, 0, sizeof(*host));
    host->bytes_max = bytes_max;
    host->slab_bytes = slab_bytes;
    host->next_generation = next_generation;
    host->tenants = larder_alloc_zero(LARDER_TENANTS_MAX, sizeof(*host->tenants));
    return host->tenants ? 0 : larder_fail(-ENOMEM, "host tier: no memory");
}

void host_close(struct host *host)
{
    for (uint32_t i = 0; i < host->slab_end; i++) {
        if (host->slabs[i])
            host_slab_free(host->slabs[i]);
    }
    while (host->retired) {
        struct host_slab *slab = host->retired;
        host->retired = slab->next;
        host_slab_free(slab);
    }
    larder_free(host->slabs);
    larder_free(host->tenants);
    memset(host, 0, sizeof(*host));
}

/* --- pages ----------------------------------------------------------------------------------- */

/* Best fit: large runs stay for large records. 0 when there is no such run (page 0 is the slab's
 * header). */
static uint32_t take_pages(struct host_slab *slab, uint32_t pages)
{
    struct extent *best = NULL;
    for (uint32_t i = 0; i < slab->extent_count; i++) {
        struct extent *at = &slab->extents[i];
        if (at->pages >= pages && (!best || at->pages < best->pages))
            best = at;
    }
    if (!best)
        return 0;
    uint32_t page = best->page;
    best->page += pages;
    best->pages -= pages;
    if (best->pages == 0) {
        slab->extent_count--;
        memmove(best, best + 1,
                (size_t)(slab->extents + slab->extent_count - best) * sizeof(*best));
    }
    return page;
}

static void give_pages(struct host_slab *slab, uint32_t page, uint32_t pages)
{
    uint32_t low = 0;
    uint32_t high = slab->extent_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (slab->extents[middle].page < page)
            low = middle + 1;
        else
            high = middle;
    }
    struct extent *after = &slab->extents[low];
    bool joins_before = low > 0 && after[-1].page + after[-1].pages == page;
    bool joins_after = low < slab->extent_count && page + pages == after->page;
    size_t behind = (slab->extent_count - low) * sizeof(*after);
    if (joins_before && joins_after) {
        after[-1].pages += pages + after->pages;
        slab->extent_count--;
        memmove(after, after + 1, behind - sizeof(*after));
    } else if (joins_before) {
        after[-1].pages += pages;
    } else if (joins_after) {
        after->page = page;
        after->pages += pages;
    } else {
        assert(slab->extent_count <= slab->slot_count);
        memmove(after + 1, after, behind);
        slab->extent_count++;
        *after = (struct extent){.page = page, .pages = pages};
    }
}

/* --- slots ----------------------------------------------------------------------------------- */

static uint32_t take_in_slab(struct host *host, uint32_t index, uint32_t pages)
{
    struct host_slab *slab = host->slabs[index];
    if (slab->free_slot == slab->slot_count)
        return HOST_NONE;
    uint32_t page = take_pages(slab, pages);
    if (page == 0)
        return HOST_NONE;
    uint32_t number = slab->free_slot;
    struct host_slot *slot = &slab->slots[number];
    slab->free_slot = slot->next_free;
    slab->used_slots++;
    struct larder_slot *shared = slot->shared;
    *slot = (struct host_slot){
        .shared = shared, .page = page, .pages = pages, .pins = 1, .state = HOST_SLOT_FILLING};
    slot->layers = HOST_LAYERS_ALL;
    /* The generation rose when the slot was freed; readers of then see that before anything else
     * here, and readers of now are told the new one only after this. */
    atomic_store_explicit(&shared->published_sections, 0, memory_order_relaxed);
    atomic_store_explicit(&shared->first_section, 0, memory_order_relaxed);
    atomic_store_explicit(&shared->failed, 0, memory_order_relaxed);
    shared->offset = (uint64_t)page * LARDER_PAGE_BYTES;
    shared->record_bytes = (uint64_t)pages * LARDER_PAGE_BYTES;
    atomic_store_explicit(&shared->generation, (*host->next_generation)++, memory_order_release);
    return id_of(index, number);
}

int host_take(struct host *host, uint32_t *out, uint32_t tenant, uint64_t bytes)
{
    *out = HOST_NONE;
    assert(bytes > 0);
    assert(bytes <= host_record_bytes_max(host));
    uint32_t pages = (uint32_t)(larder_round_up(bytes, LARDER_PAGE_BYTES) / LARDER_PAGE_BYTES);
    for (uint32_t i = 0; i < host->slab_end; i++) {
        if (!host->slabs[i] || host->slabs[i]->tenant != tenant)
            continue;
        *out = take_in_slab(host, i, pages);
        if (*out != HOST_NONE)
            return 0;
    }
    return host->bytes + host->slab_bytes <= host->bytes_max ? -EAGAIN : -ENOBUFS;
}

void host_shrink(struct host *host, uint32_t id, uint64_t bytes)
{
    struct host_slot *slot = host_slot(host, id);
    uint32_t pages = (uint32_t)(larder_round_up(bytes, LARDER_PAGE_BYTES) / LARDER_PAGE_BYTES);
    assert(pages > 0);
    assert(pages <= slot->pages);
    if (pages < slot->pages)
        give_pages(slab_of(host, id), slot->page + pages, slot->pages - pages);
    slot->pages = pages;
    slot->shared->record_bytes = (uint64_t)pages * LARDER_PAGE_BYTES;
}

void host_ready(struct host *host, uint32_t id)
{
    struct host_slot *slot = host_slot(host, id);
    assert(slot->state == HOST_SLOT_FILLING);
    slot->state = HOST_SLOT_READY;
}

static void free_if_unused(struct host *host, uint32_t id)
{
    struct host_slot *slot = host_slot(host, id);
    if (!slot->dropped || slot->leases > 0 || slot->pins > 0)
        return;
    struct host_slab *slab = slab_of(host, id);
    atomic_store_explicit(&slot->shared->generation, (*host->next_generation)++,
                          memory_order_release);
    /* Whatever is written to these pages from now on comes after the rise. */
    atomic_thread_fence(memory_order_seq_cst);
    give_pages(slab, slot->page, slot->pages);
    slot->state = HOST_SLOT_FREE;
    slot->pages = 0;
    slot->next_free = slab->free_slot;
    slab->free_slot = (id - 1) % LARDER_SLAB_SLOTS_MAX;
    slab->used_slots--;
}

void host_drop(struct host *host, uint32_t id)
{
    struct host_slot *slot = host_slot(host, id);
    assert(slot->state != HOST_SLOT_FREE);
    assert(!slot->dropped);
    slot->dropped = 1;
    slot->entry = TABLE_NONE;
    free_if_unused(host, id);
}

void host_unpin(struct host *host, uint32_t id)
{
    struct host_slot *slot = host_slot(host, id);
    assert(slot->pins > 0);
    slot->pins--;
    free_if_unused(host, id);
}

void host_unlease(struct host *host, uint32_t id)
{
    struct host_slot *slot = host_slot(host, id);
    assert(slot->leases > 0);
    slot->leases--;
    free_if_unused(host, id);
}

/* --- invariants ------------------------------------------------------------------------------ */

static int check_slab(const struct host *host, uint32_t index)
{
    const struct host_slab *slab = host->slabs[index];
    uint64_t pages = data_offset_for(slab->bytes) / LARDER_PAGE_BYTES;
    uint64_t end = 0;
    for (uint32_t i = 0; i < slab->extent_count; i++) {
        if (slab->extents[i].page <= end && i > 0)
            return larder_fail(LARDER_ECORRUPT, "host tier: free runs of slab %u touch", index);
        end = slab->extents[i].page + slab->extents[i].pages;
        pages += slab->extents[i].pages;
    }
    uint32_t used = 0;
    for (uint32_t i = 0; i < slab->slot_count; i++) {
        if (slab->slots[i].state == HOST_SLOT_FREE)
            continue;
        used++;
        pages += slab->slots[i].pages;
    }
    if (pages * LARDER_PAGE_BYTES != slab->bytes || used != slab->used_slots)
        return larder_fail(LARDER_ECORRUPT, "host tier: slab %u: %llu pages, %u of %u slots", index,
                           (unsigned long long)pages, used, slab->used_slots);
    return 0;
}

int host_check(const struct host *host)
{
    for (uint32_t i = 0; i < host->slab_end; i++) {
        if (host->slabs[i])
            LARDER_TRY(check_slab(host, i));
    }
    return 0;
}
