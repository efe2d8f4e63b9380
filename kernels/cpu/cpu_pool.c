/* SPDX-License-Identifier: Apache-2.0 */
/* cpu_pool.c - see cpu_pool.h.
 * A job is published by raising `generation`; workers look for it for some 10 microseconds, since
 * a forward's jobs follow each other closely, and then sleep.
 */
#include "kernels/cpu/cpu_pool.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

#define SPINS 300

struct worker {
    struct cpu_pool *pool;
    pthread_t thread;
    uint32_t number;
};

struct cpu_pool {
    /* fixed after open */
    uint32_t threads;
    struct worker *workers; /* threads - 1, numbers from 1 */

    /* set by the caller before `generation` rises, read by workers after they saw it */
    cpu_job *job;
    void *context;
    uint64_t count;
    bool stop;

    /* any worker */
    _Atomic uint64_t next;       /* item to take; relaxed: an item is claimed, nothing else */
    _Atomic uint64_t generation; /* release by the caller, acquire by workers: the job's fields */
    _Atomic uint32_t busy;       /* release by workers, acquire by the caller: the job's results */

    pthread_mutex_t mutex; /* guards the sleeping on both conditions */
    pthread_cond_t started;
    pthread_cond_t finished;
};

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void take_items(struct cpu_pool *pool, uint32_t number)
{
    for (;;) {
        uint64_t item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= pool->count)
            return;
        pool->job(pool->context, item, number);
    }
}

static void await_job(struct cpu_pool *pool, uint64_t seen)
{
    for (unsigned i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen)
            return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->started, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct cpu_pool *pool = worker->pool;
    for (uint64_t seen = 0;; seen++) {
        await_job(pool, seen);
        if (pool->stop)
            return NULL;
        take_items(pool, worker->number);
        if (atomic_fetch_sub_explicit(&pool->busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->finished);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
}

static void publish(struct cpu_pool *pool)
{
    atomic_store_explicit(&pool->busy, pool->threads - 1, memory_order_relaxed);
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->started);
    pthread_mutex_unlock(&pool->mutex);
}

void cpu_pool_run(struct cpu_pool *pool, cpu_job *job, void *context, uint64_t count)
{
    if (pool->threads == 1 || count <= 1) {
        for (uint64_t item = 0; item < count; item++)
            job(context, item, 0);
        return;
    }
    pool->job = job;
    pool->context = context;
    pool->count = count;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    publish(pool);
    take_items(pool, 0);
    for (unsigned i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&pool->busy, memory_order_acquire) == 0)
            return;
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->busy, memory_order_acquire) != 0)
        pthread_cond_wait(&pool->finished, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

/* Stops and joins the first `started` workers. */
static void join(struct cpu_pool *pool, uint32_t started)
{
    pool->stop = true;
    publish(pool);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(pool->workers[i].thread, NULL);
}

static void destroy(struct cpu_pool *pool)
{
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->started);
    pthread_mutex_destroy(&pool->mutex);
    larder_free(pool->workers);
    larder_free(pool);
}

int cpu_pool_open(struct cpu_pool **out, uint32_t threads)
{
    assert(threads > 0);
    *out = NULL;
    struct cpu_pool *pool = larder_alloc_zero(1, sizeof(*pool));
    struct worker *workers = larder_alloc_zero(threads, sizeof(*workers));
    if (!pool || !workers) {
        larder_free(workers);
        larder_free(pool);
        return larder_fail(-ENOMEM, "no memory for a pool of %u threads", threads);
    }
    pool->threads = threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->started, NULL);
    pthread_cond_init(&pool->finished, NULL);

    /* Signals are for the program's own threads. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = 0;
    uint32_t started = 0;
    while (failed == 0 && started < threads - 1) {
        struct worker *worker = &workers[started];
        worker->pool = pool;
        worker->number = started + 1;
        failed = pthread_create(&worker->thread, NULL, work, worker);
        started += failed == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        join(pool, started);
        destroy(pool);
        return larder_fail(-failed, "thread %u of %u does not start: %s", started + 1, threads - 1,
                           strerror(failed));
    }
    *out = pool;
    return 0;
}

void cpu_pool_close(struct cpu_pool *pool)
{
    if (!pool)
        return;
    join(pool, pool->threads - 1);
    destroy(pool);
}

uint32_t cpu_pool_threads(const struct cpu_pool *pool)
{
    return pool->threads;
}
