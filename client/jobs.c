/* SPDX-License-Identifier: Apache-2.0 */
#include "client/jobs.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "client/connection.h"
#include "client/operations.h"

struct larder_job {
    /* set at submit */
    struct larder_model *model;
    const struct larder_prompt *prompt;
    const struct larder_layout *layout;
    struct larder_get_result *get_result; /* NULL: a put */
    const struct larder_get_options *get_options;
    struct larder_put_result *put_result;
    const struct larder_put_options *put_options;
    int event;

    atomic_bool cancelled; /* relaxed: asks, and orders nothing */

    pthread_mutex_t lock;
    pthread_cond_t ended;
    /* under lock */
    bool has_ended;
    int code;
    char message[LARDER_MESSAGE_BYTES_MAX];

    struct larder_job *next; /* under jobs->lock */
};

struct client_jobs {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t more;
    /* under lock */
    struct larder_job *first;
    struct larder_job **last;
    struct larder_job *running;
    bool closing;
};

/* --- the thread ------------------------------------------------------------------------------ */

static void run_job(struct client_jobs *jobs, struct larder_job *job)
{
    int code;
    if (atomic_load_explicit(&job->cancelled, memory_order_relaxed))
        code = larder_fail(-ECANCELED, "the job was cancelled before it began");
    else if (job->get_result)
        code = client_get(job->model, job->get_result, job->prompt, job->layout, job->get_options,
                          &job->cancelled);
    else
        code = client_put(job->model, job->put_result, job->prompt, job->layout, job->put_options,
                          &job->cancelled);
    /* Before its end is told, since its submitter frees it then. */
    pthread_mutex_lock(&jobs->lock);
    jobs->running = NULL;
    pthread_mutex_unlock(&jobs->lock);
    pthread_mutex_lock(&job->lock);
    job->code = code;
    if (code < 0)
        snprintf(job->message, sizeof(job->message), "%s", larder_error_message());
    job->has_ended = true;
    /* Under the lock: once it is free, larder_job_end() may free the job. */
    const uint64_t one = 1;
    ssize_t wrote = write(job->event, &one, sizeof(one));
    assert(wrote == sizeof(one));
    pthread_cond_broadcast(&job->ended);
    pthread_mutex_unlock(&job->lock);
}

static void *jobs_main(void *argument)
{
    struct client_jobs *jobs = argument;
    pthread_mutex_lock(&jobs->lock);
    for (;;) {
        while (!jobs->first && !jobs->closing)
            pthread_cond_wait(&jobs->more, &jobs->lock);
        struct larder_job *job = jobs->first;
        if (!job)
            break;
        jobs->first = job->next;
        if (!jobs->first)
            jobs->last = &jobs->first;
        jobs->running = job;
        pthread_mutex_unlock(&jobs->lock);
        run_job(jobs, job);
        pthread_mutex_lock(&jobs->lock);
    }
    pthread_mutex_unlock(&jobs->lock);
    return NULL;
}

static int jobs_open(struct client_jobs **out)
{
    *out = NULL;
    struct client_jobs *jobs = larder_alloc_zero(1, sizeof(*jobs));
    if (!jobs)
        return larder_fail(-ENOMEM, "no memory for jobs");
    pthread_mutex_init(&jobs->lock, NULL);
    pthread_cond_init(&jobs->more, NULL);
    jobs->last = &jobs->first;
    /* The program's signal handlers do not run on threads it does not know. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&jobs->thread, NULL, jobs_main, jobs);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err) {
        pthread_cond_destroy(&jobs->more);
        pthread_mutex_destroy(&jobs->lock);
        larder_free(jobs);
        return larder_fail(-err, "starting the thread for jobs: %s", strerror(err));
    }
    *out = jobs;
    return 0;
}

void client_jobs_close(struct client_jobs *jobs)
{
    if (!jobs)
        return;
    pthread_mutex_lock(&jobs->lock);
    jobs->closing = true;
    /* A running job cannot be freed before it ended, nor a queued one before it ran. */
    for (struct larder_job *job = jobs->first; job; job = job->next)
        larder_job_cancel(job);
    if (jobs->running)
        larder_job_cancel(jobs->running);
    pthread_cond_signal(&jobs->more);
    pthread_mutex_unlock(&jobs->lock);
    pthread_join(jobs->thread, NULL);
    pthread_cond_destroy(&jobs->more);
    pthread_mutex_destroy(&jobs->lock);
    larder_free(jobs);
}

/* --- submitting ------------------------------------------------------------------------------ */

static void free_job(struct larder_job *job)
{
    if (job->event >= 0)
        close(job->event);
    pthread_cond_destroy(&job->ended);
    pthread_mutex_destroy(&job->lock);
    larder_free(job);
}

static int new_job(struct larder_job **out, struct larder_model *model)
{
    *out = NULL;
    if (model->larder->pid != getpid())
        return larder_fail(LARDER_EUNSUPPORTED,
                           "this connection belongs to process %d; after fork() process %d opens "
                           "its own with larder_connect()",
                           (int)model->larder->pid, (int)getpid());
    struct larder_job *job = larder_alloc_zero(1, sizeof(*job));
    if (!job)
        return larder_fail(-ENOMEM, "no memory for a job");
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&job->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&job->lock, NULL);
    job->model = model;
    job->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->event < 0) {
        int err = larder_fail(-errno, "eventfd: %s", strerror(errno));
        free_job(job);
        return err;
    }
    *out = job;
    return 0;
}

/* Takes the job: frees it when it fails. */
static int submit(struct larder_job *job, struct larder_job **out)
{
    struct larder *larder = job->model->larder;
    int err = 0;
    pthread_mutex_lock(&larder->lock);
    if (!larder->jobs)
        err = jobs_open(&larder->jobs);
    struct client_jobs *jobs = larder->jobs;
    pthread_mutex_unlock(&larder->lock);
    if (err < 0) {
        free_job(job);
        return err;
    }
    *out = job;
    pthread_mutex_lock(&jobs->lock);
    *jobs->last = job;
    jobs->last = &job->next;
    pthread_cond_signal(&jobs->more);
    pthread_mutex_unlock(&jobs->lock);
    return 0;
}

int larder_get_submit(struct larder_model *model, struct larder_job **out,
                      struct larder_get_result *result, const struct larder_prompt *prompt,
                      const struct larder_layout *layout, const struct larder_get_options *options)
{
    *out = NULL;
    memset(result, 0, sizeof(*result));
    struct larder_job *job;
    LARDER_TRY(new_job(&job, model));
    job->prompt = prompt;
    job->layout = layout;
    job->get_result = result;
    job->get_options = options;
    return submit(job, out);
}

int larder_put_submit(struct larder_model *model, struct larder_job **out,
                      struct larder_put_result *result, const struct larder_prompt *prompt,
                      const struct larder_layout *layout, const struct larder_put_options *options)
{
    *out = NULL;
    memset(result, 0, sizeof(*result));
    struct larder_job *job;
    LARDER_TRY(new_job(&job, model));
    job->prompt = prompt;
    job->layout = layout;
    job->put_result = result;
    job->put_options = options;
    return submit(job, out);
}

/* --- the submitter's side -------------------------------------------------------------------- */

int larder_job_fd(struct larder_job *job)
{
    return job->event;
}

/* Under job->lock. The code with its message, as if the caller's own thread had failed. */
static int code_locked(const struct larder_job *job)
{
    if (!job->has_ended)
        return larder_fail(-EINPROGRESS, "the job has not ended yet");
    return job->code < 0 ? larder_fail(job->code, "%s", job->message) : job->code;
}

int larder_job_wait(struct larder_job *job, uint32_t timeout_ms)
{
    uint64_t until_ns = client_now_ns() + timeout_ms * 1000000ull;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u),
                             .tv_nsec = (long)(until_ns % 1000000000u)};
    pthread_mutex_lock(&job->lock);
    while (!job->has_ended && timeout_ms > 0)
        if (pthread_cond_timedwait(&job->ended, &job->lock, &until) == ETIMEDOUT)
            break;
    int code = code_locked(job);
    pthread_mutex_unlock(&job->lock);
    return code;
}

void larder_job_cancel(struct larder_job *job)
{
    atomic_store_explicit(&job->cancelled, true, memory_order_relaxed);
}

int larder_job_end(struct larder_job *job)
{
    pthread_mutex_lock(&job->lock);
    while (!job->has_ended)
        pthread_cond_wait(&job->ended, &job->lock);
    int code = code_locked(job);
    pthread_mutex_unlock(&job->lock);
    free_job(job);
    return code;
}
