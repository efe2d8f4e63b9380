/* SPDX-License-Identifier: Apache-2.0 */
#include "client/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

struct worker {
    struct client_workers *workers;
    pthread_t thread; /* not of worker 0: that is the caller */
    void *scratch;
    uint64_t scratch_bytes;
};

struct client_workers {
    pthread_mutex_t turn; /* held through a run; before `lock` */

    pthread_mutex_t lock;
    pthread_cond_t start;
    pthread_cond_t finish;

    /* under lock; task, context and count also stay fixed while a run is on */
    uint64_t run; /* counts runs */
    uint32_t running;
    bool closing;
    client_task task;
    void *context;
    uint32_t count;

    /* relaxed: handing out numbers orders nothing, the lock does */
    _Atomic uint32_t next;

    uint32_t worker_count;
    struct worker workers[CLIENT_WORKERS_MAX];
};

static void work(struct client_workers *workers, struct worker *worker)
{
    for (;;) {
        uint32_t index = atomic_fetch_add_explicit(&workers->next, 1, memory_order_relaxed);
        if (index >= workers->count)
            return;
        workers->task(workers->context, index, worker->scratch);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct client_workers *workers = worker->workers;
    uint64_t seen = 0;
    pthread_mutex_lock(&workers->lock);
    for (;;) {
        while (!workers->closing && workers->run == seen)
            pthread_cond_wait(&workers->start, &workers->lock);
        if (workers->closing)
            break;
        seen = workers->run;
        pthread_mutex_unlock(&workers->lock);
        work(workers, worker);
        pthread_mutex_lock(&workers->lock);
        if (--workers->running == 0)
            pthread_cond_signal(&workers->finish);
    }
    pthread_mutex_unlock(&workers->lock);
    return NULL;
}

/* The program's signal handlers do not run on threads it does not know. */
static int start_thread(struct worker *worker)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&worker->thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err ? larder_fail(-err, "starting a thread: %s", strerror(err)) : 0;
}

int client_workers_open(struct client_workers **out, uint32_t threads)
{
    assert(threads <= CLIENT_WORKERS_MAX);
    *out = NULL;
    struct client_workers *workers = larder_alloc_zero(1, sizeof(*workers));
    if (!workers)
        return larder_fail(-ENOMEM, "no memory for worker threads");
    pthread_mutex_init(&workers->turn, NULL);
    pthread_mutex_init(&workers->lock, NULL);
    pthread_cond_init(&workers->start, NULL);
    pthread_cond_init(&workers->finish, NULL);
    workers->worker_count = 1;
    for (uint32_t i = 1; i < threads; i++) {
        workers->workers[i].workers = workers;
        int err = start_thread(&workers->workers[i]);
        if (err < 0) {
            client_workers_close(workers);
            return err;
        }
        workers->worker_count++;
    }
    *out = workers;
    return 0;
}

void client_workers_close(struct client_workers *workers)
{
    pthread_mutex_lock(&workers->lock);
    assert(workers->running == 0);
    workers->closing = true;
    pthread_cond_broadcast(&workers->start);
    pthread_mutex_unlock(&workers->lock);
    for (uint32_t i = 0; i < workers->worker_count; i++) {
        if (i > 0)
            pthread_join(workers->workers[i].thread, NULL);
        larder_free(workers->workers[i].scratch);
    }
    pthread_cond_destroy(&workers->finish);
    pthread_cond_destroy(&workers->start);
    pthread_mutex_destroy(&workers->lock);
    pthread_mutex_destroy(&workers->turn);
    larder_free(workers);
}

/* Under the turn: the threads are at rest. */
static int grow_scratch(struct client_workers *workers, uint64_t scratch_bytes)
{
    for (uint32_t i = 0; i < workers->worker_count; i++) {
        struct worker *worker = &workers->workers[i];
        if (worker->scratch_bytes >= scratch_bytes)
            continue;
        larder_free(worker->scratch);
        worker->scratch_bytes = 0;
        worker->scratch = larder_alloc_aligned(64, scratch_bytes);
        if (!worker->scratch)
            return larder_fail(-ENOMEM, "no memory for %llu bytes to decode into",
                               (unsigned long long)scratch_bytes);
        worker->scratch_bytes = scratch_bytes;
    }
    return 0;
}

int client_workers_run(struct client_workers *workers, client_task task, void *context,
                       uint32_t count, uint64_t scratch_bytes)
{
    if (count == 0)
        return 0;
    pthread_mutex_lock(&workers->turn);
    int err = grow_scratch(workers, scratch_bytes);
    if (err == 0) {
        const bool alone = workers->worker_count == 1 || count == 1;
        pthread_mutex_lock(&workers->lock);
        workers->task = task;
        workers->context = context;
        workers->count = count;
        atomic_store_explicit(&workers->next, 0, memory_order_relaxed);
        if (!alone) {
            workers->running = workers->worker_count - 1;
            workers->run++;
            pthread_cond_broadcast(&workers->start);
        }
        pthread_mutex_unlock(&workers->lock);
        work(workers, &workers->workers[0]);
        pthread_mutex_lock(&workers->lock);
        while (workers->running > 0)
            pthread_cond_wait(&workers->finish, &workers->lock);
        pthread_mutex_unlock(&workers->lock);
    }
    pthread_mutex_unlock(&workers->turn);
    return err;
}
