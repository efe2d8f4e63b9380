/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

struct scratch {
    void *memory;
    uint64_t bytes;
};

struct worker {
    struct workers *pool;
    pthread_t thread;
    struct scratch scratch; /* its own thread */
};

/* Of one owner. */
struct queue {
    struct job *first;
    struct job **last_next;
    struct queue *next; /* in the order of turns, while it has jobs */
    uint32_t count;
};

struct workers {
    uint32_t count;
    struct worker *all;
    /* any thread, under mtx */
    pthread_mutex_t mtx;
    pthread_cond_t wake;
    struct queue *turn; /* whose turn is next */
    struct queue **turn_last_next;
    bool stopping;
    struct queue queues[WORKERS_OWN + 1];
};

static void add_turn(struct workers *pool, struct queue *queue)
{
    queue->next = NULL;
    *pool->turn_last_next = queue;
    pool->turn_last_next = &queue->next;
}

/* Under mtx. NULL: there is none. */
static struct job *take_job(struct workers *pool)
{
    struct queue *queue = pool->turn;
    if (!queue)
        return NULL;
    pool->turn = queue->next;
    if (!pool->turn)
        pool->turn_last_next = &pool->turn;
    struct job *job = queue->first;
    queue->first = job->next;
    if (--queue->count > 0)
        add_turn(pool, queue);
    return job;
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct workers *pool = worker->pool;
    for (;;) {
        pthread_mutex_lock(&pool->mtx);
        while (!pool->turn && !pool->stopping)
            pthread_cond_wait(&pool->wake, &pool->mtx);
        struct job *job = take_job(pool);
        pthread_mutex_unlock(&pool->mtx);
        if (!job)
            return NULL;
        job->run(job, &worker->scratch);
    }
}

static void stop(struct workers *pool, uint32_t started)
{
    pthread_mutex_lock(&pool->mtx);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mtx);
    for (uint32_t i = 0; i < started; i++) {
        pthread_join(pool->all[i].thread, NULL);
        larder_free(pool->all[i].scratch.memory);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mtx);
    larder_free(pool->all);
    larder_free(pool);
}

int workers_open(struct workers **out, uint32_t thread_count)
{
    *out = NULL;
    assert(thread_count > 0);
    struct workers *pool = larder_alloc_zero(1, sizeof(*pool));
    struct worker *all = larder_alloc_zero(thread_count, sizeof(*all));
    if (!pool || !all) {
        larder_free(all);
        larder_free(pool);
        return larder_fail(-ENOMEM, "no memory for %u workers", thread_count);
    }
    pool->count = thread_count;
    pool->all = all;
    pthread_mutex_init(&pool->mtx, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->turn_last_next = &pool->turn;
    for (uint32_t i = 0; i < thread_count; i++) {
        all[i].pool = pool;
        int err = pthread_create(&all[i].thread, NULL, worker_main, &all[i]);
        if (err) {
            stop(pool, i);
            return larder_fail(-err, "cannot start worker %u of %u: %s; try a smaller threads", i,
                               thread_count, strerror(err));
        }
        char name[16];
        snprintf(name, sizeof(name), "worker-%u", i % 1000);
        pthread_setname_np(all[i].thread, name);
    }
    *out = pool;
    return 0;
}

void workers_close(struct workers *workers)
{
    if (workers)
        stop(workers, workers->count);
}

uint32_t workers_count(const struct workers *workers)
{
    return workers->count;
}

void workers_submit(struct workers *workers, uint32_t owner, struct job *job)
{
    assert(job->run);
    assert(owner <= WORKERS_OWN);
    struct queue *queue = &workers->queues[owner];
    job->next = NULL;
    pthread_mutex_lock(&workers->mtx);
    assert(!workers->stopping);
    if (queue->count++ == 0) {
        queue->last_next = &queue->first;
        add_turn(workers, queue);
    }
    *queue->last_next = job;
    queue->last_next = &job->next;
    pthread_mutex_unlock(&workers->mtx);
    /* Without the lock, which the woken thread wants. */
    pthread_cond_signal(&workers->wake);
}

uint32_t workers_waiting(struct workers *workers, uint32_t owner)
{
    assert(owner <= WORKERS_OWN);
    pthread_mutex_lock(&workers->mtx);
    uint32_t count = workers->queues[owner].count;
    pthread_mutex_unlock(&workers->mtx);
    return count;
}

void *scratch_reserve(struct scratch *scratch, uint64_t bytes)
{
    if (scratch->bytes < bytes) {
        larder_free(scratch->memory);
        scratch->bytes = 0;
        scratch->memory = larder_alloc_aligned(64, larder_round_up(bytes, LARDER_PAGE_BYTES));
        if (scratch->memory)
            scratch->bytes = larder_round_up(bytes, LARDER_PAGE_BYTES);
    }
    return scratch->memory;
}
