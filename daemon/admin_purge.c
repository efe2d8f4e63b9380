/* SPDX-License-Identifier: Apache-2.0 */
/* admin_purge.c - WIRE_ADMIN_PURGE: all that a tenant has goes, for good.
 *
 * Its connections are closed first, so that what they began ends soon, and once more behind it:
 * whoever connected meanwhile may have been told the old key. The purge waits for puts that workers
 * have begun, and so has a thread of its own.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "base/mem.h"
#include "daemon/session_priv.h"

struct purge_job {
    struct completion completion;
    pthread_t thread;
    struct session *session;
    uint64_t request;
    struct larder_tenant_info tenant;
    uint64_t removed;
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

static void close_sessions_of(struct larderd *daemon, uint32_t tenant)
{
    struct session *next;
    for (struct session *session = daemon->sessions; session; session = next) {
        next = session->next;
        if (session->state == SESSION_READY && session->side == FRAME_ENGINE &&
            session->tenant.index == tenant)
            session_close(session);
    }
}

/* What is told to those who connect from now on. */
static void take_new_keys(struct larderd *daemon, uint32_t tenant)
{
    for (uint32_t i = 0; i < daemon->tenant_count; i++) {
        if (daemon->tenants[i].index == tenant)
            larder_store_tenant_at(daemon->store, &daemon->tenants[i], tenant);
    }
}

static void *purge_run(void *argument)
{
    struct purge_job *job = argument;
    struct larderd *daemon = job->session->daemon;
    job->err = larder_store_purge(daemon->store, job->tenant.index, &job->removed);
    if (job->err < 0)
        snprintf(job->message, sizeof(job->message), "%s", larder_error_message());
    completions_post(daemon->completions, &job->completion);
    return NULL;
}

static void purge_answer(struct completion *completion)
{
    struct purge_job *job =
        (struct purge_job *)((char *)completion - offsetof(struct purge_job, completion));
    struct session *session = job->session;
    pthread_join(job->thread, NULL);
    take_new_keys(session->daemon, job->tenant.index);
    close_sessions_of(session->daemon, job->tenant.index);
    if (job->err < 0) {
        larder_log(LARDER_LOG_ERROR, "purge of tenant %s: %s", job->tenant.name, job->message);
        session_fail_text(session, job->request, job->err, job->message);
    } else {
        larder_log(LARDER_LOG_WARN, "tenant %s was purged: %llu entries", job->tenant.name,
                   (unsigned long long)job->removed);
        struct wire_remove_ok ok = {.removed = job->removed};
        session_reply(session, WIRE_ADMIN_PURGE_OK, job->request, &ok, sizeof(ok));
    }
    session_end(session);
    larder_free(job);
}

int admin_purge(struct session *session, const struct frame *frame)
{
    const struct wire_admin_purge *wire = frame->body;
    struct larder_tenant_info tenant;
    LARDER_TRY(admin_find_tenant(session, &tenant, wire->tenant));
    struct purge_job *job = larder_alloc_zero(1, sizeof(*job));
    if (!job)
        return larder_fail(-ENOMEM, "no memory for a request");
    int err = session_begin(session);
    if (err < 0) {
        larder_free(job);
        return err;
    }
    job->completion.run = purge_answer;
    job->session = session;
    job->request = frame->request;
    job->tenant = tenant;
    close_sessions_of(session->daemon, tenant.index);
    err = pthread_create(&job->thread, NULL, purge_run, job);
    if (err != 0) {
        session_end(session);
        larder_free(job);
        return larder_fail(-err, "no thread for a purge: %s", strerror(err));
    }
    return 0;
}
