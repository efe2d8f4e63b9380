/* SPDX-License-Identifier: Apache-2.0 */
/* slab.h - a slab of the host tier as daemon and clients see it.
 *
 * A slab is one memfd of fixed size that belongs to one tenant: the daemon maps it writable before
 * sealing it, clients map it read-only. It starts with a slot table; the rest is data. A slot is a
 * run of whole pages that holds one record (base/record.h).
 *
 *   page 0:      struct larder_slab
 *   from page 1: struct larder_slot[slot_count]
 *   data_offset: data, 4096-aligned
 *
 * A reader uses a slot so (generation as told by the daemon's answer):
 *   1. load generation (acquire); other than told -> stale
 *   2. load published_sections (acquire), then first_section (acquire): with the first not 0, the
 *      sections from the second to before the first are verified and may be read, and so may the
 *      head. The first only rises; the second falls once the sections it passes are there.
 *   3. read and decode
 *   4. fence (acquire), load generation again; other than told -> what was read is void
 * The daemon raises `generation` (release) before it uses the memory of a slot for anything else.
 */
#ifndef LARDER_BASE_SLAB_H
#define LARDER_BASE_SLAB_H

#include <stdatomic.h>

#include "base/limits.h"

#define LARDER_SLAB_MAGIC 0x3142414c5344524cull /* "LRDSLAB1" */

struct larder_slab {
    uint64_t magic;       /* 00-07 */
    uint64_t slab_bytes;  /* 08-15 */
    uint64_t data_offset; /* 16-23 */
    uint32_t slab_id;     /* 24-27  of its tenant; never reused while the daemon lives */
    uint32_t slot_count;  /* 28-31 */
    /* 32-35  not 0: the daemon has let go of the slab, and its memory comes back when every client
     * has unmapped it. Set once, with release, after the generations of all slots rose. */
    _Atomic uint32_t retired;
    uint8_t reserved[28]; /* 36-63  0 */
};
static_assert(sizeof(struct larder_slab) == 64, "shared layout");

struct larder_slot {
    _Atomic uint64_t generation;         /* 00-07  never the same for two contents */
    _Atomic uint32_t published_sections; /* 08-11  sections before it, from first_section on, are
                                                   whole and verified; 0: none yet */
    _Atomic int32_t failed;              /* 12-15  0, or why no more sections will be published */
    uint64_t offset;                     /* 16-23  of the record, from the slab's start */
    uint64_t record_bytes;               /* 24-31 */
    _Atomic uint32_t first_section;      /* 32-35  those before it are not there (yet) */
    uint8_t reserved[28];                /* 36-63  0: a slot fills a cache line */
};
static_assert(sizeof(struct larder_slot) == 64, "shared layout");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "slots are read by other processes");

#endif
