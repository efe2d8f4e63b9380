/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring.c - a disk through io_uring.
 * Owns:    the ring; an eventfd whose read is kept in it, so that larder_io_wake() ends a wait.
 * Threads: one at a time, as io.h says; wake only writes to the eventfd.
 * I1  At most `depth` requests and one read of the eventfd are in the ring: it cannot overflow.
 * I2  What does not fit waits in `waiting`, in order; it is never refused.
 * I3  Once the kernel refuses io_uring_enter for good (a seccomp filter set late, a kernel without
 *     memory) the ring is `broken` and nothing enters it any more: what it had not taken yet, and
 *     all that comes, is done by plain system calls in poll(); what it had taken still completes.
 */
#include "storage/io.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "storage/io_posix.h"

/* The ring's limit is 32,768 entries; no disk profits from a thousand. */
#define DEPTH_MAX 4096u
/* Of a broken ring: how long what the kernel has taken may be done before that is seen. */
#define BROKEN_POLL_MS 1

struct io_ring {
    struct io_posix posix;
    struct io_uring ring;
    uint32_t depth;
    uint32_t in_flight; /* without the eventfd's read */
    struct larder_io_request *waiting;
    struct larder_io_request *waiting_last;
    bool broken;
    bool bell_armed;
    uint64_t bell_count; /* where the kernel puts the eventfd's value */
    int event_fd;
};

static struct io_ring *ring_of(struct larder_io *io)
{
    return (struct io_ring *)io;
}

static struct io_uring_sqe *next_sqe(struct io_ring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->ring);
    assert(sqe); /* I1 */
    return sqe;
}

static void append_waiting(struct io_ring *ring, struct larder_io_request *request)
{
    request->next = NULL;
    if (ring->waiting)
        ring->waiting_last->next = request;
    else
        ring->waiting = request;
    ring->waiting_last = request;
}

static bool is_passing(int rc)
{
    return rc == -ETIME || rc == -EINTR || rc == -EAGAIN || rc == -EBUSY;
}

/* Takes back what the kernel has not taken. */
static void give_up(struct io_ring *ring, int err)
{
    larder_log(LARDER_LOG_ERROR,
               "ALARM: io_uring fails (%s): going on with plain system calls, slower, until the "
               "next start",
               larder_error_text(err));
    ring->broken = true;
    struct io_uring_sq *sq = &ring->ring.sq;
    struct larder_io_request *behind = ring->waiting;
    ring->waiting = NULL;
    for (unsigned at = *sq->khead; at != sq->sqe_tail; at++) {
        void *data = (void *)(uintptr_t)sq->sqes[at & sq->ring_mask].user_data;
        if (data == ring) {
            ring->bell_armed = false;
            continue;
        }
        assert(ring->in_flight > 0);
        ring->in_flight--;
        append_waiting(ring, data);
    }
    while (behind) {
        struct larder_io_request *next = behind->next;
        append_waiting(ring, behind);
        behind = next;
    }
}

/* The kernel takes what is in the submission queue. EAGAIN, EBUSY and EINTR leave it there for the
 * next call; each poll makes one. */
static void flush(struct io_ring *ring)
{
    if (ring->broken || io_uring_sq_ready(&ring->ring) == 0)
        return;
    int rc = io_uring_submit(&ring->ring);
    if (rc < 0 && !is_passing(rc))
        give_up(ring, rc);
}

/* The address of `ring` itself, which no request has, marks the bell's completions. */
static void arm_bell(struct io_ring *ring)
{
    assert(!ring->bell_armed);
    struct io_uring_sqe *sqe = next_sqe(ring);
    io_uring_prep_read(sqe, ring->event_fd, &ring->bell_count, sizeof(ring->bell_count), 0);
    io_uring_sqe_set_data(sqe, ring);
    ring->bell_armed = true;
}

static void prepare(struct io_ring *ring, struct larder_io_request *request)
{
    struct io_uring_sqe *sqe = next_sqe(ring);
    int fd = request->file->fd;
    uint32_t bytes = request->bytes - request->progress_bytes;
    char *at = (char *)request->buffer + request->progress_bytes;
    uint64_t offset = request->offset + request->progress_bytes;
    switch (request->op) {
    case LARDER_IO_READ:
        io_uring_prep_read(sqe, fd, at, bytes, offset);
        break;
    case LARDER_IO_WRITE:
        io_uring_prep_write(sqe, fd, at, bytes, offset);
        break;
    case LARDER_IO_SYNC:
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
        break;
    }
    /* A second attempt after EAGAIN may block in a kernel worker rather than fail again. */
    if (request->retry_count > 0)
        sqe->flags |= IOSQE_ASYNC;
    io_uring_sqe_set_data(sqe, request);
}

static void ring_submit(struct larder_io *io, struct larder_io_request *request)
{
    struct io_ring *ring = ring_of(io);
    io_posix_start(request);
    if (ring->broken || ring->in_flight == ring->depth) {
        append_waiting(ring, request);
        return;
    }
    ring->in_flight++;
    prepare(ring, request);
    /* At once: the caller may do something long before it polls, and a group's sync must go on
     * meanwhile. */
    flush(ring);
}

static void start_waiting(struct io_ring *ring)
{
    while (!ring->broken && ring->waiting && ring->in_flight < ring->depth) {
        struct larder_io_request *request = ring->waiting;
        ring->waiting = request->next;
        request->next = NULL;
        ring->in_flight++;
        prepare(ring, request);
    }
}

static struct larder_io_request *finish(struct io_ring *ring, struct io_uring_cqe *cqe)
{
    void *data = io_uring_cqe_get_data(cqe);
    int32_t res = cqe->res;
    io_uring_cqe_seen(&ring->ring, cqe);
    if (data == ring) {
        ring->bell_armed = false;
        return NULL;
    }
    struct larder_io_request *request = data;
    assert(ring->in_flight > 0);
    if (io_posix_advance(request, res) == IO_POSIX_AGAIN) {
        if (!ring->broken) {
            prepare(ring, request);
            return NULL;
        }
        ring->in_flight--;
        append_waiting(ring, request);
        return NULL;
    }
    ring->in_flight--;
    return request;
}

static void wait_for_completion(struct io_ring *ring, int timeout_ms)
{
    struct io_uring_cqe *cqe;
    int rc;
    if (timeout_ms < 0) {
        rc = io_uring_submit_and_wait(&ring->ring, 1);
    } else {
        struct __kernel_timespec time = {
            .tv_sec = timeout_ms / 1000,
            .tv_nsec = (timeout_ms % 1000) * 1000000ll,
        };
        rc = io_uring_submit_and_wait_timeout(&ring->ring, &cqe, 1, &time, NULL);
    }
    if (rc < 0 && !is_passing(rc))
        give_up(ring, rc);
}

/* What has completed in the ring: only what was there at the start, because `done` may submit what
 * completes at once, for ever. */
static int reap(struct io_ring *ring)
{
    int count = 0;
    for (uint32_t ready = io_uring_cq_ready(&ring->ring); ready > 0; ready--) {
        struct io_uring_cqe *cqe;
        if (io_uring_peek_cqe(&ring->ring, &cqe) != 0)
            break;
        struct larder_io_request *request = finish(ring, cqe);
        start_waiting(ring);
        if (!request)
            continue;
        request->done(request);
        count++;
    }
    return count;
}

static void wait_for_bell(struct io_ring *ring, int timeout_ms)
{
    struct pollfd bell = {.fd = ring->event_fd, .events = POLLIN};
    if ((ring->in_flight > 0 || ring->bell_armed) &&
        (timeout_ms < 0 || timeout_ms > BROKEN_POLL_MS))
        timeout_ms = BROKEN_POLL_MS;
    /* While the ring still reads the bell a second reader would wait for ever. */
    uint64_t rings;
    if (poll(&bell, ring->bell_armed ? 0 : 1, timeout_ms) > 0 &&
        read(ring->event_fd, &rings, sizeof(rings)) < 0)
        larder_log(LARDER_LOG_WARN, "eventfd: %s", larder_error_text(-errno));
}

static int broken_poll(struct io_ring *ring, int timeout_ms)
{
    bool was_armed = ring->bell_armed;
    int count = reap(ring);
    struct larder_io_request *request = ring->waiting;
    if (request) {
        ring->waiting = request->next;
        request->next = NULL;
        while (io_posix_advance(request, io_posix_attempt(request)) == IO_POSIX_AGAIN)
            ;
        request->done(request);
        count++;
    }
    /* Something is done, or the ring's own read of the bell has ended. */
    if (count > 0 || was_armed != ring->bell_armed)
        timeout_ms = 0;
    wait_for_bell(ring, timeout_ms);
    return count;
}

static int ring_poll(struct larder_io *io, int timeout_ms)
{
    struct io_ring *ring = ring_of(io);
    if (!ring->broken && !ring->bell_armed)
        arm_bell(ring);
    flush(ring);
    if (!ring->broken && io_uring_cq_ready(&ring->ring) == 0 && timeout_ms != 0)
        wait_for_completion(ring, timeout_ms);
    if (ring->broken)
        return broken_poll(ring, timeout_ms);
    int count = reap(ring);
    flush(ring);
    return count;
}

static void ring_wake(struct larder_io *io)
{
    const uint64_t one = 1;
    ssize_t written;
    do
        written = write(ring_of(io)->event_fd, &one, sizeof(one));
    while (written < 0 && errno == EINTR);
    assert(written == (ssize_t)sizeof(one) || errno == EAGAIN);
}

static void ring_close(struct larder_io *io)
{
    struct io_ring *ring = ring_of(io);
    assert(ring->in_flight == 0);
    assert(!ring->waiting);
    /* The kernel may still write the bell's count into this struct: wait until it has. */
    ring_wake(io);
    flush(ring);
    while (ring->bell_armed) {
        struct io_uring_cqe *cqe;
        if (ring->broken)
            poll(NULL, 0, BROKEN_POLL_MS);
        if ((ring->broken ? io_uring_peek_cqe(&ring->ring, &cqe)
                          : io_uring_wait_cqe(&ring->ring, &cqe)) == 0)
            finish(ring, cqe);
    }
    io_uring_queue_exit(&ring->ring);
    close(ring->event_fd);
    io_posix_close(&ring->posix);
    larder_free(ring);
}

static const struct larder_io_ops ring_ops = {
    .name = "uring",
    .close = ring_close,
    .open_file = io_posix_open_file,
    .close_file = io_posix_close_file,
    .file_bytes = io_posix_file_bytes,
    .disk_bytes = io_posix_disk_bytes,
    .preallocate = io_posix_preallocate,
    .truncate = io_posix_truncate,
    .punch = io_posix_punch,
    .unlink = io_posix_unlink,
    .list = io_posix_list,
    .sync_directory = io_posix_sync_directory,
    .submit = ring_submit,
    .poll = ring_poll,
    .wake = ring_wake,
};

static int open_ring(struct io_ring *ring)
{
    struct io_uring_params params = {0};
    int err = io_uring_queue_init_params(ring->depth + 1, &ring->ring, &params);
    if (err < 0)
        return larder_fail(err, "io_uring_setup with %u entries: %s", ring->depth + 1,
                           larder_error_text(err));
    /* EXT_ARG (Linux 5.11) waits with a time without a request of its own in the ring; NODROP keeps
     * completions that find no room. */
    const uint32_t needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
    if ((params.features & needed) != needed) {
        io_uring_queue_exit(&ring->ring);
        return larder_fail(-ENOSYS,
                           "io_uring of this kernel has features 0x%x, 0x%x are needed: "
                           "use io=threads or Linux 5.11",
                           params.features, needed);
    }
    return 0;
}

int larder_io_uring_open(struct larder_io **out, const char *directory, uint32_t depth)
{
    assert(depth > 0);
    *out = NULL;
    struct io_ring *ring = larder_alloc_zero(1, sizeof(*ring));
    if (!ring)
        return larder_fail(-ENOMEM, "no memory for the ring");
    ring->posix.io.ops = &ring_ops;
    ring->depth = (uint32_t)larder_min_u64(depth, DEPTH_MAX);
    int err = io_posix_open(&ring->posix, directory);
    if (err < 0)
        goto fail_free;
    ring->event_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->event_fd < 0) {
        err = larder_fail(-errno, "eventfd: %s", larder_error_text(-errno));
        goto fail_posix;
    }
    err = open_ring(ring);
    if (err < 0)
        goto fail_event;
    *out = &ring->posix.io;
    return 0;

fail_event:
    close(ring->event_fd);
fail_posix:
    io_posix_close(&ring->posix);
fail_free:
    larder_free(ring);
    return err;
}
