/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/crew.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

struct eval_crew {
    const struct eval_crew_work *work;
    atomic_uint next; /* item */
    atomic_uint done; /* steps */
    atomic_uint working;
    atomic_bool failed;
    pthread_mutex_t mutex;
    int err; /* the first, under mutex */
    char message[LARDER_MESSAGE_BYTES_MAX];
};

void eval_crew_step(struct eval_crew *crew)
{
    atomic_fetch_add(&crew->done, 1);
}

static void note_error(struct eval_crew *crew, int err)
{
    pthread_mutex_lock(&crew->mutex);
    if (crew->err == 0) {
        crew->err = err;
        snprintf(crew->message, sizeof(crew->message), "%s", larder_error_message());
    }
    pthread_mutex_unlock(&crew->mutex);
    atomic_store(&crew->failed, true);
}

static void *work_thread(void *context)
{
    struct eval_crew *crew = context;
    const struct eval_crew_work *work = crew->work;
    void *hand = NULL;
    int err = work->open(&hand, crew, work->context);
    while (err == 0 && !atomic_load(&crew->failed)) {
        uint32_t item = atomic_fetch_add(&crew->next, 1);
        if (item >= work->items)
            break;
        err = work->run(hand, item);
    }
    if (err < 0)
        note_error(crew, err);
    work->close(hand);
    atomic_fetch_sub(&crew->working, 1);
    return NULL;
}

static void show_progress(struct eval_crew *crew)
{
    const struct eval_progress *progress = &crew->work->progress;
    const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
    uint64_t all = (uint64_t)crew->work->items * crew->work->steps_of_item;
    while (atomic_load(&crew->working) > 0) {
        nanosleep(&pause, NULL);
        progress->step(progress->context, atomic_load(&crew->done), all);
    }
}

int eval_crew_run(const struct eval_crew_work *work)
{
    assert(work->jobs > 0);
    assert(work->jobs <= EVAL_JOBS_MAX);
    struct eval_crew crew = {.work = work, .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[EVAL_JOBS_MAX];
    uint32_t started = 0;
    while (started < work->jobs) {
        atomic_fetch_add(&crew.working, 1);
        int err = pthread_create(&threads[started], NULL, work_thread, &crew);
        if (err != 0) {
            atomic_fetch_sub(&crew.working, 1);
            note_error(&crew, larder_fail(-err, "a thread: %s", strerror(err)));
            break;
        }
        started++;
    }
    show_progress(&crew);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    return crew.err < 0 ? larder_fail(crew.err, "%s", crew.message) : 0;
}
