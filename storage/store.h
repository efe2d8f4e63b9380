/* SPDX-License-Identifier: Apache-2.0 */
/* store.h - the store: entries of all tenants in a host tier (slabs) and an SSD tier (segments),
 * found through an index. Knows records and keys; no codec and no socket.
 *
 * Owns:    DIR/segments, DIR/index, DIR/tenants, DIR/format, the lock on DIR, all slabs.
 * Threads: every function may be called from any thread unless it says otherwise; callbacks run on
 *          the storage thread, must be short, and may call functions of this header that do not
 *          wait (all but larder_store_open, _close, _verify).
 * I1  The index names only bytes whose write completed and was synced.
 * I2  A slot's bytes never change between publication and the rise of its generation, but for the
 *     record's place and tags, which are filled in when it is written to SSD.
 * I3  Every entry's parent is stored too, in one tier or the other (chains have no holes).
 * I4  After a failed sync nothing is acknowledged durable and nothing more is written.
 */
#ifndef LARDER_STORAGE_STORE_H
#define LARDER_STORAGE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/event.h"
#include "base/larder_base.h"
#include "base/limits.h"
#include "base/record.h"
#include "storage/clock.h"

struct larder_store;
struct larder_io;

struct larder_store_options {
    const char *directory; /* created (0700) if missing; its parent must exist */
    const char *io;        /* "auto", "uring", "threads" */
    uint32_t io_depth;     /* requests in flight; 0: 64 */
    uint64_t host_bytes;   /* of all slabs of all tenants; 0 in any of these: default of limits.h */
    uint64_t ssd_bytes;    /* of all segment files */
    /* Percent of ssd_bytes: above the one, entries go until use is below the other, so that a put
     * finds room when it comes; ssd_low is less than ssd_high. Use counts the segment that is
     * written and the one behind it whole. Of a store of less than 16 segments, or where the file
     * system punches no holes, entries go only when a segment is wanted. */
    uint32_t ssd_high;
    uint32_t ssd_low;
    uint64_t slab_bytes;
    uint64_t segment_bytes;
    /* Tests: a backend to use (and to own) instead of opening one on DIR/segments. */
    struct larder_io *io_override;
    /* Tests: see larder_index_set_gate(). */
    int (*index_gate)(void *context);
    void *index_gate_context;
    /* Tests: clocks to read instead of the system's (storage/clock.h). */
    larder_clock_read clock;
    void *clock_context;
    /* Refuse to create a store where there is none. */
    bool must_exist;
    /* Which entry of a full tier goes first: "value" (NULL), "lru" or "fifo" (docs/EVICTION.md). */
    const char *eviction;
    /* All that is put goes to SSD, whatever it is worth. */
    bool admits_all;
    /* Tests: how often what was learned is saved; 0: every five minutes, and at close. */
    uint32_t save_ms;
    /* Tests: the time by which entries age, instead of the system's. */
    uint64_t (*now_ms)(void *context);
    void *now_ms_context;
    /* The key that an encrypted store's keys are wrapped with; NULL: a plain store. A store is
     * encrypted from its making or never: LARDER_ECONFIG when this does not fit (docs/FORMAT.md,
     * "Encryption"). */
    const char *key_file;
};

/* Creates or opens; recovers; starts the storage thread. LARDER_ELOCKED when another process has
 * it, LARDER_EVERSION (nothing touched) when another release made it. */
int larder_store_open(struct larder_store **out, const struct larder_store_options *options);
/* Writes out what is queued, then stops. Leases of holders that still exist are void. */
void larder_store_close(struct larder_store *store);
/* Wraps the keys of an encrypted store that nobody has open with the key of another file: its
 * records stay as they are. */
int larder_store_rewrap(const char *directory, const char *key_file, const char *new_key_file);

/* --- tenants and models ---------------------------------------------------------------------- */

struct larder_tenant_info {
    uint32_t index; /* handle in this process */
    char name[LARDER_TENANT_NAME_MAX];
    uint8_t id[16];  /* random, in records */
    uint8_t key[32]; /* random, in keys: tenants cannot hit each other's entries */
};

/* The tenant of that name, created (durably) when it first appears. */
int larder_store_tenant(struct larder_store *store, struct larder_tenant_info *out,
                        const char *name);
/* index = 0, 1, ...; LARDER_ENOTFOUND at the end. */
int larder_store_tenant_at(struct larder_store *store, struct larder_tenant_info *out,
                           uint32_t index);

/* What a tenant may have; 0: as much as there is. `host_bytes` counts its slabs, of which it may
 * always have one; a lower one than it has takes effect as others take its slabs. */
struct larder_quota {
    uint64_t ssd_bytes;
    uint64_t host_bytes;
};
void larder_store_set_quota(struct larder_store *store, uint32_t tenant,
                            const struct larder_quota *quota);

/* True when a tenant found no room in the host tier for want of a slab that another, which has more
 * than its fair share, keeps by its leases: *from. Its oldest leases should be revoked then. */
bool larder_store_starving(struct larder_store *store, uint32_t *from);

/* Frees a retired slab that no client keeps any more; false when there is none. To be called now
 * and then: a tenant whose clients keep too many gets no further ones. */
bool larder_store_free_retired(struct larder_store *store);

/* Gives the tenant its first slab, if memory is free for one, so that its first PUT or GET does not
 * wait for that. Takes tens of milliseconds: not for a thread that serves others. */
void larder_store_prepare(struct larder_store *store, uint32_t tenant);

/* Removes all that the tenant has, finally: its id and keys are replaced, so that nothing of what
 * it stored is its own, or can be read, any more, in whatever old file it may still stand. Its
 * leases are revoked; its puts and reads fail while this goes on. *removed counts entries. Waits,
 * for the disk and for puts that are reserved: not on a thread that ends those. 0: it is durable.
 * An error: nothing was purged. LARDER_ENOTFOUND, LARDER_EREADONLY, -EBUSY when it goes on. */
int larder_store_purge(struct larder_store *store, uint32_t tenant, uint64_t *removed);

struct larder_model_info {
    uint32_t index; /* handle in this process */
    struct larder_key fingerprint;
    struct larder_model_desc desc;
};

/* Checks and registers a model (durably with the next commit of the index), and holds it until it
 * is released as often. When LARDER_MODELS_MAX are known, one of which nothing is stored and that
 * nobody holds gives way; LARDER_ELIMIT when there is none. */
int larder_store_model(struct larder_store *store, struct larder_model_info *out,
                       const struct larder_model_desc *desc);
void larder_store_model_release(struct larder_store *store, uint32_t index);
int larder_store_model_at(struct larder_store *store, struct larder_model_info *out,
                          uint32_t index);

/* --- lookup: no side effects ----------------------------------------------------------------- */

struct larder_tail {
    struct larder_key key;
    uint32_t token_count;
    uint32_t reserved; /* 0 */
};

struct larder_match {
    uint32_t count;      /* leading keys that are stored at the wanted quality or better */
    uint32_t quality;    /* worst among them: enum larder_quality */
    float kl;            /* worst of theirs, as measured; 0: all exact; infinity: not measured */
    uint64_t bytes;      /* stored bytes of them */
    uint64_t bytes_host; /* of those in the host tier */
    uint64_t tokens;     /* in them */
    uint32_t tail_count; /* stored children of the last match that hold fewer tokens than */
    struct larder_tail tails[LARDER_TAILS_MAX]; /* `block_tokens`; longest first */
};

/* What a reader asks for. */
struct larder_want {
    uint32_t tenant;
    const struct larder_key *keys; /* a chain: key i + 1's parent is key i */
    uint32_t key_count;            /* at most LARDER_REQUEST_KEYS_MAX */
    /* Records of this quality or better are accepted (enum larder_quality, perhaps with
     * LARDER_QUALITY_SMALLEST), and those whose measured KL is at most max_kl, what they were
     * computed on included (larder_store_set_kl). */
    uint32_t worst;
    float max_kl; /* 0: by quality alone */
    /* of leases and prefetches */
    uint32_t layer_first; /* only sections of these layers are read from SSD */
    uint32_t layer_count; /* 0: all from layer_first on */
    bool now;             /* -EAGAIN instead of waiting for a slab to be made */
    /* An operator looks: of the one key the variant of that number, whatever its quality. It counts
     * as no use. */
    bool peek;
    uint32_t variant;
    /* The reader is of this process and ends soon: a purge waits for it, and does not take the
     * memory from under it. */
    bool own;
};

/* `parent` is key 0's: larder_key_root, or the key of some block. Its tails are named when no key
 * matches. */
int larder_store_lookup(struct larder_store *store, struct larder_match *out,
                        const struct larder_want *want, const struct larder_key *parent,
                        uint32_t block_tokens);

/* --- get: leases on slots -------------------------------------------------------------------- */

struct larder_ref {
    uint32_t slab_id; /* of the tenant */
    uint32_t slot;
    uint64_t generation;
};

/* The leading run of `keys` held in the host tier by a lease, or on its way there. */
struct larder_lease;

/* Called once when every ref of the lease is published or has failed: `loaded` leading refs are
 * good; `err` says why the next one is not (0 when all are). A corrupt record is counted, dropped
 * with its subtree, and ends the run. */
typedef void (*larder_lease_done)(void *context, uint32_t loaded, int err);

/* Holds the longest leading run of `keys` that is stored and fits the host tier now; starts reading
 * what is only on SSD. refs[] gets up to key_count entries; *ref_count may be less than what a
 * lookup names when the host tier is full of leases: come again for the rest. With *ref_count 0,
 * *out is NULL and `done` is not called: 0 when nothing matched, -EBUSY when nothing fits now,
 * LARDER_EFULL when the first to be read is larger than a slab.
 * When everything is in the host tier already, *ready is true and `done` is not called.
 *
 * Of a slot that was filled with other layers before, those between are read too: what it holds is
 * one run. "Good" in `loaded` is said of the layers asked for. */
int larder_store_lease(struct larder_store *store, struct larder_lease **out,
                       struct larder_ref *refs, uint32_t *ref_count, bool *ready,
                       const struct larder_want *want, larder_lease_done done, void *context);
/* Starts reading what a lease would have to wait for, as much as fits, and holds nothing: a lease
 * that comes soon finds it there, or on its way. *entry_count: leading keys that are then so.
 * Errors as for a lease; no room is none. */
int larder_store_prefetch(struct larder_store *store, uint32_t *entry_count,
                          const struct larder_want *want);
/* Ends it, loaded or not; what only it wanted is not read any further. `done` is not called after
 * this returns, except from a storage thread that is in it already. */
void larder_store_release(struct larder_store *store, struct larder_lease *lease);
/* As if released, by force: the holder did not let go in time. The refs' generations rise as soon
 * as the memory is wanted; the handle stays valid until larder_store_release(). */
void larder_store_revoke(struct larder_store *store, struct larder_lease *lease);

/* A new descriptor of a slab's memfd, sealed, for sending to a client of its tenant: the caller
 * closes it. LARDER_ENOTFOUND when there is none. */
int larder_store_slab_fd(struct larder_store *store, int *out_fd, uint64_t *out_bytes,
                         uint32_t tenant, uint32_t slab_id);
/* The record behind a ref, for users inside the daemon; valid while the lease holds. */
const struct larder_record *larder_store_ref_record(struct larder_store *store, uint32_t tenant,
                                                    const struct larder_ref *ref);

/* --- what recipes cost ------------------------------------------------------------------------ */

/* The logits' KL, nats a token, that was measured with a recipe and a profile (NULL: none) on a
 * model (`fingerprint` NULL: on every model), for whoever asks with max_kl from now on. Infinity:
 * not known any more. Nothing of this is stored. LARDER_ELIMIT, -ENOMEM. */
int larder_store_set_kl(struct larder_store *store, const struct larder_key *fingerprint,
                        const char *recipe, const uint8_t *profile, float kl);
/* Records that need this profile, those on their way included, and those of recipes that the store
 * has too many of to remember what they need. Walks over all entries. */
uint64_t larder_store_profile_uses(struct larder_store *store, const uint8_t profile[32]);

/* --- put ------------------------------------------------------------------------------------- */

struct larder_put_desc {
    uint32_t tenant;
    uint32_t model;
    struct larder_key key;
    struct larder_key parent; /* larder_key_root: first of a chain */
    const void *extra;
    uint32_t extra_bytes;
    const uint32_t *tokens;
    uint32_t token_count;
    uint64_t position;
    const char *recipe;  /* text */
    uint8_t profile[32]; /* that it reads: a hash; zeros: none */
    enum larder_quality quality;
    enum larder_quality computed_on;
    float computed_on_kl; /* measured on that KV, unless it is exact; 0 or infinity: unknown */
    /* What this put was to keep (0: nothing): a record of the same quality whose KL is above it, or
     * unknown, is not as good. */
    float max_kl;
    float k_error; /* 0: exact, or not known yet (larder_put_set_errors) */
    float v_error;
    uint64_t raw_bytes;
    uint32_t section_count_max;
    uint64_t payload_bytes_max; /* upper bound on all sections with their padding */
    /* Store it as a further variant beside what the key has, be that better or worse. Without it a
     * better record replaces the key's best one, and a worse one is LARDER_EEXISTS. Variants of a
     * key differ in quality, computed_on or recipe. */
    bool beside;
    /* Generation of the record that this one is made of: LARDER_ENOTFOUND when that has gone
     * meanwhile, be the key stored anew or not. 0: new. */
    uint64_t made_of;
    uint32_t idle_s;         /* since that was used: this put is no use of it */
    struct larder_mark mark; /* made with the entry: no crash leaves the one without the other */
    /* Storing a longer block drops the shorter tail it extends: its siblings under the same parent
     * whose tokens are a prefix of its own. */
};

struct larder_put; /* a reserved slot that nobody else sees yet */

/* Reserves a slot and writes the head up to the directory. LARDER_EEXISTS: stored or being stored
 * at this quality or better, or with `beside` this very variant (use larder_store_when_put to wait
 * for it); LARDER_ENOPARENT; LARDER_ELIMIT: LARDER_VARIANTS_MAX variants are there; -EBUSY: no
 * memory can be freed now; LARDER_EFULL: can never fit, or the tenant's quota is all pinned;
 * LARDER_EREADONLY. */
int larder_store_put_reserve(struct larder_store *store, struct larder_put **out,
                             const struct larder_put_desc *desc);
/* Where the sections go: 64-aligned, payload_bytes_max long, and the directory to fill (offsets
 * from the record's start; tags are left to the store). Any thread, one at a time. */
void *larder_put_payload(struct larder_put *put, uint64_t *offset_in_record);
struct larder_section *larder_put_directory(struct larder_put *put);

typedef void (*larder_put_done)(void *context, int err);

/* Publishes the record (its first `section_count` directory entries, `payload_bytes` of payload) in
 * the host tier and queues it for SSD; but LARDER_CACHED on a full SSD only if it deserves the
 * write more than what would have to go (docs/EVICTION.md). `put` is the store's from here. `done`
 * runs once: for LARDER_CACHED with 0 before this returns, for LARDER_DURABLE when the index has it
 * or with why it never will be (the entry may stay in the host tier then). */
void larder_store_put_commit(struct larder_store *store, struct larder_put *put,
                             uint32_t section_count, uint64_t payload_bytes, enum larder_wait wait,
                             larder_put_done done, void *context);
void larder_store_put_abort(struct larder_store *store, struct larder_put *put);
/* What encoding measured, before commit: relative RMS errors; without the call they are the ones of
 * the description. */
void larder_put_set_errors(struct larder_put *put, float k_error, float v_error);

/* Calls `done` once the entry of `key` is visible or durable at the quality `worst` or better: at
 * once if it is, with LARDER_ENOTFOUND when it is not there (as good) and not on its way, with the
 * error when what was on its way is given up. */
void larder_store_when(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                       enum larder_quality worst, enum larder_wait wait, larder_put_done done,
                       void *context);

/* The same for what made a put LARDER_EEXISTS. */
void larder_store_when_put(struct larder_store *store, const struct larder_put_desc *desc,
                           enum larder_wait wait, larder_put_done done, void *context);

/* --- marks ----------------------------------------------------------------------------------- */

/* Changes the entry's mark: at once for all calls that follow, durably when `done` runs (an entry
 * that is not durable yet becomes so first). LARDER_ENOTFOUND; LARDER_ELIMIT, -EINVAL for what
 * cannot be asked; LARDER_EREADONLY. After an error behind those the change may hold or not, until
 * the next start. */
void larder_store_mark(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                       const struct larder_mark *mark, larder_put_done done, void *context);
/* Removes what is over, a part at a call: to be called about once a second. */
void larder_store_expire(struct larder_store *store);

/* --- remove, list, verify -------------------------------------------------------------------- */

enum larder_remove_pinned {
    LARDER_KEEP_PINNED, /* LARDER_EPINNED when it or something below it is pinned */
    LARDER_REMOVE_PINNED,
};

/* Removes an entry, all its variants, and everything below it, durably (tombstones). *removed
 * counts records; it is final when `done` runs. LARDER_ENOTFOUND through `done` when there is
 * none. */
void larder_store_remove(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                         enum larder_remove_pinned pinned,
                         void (*done)(void *context, int err, uint64_t removed), void *context);

/* Removes one variant of an entry and keeps the others, and all that is below: of the best one the
 * next best takes its place. -EBUSY when it is the only one that may carry the chain now: put
 * another, or remove the entry. *removed is 1. */
void larder_store_remove_variant(struct larder_store *store, uint32_t tenant,
                                 const struct larder_key *key, uint32_t variant,
                                 void (*done)(void *context, int err, uint64_t removed),
                                 void *context);

/* Takes the largest of a key's variants away that is larger than that of the number `kept`, for
 * nobody used the block for `idle_s` seconds; *removed is 1. LARDER_ENOTFOUND when there is none,
 * or no `kept`; -EBUSY when one of them was used meanwhile, is being put, or is the only one that
 * may carry the chain now, or when `kept` is not durable; LARDER_EPINNED. Whoever reads the record
 * goes on undisturbed. */
void larder_store_demote(struct larder_store *store, uint32_t tenant, const struct larder_key *key,
                         uint32_t kept, uint64_t idle_s,
                         void (*done)(void *context, int err, uint64_t removed), void *context);

/* One record: an entry with several variants is named once for each. */
struct larder_entry_info {
    struct larder_key key;
    struct larder_key parent;
    uint32_t tenant;
    uint32_t model;
    uint32_t token_count;
    uint32_t depth;    /* blocks before it in its chain */
    uint32_t children; /* blocks that follow it */
    uint32_t lease_count;
    uint64_t record_bytes; /* stored, with padding */
    uint64_t raw_bytes;
    uint64_t created_s;
    uint64_t position;
    uint64_t uses;      /* leases since start */
    uint64_t idle_s;    /* since the last, or since it was put; over a restart as eviction has it */
    uint64_t expires_s; /* this and the next two: Unix time; 0: never */
    uint64_t pin_expires_s;
    uint64_t priority_expires_s;
    uint32_t segment_id; /* 0: not on SSD */
    uint32_t segment_page;
    uint8_t quality;
    uint8_t computed_on;
    uint8_t in_host;
    uint8_t durable;
    uint8_t variant;  /* its number; any order */
    uint8_t variants; /* of the key, this one included */
    uint8_t pinned;
    uint8_t held; /* pinned, or before what is */
    int8_t priority;
    uint8_t reserved[7];
    char recipe[64]; /* longer than 32 bytes: its start, '~' and a hash */
};

/* Entries in no particular order, from *cursor (start with 0) on; *cursor is 0 again at the end.
 * Entries that come or go meanwhile may be missed, none is named twice. */
int larder_store_list(struct larder_store *store, struct larder_entry_info *out, uint32_t *count,
                      uint64_t *cursor, uint32_t count_max);
/* One entry, its best variant; any tenant's: for the operator. */
int larder_store_find(struct larder_store *store, struct larder_entry_info *out,
                      const struct larder_key *key);

/* All variants of a key, the best first; *count is 0 when it is not stored. */
void larder_store_variants(struct larder_store *store,
                           struct larder_entry_info out[LARDER_VARIANTS_MAX], uint32_t *count,
                           const struct larder_key *key);
/* Whether that is the recipe of an entry, as far as its short name tells. */
bool larder_store_is_recipe(const struct larder_entry_info *entry, const char *recipe);

/* What became of entries of this key, newest first: see storage/history.h. How many. */
struct larder_event_info {
    uint64_t when_s; /* Unix time */
    enum larder_event what;
};
uint32_t larder_store_history(struct larder_store *store, struct larder_event_info *out,
                              uint32_t count_max, const struct larder_key *key);
/* How often each event happened since the store was opened. */
void larder_store_event_counts(struct larder_store *store, uint64_t out[LARDER_EVENT_END]);

/* Reads entry after entry from SSD and checks every tag; a bad one is counted and dropped, with its
 * subtree, like a bad one met by a lease. `done` gets 0, LARDER_ECORRUPT, LARDER_ENOTFOUND (not on
 * SSD) or -errno. One variant a call, so that the caller sets the pace and can show progress. */
void larder_store_verify(struct larder_store *store, const struct larder_key *key, uint32_t variant,
                         larder_put_done done, void *context);

/* Writes the record once more, into the open segment, if less than `live_percent` of its segment is
 * of records that are still wanted: when all of a segment have left, its file goes. The copy is
 * durable, and the entry is there, when `done` gets 0. -EALREADY: it stays where it is;
 * LARDER_ENOTFOUND: it is not on SSD, or changed meanwhile; LARDER_ECORRUPT: dropped, as by
 * larder_store_verify(); others as of a put. One variant a call, as there. */
void larder_store_move(struct larder_store *store, const struct larder_key *key, uint32_t variant,
                       uint32_t live_percent, larder_put_done done, void *context);

struct larder_store_stats {
    uint64_t entries; /* each variant counts */
    uint64_t entries_host;
    uint64_t entries_durable;
    uint64_t record_bytes_host;
    uint64_t record_bytes_ssd;
    uint64_t record_bytes_held; /* of what is pinned or before what is, in whatever tier */
    uint64_t raw_bytes;         /* of all entries */
    uint64_t host_bytes_max;
    uint64_t slab_bytes_mapped;
    uint64_t slab_bytes_retired; /* on top: that clients keep, although they are told to let go */
    uint64_t ssd_bytes_max;
    uint64_t segment_bytes; /* of all files */
    uint64_t segments;
    uint64_t puts;
    uint64_t puts_refused; /* EBUSY, EFULL */
    uint64_t gets;         /* leases asked for */
    uint64_t blocks_hit_host;
    uint64_t blocks_hit_ssd;
    uint64_t blocks_missed;
    uint64_t corrupt; /* records dropped for a bad tag or head */
    uint64_t evicted_host;
    uint64_t evicted_ssd;
    uint64_t removed;
    uint64_t cleared; /* records moved, so that tombstones and marks behind them can go (clear.c) */
    uint64_t synced_groups;
    uint64_t bytes_written;
    uint64_t bytes_not_admitted; /* put CACHED, and not worth the write: in the host tier only */
    uint64_t bytes_demoted;      /* of those, written when they left the host tier */
    uint64_t bytes_hit_host;     /* of records, as blocks_hit_ are */
    uint64_t bytes_hit_ssd;
    uint64_t bytes_read;
    uint64_t io_errors;
    uint64_t recovered_entries;   /* found at start */
    uint64_t recovered_from_tail; /* of those, written but not yet in the index */
    uint64_t index_rebuilt;       /* 1 when the index was made anew at start */
    uint64_t recovery_us;
    uint64_t tail_bytes; /* of durable records that the index does not name yet: a start after a
                            crash reads them again */
    uint64_t read_only;  /* 1 after a failed sync */
    char io[16];         /* backend */
};
void larder_store_stats(struct larder_store *store, struct larder_store_stats *out);
/* The same for one tenant; only the fields of entries, bytes, gets and hits are filled, and its
 * quota in host_bytes_max and ssd_bytes_max (0: none). */
int larder_store_tenant_stats(struct larder_store *store, struct larder_store_stats *out,
                              uint32_t tenant);

/* Tests: LARDER_ECORRUPT with a message when the store's structures do not agree. */
int larder_store_check(struct larder_store *store);

#endif
