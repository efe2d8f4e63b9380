/* SPDX-License-Identifier: Apache-2.0 */
/* table.h - every entry of the store, in memory: found by key, linked into chains. Which of them
 * goes first is for the policies (policy.h), which keep their notes in the entries.
 *
 * Compact on purpose (a million entries must start in a second and take under 200 bytes each):
 * entries are named by 32-bit ids instead of pointers, live in chunks that never move, and hold
 * small indices for what many share. Ids are reused; whoever keeps one across an unlock keeps the
 * entry from being removed (PUTTING, DOOMED, a slot) or looks again by key.
 *
 * Threads: none of its own; all of it under the store's lock.
 * T1  Every entry but a root has a parent; children list and parent agree.
 * T2  A durable entry's parent is durable, or a root.
 * T3  A key's entry in the hash is its primary: it carries the chain. Further variants of the key
 *     are entries too, with a record and a slot of their own, linked in front of the primary's
 *     other children; they have no children and are not in the hash. Outside of a put the primary
 *     holds the best record.
 */
#ifndef LARDER_STORAGE_TABLE_H
#define LARDER_STORAGE_TABLE_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/larder_base.h"
#include "base/limits.h"
#include "storage/policy.h"

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
    ENTRY_VARIANT = 1 << 8, /* a further variant of its parent's key */
    ENTRY_VARIED = 1 << 9,  /* has such */
    ENTRY_MARKED = 1 << 10, /* it has a mark (mark.h) */
    ENTRY_HELD = 1 << 11,   /* pinned, or an ancestor of what is: it must stay */
};

/* What differs from one record of a key to the next. Packed: an entry is to stay small. */
struct __attribute__((packed, aligned(4))) entry_variant {
    uint64_t generation;
    uint32_t created_s; /* these two as table_narrow() has them: larger ones mean nothing */
    uint32_t position;
    uint32_t raw_bytes;
    uint32_t record_pages;
    uint32_t head_bytes;
    uint32_t segment_id; /* 0: not on SSD */
    uint32_t segment_page;
    uint16_t recipe; /* of table_recipe() */
    uint8_t quality;
    uint8_t computed_on;
    uint16_t computed_on_kl; /* larder_computed_on_kl() */
};

static inline uint32_t table_narrow(uint64_t number)
{
    return number < UINT32_MAX ? (uint32_t)number : UINT32_MAX;
}

struct entry {
    struct larder_key key;
    struct entry_variant variant;
    uint32_t parent;
    uint32_t first_child; /* short blocks come first, so that tails are found without a long walk */
    uint32_t last_child;
    uint32_t next_sibling;
    uint32_t prev_sibling;
    uint32_t next_hash; /* in the hash chain, or in the list of free entries */
    uint32_t slot;      /* of the host tier; 0: none */
    uint32_t depth;
    uint32_t child_count;
    uint32_t uses;
    uint32_t used_s;        /* last, by the clock of tiers.c */
    uint32_t host_children; /* in the host tier, and on SSD; the policies count */
    uint32_t ssd_children;
    struct larder_policy_node ssd_node;
    uint16_t token_count;
    uint16_t tenant;
    uint16_t model;
    uint16_t flags;
    uint8_t pending_quality; /* of the put, while PUTTING */
    uint8_t number;          /* of this variant of its key, in its record and in the index */
};
static_assert(sizeof(struct entry) <= 156, "a million entries are to stay small");

/* How records were encoded. */
struct recipe_name {
    char *text;
    uint64_t profile; /* the first 8 bytes of its name; 0: none */
};

struct table {
    struct entry **chunks;
    uint32_t *buckets;
    uint32_t bucket_count; /* power of two */
    uint32_t chunk_count;
    uint32_t entry_end; /* ids from here on were never used */
    uint32_t free_first;
    uint32_t count;     /* in the hash */
    uint64_t hash_seed; /* random: clients may choose keys */
    struct recipe_name *recipes;
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

/* So does a look at all of this entry. */
void table_prefetch_entry(const struct table *table, uint32_t id);

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
/* It has no children, is not durable, and no policy has it. */
void table_remove(struct table *table, uint32_t id);

/* A further variant of the primary's key, with the lowest number that is free; TABLE_NONE without
 * memory. There are fewer than LARDER_VARIANTS_MAX. */
uint32_t table_add_variant(struct table *table, uint32_t primary);
/* The same with a number that none of them has; for loading: the primary may be unlinked yet. */
uint32_t table_add_variant_as(struct table *table, uint32_t primary, uint8_t number);
/* Variants of a key one after the other, its primary first. TABLE_NONE at the end. */
uint32_t table_next_variant(const struct table *table, uint32_t id);
uint32_t table_variant_count(const struct table *table, uint32_t primary);
/* That number of a key; TABLE_NONE when there is none. */
uint32_t table_find_variant(const struct table *table, const struct larder_key *key,
                            uint32_t number);
/* The two exchange their records: what `variant` and `number` say, the slot, the uses and the
 * last. The caller sees to it that their flags agree, and that the slots learn of it. */
void table_swap_records(struct table *table, uint32_t primary, uint32_t other);
/* Whether the record of `a` is better than that of `b`: less was lost, then newer. */
bool table_is_better(const struct entry *a, const struct entry *b);

/* Which child goes before the entry: a variant if it has any, the worst of them. */
uint32_t table_first_to_go(const struct table *table, uint32_t id);

/* The entry that carries the chain: itself, or that of whose key it is a variant. */
static inline uint32_t table_primary(const struct table *table, uint32_t id)
{
    const struct entry *entry = table_entry(table, id);
    return entry->flags & ENTRY_VARIANT ? entry->parent : id;
}

/* What stands before it in its chain. */
static inline uint32_t table_above(const struct table *table, uint32_t id)
{
    return table_entry(table, table_primary(table, id))->parent;
}

/* Blocks behind it, variants of itself left out. */
static inline uint32_t table_block_count(const struct table *table, uint32_t id)
{
    return table_entry(table, id)->child_count - (table_variant_count(table, id) - 1);
}

/* The next entry below `top` in an order that names parents before children; `id` starts as `top`.
 * TABLE_NONE at the end. */
uint32_t table_next_below(const struct table *table, uint32_t id, uint32_t top);

/* Small index of a recipe's text and profile (the first 8 bytes of its name; 0: none). A text that
 * is longer than TABLE_RECIPE_BYTES ends in a hash of the whole instead, so that texts which differ
 * stay apart in the index too. Never fails: what is beyond the TABLE_RECIPES_MAX-th is 0, "(other)"
 * without a profile. */
#define TABLE_RECIPE_BYTES 32u
#define TABLE_RECIPES_MAX  4096u
/* Beyond those, of what an owner measured: tenants cannot use them up. */
#define TABLE_MEASURED_MAX (LARDER_MEASURES_MAX + 16u)
uint16_t table_recipe(struct table *table, const char *text, uint32_t bytes, uint64_t profile);
/* The text, or what stands for a longer one. */
void table_recipe_name(char out[TABLE_RECIPE_BYTES + 1], const char *text, uint32_t bytes);
/* The same for what was measured: 0 beyond TABLE_MEASURED_MAX more. */
uint16_t table_recipe_measured(struct table *table, const char *text, uint32_t bytes,
                               uint64_t profile);
const char *table_recipe_text(const struct table *table, uint16_t recipe);
uint64_t table_recipe_profile(const struct table *table, uint16_t recipe);

/* Tests: checks T1 and T2; LARDER_ECORRUPT with a message. */
int table_check(const struct table *table);

#endif
