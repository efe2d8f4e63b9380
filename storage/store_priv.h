/* SPDX-License-Identifier: Apache-2.0 */
/* store_priv.h - the store's inside, shared by the files that make it up:
 *
 *   store.c    open, close, the storage thread, tenants, models, stats
 *   find.c     lookup, list, find: what only looks
 *   variant.c  several records of one key: which one is meant, which one leads
 *   lease.c    leases on slots of the host tier
 *   put.c      reservations, publication, waiting for an entry
 *   load.c     reads from SSD into slots; verification
 *   writer.c   groups: segment writes, sync, acknowledgement;  gather.c  what goes into them
 *   commit.c   what the index is to learn, in batches;  space.c  room for what is to be written
 *   move.c     records written again elsewhere, so that their segments can go;  clear.c  when the
 *              store does so by itself
 *   purge.c    the end of all that a tenant has
 *   remove.c   removal of subtrees: by request, after damage, of replaced tails
 *   marking.c  pins, expiry and priority of entries;  mark_disk.c  their way to disk
 *   quota.c    what one tenant may have
 *   evict.c    room in the host tier and on SSD
 *   tiers.c    what the eviction policies of both tiers are told
 *   recover*.c start: index, tails of segments (recover_priv.h);  rebuild.c  start without an index
 *
 * What is under way is in writing.h and reading.h.
 *
 * Threads: `lock` protects what is grouped under it. The storage thread alone does segment and
 *          index I/O, and calls back. Functions ending in _locked want the lock held.
 * Lock order: lock, and nothing under it. Tenants have their own (identity.h).
 */
#ifndef LARDER_STORAGE_STORE_PRIV_H
#define LARDER_STORAGE_STORE_PRIV_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "storage/clock.h"
#include "storage/history.h"
#include "storage/host.h"
#include "storage/identity.h"
#include "storage/index.h"
#include "storage/io.h"
#include "storage/keeper.h"
#include "storage/learned.h"
#include "storage/mark.h"
#include "storage/policy.h"
#include "storage/reading.h"
#include "storage/seal.h"
#include "storage/seglog.h"
#include "storage/store.h"
#include "storage/table.h"
#include "storage/writing.h"

/* Looked at among the siblings of a block, shortest and latest first: tails are a help, not a
 * promise. */
#define SIBLINGS_WALK_MAX 64u

/* What was measured of a recipe. */
struct measure {
    uint16_t recipe; /* of table_recipe() */
    bool every_model;
    float kl;
    struct larder_key fingerprint;
};

/* By rising recipe. */
struct measures {
    struct measure *rows;
    uint32_t count;
};

struct tenant_state {
    uint32_t root;     /* entry */
    bool growing;      /* a thread is making a slab for it */
    bool closed;       /* it is being purged: nothing of it is found, and nothing begins */
    uint32_t removals; /* under way */
    uint32_t moves;    /* the same: being read, in the queue and in groups */
    struct larder_quota quota;
    uint64_t queued_bytes;  /* of its puts, in the queue and in groups */
    uint64_t grouped_bytes; /* of those, in groups */
    struct mark_queue marks;
    uint32_t next_marked; /* the tenant whose turn is next */
    uint64_t starved_ms;  /* when it was refused a slot last; 0: it has been given one since */
    struct larder_store_stats stats;
};

struct model_state {
    struct larder_model_info info;
    uint32_t users; /* larder_store_model() less larder_store_model_release() */
    bool is_spare; /* when its last user let go, nothing was stored of it: its place may be taken */
    bool in_index;
    bool in_segment; /* the open one has its record */
};

struct larder_store {
    /* set before the storage thread starts, read by all */
    struct larder_store_options options;
    char *directory;
    struct clock clock;
    struct learned learned; /* in an earlier life; while it is opened */
    uint32_t request_s;     /* when the request began, or the last one did: tiers_now_s() */
    uint64_t opened_ms;     /* of eviction's time: wall time less monotonic time then */
    struct larder_io *io;
    pthread_t thread;
    bool thread_runs;

    /* under lock */
    pthread_mutex_t lock;
    pthread_cond_t grown;
    pthread_cond_t purged; /* a purge has come to its next state */
    struct table table;
    struct measures measures;
    struct host host;
    struct history history;
    struct larder_identity *identity;
    struct larder_policy *host_policy; /* tiers.c */
    struct larder_policy *ssd_policy;
    pthread_t saver;
    bool saver_runs;
    pthread_cond_t saver_wanted;
    bool ssd_full;                /* something had to go for want of room */
    struct tenant_state *tenants; /* LARDER_TENANTS_MAX */
    struct model_state **models;  /* LARDER_MODELS_MAX; each stays where it is */
    uint32_t model_count;
    uint64_t models_swept_s; /* when spare ones were looked for last */
    uint64_t next_generation;
    struct larder_store_stats stats;
    struct larder_put *put_queue;
    struct larder_put **put_queue_end;
    struct larder_put *puts; /* all that exist */
    uint64_t queued_bytes;
    struct removal *removals;
    struct removal **removals_end;
    struct removal *absent; /* of what is not seen: to be told when it cannot come back */
    struct marks marks;
    struct marks_waiting marks_waiting;
    uint32_t mark_moves;          /* of those in the queue and in groups */
    struct larder_key *mark_rows; /* of the index, whose entries are gone */
    uint32_t mark_row_count;
    uint32_t mark_row_capacity;
    struct move *move_queue;
    struct move **move_queue_end;
    struct watch *watches;
    struct purge *purges;
    struct larder_lease *leases;
    uint64_t dying_bytes; /* of records that nothing names any more, but that are being read */
    struct load *loads;   /* in order of arrival */
    struct load *loads_end;
    struct completion_list completions;
    bool read_only;
    bool stopping;

    /* storage thread, and the opener before it starts */
    struct seglog log;
    struct larder_index *index; /* the keeper's, once it is there */
    struct keeper *keeper;
    struct commits commits;
    struct clear clear;
    struct group groups[2];
    struct group *filling;
    struct group *syncing;
    struct append_request *append_requests;
    struct append_request *free_append_requests;
    struct load_request *load_requests;
    struct load_request *free_load_requests;
    void *zeros;                               /* to be written ahead */
    uint32_t small_groups;                     /* in a row */
    void *merge_buffers[MERGES_IN_FLIGHT_MAX]; /* the first so many are free */
    uint32_t merge_buffer_count;               /* free ones */
    struct seal *seal;                         /* NULL: a plain store */
    struct dead_list dead; /* given back when the index has forgotten them; under lock */
    uint32_t *gone;        /* ids of removed segments that the index still knows */
    uint32_t gone_count;
    bool index_is_new;
    bool sweep;        /* a segment may be dead */
    bool no_space;     /* said already; under lock */
    bool probed;       /* the index was asked again for room */
    bool blocked;      /* what is queued waits for the keeper */
    uint32_t attempts; /* at a segment that the disk refused */
};

/* store.c */
/* A store of nothing but its options, and its end. */
int store_make(struct larder_store **out, const struct larder_store_options *options);
void store_free(struct larder_store *store);
void store_wake(struct larder_store *store);
void store_complete_locked(struct larder_store *store, struct completion *completion);
/* Around every change of what stats count of an entry. */
void stats_leave_locked(struct larder_store *store, uint32_t entry);
void stats_enter_locked(struct larder_store *store, uint32_t entry);
int store_add_tenants(struct larder_store *store);
int store_add_model_locked(struct larder_store *store, uint32_t *out,
                           const struct larder_key *fingerprint,
                           const struct larder_model_desc *desc);
uint32_t store_find_model_locked(const struct larder_store *store,
                                 const struct larder_key *fingerprint);
void store_fail_writes(struct larder_store *store, const char *what, int err);
/* Of an encrypted store, once its tenants and segments are known. */
int store_open_seal(struct larder_store *store);

/* evict.c */
/* As host_take(), evicting what may go: -EAGAIN: add a slab and come again; -EBUSY. */
int evict_take_locked(struct larder_store *store, uint32_t *out, uint32_t tenant, uint64_t bytes);
/* Adds a slab for the tenant, or waits for another thread that does; takes and drops the lock. */
int evict_grow(struct larder_store *store, uint32_t tenant);
/* The entry has no host copy any more. */
void evict_detach_slot_locked(struct larder_store *store, uint32_t entry);
/* Storage thread: lets at least `bytes` on SSD die, *freed of them, of all tenants (EVICT_ANY) or
 * of one that is over its quota; -ENOSPC when too little may go. They are given back when the index
 * has forgotten them. */
#define EVICT_ANY LARDER_POLICY_ALL
int evict_ssd(struct larder_store *store, uint32_t tenant, uint64_t bytes, uint64_t *freed);
/* The same for as many entries as one transaction takes: it may be less, not nothing. */
int evict_ssd_part(struct larder_store *store, uint32_t tenant, uint64_t bytes, uint64_t *freed);
/* Is there a slab that could be another tenant's at once? */
bool evict_finds_slab_locked(struct larder_store *store, uint32_t tenant);

/* quota.c */
/* May this tenant put so many bytes more? LARDER_EFULL, -EBUSY. */
int quota_check_put_locked(const struct larder_store *store, uint32_t tenant, uint64_t bytes);
/* Storage thread: evicts what of the tenant must go for so many bytes more; LARDER_EFULL. */
int quota_make_room(struct larder_store *store, uint32_t tenant, uint64_t bytes);
bool quota_may_grow_locked(const struct larder_store *store, uint32_t tenant);
/* It was refused a slot of the host tier, or has got one. */
void quota_refused_locked(struct larder_store *store, uint32_t tenant);
void quota_served_locked(struct larder_store *store, uint32_t tenant);

/* marking.c */
/* NULL: the entry has none. */
struct mark *mark_of(const struct larder_store *store, uint32_t entry);
/* Is this something that can be asked for? */
int mark_check(const struct larder_mark *mark);
/* Sets what the entry's mark says, in memory; one that says nothing takes it away. */
int mark_set_locked(struct larder_store *store, uint32_t entry,
                    const struct larder_mark_value *value);
/* The entry is about to leave the table. */
void mark_forget_locked(struct larder_store *store, uint32_t entry);
/* Its time is over, and no pin stands over that: nobody is to find it. */
bool mark_expired_locked(const struct larder_store *store, uint32_t entry);
/* How many times its worth is to be doubled now; negative: halved. */
int mark_priority_locked(const struct larder_store *store, uint32_t entry);
void mark_describe_locked(const struct larder_store *store, uint32_t entry,
                          struct larder_entry_info *out);
/* Memory for the mark that a put makes, or that its entry has and that is to be written again. */
int mark_prepare_put(struct mark_write **out, const struct larder_put_desc *desc, bool marked);
/* The entry has a new record: its mark, with this change, is queued before it. */
void mark_published_locked(struct larder_store *store, uint32_t entry, struct mark_write **write,
                           const struct larder_mark *change);
/* Start: one that was read. 1 when it holds for the entry as far as is known, whose marks are those
 * of the generations from `since` on. */
int mark_recovered(struct larder_store *store, uint32_t entry,
                   const struct larder_mark_value *stored, uint32_t segment_id, uint64_t since);
/* Start: all were read. */
void mark_recovered_all(struct larder_store *store);
/* Then: one that is older than its entry's record is made newer, and queued to be written: 1. */
int mark_raise(struct larder_store *store, uint32_t entry);
/* As the index has it; false when the entry has none. */
bool mark_stored_locked(const struct larder_store *store, uint32_t entry, struct index_mark *out);

/* mark_disk.c */
struct mark_write *mark_new_write(const struct larder_key *key, uint32_t tenant);
void mark_queue_locked(struct larder_store *store, struct mark_write *write);
bool mark_is_queued_locked(const struct larder_store *store);
/* There is one that puts wait for. */
bool mark_goes_first_locked(const struct larder_store *store);
void mark_free_queued(struct larder_store *store);
/* The first of what is queued, as a record; NULL without memory. May be empty. */
struct mark_batch *mark_take_batch_locked(struct larder_store *store);
/* The entry, which has a mark, is about to leave the table without a removal: the index is to
 * forget that row too. */
void mark_row_dead_locked(struct larder_store *store, uint32_t entry);
/* Storage thread: hands what of that has come together to commit.c. */
void mark_forget_rows(struct larder_store *store);
void mark_give_up_locked(struct larder_store *store, int err);
void mark_note(struct batch *into, const struct mark_batch *batch, uint32_t segment_id);
void mark_batch_done_locked(struct larder_store *store, struct mark_batch *batch,
                            uint32_t segment_id, int err);
/* Storage thread: how many marks that hold stand in each segment. */
void mark_count_homes_locked(struct larder_store *store);
/* Storage thread: writes some of a segment's again, unless some are on their way already. When they
 * are written there is another sweep, and so the next. */
void mark_move_out_locked(struct larder_store *store, uint32_t segment_id);

/* tiers.c */
int tiers_open(struct larder_store *store);
void tiers_close(struct larder_store *store);
/* Writes what was learned. From a thread that may wait. */
void tiers_save(struct larder_store *store);
/* Saves now and then, until the store is stopping. */
int tiers_start_saver(struct larder_store *store);
void tiers_stop_saver(struct larder_store *store);
/* A request of a tenant, in both tiers; -ENOMEM: not begun. */
int tiers_begin_locked(struct larder_store *store, uint32_t tenant);
void tiers_end_locked(struct larder_store *store);
/* Inside a request: the entry was asked for. */
void tiers_use_locked(struct larder_store *store, uint32_t entry);
/* Inside a request: the entry gets the slot. evict_detach_slot_locked() takes it away again. */
void tiers_attach_locked(struct larder_store *store, uint32_t entry, uint32_t slot);
void tiers_detach_locked(struct larder_store *store, uint32_t entry);
/* Inside a request: the entry is stored, and goes to SSD. */
void tiers_write_locked(struct larder_store *store, uint32_t entry);
/* The same if it is worth the write, which is so as long as there is room; else false. */
bool tiers_admit_locked(struct larder_store *store, uint32_t entry);
/* It is in the host tier only, where it is to go: does it deserve the write by now? */
bool tiers_deserves_ssd(struct larder_store *store, uint32_t entry);
/* Outside of requests: it goes to SSD without having been asked for; it will not, or not stay. */
void tiers_rewrite_locked(struct larder_store *store, uint32_t entry);
void tiers_unwrite_locked(struct larder_store *store, uint32_t entry);
/* ENTRY_HELD came or went; its worth is another. */
void tiers_held_locked(struct larder_store *store, uint32_t entry);
void tiers_weigh_locked(struct larder_store *store, uint32_t entry);
/* It was used so long ago, not when it was stored. */
void tiers_age_locked(struct larder_store *store, uint32_t entry, uint32_t idle_s);
/* Seconds since it was used. */
uint64_t tiers_idle_s(const struct larder_store *store, uint32_t entry);
/* ENTRY_DOOMED, and not. */
void tiers_doom_locked(struct larder_store *store, uint32_t entry);
void tiers_undoom_locked(struct larder_store *store, uint32_t entry);
/* table_swap_records(): what the policies know goes with the records. */
void tiers_exchange_locked(struct larder_store *store, uint32_t primary, uint32_t other);
/* At start: durable entries of the tenant will come. */
int tiers_expect(struct larder_store *store, uint32_t tenant);
/* At start: a durable entry, linked, with what the policy said of it in an earlier life; 0: nothing
 * is known. */
void tiers_restore(struct larder_store *store, uint32_t entry, uint64_t recalled);
/* Whether the SSD has it, or will. */
bool tiers_is_written(const struct larder_store *store, uint32_t entry);
int tiers_check_entry(const struct larder_store *store, uint32_t entry);

/* find.c */
/* Is this entry for that tenant to see? */
bool find_sees(const struct larder_store *store, uint32_t entry, uint32_t tenant);
/* Leading keys of the chain that are stored well enough; the last of them in *last. */
int find_run_locked(struct larder_store *store, uint32_t *out_count, uint32_t *last,
                    const struct larder_want *want);

/* measure.c */
/* The first 8 bytes of a profile's name, as the table and the index keep it; NULL: 0. */
uint64_t measure_profile(const uint8_t *profile);
/* What readers of this record must reckon with, nats a token: 0 when it is exact, infinity when
 * nobody measured it. */
float measure_kl_locked(const struct larder_store *store, const struct entry *entry);
void measure_close(struct measures *measures);

/* variant.c */
/* Which records a reader accepts; as in struct larder_want. */
struct accept {
    uint32_t worst;
    float max_kl;
};

static inline struct accept accept_of(const struct larder_want *want)
{
    return (struct accept){.worst = want->worst, .max_kl = want->max_kl};
}

/* Of the key's records the one for that reader: the best, or with LARDER_QUALITY_SMALLEST the
 * smallest that is good enough. TABLE_NONE when none is. */
uint32_t variant_pick(const struct larder_store *store, uint32_t primary, struct accept accept);
struct variant_name variant_name_of(const struct entry_variant *variant);
/* Does a record that was read have this name? One whose recipe nothing knows has none. */
bool variant_is_same(const struct entry_variant *variant, const struct variant_name *name);
/* Of two records of the key with one name the older; TABLE_NONE as it should be. */
uint32_t variant_double(const struct larder_store *store, uint32_t primary);
/* A record of that name is being replaced, and comes back if that fails. */
bool variant_had_name(const struct larder_store *store, uint32_t primary,
                      const struct variant_name *name);
/* The record of that name, stored or on its way. */
uint32_t variant_named(const struct larder_store *store, uint32_t primary,
                       const struct variant_name *name);
/* The record of that generation; TABLE_NONE when it is gone. */
uint32_t variant_of_generation(const struct larder_store *store, const struct larder_key *key,
                               uint64_t generation);
/* Lets the best of the key's records lead, as far as it may. */
void variant_order_locked(struct larder_store *store, uint32_t primary);
/* Lets another record lead, so that the primary's can go alone: the entry that has the old one now,
 * TABLE_NONE when no other may. */
uint32_t variant_succeed_locked(struct larder_store *store, uint32_t primary);

/* put.c */
/* Of an entry that is PUTTING. */
struct larder_put *put_of_locked(const struct larder_store *store, uint32_t entry);
struct larder_put *put_make_rewrite_locked(struct larder_store *store, uint32_t entry);
/* It is in the queue now. */
void put_count_queued_locked(struct larder_store *store, const struct larder_put *put);
/* ... and queues it; false: without memory it is not. */
bool put_rewrite_locked(struct larder_store *store, uint32_t entry);
/* A put that left the queue or its group: durable (err 0) or given up. */
void put_finish_locked(struct larder_store *store, struct larder_put *put, int err);
void put_watches_locked(struct larder_store *store, uint32_t entry, int err);
/* The entry is about to leave the table. */
void put_orphan_locked(struct larder_store *store, uint32_t entry);

/* load.c */
struct load *load_new(const struct entry *entry, uint32_t slot, struct host_layers wanted);
/* Its slot holds some layers already: it goes on from there. */
void load_resume(struct load *load);
void load_queue_locked(struct larder_store *store, struct load *load);
void load_pump(struct larder_store *store);
bool load_idle(const struct larder_store *store);
/* A load of this record is under way: it takes over to give the space back. */
bool load_takes_dead_locked(struct larder_store *store, const struct dead_extent *extent);
/* Reads the head of a shorter tail and drops it if its tokens begin the record in `slot`. */
void load_check_tail_locked(struct larder_store *store, uint32_t tail, uint32_t slot);

/* lease.c */
void lease_ref_done_locked(struct larder_store *store, struct lease_ref *ref, int err);
void lease_free_all(struct larder_store *store);
void lease_revoke_tenant_locked(struct larder_store *store, uint32_t tenant);
/* Whether this process itself reads something of it. */
bool lease_owns_tenant_locked(const struct larder_store *store, uint32_t tenant);

/* remove.c */
/* Dooms the entry's subtree and queues its removal. Of a further variant it is this one alone. */
int remove_subtree_locked(struct larder_store *store, uint32_t entry, struct removal *removal);
/* The entry's record is damaged. */
void remove_corrupt_locked(struct larder_store *store, uint32_t entry);
/* A longer block holds all that this one does. */
void remove_tail_locked(struct larder_store *store, uint32_t entry);
/* Its time is over. */
void remove_expired_locked(struct larder_store *store, uint32_t entry);
void remove_slice_done_locked(struct larder_store *store, struct slice *slice, int err);
/* Storage thread: those of what was not there hear it, when no crash can bring it back. */
void remove_tell_absent(struct larder_store *store);
void remove_dead_locked(struct larder_store *store, uint32_t entry);

/* move.c */
/* As `live_percent`: however full the segment is. */
#define MOVE_ALWAYS UINT32_MAX
/* The entry's record is to be moved; `done` is called once if this gives 0. */
int move_begin_locked(struct larder_store *store, uint32_t entry, uint32_t live_percent,
                      larder_put_done done, void *context);
/* Storage thread: has its segment room enough to gain? */
bool move_is_wanted(const struct larder_store *store, const struct move *move,
                    const struct segment *segment);
/* Its load is over, good or bad: takes the buffer. */
void move_read_locked(struct larder_store *store, struct load *load);
/* The first in the queue that is to be moved still; NULL: none. */
struct move *move_take_locked(struct larder_store *store);
/* ... and back into the queue, or given up with `err`. */
void move_return_locked(struct larder_store *store, struct move *move, int err);
/* Is the entry what was read, where it was? */
bool move_is_there_locked(const struct larder_store *store, const struct move *move);
/* It is, and the copy has been given its place. */
void move_place_locked(struct larder_store *store, struct move *move,
                       const struct segment *segment);
/* It is synced: the entry is there now, or the copy is dead. */
void move_note_locked(struct larder_store *store, struct move *move, struct batch *into,
                      struct segment *segment);
void move_done_locked(struct larder_store *store, struct move *move, int err);

/* gather.c */
/* Something waits to be written. */
bool gather_has_more_locked(const struct larder_store *store);
/* As much of it as the group takes; it is closed when it takes no more. */
void gather_members(struct larder_store *store, struct group *group);
/* Behind what it has. */
void gather_append(struct group *group, struct append *append);

/* writer.c */
void writer_step(struct larder_store *store);
bool writer_idle(struct larder_store *store);
/* There is something to do before the next completion or wake. */
bool writer_must_step(struct larder_store *store);

/* space.c */
/* 0: the open segment has room for `bytes`. 1: not in this group, or not before the keeper's round
 * is over. */
int space_make_room(struct larder_store *store, const struct group *group, uint64_t bytes);
/* What is done before a put needs it: the next segment's file, and room between the watermarks. */
void space_look_ahead(struct larder_store *store);

/* ahead.c */
int ahead_open(struct larder_store *store);
/* Once for each group that is about to be synced. True: *out goes with it, and then it is closed:
 * what comes later will stand where *out writes. */
bool ahead_wanted(struct larder_store *store, const struct group *group, struct append *out);

/* commit.c */
/* What the index is to know of the entry, with this record. */
void commit_fill_value_locked(struct larder_store *store, struct index_entry *value, uint32_t entry,
                              uint32_t model, const struct entry_variant *variant);
struct batch *batch_new(void);
/* At most BATCH_CHANGES_MAX a batch. */
void batch_put(struct batch *batch, const struct larder_key *key, uint32_t variant,
               const struct index_entry *value);
void batch_delete(struct batch *batch, const struct larder_key *key, uint32_t variant);
void batch_put_mark(struct batch *batch, const struct larder_key *key,
                    const struct index_mark *mark);
void batch_delete_mark(struct batch *batch, const struct larder_key *key);
void batch_model(struct batch *batch, const struct larder_model_info *info);
/* The index will learn it, after all that was added before. Takes the batch. */
void commit_add(struct larder_store *store, struct batch *batch);
/* Something that was added is not in the index yet. */
bool commit_is_behind(const struct larder_store *store);
/* Its `done` is called when the index has forgotten all of it: a tombstone alone, whose bits may
 * flip, is not enough for what must never come back. */
void commit_hold_locked(struct larder_store *store, struct removal *removal);
/* The keeper's round, if it is over; and the next one, if it is due. */
void commit_take_round(struct larder_store *store);
void commit_give_round(struct larder_store *store);
bool commit_idle(struct larder_store *store);
/* Until the next round is due; -1: a completion or a wake will tell. */
int commit_timeout_ms(const struct larder_store *store);
uint64_t commit_now_us(void);
void commit_close(struct larder_store *store);
void commit_publish_usage(struct larder_store *store);
int dead_add(struct dead_list *list, struct dead_extent extent);
void writer_extent_dead_locked(struct larder_store *store, const struct entry_variant *variant);

/* clear.c */
/* Storage thread. True: there is more to do at once. */
bool clear_step(struct larder_store *store);
/* Until there is something to do; -1: something else will tell. */
int clear_timeout_ms(const struct larder_store *store);

/* purge.c */
/* Storage thread. True: there is more to do at once. */
bool purge_step(struct larder_store *store);

/* recover.c */
/* Forks to look at the files: before threads exist. */
int recover_open_index(struct larder_store *store);
int recover_store(struct larder_store *store);

#endif
