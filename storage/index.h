/* SPDX-License-Identifier: Apache-2.0 */
/* index.h - the durable index: LMDB under DIR/index. What is in it was synced in a segment before.
 * It is read once, at start, into the store's table; from then on it is only written, some time
 * after the segments, in transactions of many entries. LMDB has no checksums, so every value
 * carries one over key and value (XXH3-64), checked when read.
 *
 * Threads: the one that opens the store, then only the keeper (keeper.h).
 */
#ifndef LARDER_STORAGE_INDEX_H
#define LARDER_STORAGE_INDEX_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "base/record.h"

struct larder_index;

/* Value of database "entries"; its key is key (32) | variant (u32 LE). */
struct index_entry {
    uint8_t parent[32];      /* 000-031 */
    uint8_t tenant[16];      /* 032-047 */
    uint8_t model[32];       /* 048-079 */
    uint64_t generation;     /* 080-087 */
    uint64_t record_bytes;   /* 088-095 */
    uint64_t raw_bytes;      /* 096-103 */
    uint64_t created_s;      /* 104-111 */
    uint64_t position;       /* 112-119 */
    uint64_t profile;        /* 120-127  the first 8 bytes of its name; 0: none */
    uint32_t segment_id;     /* 128-131 */
    uint32_t segment_page;   /* 132-135 */
    uint32_t token_count;    /* 136-139 */
    uint32_t head_bytes;     /* 140-143 */
    uint8_t quality;         /* 144 */
    uint8_t computed_on;     /* 145 */
    uint16_t computed_on_kl; /* 146-147 as in the record */
    uint8_t reserved[4];     /* 148-151  0 */
    char recipe[32];         /* 152-183  longer ones: 23 bytes, '~', 8 digits of a hash; the
                                        record has it whole */
    uint64_t check;          /* 184-191  XXH3-64 over key and the bytes before it */
};
static_assert(sizeof(struct index_entry) == 192, "on-disk size");

/* Value of database "segments"; its key is the segment's id (u32 LE). */
struct index_segment {
    uint64_t committed_bytes; /* 00-07  everything below is named by the index or dead */
    uint64_t tombstone_bytes; /* 08-15  of tombstones and marks: keep it while older ones live */
    uint64_t check;           /* 16-23 */
};
static_assert(sizeof(struct index_segment) == 24, "on-disk size");

/* Value of database "marks"; its key is the entry's key (32). */
struct index_mark {
    struct larder_mark_value value; /* 00-55 */
    uint32_t segment_id;            /* 56-59  where its record stands */
    uint32_t reserved;              /* 60-63  0 */
    uint64_t check;                 /* 64-71 */
};
static_assert(sizeof(struct index_mark) == 72, "on-disk size");

/* What the index is told at load, in no particular order; a negative value stops the load. */
struct index_visitor {
    void *context;
    int (*entry)(void *context, const struct larder_key *key, uint32_t variant,
                 const struct index_entry *entry);
    int (*segment)(void *context, uint32_t segment_id, const struct index_segment *segment);
    int (*mark)(void *context, const struct larder_key *key, const struct index_mark *mark);
    int (*model)(void *context, const struct larder_key *fingerprint,
                 const struct larder_model_desc *desc);
    /* May be NULL: the entry of this key comes next, after the one that comes now. */
    void (*soon)(void *context, const struct larder_key *key);
};

/* Opens or creates. Any sign of damage (a bad check, a bad LMDB page, a truncated file, a crash of
 * the probe: LMDB can SIGBUS or SIGSEGV on damaged files, so a child process walks it first) gives
 * LARDER_ECORRUPT: the caller calls larder_index_destroy(), opens again and rebuilds from segments.
 * `path` is the directory DIR/index; *created tells that there was none, or none that ever had a
 * commit: then too the segments, if there are any, are to be read. Forks: call it before threads
 * exist where that can be arranged. */
int larder_index_open(struct larder_index **out, const char *path, bool *created);
/* To look and load only: not a byte changes. -ENOENT when there is no index, or none that ever had
 * a commit; LARDER_ECORRUPT. Forks, too. */
int larder_index_open_to_read(struct larder_index **out, const char *path);
void larder_index_close(struct larder_index *index);
/* Removes the files under `path`; keeps what it removes as `path`.bad (one older copy at most). */
int larder_index_destroy(const char *path);

/* About how many entries a load will name; a hint. */
uint64_t larder_index_entry_count(struct larder_index *index);
int larder_index_load(struct larder_index *index, const struct index_visitor *visitor,
                      uint64_t *next_generation);

/* One transaction at a time. Puts and deletes between begin and commit become durable together or
 * not at all. After a failed commit or sync the index refuses everything (-EIO): no retry.
 * Begin reserves room for 8 MiB of pages, 500 or more puts at random places: -ENOSPC there means a
 * full disk and changes nothing. A put, delete or commit that gives -EAGAIN found the map full:
 * abort, begin again (the map is larger then), and do the same once more. Deleting what is not
 * there is no error. The caller aborts after any other failure of a put or delete; a failed commit
 * has ended the transaction itself. */
int larder_index_begin(struct larder_index *index);
/* The same for so many changes: on a full disk what was reserved before may do for them. */
int larder_index_begin_few(struct larder_index *index, uint32_t changes);
/* Makes sure of the same room without a transaction. */
int larder_index_reserve(struct larder_index *index);
int larder_index_put_entry(struct larder_index *index, const struct larder_key *key,
                           uint32_t variant, struct index_entry *entry);
int larder_index_delete_entry(struct larder_index *index, const struct larder_key *key,
                              uint32_t variant);
int larder_index_put_mark(struct larder_index *index, const struct larder_key *key,
                          struct index_mark *mark);
int larder_index_delete_mark(struct larder_index *index, const struct larder_key *key);
int larder_index_put_segment(struct larder_index *index, uint32_t segment_id,
                             struct index_segment *segment);
int larder_index_delete_segment(struct larder_index *index, uint32_t segment_id);
int larder_index_put_model(struct larder_index *index, const struct larder_key *fingerprint,
                           const struct larder_model_desc *desc);
/* Also stores the generation the next start may begin above. */
int larder_index_commit(struct larder_index *index, uint64_t next_generation);
void larder_index_abort(struct larder_index *index);

/* Tests: called before each commit; a non-zero answer makes the commit fail with it, before
 * anything is written (the simulated machine has stopped). */
void larder_index_set_gate(struct larder_index *index, int (*gate)(void *context), void *context);
/* Tests: maps larger than this are not tried by the next open; 0: the usual 1 TiB. */
void larder_index_set_map_limit(uint64_t bytes);

#endif
