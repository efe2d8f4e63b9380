/* SPDX-License-Identifier: Apache-2.0 */
/* What the daemon shares with a client: slabs of the host tier, read-only, once a link; staging, to
 * be written. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/chain.h"
#include "client/link.h"

/* Slabs of one tenant that a client keeps mapped: 16 TiB of the default size. */
#define SLABS_MAX 65536u

/* Where a slab of that id stands or would. */
static uint32_t slab_index_locked(const struct larder_link *link, uint32_t slab_id)
{
    uint32_t low = 0;
    uint32_t high = link->slab_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (link->slabs[middle]->id < slab_id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

const struct client_slab *client_find_slab(struct larder_link *link, uint32_t slab_id)
{
    pthread_mutex_lock(&link->larder->lock);
    uint32_t index = slab_index_locked(link, slab_id);
    const struct client_slab *slab = NULL;
    if (index < link->slab_count && link->slabs[index]->id == slab_id)
        slab = link->slabs[index];
    pthread_mutex_unlock(&link->larder->lock);
    return slab;
}

void client_drop_retired_slabs_locked(struct larder_link *link)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < link->slab_count; i++) {
        struct client_slab *slab = link->slabs[i];
        const struct larder_slab *head = (const void *)slab->map;
        if (atomic_load_explicit(&head->retired, memory_order_acquire) == 0) {
            link->slabs[kept++] = slab;
            continue;
        }
        munmap((void *)(uintptr_t)slab->map, slab->bytes);
        larder_free(slab);
    }
    link->slab_count = kept;
}

int client_check_sealed(int fd, uint64_t bytes)
{
    struct stat stat;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK))
        return larder_fail(LARDER_EPROTO, "the daemon sent memory that is not sealed");
    if (fstat(fd, &stat) < 0 || stat.st_size < 0 || (uint64_t)stat.st_size < bytes)
        return larder_fail(LARDER_EPROTO,
                           "the daemon sent memory of less than the %llu bytes it "
                           "names",
                           (unsigned long long)bytes);
    return 0;
}

static int map_slab(struct client_slab *slab, int fd, const struct wire_slab *body)
{
    if (body->bytes < LARDER_PAGE_BYTES || body->bytes > SIZE_MAX / 2)
        return larder_fail(LARDER_EPROTO, "the daemon sent a slab of %llu bytes",
                           (unsigned long long)body->bytes);
    LARDER_TRY(client_check_sealed(fd, body->bytes));
    void *map = mmap(NULL, body->bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping a slab of %llu bytes: %s; see ulimit -v",
                           (unsigned long long)body->bytes, strerror(errno));
    const struct larder_slab *head = map;
    *slab = (struct client_slab){
        .map = map,
        .bytes = body->bytes,
        .data_offset = head->data_offset,
        .id = body->slab_id,
        .slot_count = head->slot_count,
    };
    /* slab->... are private copies now: what is checked below is what will be used. */
    if (head->magic != LARDER_SLAB_MAGIC || head->slab_bytes != slab->bytes ||
        head->slab_id != slab->id || slab->slot_count > LARDER_SLAB_SLOTS_MAX ||
        slab->data_offset > slab->bytes ||
        slab->data_offset < LARDER_PAGE_BYTES + slab->slot_count * sizeof(struct larder_slot)) {
        munmap(map, body->bytes);
        return larder_fail(LARDER_EPROTO, "slab %u of the daemon has a malformed head",
                           body->slab_id);
    }
    return 0;
}

int client_add_slab(struct larder_link *link, const struct wire_slab *body, int fd)
{
    struct client_slab *slab = larder_alloc_zero(1, sizeof(*slab));
    int err = slab ? map_slab(slab, fd, body) : larder_fail(-ENOMEM, "no memory for a slab");
    close(fd);
    if (err < 0)
        goto fail_free;

    pthread_mutex_lock(&link->larder->lock);
    uint32_t index = slab_index_locked(link, slab->id);
    if (index < link->slab_count && link->slabs[index]->id == slab->id)
        err = larder_fail(LARDER_EPROTO, "the daemon sent slab %u twice", slab->id);
    else if (link->slab_count == SLABS_MAX)
        err = larder_fail(LARDER_ELIMIT,
                          "the daemon sent more than %u slabs; larger slab_bytes in "
                          "larderd.conf make fewer",
                          SLABS_MAX);
    if (err == 0 && link->slab_count == link->slab_capacity) {
        uint32_t capacity = link->slab_capacity ? 2 * link->slab_capacity : 16;
        struct client_slab **slabs = larder_realloc(link->slabs, capacity * sizeof(*slabs));
        if (slabs) {
            link->slabs = slabs;
            link->slab_capacity = capacity;
        } else {
            err = larder_fail(-ENOMEM, "no memory for %u slabs", capacity);
        }
    }
    if (err == 0) {
        memmove(link->slabs + index + 1, link->slabs + index,
                (link->slab_count - index) * sizeof(*link->slabs));
        link->slabs[index] = slab;
        link->slab_count++;
    }
    pthread_mutex_unlock(&link->larder->lock);
    if (err == 0)
        return 0;

    munmap((void *)(uintptr_t)slab->map, slab->bytes);
fail_free:
    larder_free(slab);
    return err;
}

/* --- staging --------------------------------------------------------------------------------- */

void client_staging_drop(struct larder_link *link)
{
    if (link->staging)
        munmap(link->staging, link->staging_bytes);
    link->staging = NULL;
    link->staging_bytes = 0;
}

static int map_staging(struct larder_link *link, int fd, uint64_t bytes)
{
    if (client_check_sealed(fd, bytes) < 0)
        return client_malformed(link, "STAGING");
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return larder_fail(-errno, "mapping staging of %llu bytes: %s; see ulimit -v",
                           (unsigned long long)bytes, strerror(errno));
    client_staging_drop(link);
    link->staging = map;
    link->staging_bytes = bytes;
    return 0;
}

int client_staging(struct larder_link *link, uint64_t bytes)
{
    if (link->staging_bytes >= bytes)
        return 0;
    const struct wire_staging body = {.bytes = bytes};
    const struct client_part part = {&body, sizeof(body)};
    struct wire_staging_ok answer;
    struct client_call call = {
        .type = WIRE_STAGING,
        .answer_type = WIRE_STAGING_OK,
        .answer = &answer,
        .answer_capacity = sizeof(answer),
    };
    LARDER_TRY(client_call(link, &call, NULL, &part, 1));
    int err;
    if (call.answer_bytes != sizeof(answer) || call.fd < 0 || answer.bytes < bytes ||
        answer.bytes > LARDER_STAGING_BYTES_MAX)
        err = client_malformed(link, "STAGING");
    else
        err = map_staging(link, call.fd, answer.bytes);
    if (call.fd >= 0)
        close(call.fd);
    return err;
}
