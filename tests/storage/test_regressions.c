/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: faults of the store that were found once do not come back.
 * Method: each as it was found, on a store over the simulated disk: the requests that met it, with
 * the disk's faults placed where they were. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/key.h"
#include "fixture.h"
#include "sim_disk.h"
#include "storage/store.h"

static struct fixture f;
static struct sim_disk *disk;

static void setup(void)
{
    fixture_begin(&f);
    disk = fixture_use_disk(&f);
    fixture_reopen(&f);
}

static void teardown(void)
{
    fixture_end(&f);
}

/* Where a test counts on what was put first going first. */
static void reopen_by_recency(void)
{
    f.options.eviction = "lru";
    fixture_reopen(&f);
}

static void set_faults(struct sim_faults faults)
{
    sim_disk_set_faults(disk, &faults);
}

/* --- keys ------------------------------------------------------------------------------------- */

static int lease_of(const struct larder_key *keys, uint32_t count)
{
    struct larder_ref refs[8];
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    int err = larder_store_lease(f.store, &lease, refs, &ref_count, &ready,
                                 &(struct larder_want){.tenant = f.tenant.index,
                                                       .keys = keys,
                                                       .key_count = count,
                                                       .worst = LARDER_QUALITY_BLENDED},
                                 NULL, NULL);
    if (lease)
        larder_store_release(f.store, lease);
    return err < 0 ? err : (int)ref_count;
}

/* A root's key is all zeros; a run that reached the root took it for a block. */
START_TEST(a_key_of_zeros_is_no_block)
{
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    struct larder_key keys[5] = {[1] = block_key(1), [4] = block_key(2)};
    keys[3] = block_key(1);
    ck_assert_int_eq(lease_of(keys, 2), LARDER_EPROTO);
    ck_assert_int_eq(lease_of(keys + 2, 3), LARDER_EPROTO); /* 0, 1, 2 */
    struct larder_key zeros[4] = {[2] = block_key(1), [3] = block_key(2)};
    ck_assert_int_eq(lease_of(zeros, 4), LARDER_EPROTO);
    ck_assert_int_eq(lease_of(zeros, 3), 0);
    ck_assert_int_eq(lease_of(zeros, 1), 0);
    struct larder_match match;
    ck_assert_int_eq(larder_store_lookup(f.store, &match,
                                         &(struct larder_want){.tenant = f.tenant.index,
                                                               .keys = keys,
                                                               .key_count = 2,
                                                               .worst = LARDER_QUALITY_BLENDED},
                                         &larder_key_root, 256),
                     LARDER_EPROTO);
}
END_TEST

/* --- waiting for an entry --------------------------------------------------------------------- */

struct told {
    sem_t over;
    int err;
};

static void tell(void *context, int err)
{
    struct told *told = context;
    told->err = err;
    sem_post(&told->over);
}

static void tell_loaded(void *context, uint32_t loaded, int err)
{
    (void)loaded;
    tell(context, err);
}

/* What was told; 1: nothing within some seconds. */
static int answer_of(struct told *told)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    return sem_timedwait(&told->over, &until) == 0 ? told->err : 1;
}

/* Long enough for the storage thread to sleep. */
static void pause_shortly(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 50 * 1000 * 1000}, NULL);
}

static struct larder_put *reserve(uint64_t seed, enum larder_quality quality)
{
    const struct larder_put_desc desc = {
        .tenant = f.tenant.index,
        .model = f.model.index,
        .key = block_key(seed),
        .recipe = "raw",
        .quality = quality,
        .section_count_max = 1,
        .payload_bytes_max = 4096,
    };
    struct larder_put *put = NULL;
    ck_assert_int_eq(larder_store_put_reserve(f.store, &put, &desc), 0);
    return put;
}

/* With sections that are none, when `good` is false. */
static void commit(struct larder_put *put, bool good, struct told *told)
{
    uint64_t offset;
    memset(larder_put_payload(put, &offset), 7, 64);
    *larder_put_directory(put) = (struct larder_section){
        .layer_count = 1, .head_count = 1, .offset = good ? offset : 0, .bytes = 64};
    larder_store_put_commit(f.store, put, 1, 64, LARDER_CACHED, tell, told);
}

/* The watch was answered, but nobody woke the thread that tells. */
START_TEST(who_waits_for_a_put_hears_of_its_end)
{
    struct told waiter, own;
    sem_init(&waiter.over, 0, 0);
    sem_init(&own.over, 0, 0);
    struct larder_key key = block_key(1);
    struct larder_put *put = reserve(1, LARDER_QUALITY_EXACT);
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_EXACT, LARDER_CACHED, tell,
                      &waiter);
    pause_shortly();
    larder_store_put_abort(f.store, put);
    ck_assert_int_eq(answer_of(&waiter), LARDER_ENOTFOUND);

    put = reserve(1, LARDER_QUALITY_EXACT);
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_EXACT, LARDER_DURABLE, tell,
                      &waiter);
    pause_shortly();
    commit(put, false, &own);
    ck_assert_int_eq(answer_of(&own), LARDER_EPROTO);
    ck_assert_int_eq(answer_of(&waiter), LARDER_ENOTFOUND);
}
END_TEST

/* The write of the better one failed, the worse one was put back, and that was acknowledged. */
START_TEST(a_worse_entry_is_not_what_was_waited_for)
{
    struct block lossy = {.seed = 1,
                          .token_count = 256,
                          .section_bytes = 20000,
                          .quality = LARDER_QUALITY_LOSSY,
                          .tenant = f.tenant.index};
    ck_assert_int_eq(fixture_put(&f, &lossy, LARDER_DURABLE), 0);
    struct told exact, cached, content, own;
    sem_init(&exact.over, 0, 0);
    sem_init(&cached.over, 0, 0);
    sem_init(&content.over, 0, 0);
    sem_init(&own.over, 0, 0);
    struct larder_key key = block_key(1);
    struct larder_put *put = reserve(1, LARDER_QUALITY_EXACT);
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_WRITE});
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_EXACT, LARDER_CACHED, tell,
                      &cached);
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_EXACT, LARDER_DURABLE, tell,
                      &exact);
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_LOSSY, LARDER_DURABLE, tell,
                      &content);
    commit(put, true, &own);
    ck_assert_int_eq(answer_of(&own), 0);
    ck_assert_int_eq(answer_of(&cached), 0);
    ck_assert_int_eq(answer_of(&exact), -EIO);
    ck_assert_int_eq(answer_of(&content), 0);
    struct larder_entry_info info;
    ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    ck_assert_int_eq(info.quality, LARDER_QUALITY_LOSSY);
    larder_store_when(f.store, f.tenant.index, &key, LARDER_QUALITY_EXACT, LARDER_DURABLE, tell,
                      &exact);
    ck_assert_int_eq(answer_of(&exact), LARDER_ENOTFOUND);
}
END_TEST

/* --- removal ---------------------------------------------------------------------------------- */

#define COUNT 600u /* three slices, two groups */

static void put_long_chain(uint32_t count)
{
    struct block block = {.token_count = 16, .section_bytes = 64, .tenant = f.tenant.index};
    for (uint32_t i = 0; i < count; i++) {
        block.seed = 1 + i;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_CACHED), 0);
        block.parent = block_key(block.seed);
        if (i % 100 == 99)
            fixture_settle(&f, block.seed);
    }
}

/* The children's slice failed, the parents' went on: a chain with a hole. */
START_TEST(a_failed_slice_ends_its_removal)
{
    put_long_chain(COUNT);
    set_faults((struct sim_faults){.error_at = 1, .error_op = LARDER_IO_WRITE});
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), -EIO);
    ck_assert_uint_eq(removed, 0);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, COUNT, &err), COUNT);
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), 0);
    ck_assert_uint_eq(removed, COUNT);
    fixture_check(&f);
}
END_TEST

/* The same with the error in the second group. */
START_TEST(a_removal_that_fails_later_leaves_the_upper_part)
{
    put_long_chain(COUNT);
    set_faults((struct sim_faults){.error_at = 3, .error_op = LARDER_IO_WRITE});
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), -EIO);
    ck_assert_uint_gt(removed, 0);
    ck_assert_uint_lt(removed, COUNT);
    fixture_check(&f);
    int err;
    ck_assert_uint_eq(fixture_get_chain(&f, 1, COUNT, &err), COUNT - removed);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, COUNT, &err), COUNT - removed);
}
END_TEST

static int cannot_punch(struct larder_io *io, struct larder_file *file, uint64_t offset,
                        uint64_t bytes)
{
    (void)io, (void)file, (void)offset, (void)bytes;
    return -EOPNOTSUPP;
}

static void reopen_without_holes(void)
{
    static struct larder_io_ops ops;
    fixture_close(&f);
    f.options.eviction = "lru";
    f.options.io_override = sim_disk_open_io(disk);
    ops = *f.options.io_override->ops;
    ops.punch = cannot_punch;
    f.options.io_override->ops = &ops;
    ck_assert_int_eq(fixture_open(&f), 0);
}

/* Without holes only whole segments make room: that may take several evictions. */
static void put_durably(uint64_t seed, struct larder_key parent, uint32_t section_bytes)
{
    const struct block block = {.seed = seed,
                                .parent = parent,
                                .token_count = 256,
                                .section_bytes = section_bytes,
                                .tenant = f.tenant.index};
    int err = fixture_put(&f, &block, LARDER_DURABLE);
    for (int i = 0; i < 100 && (err == -ENOSPC || err == LARDER_ENOTFOUND); i++)
        err = err == -ENOSPC ? fixture_when(&f, seed, LARDER_DURABLE)
                             : fixture_put(&f, &block, LARDER_DURABLE);
    ck_assert_msg(err == 0, "block %u: %d", (unsigned)seed, err);
}

/* The child had been evicted, so no tombstone named it, and its bytes stood in their segment. */
START_TEST(a_rebuild_knows_what_went_with_its_parent)
{
    reopen_without_holes();
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    fixture_put_chain(&f, 50, 1, 20000, LARDER_DURABLE);
    int err;
    for (uint64_t seed = 1000; fixture_has(&f, 2); seed += 10) {
        ck_assert_uint_lt(seed, 10000);
        put_durably(seed, larder_key_root, 60000);
        /* In use, so that its segment, which is the child's, stays. */
        ck_assert_uint_eq(fixture_get_chain(&f, 50, 1, &err), 1);
    }
    if (!fixture_has(&f, 1))
        put_durably(1, larder_key_root, 20000);
    uint64_t removed;
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), 0);
    ck_assert_uint_eq(removed, 1);
    put_durably(1, larder_key_root, 20000);
    /* Behind the parent of now. */
    put_durably(3, block_key(1), 20000);
    fixture_close(&f);
    fixture_remove_index(&f);
    reopen_without_holes();
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    fixture_check(&f);
    ck_assert(fixture_has(&f, 50));
    ck_assert(fixture_has(&f, 1));
    ck_assert(!fixture_has(&f, 2));
    ck_assert(fixture_has(&f, 3));
}
END_TEST

/* From each hole on a megabyte was read to find its end, and what stood in it then once more. */
START_TEST(a_rebuild_reads_what_is_between_holes_once)
{
    enum { BLOCKS = 100, SECTION_BYTES = 20000 };
    uint64_t removed;
    for (uint64_t seed = 10; seed < 10 + BLOCKS; seed++)
        fixture_put_chain(&f, seed * 10, 1, SECTION_BYTES, LARDER_DURABLE);
    for (uint64_t seed = 10; seed < 10 + BLOCKS; seed += 2)
        ck_assert_int_eq(fixture_remove(&f, seed * 10, &removed), 0);
    fixture_commit(&f);
    fixture_close(&f);
    fixture_remove_index(&f);
    struct sim_stats before, after;
    sim_disk_stats(disk, &before);
    fixture_reopen(&f);
    sim_disk_stats(disk, &after);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    ck_assert_uint_eq(fixture_stats(&f).entries, BLOCKS / 2);
    /* Of the newest segment all, and some of that twice. */
    ck_assert_uint_lt(after.read_bytes - before.read_bytes, 2ull * 2 * BLOCKS * SECTION_BYTES);
}
END_TEST

/* --- space ------------------------------------------------------------------------------------ */

static const struct larder_io_ops *real_ops;
static atomic_bool fail_directory_sync;

static int sync_directory_or_not(struct larder_io *io)
{
    return atomic_exchange(&fail_directory_sync, false) ? -EIO : real_ops->sync_directory(io);
}

static uint32_t count_files(void)
{
    uint64_t bytes;
    char name[64];
    uint32_t files = 0;
    while (sim_disk_file(disk, files, name, &bytes))
        files++;
    return files;
}

/* The segment was unlinked, but stayed listed, and could not be unlinked again. It is tried again
 * when nothing else happens, too. */
START_TEST(a_segment_whose_removal_failed_goes_the_next_time)
{
    static struct larder_io_ops ops;
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    fixture_close(&f);
    f.options.io_override = sim_disk_open_io(disk);
    real_ops = f.options.io_override->ops;
    ops = *real_ops;
    ops.sync_directory = sync_directory_or_not;
    f.options.io_override->ops = &ops;
    ck_assert_int_eq(fixture_open(&f), 0);
    fixture_put_chain(&f, 10, 1, 20000, LARDER_DURABLE);
    uint64_t removed;
    atomic_store(&fail_directory_sync, true);
    ck_assert_int_eq(fixture_remove(&f, 1, &removed), 0);
    fixture_put_chain(&f, 20, 1, 20000, LARDER_DURABLE);
    fixture_commit(&f);
    ck_assert(!atomic_load(&fail_directory_sync));
    /* The keeper may be at it just now. */
    for (int i = 0; i < 1000 && fixture_stats(&f).segments != count_files(); i++)
        usleep(10000);
    ck_assert_uint_eq(fixture_stats(&f).segments, count_files());
    ck_assert_uint_eq(fixture_stats(&f).segments, 1);
}
END_TEST

static int forget_to_punch(struct larder_io *io, struct larder_file *file, uint64_t offset,
                           uint64_t bytes)
{
    (void)io, (void)file, (void)offset, (void)bytes;
    return 0;
}

static void reopen_with(struct larder_io_ops *ops);
static struct larder_io_ops ops_of_the_disk(void);

/* They took room that nobody counted. */
START_TEST(records_that_were_not_punched_before_a_crash_count)
{
    fixture_close(&f);
    struct larder_io_ops ops = ops_of_the_disk();
    ops.punch = forget_to_punch;
    reopen_with(&ops);
    uint64_t removed;
    for (uint64_t seed = 1000; seed < 1056; seed++)
        fixture_put_chain(&f, seed, 1, 60000, LARDER_DURABLE);
    for (uint64_t seed = 1000; seed < 1056; seed++)
        if (seed % 4 != 0)
            ck_assert_int_eq(fixture_remove(&f, seed, &removed), 0);
    reopen_by_recency();
    ck_assert_uint_gt(fixture_stats(&f).segment_bytes, 6u << 20);
    /* The store that goes on with them keeps its limit, and has their room back in time. */
    for (int i = 0; i < 1000 && fixture_stats(&f).segment_bytes > 4u << 20; i++)
        usleep(10000);
    ck_assert_uint_le(fixture_stats(&f).segment_bytes, 4u << 20);
    int err;
    for (uint64_t seed = 1000; seed < 1056; seed++)
        ck_assert_uint_eq(fixture_get_chain(&f, seed, 1, &err), seed % 4 == 0);
}
END_TEST

static int open_few(struct larder_io *io, struct larder_file **out, const char *name,
                    enum larder_io_open how)
{
    return how == LARDER_IO_CREATE_NEW && count_files() >= 6
               ? -EMFILE
               : real_ops->open_file(io, out, name, how);
}

static void reopen_with(struct larder_io_ops *ops)
{
    fixture_close(&f);
    f.options.eviction = "lru";
    f.options.io_override = sim_disk_open_io(disk);
    ops->name = f.options.io_override->ops->name;
    f.options.io_override->ops = ops;
    ck_assert_int_eq(fixture_open(&f), 0);
}

static struct larder_io_ops ops_of_the_disk(void)
{
    struct larder_io *io = sim_disk_open_io(disk);
    real_ops = io->ops;
    io->ops->close(io);
    return *real_ops;
}

/* Each segment is an open file: what was used longest ago goes when no more may be opened. */
START_TEST(a_limit_of_open_files_evicts)
{
    fixture_close(&f);
    struct larder_io_ops ops = ops_of_the_disk();
    ops.open_file = open_few;
    reopen_with(&ops);
    for (uint64_t seed = 1000; seed < 1200; seed += 2)
        fixture_put_chain(&f, seed, 1, 60000, LARDER_DURABLE);
    ck_assert_uint_le(count_files(), 6);
    ck_assert_uint_gt(fixture_stats(&f).evicted_ssd, 30);
    ck_assert(fixture_has(&f, 1198));
    fixture_close(&f);
}
END_TEST

/* --- what was evicted just now ---------------------------------------------------------------- */

static atomic_bool hold_commits;

static int wait_to_commit(void *context)
{
    (void)context;
    while (atomic_load(&hold_commits))
        usleep(1000);
    return 0;
}

static void tell_removed(void *context, int err, uint64_t removed)
{
    must(removed == 0);
    tell(context, err);
}

/* It was told at once, and a crash brought the entry back. */
START_TEST(who_removes_what_was_evicted_is_told_when_it_cannot_come_back)
{
    f.options.index_gate = wait_to_commit;
    reopen_by_recency();
    fixture_put_chain(&f, 1, 1, 20000, LARDER_DURABLE);
    fixture_put_chain(&f, 10, 1, 20000, LARDER_DURABLE);
    reopen_by_recency(); /* the host tier forgets them */
    const struct larder_quota quota = {.ssd_bytes = 140000};
    larder_store_set_quota(f.store, f.tenant.index, &quota);
    fixture_put_chain(&f, 20, 1, 20000, LARDER_DURABLE);
    fixture_commit(&f);
    ck_assert(fixture_has(&f, 1));
    atomic_store(&hold_commits, true);
    fixture_put_chain(&f, 30, 1, 20000, LARDER_DURABLE);
    ck_assert(!fixture_has(&f, 1));
    struct told told;
    sem_init(&told.over, 0, 0);
    struct larder_key key = block_key(1);
    larder_store_remove(f.store, f.tenant.index, &key, LARDER_KEEP_PINNED, tell_removed, &told);
    pause_shortly();
    pause_shortly();
    pause_shortly();
    ck_assert_int_ne(sem_trywait(&told.over), 0);
    atomic_store(&hold_commits, false);
    ck_assert_int_eq(answer_of(&told), LARDER_ENOTFOUND);
    sem_destroy(&told.over);
    f.options.index_gate = NULL;
}
END_TEST

/* --- requests that are held up ---------------------------------------------------------------- */

/* Of this kind all are; -1: none. */
static atomic_int held_op = -1;
static struct larder_io_request *held;

static void submit_or_hold(struct larder_io *io, struct larder_io_request *request)
{
    if (atomic_load(&held_op) != (int)request->op) {
        real_ops->submit(io, request);
        return;
    }
    request->next = held;
    held = request;
}

static int poll_held(struct larder_io *io, int timeout_ms)
{
    while (atomic_load(&held_op) < 0 && held) {
        struct larder_io_request *request = held;
        held = request->next;
        request->next = NULL;
        real_ops->submit(io, request);
    }
    return real_ops->poll(io, timeout_ms);
}

/* What was evicted counts until its readers are gone: more was evicted, until nothing was left. */
START_TEST(what_is_read_while_it_is_evicted_is_waited_for)
{
    enum { READS = 30 };
    f.options.ssd_bytes = 8 << 20;
    fixture_close(&f);
    struct larder_io_ops ops = ops_of_the_disk();
    ops.submit = submit_or_hold;
    ops.poll = poll_held;
    reopen_with(&ops);
    for (uint64_t seed = 1000; seed < 1112; seed += 2)
        fixture_put_chain(&f, seed, 1, 60000, LARDER_DURABLE);
    uint64_t before = fixture_stats(&f).evicted_ssd;
    atomic_store(&held_op, LARDER_IO_READ);
    struct told reads[READS];
    uint32_t count = 0;
    for (uint64_t seed = 1000; seed < 1112 && count < READS; seed += 2) {
        struct larder_key key = block_key(seed);
        if (!fixture_has(&f, seed))
            continue;
        sem_init(&reads[count].over, 0, 0);
        larder_store_verify(f.store, &key, 0, tell, &reads[count++]);
    }
    struct told told;
    sem_init(&told.over, 0, 0);
    fixture_put_chain(&f, 2000, 12, 60000, LARDER_CACHED);
    struct larder_key last = block_key(2011);
    larder_store_when(f.store, f.tenant.index, &last, LARDER_QUALITY_BLENDED, LARDER_DURABLE, tell,
                      &told);
    for (int i = 0; i < 6; i++)
        pause_shortly();
    ck_assert_uint_le(fixture_stats(&f).evicted_ssd, before + 20);
    atomic_store(&held_op, -1);
    larder_io_wake(f.options.io_override);
    ck_assert_int_eq(answer_of(&told), 0);
    for (uint32_t i = 0; i < count; i++) {
        int err = answer_of(&reads[i]);
        ck_assert(err == 0 || err == LARDER_ENOTFOUND);
        sem_destroy(&reads[i].over);
    }
    sem_destroy(&told.over);
    fixture_close(&f);
}
END_TEST

static void tell_removed_one(void *context, int err, uint64_t removed)
{
    must(removed == 1);
    tell(context, err);
}

/* It was told at once, before the tombstone was written, and a crash brought the entry back. */
START_TEST(who_removes_what_is_being_removed_is_told_when_it_cannot_come_back)
{
    fixture_close(&f);
    struct larder_io_ops ops = ops_of_the_disk();
    ops.submit = submit_or_hold;
    ops.poll = poll_held;
    reopen_with(&ops);
    fixture_put_chain(&f, 1, 1, 20000, LARDER_DURABLE);
    fixture_commit(&f);
    atomic_store(&held_op, LARDER_IO_WRITE);
    struct told first;
    struct told second;
    sem_init(&first.over, 0, 0);
    sem_init(&second.over, 0, 0);
    struct larder_key key = block_key(1);
    larder_store_remove(f.store, f.tenant.index, &key, LARDER_KEEP_PINNED, tell_removed_one,
                        &first);
    larder_store_remove(f.store, f.tenant.index, &key, LARDER_KEEP_PINNED, tell_removed, &second);
    pause_shortly();
    pause_shortly();
    bool early = sem_trywait(&second.over) == 0;
    atomic_store(&held_op, -1);
    larder_io_wake(f.options.io_override);
    ck_assert(!early);
    ck_assert_int_eq(answer_of(&first), 0);
    ck_assert_int_eq(answer_of(&second), LARDER_ENOTFOUND);
    sem_destroy(&first.over);
    sem_destroy(&second.over);
    fixture_close(&f);
}
END_TEST

/* Each pass over all that was left linked one of them. */
START_TEST(a_chain_replaced_from_its_end_is_linked)
{
    enum { BLOCKS = 60 };
    struct block block = {.token_count = 16,
                          .section_bytes = 64,
                          .quality = LARDER_QUALITY_LOSSY,
                          .tenant = f.tenant.index};
    for (block.seed = 1; block.seed <= BLOCKS; block.seed++) {
        block.parent = block.seed > 1 ? block_key(block.seed - 1) : larder_key_root;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    }
    block.quality = LARDER_QUALITY_EXACT;
    for (block.seed = BLOCKS; block.seed >= 1; block.seed--) {
        block.parent = block.seed > 1 ? block_key(block.seed - 1) : larder_key_root;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), 0);
    }
    int err;
    fixture_reopen(&f);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, BLOCKS, &err), BLOCKS);
    fixture_close(&f);
    fixture_remove_index(&f);
    fixture_reopen(&f);
    ck_assert_uint_eq(fixture_stats(&f).index_rebuilt, 1);
    fixture_check(&f);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, BLOCKS, &err), BLOCKS);
}
END_TEST

/* Without SSD: a chain that is only in the host tier goes from its end. */
START_TEST(a_chain_of_the_host_tier_goes_from_its_end)
{
    enum { BLOCKS = 10 };
    reopen_by_recency();
    set_faults((struct sim_faults){.capacity_bytes = 64 << 10});
    struct block block = {.token_count = 256, .section_bytes = 60000, .tenant = f.tenant.index};
    for (uint64_t i = 1; i <= BLOCKS; i++) {
        block.seed = i;
        int err = fixture_put(&f, &block, LARDER_DURABLE);
        ck_assert_int_eq(err, -ENOSPC);
        block.parent = block_key(i);
    }
    block.parent = larder_key_root;
    uint32_t left = BLOCKS;
    for (uint64_t seed = 100; left > 0; seed++) {
        ck_assert_uint_lt(seed, 200);
        block.seed = seed;
        ck_assert_int_eq(fixture_put(&f, &block, LARDER_DURABLE), -ENOSPC);
        fixture_check(&f);
        uint32_t now = 0;
        while (now < BLOCKS && fixture_has(&f, now + 1))
            now++;
        for (uint32_t i = now; i < BLOCKS; i++)
            ck_assert(!fixture_has(&f, i + 1));
        ck_assert_uint_le(now, left);
        left = now;
    }
    set_faults((struct sim_faults){0});
}
END_TEST

/* Its end was in the host tier, was held, and left no room for its start. */
START_TEST(a_chain_above_the_host_tier_gives_its_start)
{
    enum { BLOCKS = 80 };
    reopen_by_recency();
    fixture_put_chain(&f, 1, BLOCKS, 60000, LARDER_DURABLE);
    struct larder_entry_info info;
    struct larder_key first = block_key(1);
    struct larder_key last = block_key(BLOCKS);
    ck_assert_int_eq(larder_store_find(f.store, &info, &first), 0);
    ck_assert(!info.in_host);
    ck_assert_int_eq(larder_store_find(f.store, &info, &last), 0);
    ck_assert(info.in_host);
    int err;
    ck_assert_uint_ge(fixture_get_chain(&f, 1, BLOCKS, &err), BLOCKS / 4);
}
END_TEST

/* Placing it ended in an assertion. */
START_TEST(a_record_for_longer_segments_is_refused)
{
    fixture_close(&f);
    f.options.slab_bytes = 2 << 20;
    f.options.segment_bytes = 2 << 20;
    f.options.ssd_bytes = 6 << 20;
    fixture_reopen(&f);
    fixture_put_chain(&f, 1, 1, 600000, LARDER_DURABLE);
    fixture_close(&f);
    f.options.segment_bytes = 1 << 20;
    fixture_reopen(&f);
    struct told loaded;
    sem_init(&loaded.over, 0, 0);
    struct larder_key key = block_key(1);
    struct larder_ref ref;
    struct larder_lease *lease;
    uint32_t ref_count;
    bool ready;
    ck_assert_int_eq(larder_store_lease(f.store, &lease, &ref, &ref_count, &ready,
                                        &(struct larder_want){.tenant = f.tenant.index,
                                                              .keys = &key,
                                                              .key_count = 1,
                                                              .worst = LARDER_QUALITY_BLENDED},
                                        tell_loaded, &loaded),
                     0);
    ck_assert_int_eq(answer_of(&loaded), 0);
    struct larder_entry_info info = {.durable = 1};
    for (uint64_t seed = 100; info.durable; seed++) {
        ck_assert_uint_lt(seed, 400);
        fixture_put_chain(&f, seed, 1, 60000, LARDER_DURABLE);
        ck_assert_int_eq(larder_store_find(f.store, &info, &key), 0);
    }
    ck_assert_int_eq(fixture_when(&f, 1, LARDER_DURABLE), LARDER_EFULL);
    fixture_check(&f);
    larder_store_release(f.store, lease);
}
END_TEST

/* --- tenants ---------------------------------------------------------------------------------- */

static sem_t sync_begun, sync_may_end;
static atomic_bool hold_syncs;

/* In place of the C library's. */
int fsync(int fd)
{
    if (atomic_exchange(&hold_syncs, false)) {
        sem_post(&sync_begun);
        sem_wait(&sync_may_end);
    }
    return (int)syscall(SYS_fsync, fd);
}

static void *add_tenant(void *argument)
{
    struct larder_tenant_info info;
    *(int *)argument = larder_store_tenant(f.store, &info, "newcomer");
    return NULL;
}

/* The files of the tenants were synced under the store's lock. */
START_TEST(a_new_tenant_keeps_nobody_waiting)
{
    sem_init(&sync_begun, 0, 0);
    sem_init(&sync_may_end, 0, 0);
    atomic_store(&hold_syncs, true);
    pthread_t thread;
    int added = 1;
    ck_assert_int_eq(pthread_create(&thread, NULL, add_tenant, &added), 0);
    sem_wait(&sync_begun);
    int err;
    struct larder_tenant_info info;
    fixture_put_chain(&f, 1, 2, 20000, LARDER_DURABLE);
    ck_assert_uint_eq(fixture_get_chain(&f, 1, 2, &err), 2);
    ck_assert_int_eq(larder_store_tenant(f.store, &info, "a"), 0);
    ck_assert_int_eq(larder_store_tenant_at(f.store, &info, 1), LARDER_ENOTFOUND);
    sem_post(&sync_may_end);
    pthread_join(thread, NULL);
    ck_assert_int_eq(added, 0);
    ck_assert_int_eq(larder_store_tenant_at(f.store, &info, 1), 0);
    ck_assert_str_eq(info.name, "newcomer");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("regressions");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 120);
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, a_key_of_zeros_is_no_block);
    tcase_add_test(tcase, who_waits_for_a_put_hears_of_its_end);
    tcase_add_test(tcase, a_worse_entry_is_not_what_was_waited_for);
    tcase_add_test(tcase, a_failed_slice_ends_its_removal);
    tcase_add_test(tcase, a_removal_that_fails_later_leaves_the_upper_part);
    tcase_add_test(tcase, a_rebuild_knows_what_went_with_its_parent);
    tcase_add_test(tcase, a_rebuild_reads_what_is_between_holes_once);
    tcase_add_test(tcase, a_new_tenant_keeps_nobody_waiting);
    tcase_add_test(tcase, a_segment_whose_removal_failed_goes_the_next_time);
    tcase_add_test(tcase, records_that_were_not_punched_before_a_crash_count);
    tcase_add_test(tcase, a_limit_of_open_files_evicts);
    tcase_add_test(tcase, who_removes_what_was_evicted_is_told_when_it_cannot_come_back);
    tcase_add_test(tcase, who_removes_what_is_being_removed_is_told_when_it_cannot_come_back);
    tcase_add_test(tcase, what_is_read_while_it_is_evicted_is_waited_for);
    tcase_add_test(tcase, a_chain_replaced_from_its_end_is_linked);
    tcase_add_test(tcase, a_chain_of_the_host_tier_goes_from_its_end);
    tcase_add_test(tcase, a_chain_above_the_host_tier_gives_its_start);
    tcase_add_test(tcase, a_record_for_longer_segments_is_refused);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
