/* SPDX-License-Identifier: Apache-2.0 */
/* io_threads.c - a disk through pread, pwrite and fdatasync on a few threads: for kernels and
 * containers without io_uring, and for tools that cannot see into it (valgrind, strace).
 * Owns:    the threads, the two queues, the eventfd.
 * Threads: workers take from `todo` and put into `completed`; the storage thread the other way.
 */
#include "storage/io.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "storage/io_posix.h"

/* More threads than this only wait in the same disk's queue. */
#define THREADS_MAX 8u
/* Between attempts of a request that moved nothing. */
#define RETRY_PAUSE_US 1000u

struct queue {
    struct larder_io_request *first;
    struct larder_io_request *last;
};

struct io_threads {
    struct io_posix posix;
    int event_fd;
    uint32_t thread_count;
    pthread_t threads[THREADS_MAX];
    /* storage thread */
    uint32_t in_flight;
    /* any, under mutex */
    pthread_mutex_t mutex;
    pthread_cond_t work;
    struct queue todo;
    struct queue completed;
    bool stop;
};

static struct io_threads *threads_of(struct larder_io *io)
{
    return (struct io_threads *)io;
}

static void push(struct queue *queue, struct larder_io_request *request)
{
    request->next = NULL;
    if (queue->last)
        queue->last->next = request;
    else
        queue->first = request;
    queue->last = request;
}

static struct larder_io_request *pop(struct queue *queue)
{
    struct larder_io_request *request = queue->first;
    if (!request)
        return NULL;
    queue->first = request->next;
    if (!queue->first)
        queue->last = NULL;
    return request;
}

static void ring_bell(struct io_threads *threads)
{
    const uint64_t one = 1;
    ssize_t written;
    do
        written = write(threads->event_fd, &one, sizeof(one));
    while (written < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the bell rings already. */
    assert(written == (ssize_t)sizeof(one) || errno == EAGAIN);
}

static void *worker(void *argument)
{
    struct io_threads *threads = argument;
    pthread_mutex_lock(&threads->mutex);
    for (;;) {
        struct larder_io_request *request = pop(&threads->todo);
        if (!request) {
            if (threads->stop)
                break;
            pthread_cond_wait(&threads->work, &threads->mutex);
            continue;
        }
        pthread_mutex_unlock(&threads->mutex);
        uint32_t retries_seen = 0;
        while (io_posix_advance(request, io_posix_attempt(request)) == IO_POSIX_AGAIN) {
            if (request->retry_count > retries_seen)
                usleep(RETRY_PAUSE_US);
            retries_seen = request->retry_count;
        }
        pthread_mutex_lock(&threads->mutex);
        bool was_empty = !threads->completed.first;
        push(&threads->completed, request);
        if (was_empty)
            ring_bell(threads);
    }
    pthread_mutex_unlock(&threads->mutex);
    return NULL;
}

static void threads_submit(struct larder_io *io, struct larder_io_request *request)
{
    struct io_threads *threads = threads_of(io);
    io_posix_start(request);
    threads->in_flight++;
    pthread_mutex_lock(&threads->mutex);
    push(&threads->todo, request);
    pthread_cond_signal(&threads->work);
    pthread_mutex_unlock(&threads->mutex);
}

/* Takes the completed ones at once, so that `done` runs without the lock. */
static int run_completed(struct io_threads *threads)
{
    pthread_mutex_lock(&threads->mutex);
    struct queue batch = threads->completed;
    threads->completed = (struct queue){0};
    pthread_mutex_unlock(&threads->mutex);

    int count = 0;
    for (struct larder_io_request *request; (request = pop(&batch)) != NULL; count++) {
        assert(threads->in_flight > 0);
        threads->in_flight--;
        request->done(request);
    }
    return count;
}

static int threads_poll(struct larder_io *io, int timeout_ms)
{
    struct io_threads *threads = threads_of(io);
    struct pollfd bell = {.fd = threads->event_fd, .events = POLLIN};
    int rc = poll(&bell, 1, timeout_ms);
    if (rc < 0 && errno != EINTR)
        return larder_fail(-errno, "poll: %s", larder_error_text(-errno));
    if (rc > 0) {
        /* Emptied before the queue is looked at: what completes after that rings again. */
        uint64_t rings;
        ssize_t got = read(threads->event_fd, &rings, sizeof(rings));
        assert(got == (ssize_t)sizeof(rings) || errno == EAGAIN || errno == EINTR);
    }
    return run_completed(threads);
}

static void threads_wake(struct larder_io *io)
{
    ring_bell(threads_of(io));
}

static void stop_threads(struct io_threads *threads)
{
    pthread_mutex_lock(&threads->mutex);
    threads->stop = true;
    pthread_cond_broadcast(&threads->work);
    pthread_mutex_unlock(&threads->mutex);
    for (uint32_t i = 0; i < threads->thread_count; i++)
        pthread_join(threads->threads[i], NULL);
}

static void threads_close(struct larder_io *io)
{
    struct io_threads *threads = threads_of(io);
    assert(threads->in_flight == 0);
    stop_threads(threads);
    pthread_cond_destroy(&threads->work);
    pthread_mutex_destroy(&threads->mutex);
    close(threads->event_fd);
    io_posix_close(&threads->posix);
    larder_free(threads);
}

static const struct larder_io_ops threads_ops = {
    .name = "threads",
    .close = threads_close,
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
    .submit = threads_submit,
    .poll = threads_poll,
    .wake = threads_wake,
};

/* Signals are the daemon's main thread's business. */
static int start_threads(struct io_threads *threads, uint32_t count)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = 0;
    while (threads->thread_count < count && err == 0) {
        err = pthread_create(&threads->threads[threads->thread_count], NULL, worker, threads);
        if (err == 0)
            threads->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return err ? larder_fail(-err, "cannot start %u I/O threads: %s", count,
                             larder_error_text(-err))
               : 0;
}

int larder_io_threads_open(struct larder_io **out, const char *directory, uint32_t depth)
{
    assert(depth > 0);
    *out = NULL;
    struct io_threads *threads = larder_alloc_zero(1, sizeof(*threads));
    if (!threads)
        return larder_fail(-ENOMEM, "no memory for I/O threads");
    threads->posix.io.ops = &threads_ops;
    int err = io_posix_open(&threads->posix, directory);
    if (err < 0)
        goto fail_free;
    threads->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (threads->event_fd < 0) {
        err = larder_fail(-errno, "eventfd: %s", larder_error_text(-errno));
        goto fail_posix;
    }
    pthread_mutex_init(&threads->mutex, NULL);
    pthread_cond_init(&threads->work, NULL);
    err = start_threads(threads, (uint32_t)larder_min_u64(depth, THREADS_MAX));
    if (err < 0)
        goto fail_threads;
    *out = &threads->posix.io;
    return 0;

fail_threads:
    stop_threads(threads);
    pthread_cond_destroy(&threads->work);
    pthread_mutex_destroy(&threads->mutex);
    close(threads->event_fd);
fail_posix:
    io_posix_close(&threads->posix);
fail_free:
    larder_free(threads);
    return err;
}
