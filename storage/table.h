/* SPDX-License-Identifier: Apache-2.0 */
/* table.h - every entry of the store, in memory: found by key, linked into chains, ordered by use.
 *
 * Compact on purpose (a million entries must start in a second and take under 200 bytes each):
 * entries are named by 32-bit ids instead of pointers, live in chunks that never move, and hold
 * small indices for what many share. Ids are reused; whoever keeps one across an unlock keeps the
 * entry from being removed (PUTTING, DOOMED, a slot) or looks again by key.
 *
 * Threads: none of its own; all of it under the store's lock.
 * T1  Every entry but a root has a parent; children list and parent agree.
 * T2  Durable entries, and only they, are in the SSD's LRU list.
 * T3  A durable entry's parent is durable, or a root.
 */
#ifndef LARDER_STORAGE_TABLE_H
#define LARDER_STORAGE_TABLE_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"

#define TABLE_NONE          0u
#define TABLE_CHUNK_ENTRIES 4096u

enum entry_flag {
    ENTRY_USED = 1 << 0,
    ENTRY_ROOT = 1 << 1,    /* of a tenant: parent of its first blocks; not in the hash */
    ENTRY_VISIBLE = 1 << 2, /* may be found; before that only its put knows it */
    ENTRY_DURABLE = 1 << 3, /* the index names it */
    ENTRY_PUTTING = 1 << 4, /* a put is reserved, queued or being written */
    ENTRY_DOOMED = 1 << 5,  /* its removal is under way: nobody finds it any more */
    ENTRY_WATCHED = 1 << 6, /* a larder_store_when() waits for it */
    ENTRY_GROUPED = 1 << 7, /* its put is in a group that is being written */
};

/* What differs from one record of a key to the next. */
struct entry_variant {
    uint64_t generation;
    uint64_t created_s;
    uint64_t position;
    uint32_t raw_bytes;
    uint32_t record_pages;
    uint32_t head_bytes;
    uint32_t segment_id; /* 0: not on SSD */
    uint32_t segment_page;
    uint16_t recipe; /* of table_recipe() */
    uint8_t quality;
    uint8_t computed_on;
};

struct entry {
    struct larder_key key;
    struct entry_variant variant;
    uint32_t parent;
    uint32_t first_child; /* short blocks come first, so that tails are found without a long walk */
    uint32_t last_child;
    uint32_t next_sibling;
    uint32_t prev_sibling;
    uint32_t next_hash; /* in the hash chain, or in the list of free entries */
    uint32_t newer;     /* in the SSD's LRU list */
    uint32_t older;
    uint32_t slot; /* of the host tier; 0: none */
    uint32_t depth;
    uint32_t child_count;
    uint32_t uses;
    uint16_t token_count;
    uint16_t tenant;
    uint16_t model;
    uint16_t flags;
    uint8_t pending_quality; /* of the put, while PUTTING */
};
static_assert(sizeof(struct entry) <= 144, "a million entries are to stay small");

struct table {
    struct entry **chunks;
    uint32_t *buckets;
    uint32_t bucket_count; /* power of two */
    uint32_t chunk_count;
    uint32_t entry_end; /* ids from here on were never used */
    uint32_t free_first;
    uint32_t count; /* in the hash */
    uint32_t ssd_newest;
    uint32_t ssd_oldest;
    uint64_t hash_seed; /* random: clients may choose keys */
    char **recipes;
    uint32_t recipe_count;
    uint16_t *recipe_buckets;
};

int table_open(struct table *table);
void table_close(struct table *table);

static inline struct entry *table_entry(const struct table *table, uint32_t id)
{
    return &table->chunks[id / TABLE_CHUNK_ENTRIES][id % TABLE_CHUNK_ENTRIES];
}

/* So many entries will come: saves growing in steps. */
void table_expect(struct table *table, uint64_t count);
/* A find of this key comes soon. */
void table_prefetch(const struct table *table, const struct larder_key *key);

/* TABLE_NONE when there is none. */
uint32_t table_find(const struct table *table, const struct larder_key *key);

/* A tenant's root; TABLE_NONE without memory. */
uint32_t table_add_root(struct table *table, uint16_t tenant);
/* An entry that is not there yet, of its parent's tenant; TABLE_NONE without memory. */
uint32_t table_add(struct table *table, const struct larder_key *key, uint32_t parent,
                   uint16_t token_count);
/* For loading: without a parent; table_link() follows, or table_remove(). */
uint32_t table_add_unlinked(struct table *table, const struct larder_key *key, uint16_t tenant,
                            uint16_t token_count);
void table_link(struct table *table, uint32_t id, uint32_t parent);
/* It has no children and is in no LRU list. */
void table_remove(struct table *table, uint32_t id);

/* The next entry below `top` in an order that names parents before children; `id` starts as `top`.
 * TABLE_NONE at the end. */
uint32_t table_next_below(const struct table *table, uint32_t id, uint32_t top);

void table_ssd_insert(struct table *table, uint32_t id);
void table_ssd_remove(struct table *table, uint32_t id);
void table_ssd_touch(struct table *table, uint32_t id);

/* Small index of a recipe's text, cut to 63 bytes: it is for people. Never fails: a text beyond the
 * 1,024th is "(other)". */
uint16_t table_recipe(struct table *table, const char *text, uint32_t bytes);
const char *table_recipe_text(const struct table *table, uint16_t recipe);

/* Tests: checks T1 to T3 and the lists; LARDER_ECORRUPT with a message. */
int table_check(const struct table *table);

#endif
