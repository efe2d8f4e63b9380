/* SPDX-License-Identifier: Apache-2.0 */
/* reading.h - what is on its way from SSD: loads of records into slots, the requests they are made
 * of, and leases that wait for them.
 *
 * Threads: a load is the storage thread's from the queue on, but for what is said to be under the
 *          store's lock; a lease is its caller's, under the lock.
 */
#ifndef LARDER_STORAGE_READING_H
#define LARDER_STORAGE_READING_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/host.h"
#include "storage/io.h"
#include "storage/seglog.h"
#include "storage/store.h"
#include "storage/writing.h"

/* A record being read, or some layers of it: into a slot, or into a buffer of its own to be
 * verified. */
struct load {
    struct completion completion; /* of a verification */
    struct larder_store *store;
    struct load *next;
    struct load *prev;
    uint32_t slot; /* HOST_NONE: verification */
    struct larder_slot *shared;
    void *buffer;
    struct segment *segment; /* found by the storage thread */
    struct lease_ref *waiters;
    struct larder_key key;
    struct entry_variant variant;
    uint8_t number;            /* of the variant */
    uint64_t bytes;            /* of the record */
    struct host_layers wanted; /* under the lock: grows while it runs */
    bool keep;                 /* under the lock: wanted ahead of time, whoever waits for it */
    /* The stage: what is read now, in bytes from the record's start. */
    uint64_t stage_from;
    uint64_t stage_end;
    uint64_t submitted;
    uint64_t reached; /* all before it, from stage_from on, arrived */
    uint32_t section_from;
    uint32_t section_next; /* to be verified; those before it, from section_from on, are good */
    uint32_t section_stop;
    /* Verified in all stages: those from section_first to section_end - 1. */
    uint32_t section_first;
    uint32_t section_end;
    uint32_t in_flight;
    uint64_t read_bytes;
    bool started;
    bool alone; /* not to be read together with others: that failed */
    bool head_good;
    bool dead; /* its record was dropped meanwhile: punch when done */
    int err;
    struct move *move; /* for which it is read */
    /* Of a verification. */
    larder_put_done done;
    void *context;
    uint32_t extends; /* a replaced tail is checked against this slot, pinned; HOST_NONE: no */
    uint32_t chunk_count;
    uint8_t arrived[]; /* a flag for each chunk of LARDER_IO_BYTES_MAX */
};

/* Records that lie side by side are read together when they are small: a copy costs less than a
 * request. At most so large, so many, and in so many requests at once. */
#define MERGE_RECORD_BYTES_MAX (256u << 10)
#define MERGE_RECORDS_MAX      64u
#define MERGES_IN_FLIGHT_MAX   16u

struct load_request {
    struct larder_io_request io;
    struct load_request *next;
    struct load *load;
    bool retried;
    void *merged; /* a buffer of LARDER_IO_BYTES_MAX: read for several loads; NULL: for one */
    uint32_t load_count; /* with `merged` */
    struct load *loads[MERGE_RECORDS_MAX];
};

struct lease_ref {
    struct larder_lease *lease;
    struct lease_ref *next; /* waiters of one load */
    uint32_t slot;
    bool waiting;
};

struct larder_lease {
    struct completion completion;
    struct larder_lease *next;
    struct larder_lease *prev;
    uint32_t count;
    uint32_t waiting;
    uint32_t loaded; /* leading refs that are good */
    int err;
    bool queued;   /* its completion is in the list */
    bool calling;  /* ... is being run */
    bool let_go;   /* the refs are not held any more */
    bool released; /* freed when not calling */
    bool own;      /* a purge waits for it */
    larder_lease_done done;
    void *context;
    struct lease_ref refs[];
};

#endif
