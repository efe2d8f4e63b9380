/* SPDX-License-Identifier: Apache-2.0 */
/* recover_priv.h - what the two ways to start share: with an index (recover_index.c) and without
 * one (rebuild.c). Both fill the table with entries that do not know their parents yet, link them,
 * drop what cannot be reached from a root, and bring the index up to date.
 * Threads: the one that opens the store; nothing else runs yet.
 */
#ifndef LARDER_STORAGE_RECOVER_PRIV_H
#define LARDER_STORAGE_RECOVER_PRIV_H

#include "storage/scan.h"
#include "storage/store_priv.h"

/* In the index while it is being made anew: segments that it does not know yet are not new ones. */
#define REBUILD_MARK UINT32_MAX

/* In place of a variant: the mark of the key. */
#define CHANGED_MARK (1ull << 32)

/* A record, or mark, that the index must learn or forget. */
struct changed_record {
    struct larder_key key;
    uint64_t variant; /* any u32 that an index may hold; or CHANGED_MARK */
};

/* A mark that was read, before all entries are known. */
struct recovered_mark {
    struct larder_key key;
    struct larder_mark_value value;
    uint32_t segment_id;
    bool in_index;
};

/* A record of a tail that came to a key which had one: marks of the key from `since` on are its own
 * too. */
struct carried_mark {
    uint64_t generation;
    uint64_t since;
};

struct recovery {
    struct larder_store *store;
    struct scan scan;
    struct larder_key **parents; /* by entry, in chunks as the table's */
    uint32_t parent_chunks;
    uint32_t last_linked;
    struct larder_key last_key; /* of the index, which is in order; the root's: none yet */
    struct changed_record *changed;
    uint32_t changed_count;
    uint32_t changed_capacity;
    struct recovered_mark *marks;
    uint32_t mark_count;
    uint32_t mark_capacity;
    struct carried_mark *carried;
    uint32_t carried_count;
    uint32_t carried_capacity;
    uint64_t generation; /* the highest seen */
    uint64_t dropped;    /* entries that could not be kept */
    bool doubled;        /* a key has two records of one name */
    bool rebuild_again;  /* the mark was met */
};

/* recover_record.c */
/* Tenant of that id; false when there is none. */
bool recovery_tenant(const struct recovery *recovery, const uint8_t id[16], uint16_t *out);
void recovery_variant(struct entry_variant *out, struct larder_store *store,
                      const struct larder_record *record);
/* The model that a model record describes; LARDER_ECORRUPT when it does not fit its fingerprint. */
int recovery_model(struct recovery *recovery, uint32_t *out, const struct larder_record *record);
/* What a tombstone says of a key. */
struct removed_key {
    struct larder_key key;
    uint64_t generation;
    uint16_t tenant; /* only an entry of this one is meant */
    bool all;        /* records of the key; else those of a number, or of a name: an older record of
                      * it that was evicted may have had another number */
    uint8_t number;
    struct variant_name name;
};
/* ... of each of its keys, which the caller sets; false when its tenant is not there any more. */
bool recovery_removed(struct recovery *recovery, struct removed_key *out,
                      const struct larder_record *record);
/* A record that is removed; TABLE_NONE when none, or no further one, is. */
uint32_t recovery_find_removed(const struct recovery *recovery, const struct removed_key *removed);
enum recovery_read {
    READ_HEAD,
    READ_WHOLE,
};
/* The record at *offset; LARDER_ECORRUPT when none stands there. Read whole, one that has a sound
 * head and a bad section is passed over, and taken out of the file. */
int recovery_next(struct recovery *recovery, const struct larder_record **out,
                  const struct segment *segment, uint64_t *offset, enum recovery_read how);

/* recover_mark.c */
int recovery_mark(struct recovery *recovery, const struct recovered_mark *mark);
/* Those of a record. */
int recovery_marks(struct recovery *recovery, const struct larder_record *record);
/* What is put to a key that has a mark has that written again, before it. Power loss may keep the
 * one, which nobody was told of, and not the other: the marks of the generations from `since` on,
 * which were acknowledged, hold for the record of this one too. */
int recovery_carry_marks(struct recovery *recovery, uint64_t generation, uint64_t since);
/* All entries are known: gives them their marks, and has the index learn or forget what it must. */
int recovery_set_marks(struct recovery *recovery);

/* recover_link.c */
/* What a record says of its entry, all variants of which must agree. */
struct recovered_entry {
    struct larder_key key;
    struct larder_key parent;
    uint16_t tenant;
    uint16_t model;
    uint16_t token_count;
    uint32_t variant;
    bool is_first; /* nothing of this key was added before: it need not be looked for */
};
/* Adds an unlinked entry, or a further variant of one; TABLE_NONE in *out when it cannot be one. */
int recovery_add(struct recovery *recovery, uint32_t *out, const struct recovered_entry *found);
/* Takes an unlinked record out of the table; another of its key leads then, if there is one. */
void recovery_forget(struct recovery *recovery, uint32_t entry);
/* The same with all variants of its key. */
void recovery_forget_key(struct recovery *recovery, uint32_t primary);
/* Links all, and drops what has no way to a root. */
int recovery_link(struct recovery *recovery);
void recovery_free_parents(struct recovery *recovery);
/* Of linked entries: its record holds. */
void recovery_make_durable(struct larder_store *store, uint32_t entry);
/* Its space is given back when the index has forgotten it. */
void recovery_extent_dead(struct larder_store *store, const struct entry_variant *variant);
int recovery_drop_subtree(struct recovery *recovery, uint32_t top);
/* One record of a key alone: another carries the chain then, if there is one. */
int recovery_drop_record(struct recovery *recovery, uint32_t entry);
/* Of two records of a key that have one name the newer holds: the older was evicted, or lost with
 * its chain, before that was put under another number. */
int recovery_drop_doubles(struct recovery *recovery, uint32_t primary);

/* recover_index.c */
/* Fills the table from the store's index, and links it. LARDER_ECORRUPT: it is to be made anew. */
int recovery_load_index(struct recovery *recovery);
/* The index must learn or forget it. */
int recovery_changed(struct recovery *recovery, const struct larder_key *key, uint64_t variant);
/* Writes all that changed, rows of all segments last. */
int recovery_commit(struct recovery *recovery);

/* recover_tail.c */
/* Takes what was written behind the newest segment's committed bytes into the table, and writes
 * nothing. */
int recovery_read_tail(struct recovery *recovery);
/* The same, and cuts what is given up, of all segments; *changed: there was a tail, good or bad. */
int recovery_take_tails(struct recovery *recovery, bool *changed);

/* rebuild.c */
int rebuild_table(struct recovery *recovery);

/* recover.c */
/* What a recovery holds; the store stays. */
int recovery_begin(struct recovery *recovery, struct larder_store *store);
void recovery_end(struct recovery *recovery);

#endif
