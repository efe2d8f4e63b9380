/* SPDX-License-Identifier: Apache-2.0 */
/* host.h - the host tier: slabs of shared memory, and slots in them.
 *
 * Owns:    the slabs' memfds and mappings; which pages of them are free.
 * Threads: none of its own; all of it under the store's lock, but for host_slab_make(), which takes
 *          long (it populates a whole slab) and touches nothing shared.
 * H1  A slab belongs to one tenant until it is retired, whole. Its id is not used again.
 * H2  A slot's generation is new each time it is taken and rises when it is given back, before its
 *     pages can be taken by another.
 * H3  A slot that is leased or pinned keeps its pages; dropped meanwhile, it is freed by the last
 *     of those who let go.
 * H4  Slabs together never exceed host_bytes. A retired slab stays in memory as long as a client
 *     keeps it open or mapped (its header tells it to let go); it counts for its tenant until then,
 *     and for nobody else.
 * H5  Whether somebody does, the kernel says: clients are given descriptors opened for reading, and
 *     no write lease is granted on a file that anybody but its owner has open. Where it cannot say
 *     (no /proc, no leases), a retired slab is not counted.
 */
#ifndef LARDER_STORAGE_HOST_H
#define LARDER_STORAGE_HOST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/record.h"
#include "base/slab.h"
#include "storage/policy.h"

#define HOST_NONE 0u

struct load;

enum host_slot_state {
    HOST_SLOT_FREE,
    HOST_SLOT_FILLING, /* reserved by a put, or being read from SSD */
    HOST_SLOT_READY,   /* what was wanted is published */
};

/* Layers first to end - 1 of a model. */
struct host_layers {
    uint16_t first;
    uint16_t end;
};
/* However many there are. */
#define HOST_LAYERS_ALL ((struct host_layers){.first = 0, .end = UINT16_MAX})

static inline bool host_layers_are_all(struct host_layers layers)
{
    return layers.first == 0 && layers.end == UINT16_MAX;
}

/* What the daemon knows of a slot; the shared half is struct larder_slot. */
struct host_slot {
    struct larder_slot *shared;
    struct load *load; /* filling it from SSD */
    uint32_t page;     /* of its slab */
    uint32_t pages;
    uint32_t entry; /* of the table; TABLE_NONE: dropped */
    uint32_t leases;
    uint32_t pins;             /* a put's reservation or write, a load */
    uint32_t next_free;        /* in its slab */
    struct host_layers layers; /* READY: what of the record is there */
    uint8_t state;
    uint8_t dropped;
    struct larder_policy_node node; /* of the host tier's policy */
};

struct host_slab;

struct host_tenant {
    uint32_t next_slab_id;
    uint32_t slab_count;
    uint32_t retired_count; /* that its clients keep */
};

struct host {
    struct host_slab **slabs; /* NULL: retired */
    uint32_t slab_end;
    uint64_t slab_bytes;
    uint64_t bytes_max;
    uint64_t bytes;            /* of slabs, and of those being made */
    struct host_slab *retired; /* that clients keep */
    uint32_t retired_count;
    uint64_t *next_generation;   /* the store's */
    struct host_tenant *tenants; /* LARDER_TENANTS_MAX */
};

int host_open(struct host *host, uint64_t bytes_max, uint64_t slab_bytes,
              uint64_t *next_generation);
void host_close(struct host *host);

/* The largest record that a slab can hold. */
uint64_t host_record_bytes_max(const struct host *host);

/* Takes a FILLING slot of `bytes`, pinned once. -EAGAIN: no room, but a slab may be added;
 * -ENOBUFS: no room until something is evicted. */
int host_take(struct host *host, uint32_t *out, uint32_t tenant, uint64_t bytes);
/* The record is smaller than what was taken: gives the pages behind it back. */
void host_shrink(struct host *host, uint32_t id, uint64_t bytes);
/* All its sections are published. */
void host_ready(struct host *host, uint32_t id);
/* Nobody finds it any more: frees it now, or when the last lease and pin go. */
void host_drop(struct host *host, uint32_t id);
void host_unpin(struct host *host, uint32_t id);
void host_unlease(struct host *host, uint32_t id);

struct host_slot *host_slot(const struct host *host, uint32_t id);
/* All of its record is there, and nothing more is being read: it is a copy to rely on. A slot that
 * is not was filled from SSD in part, so its entry has another copy there. */
bool host_slot_is_whole(const struct host_slot *slot);
struct larder_record *host_record(const struct host *host, uint32_t id);
uint32_t host_slot_tenant(const struct host *host, uint32_t id);
/* Slab id of its tenant, and number of the slot there, as clients name it. */
void host_address(const struct host *host, uint32_t id, uint32_t *slab_id, uint32_t *slot);
/* HOST_NONE for one that does not exist. */
uint32_t host_slot_at(const struct host *host, uint32_t tenant, uint32_t slab_id, uint32_t slot);
/* A new descriptor of that slab, for a client of its tenant. LARDER_ENOTFOUND. */
int host_slab_open(const struct host *host, int *out_fd, uint32_t tenant, uint32_t slab_id);

/* Adding a slab: begin (locked) reserves its bytes and id, -ENOBUFS when there is no budget; make
 * (unlocked); end (locked) takes it in, or with NULL gives the bytes back. */
int host_grow_begin(struct host *host, uint32_t tenant, uint32_t *out_slab_id);
int host_slab_make(struct host_slab **out, uint32_t tenant, uint32_t slab_id, uint64_t slab_bytes);
int host_grow_end(struct host *host, struct host_slab *slab);

/* Slab number `index` (below slab_end): its tenant and slots; false when it was retired. */
bool host_slab_slots(const struct host *host, uint32_t index, uint32_t *tenant, uint32_t *first,
                     uint32_t *count);
/* All its slots are free. */
void host_retire(struct host *host, uint32_t index);
/* Takes a slab of the tenant out, NULL when there is none; all its slots are free. */
struct host_slab *host_take_slab(struct host *host, uint32_t tenant);
/* Overwrites what was in one that was taken out. Unlocked: it takes long. */
void host_slab_wipe(struct host_slab *slab);
/* ... and it is retired. What it returns is to be freed: nobody keeps it. */
struct host_slab *host_give_up_slab(struct host *host, struct host_slab *slab);
/* One of the retired that nobody keeps any more, NULL: there is none. */
struct host_slab *host_take_released(struct host *host);
/* Unlocked: it takes long. */
void host_slab_free(struct host_slab *slab);

/* Tests: extents and slots of all slabs fit together; LARDER_ECORRUPT with a message. */
int host_check(const struct host *host);

#endif
