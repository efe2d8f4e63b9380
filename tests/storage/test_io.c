/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: every disk backend keeps the contract of storage/io.h, and the simulated disk loses exactly
 * what a disk may lose.
 * Method: the same cases over threads, io_uring (skipped with a line where the kernel forbids it)
 * and the simulated disk, against a copy in memory; then crashes of the simulated disk over many
 * seeds, where both outcomes of what is left open must occur. */
#include <check.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/limits.h"
#include "scratch.h"
#include "sim_disk.h"
#include "storage/io.h"
#include "storage/io_posix.h"

#define PAGE  LARDER_PAGE_BYTES
#define DEPTH 8u

static const char *const backends[] = {"threads", "uring", "sim"};

struct fixture {
    struct larder_io *io;
    struct sim_disk *disk;
    char path[SCRATCH_PATH_BYTES];
};

/* False: skipped. */
static bool set_up(struct fixture *fixture, int backend)
{
    *fixture = (struct fixture){0};
    if (strcmp(backends[backend], "sim") == 0) {
        fixture->disk = sim_disk_create(7);
        fixture->io = sim_disk_open_io(fixture->disk);
        return true;
    }
    scratch_make(fixture->path);
    int err = larder_io_open(&fixture->io, backends[backend], fixture->path, DEPTH);
    if (err < 0 && strcmp(backends[backend], "uring") == 0 && (err == -EPERM || err == -ENOSYS)) {
        fprintf(stderr, "skipped: %s\n", larder_error_message());
        scratch_remove(fixture->path);
        return false;
    }
    ck_assert_msg(err == 0, "%s: %s", backends[backend], larder_error_message());
    ck_assert_str_eq(fixture->io->ops->name, backends[backend]);
    return true;
}

static void tear_down(struct fixture *fixture)
{
    fixture->io->ops->close(fixture->io);
    if (fixture->disk)
        sim_disk_destroy(fixture->disk);
    else
        scratch_remove(fixture->path);
}

static void *pages(size_t count)
{
    void *memory = aligned_alloc(PAGE, count * PAGE);
    ck_assert_ptr_nonnull(memory);
    return memory;
}

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* --- names and sizes -------------------------------------------------------------------------- */

static int count_name(void *context, const char *name)
{
    (void)name;
    ++*(int *)context;
    return 0;
}

static int stop_at_first(void *context, const char *name)
{
    (void)context;
    (void)name;
    return -ECANCELED;
}

START_TEST(names)
{
    struct fixture fixture;
    if (!set_up(&fixture, _i))
        return;
    struct larder_io *io = fixture.io;
    struct larder_file *a, *b;
    ck_assert_int_eq(io->ops->open_file(io, &a, "a", LARDER_IO_OPEN_EXISTING), -ENOENT);
    ck_assert_ptr_null(a);
    ck_assert_int_eq(io->ops->open_file(io, &a, "a", LARDER_IO_CREATE_NEW), 0);
    ck_assert_int_eq(io->ops->open_file(io, &b, "a", LARDER_IO_CREATE_NEW), -EEXIST);
    ck_assert_int_eq(io->ops->open_file(io, &b, "b", LARDER_IO_CREATE_NEW), 0);
    ck_assert_int_eq(io->ops->sync_directory(io), 0);
    int count = 0;
    ck_assert_int_eq(io->ops->list(io, count_name, &count), 0);
    ck_assert_int_eq(count, 2);
    ck_assert_int_eq(io->ops->list(io, stop_at_first, NULL), -ECANCELED);
    io->ops->close_file(io, b);
    ck_assert_int_eq(io->ops->unlink(io, "b"), 0);
    ck_assert_int_eq(io->ops->unlink(io, "b"), -ENOENT);
    count = 0;
    ck_assert_int_eq(io->ops->list(io, count_name, &count), 0);
    ck_assert_int_eq(count, 1);
    io->ops->close_file(io, a);
    tear_down(&fixture);
}
END_TEST

START_TEST(sizes_and_holes)
{
    struct fixture fixture;
    if (!set_up(&fixture, _i))
        return;
    struct larder_io *io = fixture.io;
    struct larder_file *file;
    ck_assert_int_eq(io->ops->open_file(io, &file, "a", LARDER_IO_CREATE_NEW), 0);
    uint64_t bytes;
    ck_assert_int_eq(io->ops->preallocate(io, file, 16 * PAGE), 0);
    ck_assert_int_eq(io->ops->file_bytes(io, file, &bytes), 0);
    ck_assert_uint_eq(bytes, 16 * PAGE);
    ck_assert_int_eq(io->ops->preallocate(io, file, 8 * PAGE), 0);
    ck_assert_int_eq(io->ops->file_bytes(io, file, &bytes), 0);
    ck_assert_uint_eq(bytes, 16 * PAGE);

    uint8_t *buffer = pages(4);
    memset(buffer, 1, 4 * PAGE);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 12 * PAGE, 4 * PAGE), 0);
    ck_assert(larder_all_zero(buffer, 4 * PAGE));
    /* Beyond the end, wholly and in part. */
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 16 * PAGE, PAGE), -ENODATA);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 14 * PAGE, 4 * PAGE),
                     -ENODATA);

    memset(buffer, 2, 4 * PAGE);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 4 * PAGE, 4 * PAGE), 0);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_SYNC, file, NULL, 0, 0), 0);
    int err = io->ops->punch(io, file, 5 * PAGE, PAGE);
    ck_assert(err == 0 || err == -EOPNOTSUPP);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 4 * PAGE, 4 * PAGE), 0);
    ck_assert_int_eq(buffer[0], 2);
    ck_assert_int_eq(buffer[PAGE], err == 0 ? 0 : 2);
    ck_assert_int_eq(buffer[2 * PAGE], 2);

    ck_assert_int_eq(io->ops->truncate(io, file, 6 * PAGE), 0);
    ck_assert_int_eq(io->ops->file_bytes(io, file, &bytes), 0);
    ck_assert_uint_eq(bytes, 6 * PAGE);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 6 * PAGE, PAGE), -ENODATA);
    free(buffer);
    io->ops->close_file(io, file);
    tear_down(&fixture);
}
END_TEST

/* --- requests --------------------------------------------------------------------------------- */

#define FILE_PAGES    256u
#define REQUEST_COUNT 64u /* more than DEPTH: the rest waits inside the backend */

struct slot {
    struct larder_io_request request;
    uint8_t *buffer;
    bool in_flight;
};

static void slot_done(struct larder_io_request *request)
{
    struct slot *slot = request->context;
    ck_assert(slot->in_flight);
    ck_assert_int_eq(request->result, 0);
    slot->in_flight = false;
}

static void wait_for_all(struct larder_io *io, struct slot *slots)
{
    for (uint32_t i = 0; i < REQUEST_COUNT; i++)
        while (slots[i].in_flight)
            ck_assert_int_ge(io->ops->poll(io, 1000), 0);
}

/* Rounds of writes to places apart, then of reads of any places, against a copy in memory. */
START_TEST(many_at_once)
{
    struct fixture fixture;
    if (!set_up(&fixture, _i))
        return;
    struct larder_io *io = fixture.io;
    if (fixture.disk)
        sim_disk_set_faults(fixture.disk,
                            &(struct sim_faults){.error_op = SIM_ANY_OP, .short_permille = 200});
    struct larder_file *file;
    ck_assert_int_eq(io->ops->open_file(io, &file, "a", LARDER_IO_CREATE_NEW), 0);
    ck_assert_int_eq(io->ops->preallocate(io, file, FILE_PAGES * PAGE), 0);
    uint8_t *copy = pages(FILE_PAGES);
    memset(copy, 0, FILE_PAGES * PAGE);
    struct slot slots[REQUEST_COUNT] = {0};
    const uint32_t slot_pages = FILE_PAGES / REQUEST_COUNT;
    for (uint32_t i = 0; i < REQUEST_COUNT; i++)
        slots[i].buffer = pages(slot_pages);

    srand(1);
    for (int round = 0; round < 20; round++) {
        bool reading = round % 2;
        for (uint32_t i = 0; i < REQUEST_COUNT; i++) {
            struct slot *slot = &slots[i];
            uint32_t count = 1 + (uint32_t)rand() % slot_pages;
            uint64_t page = reading ? (uint64_t)rand() % (FILE_PAGES - count) : i * slot_pages;
            slot->request = (struct larder_io_request){
                .op = reading ? LARDER_IO_READ : LARDER_IO_WRITE,
                .file = file,
                .buffer = slot->buffer,
                .offset = page * PAGE,
                .bytes = count * PAGE,
                .done = slot_done,
                .context = slot,
            };
            memset(slot->buffer, reading ? 0xee : rand() % 256, slot_pages * PAGE);
            if (!reading)
                memcpy(copy + page * PAGE, slot->buffer, count * PAGE);
            slot->in_flight = true;
            io->ops->submit(io, &slot->request);
        }
        wait_for_all(io, slots);
        for (uint32_t i = 0; reading && i < REQUEST_COUNT; i++)
            ck_assert_mem_eq(slots[i].buffer, copy + slots[i].request.offset,
                             slots[i].request.bytes);
    }
    for (uint32_t i = 0; i < REQUEST_COUNT; i++)
        free(slots[i].buffer);
    free(copy);
    io->ops->close_file(io, file);
    tear_down(&fixture);
}
END_TEST

struct chain {
    struct larder_io *io;
    struct larder_io_request request;
    int left;
};

static void chain_done(struct larder_io_request *request)
{
    struct chain *chain = request->context;
    ck_assert_int_eq(request->result, 0);
    if (--chain->left > 0)
        chain->io->ops->submit(chain->io, request);
}

START_TEST(done_may_submit)
{
    struct fixture fixture;
    if (!set_up(&fixture, _i))
        return;
    struct larder_io *io = fixture.io;
    struct larder_file *file;
    ck_assert_int_eq(io->ops->open_file(io, &file, "a", LARDER_IO_CREATE_NEW), 0);
    struct chain chains[2 * DEPTH];
    void *buffer = pages(1);
    memset(buffer, 3, PAGE);
    for (uint32_t i = 0; i < 2 * DEPTH; i++) {
        chains[i] = (struct chain){.io = io, .left = 50};
        chains[i].request = (struct larder_io_request){
            .op = LARDER_IO_WRITE,
            .file = file,
            .buffer = buffer,
            .offset = i * PAGE,
            .bytes = PAGE,
            .done = chain_done,
            .context = &chains[i],
        };
        io->ops->submit(io, &chains[i].request);
    }
    for (uint32_t i = 0; i < 2 * DEPTH; i++)
        while (chains[i].left > 0)
            ck_assert_int_ge(io->ops->poll(io, -1), 0);
    free(buffer);
    io->ops->close_file(io, file);
    tear_down(&fixture);
}
END_TEST

static void *wake_soon(void *io)
{
    usleep(20000);
    larder_io_wake(io);
    return NULL;
}

START_TEST(waiting)
{
    struct fixture fixture;
    if (!set_up(&fixture, _i))
        return;
    struct larder_io *io = fixture.io;
    double start = now_s();
    ck_assert_int_eq(io->ops->poll(io, 0), 0);
    ck_assert_int_eq(io->ops->poll(io, 30), 0);
    ck_assert_double_ge(now_s() - start, 0.025);

    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        ck_assert_int_eq(pthread_create(&thread, NULL, wake_soon, io), 0);
        ck_assert_int_eq(io->ops->poll(io, -1), 0);
        pthread_join(thread, NULL);
    }
    /* A wake that comes before the wait is not lost. */
    larder_io_wake(io);
    ck_assert_int_eq(io->ops->poll(io, -1), 0);
    tear_down(&fixture);
}
END_TEST

/* --- opening ---------------------------------------------------------------------------------- */

START_TEST(choosing)
{
    char path[SCRATCH_PATH_BYTES];
    struct larder_io *io;
    scratch_make(path);
    ck_assert_int_eq(larder_io_open(&io, "floppy", path, 1), LARDER_ECONFIG);
    ck_assert_ptr_null(io);
    ck_assert_int_eq(larder_io_open(&io, "threads", "/nonexistent/larder", 1), -ENOENT);
    ck_assert_int_eq(larder_io_open(&io, "auto", "/nonexistent/larder", 1), -ENOENT);
    ck_assert_int_eq(larder_io_open(&io, "auto", path, 100000), 0);
    io->ops->close(io);
    scratch_remove(path);
}
END_TEST

static bool forbid(uint32_t number)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = LARDER_COUNT_OF(code), .filter = code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* As in a container whose profile forbids io_uring. */
START_TEST(forbidden_uring)
{
    char path[SCRATCH_PATH_BYTES];
    scratch_make(path);
    pid_t child = fork();
    if (child == 0) {
        if (!forbid(SYS_io_uring_setup))
            _exit(77);
        struct larder_io *io;
        if (larder_io_open(&io, "uring", path, 4) != -EPERM || io)
            _exit(1);
        if (larder_io_open(&io, "auto", path, 4) != 0 || strcmp(io->ops->name, "threads") != 0)
            _exit(2);
        io->ops->close(io);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        fprintf(stderr, "skipped: no seccomp here\n");
    else
        ck_assert_int_eq(WEXITSTATUS(status), 0);
    scratch_remove(path);
}
END_TEST

#define LATE_COUNT 40u

static void count_done(struct larder_io_request *request)
{
    ++*(uint32_t *)request->context;
}

/* All requests, each of a page; those from `first_late` on after the ring was forbidden. */
static int run_late(struct larder_io *io, struct larder_file *file, enum larder_io_op op,
                    uint8_t *buffers, uint32_t first_late)
{
    static struct larder_io_request requests[LATE_COUNT];
    uint32_t done = 0;
    for (uint32_t i = 0; i < LATE_COUNT; i++) {
        if (i == first_late && !forbid(SYS_io_uring_enter))
            return 77;
        requests[i] = (struct larder_io_request){.op = op,
                                                 .file = file,
                                                 .buffer = buffers + i * PAGE,
                                                 .offset = i * PAGE,
                                                 .bytes = PAGE,
                                                 .done = count_done,
                                                 .context = &done};
        io->ops->submit(io, &requests[i]);
    }
    while (done < LATE_COUNT)
        if (io->ops->poll(io, -1) < 0)
            return 3;
    for (uint32_t i = 0; i < LATE_COUNT; i++)
        if (requests[i].result != 0)
            return 4;
    return 0;
}

/* In a child: a ring that stops working half way through the writes. */
static int lose_ring(const char *path)
{
    struct larder_io *io;
    struct larder_file *file;
    uint8_t *buffers = aligned_alloc(PAGE, LATE_COUNT * PAGE);
    pthread_t thread;
    if (!buffers || larder_io_open(&io, "uring", path, 8) != 0)
        return 77;
    if (io->ops->open_file(io, &file, "late", LARDER_IO_CREATE_NEW) != 0 ||
        io->ops->preallocate(io, file, LATE_COUNT * PAGE) != 0)
        return 5;
    for (uint32_t i = 0; i < LATE_COUNT * PAGE; i++)
        buffers[i] = (uint8_t)(i / PAGE + i);
    int rc = run_late(io, file, LARDER_IO_WRITE, buffers, LATE_COUNT / 2);
    if (rc == 0 && larder_io_run(io, LARDER_IO_SYNC, file, NULL, 0, 0) != 0)
        rc = 6;
    memset(buffers, 0, LATE_COUNT * PAGE);
    if (rc == 0)
        rc = run_late(io, file, LARDER_IO_READ, buffers, LATE_COUNT);
    for (uint32_t i = 0; rc == 0 && i < LATE_COUNT * PAGE; i++)
        rc = buffers[i] == (uint8_t)(i / PAGE + i) ? 0 : 7;
    /* Waiting, with and without a time, goes on too. */
    if (rc == 0 && io->ops->poll(io, 20) != 0)
        rc = 8;
    if (rc == 0 && pthread_create(&thread, NULL, wake_soon, io) == 0) {
        rc = io->ops->poll(io, -1) == 0 ? 0 : 9;
        pthread_join(thread, NULL);
    }
    io->ops->close_file(io, file);
    io->ops->close(io);
    free(buffers);
    return rc;
}

START_TEST(uring_lost_in_mid_life)
{
    char path[SCRATCH_PATH_BYTES];
    scratch_make(path);
    pid_t child = fork();
    if (child == 0)
        _exit(lose_ring(path));
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        fprintf(stderr, "skipped: no io_uring or no seccomp here\n");
    else
        ck_assert_int_eq(WEXITSTATUS(status), 0);
    scratch_remove(path);
}
END_TEST

static void no_done(struct larder_io_request *request)
{
    (void)request;
}

START_TEST(short_and_interrupted)
{
    struct larder_file file;
    void *buffer = pages(4);
    struct larder_io_request request = {
        .op = LARDER_IO_WRITE,
        .file = &file,
        .buffer = buffer,
        .bytes = 4 * PAGE,
        .done = no_done,
    };
    io_posix_start(&request);
    ck_assert_int_eq(io_posix_advance(&request, PAGE + 100), IO_POSIX_AGAIN);
    ck_assert_uint_eq(request.progress_bytes, PAGE);
    ck_assert_int_eq(io_posix_advance(&request, -EINTR), IO_POSIX_AGAIN);
    ck_assert_int_eq(io_posix_advance(&request, 3 * PAGE), IO_POSIX_DONE);
    ck_assert_int_eq(request.result, 0);

    io_posix_start(&request);
    ck_assert_int_eq(io_posix_advance(&request, -ENOSPC), IO_POSIX_DONE);
    ck_assert_int_eq(request.result, -ENOSPC);

    /* EAGAIN for ever is an error in the end; so is a write that moves nothing. */
    static const struct {
        int64_t gives;
        int result;
    } stuck[] = {{-EAGAIN, -EAGAIN}, {0, -EIO}};
    for (size_t i = 0; i < LARDER_COUNT_OF(stuck); i++) {
        io_posix_start(&request);
        int attempts = 1;
        while (io_posix_advance(&request, stuck[i].gives) == IO_POSIX_AGAIN)
            ck_assert_int_lt(attempts++, 1000);
        ck_assert_int_eq(request.result, stuck[i].result);
    }

    request.op = LARDER_IO_READ;
    io_posix_start(&request);
    ck_assert_int_eq(io_posix_advance(&request, 2 * PAGE), IO_POSIX_AGAIN);
    ck_assert_int_eq(io_posix_advance(&request, 0), IO_POSIX_DONE);
    ck_assert_int_eq(request.result, -ENODATA);

    /* A failed sync is never tried again: the second one would report success. */
    request.op = LARDER_IO_SYNC;
    request.bytes = 0;
    io_posix_start(&request);
    ck_assert_int_eq(io_posix_advance(&request, -EINTR), IO_POSIX_DONE);
    ck_assert_int_eq(request.result, -EINTR);
    free(buffer);
}
END_TEST

/* --- the simulated disk ----------------------------------------------------------------------- */

static struct larder_file *sim_create(struct larder_io *io, const char *name, uint64_t bytes)
{
    struct larder_file *file;
    ck_assert_int_eq(io->ops->open_file(io, &file, name, LARDER_IO_CREATE_NEW), 0);
    if (bytes)
        ck_assert_int_eq(io->ops->preallocate(io, file, bytes), 0);
    return file;
}

static void sim_close_all(struct larder_io *io, struct larder_file *file)
{
    io->ops->close_file(io, file);
    io->ops->close(io);
}

/* What was synced is there after every crash; what was not is there, torn, or gone, and over some
 * seeds each happens. With a sync that lies, what it promised is lost for some seed. */
START_TEST(sim_power_loss)
{
    bool sync_lies = _i;
    uint8_t *buffer = pages(4);
    int name_lost = 0, kept = 0, torn = 0, lost = 0, promised_lost = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct sim_disk *disk = sim_disk_create(seed);
        struct larder_io *io = sim_disk_open_io(disk);
        sim_disk_set_faults(disk,
                            &(struct sim_faults){.error_op = SIM_ANY_OP, .sync_lies = sync_lies});
        struct larder_file *file = sim_create(io, "a", 8 * PAGE);
        ck_assert_int_eq(io->ops->sync_directory(io), 0);
        memset(buffer, 1, 4 * PAGE);
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 0, 4 * PAGE), 0);
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_SYNC, file, NULL, 0, 0), 0);
        memset(buffer, 2, 4 * PAGE);
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 4 * PAGE, 4 * PAGE), 0);
        io->ops->close_file(io, file);
        file = sim_create(io, "b", 0);
        sim_close_all(io, file);
        sim_disk_crash(disk);

        uint8_t byte = 0;
        bool promise_kept = true;
        for (uint64_t at = 0; at < 4 * PAGE; at += 512)
            promise_kept = promise_kept && sim_disk_peek(disk, "a", at, &byte, 1) && byte == 1;
        promised_lost += !promise_kept;
        int twos = 0;
        for (uint64_t at = 4 * PAGE; at < 8 * PAGE; at += 512) {
            ck_assert(sim_disk_peek(disk, "a", at, &byte, 1) || sync_lies);
            ck_assert(byte == 2 || byte == 0 || sync_lies);
            twos += byte == 2;
        }
        kept += twos == 32;
        lost += twos == 0;
        torn += twos > 0 && twos < 32;
        name_lost += !sim_disk_peek(disk, "b", 0, &byte, 0);
        sim_disk_destroy(disk);
    }
    if (sync_lies) {
        ck_assert_int_gt(promised_lost, 50);
    } else {
        ck_assert_int_eq(promised_lost, 0);
        ck_assert_int_gt(kept, 10);
        ck_assert_int_gt(torn, 10);
        ck_assert_int_gt(lost, 10);
        ck_assert(name_lost > 50 && name_lost < 150);
    }
    free(buffer);
}
END_TEST

/* A sync covers what had completed when it was submitted, not what was on its way. */
START_TEST(sim_sync_order)
{
    int lost = 0;
    uint8_t *buffer = pages(1);
    memset(buffer, 9, PAGE);
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct sim_disk *disk = sim_disk_create(seed);
        struct larder_io *io = sim_disk_open_io(disk);
        struct larder_file *file = sim_create(io, "a", 2 * PAGE);
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_SYNC, file, NULL, 0, 0), 0);
        ck_assert_int_eq(io->ops->sync_directory(io), 0);
        struct larder_io_request write = {
            .op = LARDER_IO_WRITE, .file = file, .buffer = buffer, .bytes = PAGE, .done = no_done};
        struct larder_io_request sync = {.op = LARDER_IO_SYNC, .file = file, .done = no_done};
        io->ops->submit(io, &write);
        io->ops->submit(io, &sync);
        for (int done = 0; done < 2;)
            done += io->ops->poll(io, -1);
        sim_close_all(io, file);
        sim_disk_crash(disk);
        uint8_t byte;
        ck_assert(sim_disk_peek(disk, "a", 0, &byte, 1));
        lost += byte != 9;
        sim_disk_destroy(disk);
    }
    ck_assert_int_gt(lost, 20);
    free(buffer);
}
END_TEST

START_TEST(sim_power_off)
{
    struct sim_disk *disk = sim_disk_create(3);
    struct larder_io *io = sim_disk_open_io(disk);
    struct larder_file *file = sim_create(io, "a", 4 * PAGE);
    void *buffer = pages(1);
    memset(buffer, 1, PAGE);
    ck_assert_uint_eq(sim_disk_steps(disk), 2);
    sim_disk_fail_power_at(disk, 4);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 0, PAGE), 0);
    ck_assert_int_eq(sim_disk_gate(disk), -EIO);
    ck_assert(sim_disk_power_failed(disk));
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 0, PAGE), -EIO);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 0, PAGE), -EIO);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_SYNC, file, NULL, 0, 0), -EIO);
    ck_assert_int_eq(io->ops->sync_directory(io), -EIO);
    struct larder_file *other;
    ck_assert_int_eq(io->ops->open_file(io, &other, "b", LARDER_IO_CREATE_NEW), -EIO);
    sim_close_all(io, file);
    sim_disk_crash(disk);
    ck_assert(!sim_disk_power_failed(disk));
    ck_assert_int_eq(sim_disk_gate(disk), 0);
    sim_disk_destroy(disk);
    free(buffer);
}
END_TEST

START_TEST(sim_faults)
{
    struct sim_disk *disk = sim_disk_create(5);
    struct larder_io *io = sim_disk_open_io(disk);
    struct larder_file *file = sim_create(io, "a", 8 * PAGE);
    uint8_t *buffer = pages(1);
    for (int i = 0; i < 8; i++) {
        memset(buffer, i + 1, PAGE);
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, (uint64_t)i * PAGE, PAGE),
                         0);
    }
    struct sim_faults faults = {.error_at = 2, .error_op = LARDER_IO_READ};
    sim_disk_set_faults(disk, &faults);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 0, PAGE), 0);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 0, PAGE), 0);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 0, PAGE), -EIO);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 0, PAGE), 0);

    faults = (struct sim_faults){.error_op = SIM_ANY_OP, .misdirect_permille = 1000};
    sim_disk_set_faults(disk, &faults);
    int wrong = 0;
    for (int i = 0; i < 50; i++) {
        ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 0, PAGE), 0);
        wrong += buffer[0] != 1;
    }
    ck_assert_int_gt(wrong, 20);

    faults = (struct sim_faults){.error_op = SIM_ANY_OP, .capacity_bytes = 10 * PAGE};
    sim_disk_set_faults(disk, &faults);
    ck_assert_int_eq(io->ops->preallocate(io, file, 11 * PAGE), -ENOSPC);
    ck_assert_int_eq(io->ops->preallocate(io, file, 10 * PAGE), 0);
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_WRITE, file, buffer, 10 * PAGE, PAGE), -ENOSPC);

    ck_assert(sim_disk_flip_bit(disk, "a", 3 * PAGE + 5, 7));
    ck_assert(!sim_disk_flip_bit(disk, "a", 10 * PAGE, 0));
    ck_assert_int_eq(larder_io_run(io, LARDER_IO_READ, file, buffer, 3 * PAGE, PAGE), 0);
    ck_assert_int_eq(buffer[4], 4);
    ck_assert_int_eq(buffer[5], 4 ^ 0x80);
    free(buffer);
    sim_close_all(io, file);
    sim_disk_destroy(disk);
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("io");
    TCase *backends_case = tcase_create("backends");
    const int count = (int)LARDER_COUNT_OF(backends);
    tcase_set_timeout(backends_case, 60);
    tcase_add_loop_test(backends_case, names, 0, count);
    tcase_add_loop_test(backends_case, sizes_and_holes, 0, count);
    tcase_add_loop_test(backends_case, many_at_once, 0, count);
    tcase_add_loop_test(backends_case, done_may_submit, 0, count);
    tcase_add_loop_test(backends_case, waiting, 0, count);
    suite_add_tcase(s, backends_case);
    TCase *opening = tcase_create("opening");
    tcase_add_test(opening, choosing);
    tcase_add_test(opening, forbidden_uring);
    tcase_add_test(opening, uring_lost_in_mid_life);
    tcase_add_test(opening, short_and_interrupted);
    suite_add_tcase(s, opening);
    TCase *sim = tcase_create("sim");
    tcase_add_loop_test(sim, sim_power_loss, 0, 2);
    tcase_add_test(sim, sim_sync_order);
    tcase_add_test(sim, sim_power_off);
    tcase_add_test(sim, sim_faults);
    suite_add_tcase(s, sim);
    return s;
}

int main(void)
{
    SRunner *runner = srunner_create(suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? 1 : 0;
}
