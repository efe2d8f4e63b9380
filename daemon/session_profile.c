/* SPDX-License-Identifier: Apache-2.0 */
/* session_profile.c - WIRE_PROFILE, and the operator's requests about profiles and what was
 * measured of recipes. All of them may wait for the disk, so each runs on a worker.
 *
 * A profile is no secret between tenants: it is made of statistics of the operator's text. Who
 * knows its name may read it; names are told only by records, and by the operator's list.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "daemon/measures.h"
#include "daemon/profiles.h"
#include "daemon/recipes.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

struct request {
    struct job job;
    struct completion completion;
    struct session *session;
    uint64_t id;
    /* On a worker; fills in the answer. */
    int (*work)(struct request *request);
    union {
        struct wire_profile profile;
        struct wire_admin_profile_add add;
        struct wire_admin_index index;
    } in;
    struct staging upload; /* that ADD reads */
    struct wire_measure *rows;
    uint32_t row_count;
    enum wire_type answer_type;
    uint32_t answer_bytes;
    union {
        struct wire_profile_ok profile;
        struct wire_admin_profile_add_ok add;
        struct wire_admin_profile_ok listed;
        struct wire_measure measure;
    } out;
    int fd; /* goes with the answer; -1: none */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

/* --- the way to a worker and back ------------------------------------------------------------- */

static void request_free(struct request *request)
{
    if (request->fd >= 0)
        close(request->fd);
    staging_close(&request->upload);
    larder_free(request->rows);
    larder_free(request);
}

static void request_run(struct job *job, struct scratch *scratch)
{
    struct request *request = (struct request *)((char *)job - offsetof(struct request, job));
    (void)scratch;
    request->err = request->work(request);
    if (request->err < 0)
        snprintf(request->message, sizeof(request->message), "%s", larder_error_message());
    completions_post(request->session->daemon->completions, &request->completion);
}

static void request_answer(struct completion *completion)
{
    struct request *request =
        (struct request *)((char *)completion - offsetof(struct request, completion));
    struct session *session = request->session;
    const struct iovec part = {&request->out, request->answer_bytes};
    if (request->err < 0)
        session_fail_text(session, request->id, request->err, request->message);
    else
        session_reply_parts(session, request->answer_type, request->id, &part, 1, request->fd);
    session_end(session);
    request_free(request);
}

static int request_new(struct request **out, struct session *session, const struct frame *frame,
                       int (*work)(struct request *request), enum wire_type answer_type,
                       size_t answer_bytes)
{
    *out = NULL;
    struct request *request = larder_alloc_zero(1, sizeof(*request));
    if (!request)
        return larder_fail(-ENOMEM, "no memory for a request");
    request->session = session;
    request->id = frame->request;
    request->work = work;
    request->answer_type = answer_type;
    request->answer_bytes = (uint32_t)answer_bytes;
    request->fd = -1;
    request->upload.fd = -1;
    request->job.run = request_run;
    request->completion.run = request_answer;
    *out = request;
    return 0;
}

/* It is the worker's from here, or gone. */
static int request_submit(struct request *request)
{
    struct session *session = request->session;
    const bool engine = session->side == FRAME_ENGINE;
    int err = engine ? session_may_work(session) : 0;
    if (err == 0)
        err = session_begin(session);
    if (err < 0) {
        request_free(request);
        return err;
    }
    workers_submit(session->daemon->workers, engine ? session->tenant.index : WORKERS_OWN,
                   &request->job);
    return 0;
}

/* --- profiles --------------------------------------------------------------------------------- */

static int share_profile(struct request *request)
{
    return profiles_share(request->session->daemon->profiles, &request->fd,
                          &request->out.profile.bytes, request->in.profile.name);
}

int session_profile(struct session *session, const struct frame *frame)
{
    struct request *request;
    LARDER_TRY(request_new(&request, session, frame, share_profile, WIRE_PROFILE_OK,
                           sizeof(request->out.profile)));
    request->in.profile = *(const struct wire_profile *)frame->body;
    return request_submit(request);
}

int admin_profile_new(struct session *session, const struct frame *frame)
{
    const struct wire_staging *wire = frame->body;
    struct wire_staging_ok ok = {.bytes = wire->bytes};
    if (wire->bytes > LARDER_PROFILE_BYTES_MAX)
        return larder_fail(LARDER_ELIMIT, "a profile of %llu bytes; it has at most %llu",
                           (unsigned long long)wire->bytes,
                           (unsigned long long)LARDER_PROFILE_BYTES_MAX);
    struct staging fresh;
    LARDER_TRY(staging_open(&fresh, wire->bytes));
    staging_close(&session->upload);
    session->upload = fresh;
    const struct iovec part = {&ok, sizeof(ok)};
    session_reply_parts(session, WIRE_ADMIN_PROFILE_NEW_OK, frame->request, &part, 1, fresh.fd);
    return 0;
}

static int add_profile(struct request *request)
{
    struct profiles *profiles = request->session->daemon->profiles;
    bool existed;
    LARDER_TRY(profiles_add(profiles, &existed, request->upload.memory, request->upload.bytes,
                            request->in.add.name));
    request->out.add.existed = existed;
    return request->in.add.is_default ? profiles_set_default(profiles, request->in.add.name) : 0;
}

int admin_profile_add(struct session *session, const struct frame *frame)
{
    struct request *request;
    if (session->upload.fd < 0)
        return larder_fail(-EINVAL, "no memory was asked for to add a profile from");
    LARDER_TRY(request_new(&request, session, frame, add_profile, WIRE_ADMIN_PROFILE_ADD_OK,
                           sizeof(request->out.add)));
    request->in.add = *(const struct wire_admin_profile_add *)frame->body;
    request->upload = session->upload;
    session->upload = (struct staging){.fd = -1};
    return request_submit(request);
}

static int list_profile(struct request *request)
{
    struct larderd *daemon = request->session->daemon;
    struct wire_admin_profile_ok *out = &request->out.listed;
    struct profile_info info;
    if (!profiles_at(daemon->profiles, &info, request->in.index.index))
        return larder_fail(LARDER_ENOTFOUND, "there is no profile %u", request->in.index.index);
    memcpy(out->name, info.name, sizeof(out->name));
    out->bytes = info.bytes;
    out->is_default = info.is_default;
    out->uses = larder_store_profile_uses(daemon->store, info.name);
    return 0;
}

int admin_profiles(struct session *session, const struct frame *frame)
{
    struct request *request;
    LARDER_TRY(request_new(&request, session, frame, list_profile, WIRE_ADMIN_PROFILES_OK,
                           sizeof(request->out.listed)));
    request->in.index = *(const struct wire_admin_index *)frame->body;
    return request_submit(request);
}

static int remove_profile(struct request *request)
{
    struct larderd *daemon = request->session->daemon;
    const uint8_t *name = request->in.profile.name;
    recipes_forget(daemon->recipes, name);
    LARDER_TRY(profiles_begin_removal(daemon->profiles, name));
    const uint64_t uses = larder_store_profile_uses(daemon->store, name);
    LARDER_TRY(profiles_end_removal(daemon->profiles, name, uses == 0));
    return uses == 0 ? 0
                     : larder_fail(-EBUSY,
                                   "%llu entries were encoded with this profile and cannot be "
                                   "read without it; remove them first",
                                   (unsigned long long)uses);
}

int admin_profile_rm(struct session *session, const struct frame *frame)
{
    struct request *request;
    LARDER_TRY(request_new(&request, session, frame, remove_profile, WIRE_ADMIN_PROFILE_RM_OK, 0));
    request->in.profile = *(const struct wire_profile *)frame->body;
    return request_submit(request);
}

/* --- measures --------------------------------------------------------------------------------- */

static int set_measures(struct request *request)
{
    return measures_set(request->session->daemon->measures, request->rows, request->row_count);
}

int admin_measure(struct session *session, const struct frame *frame)
{
    struct request *request;
    LARDER_TRY(request_new(&request, session, frame, set_measures, WIRE_ADMIN_MEASURE_OK, 0));
    const size_t bytes = frame->item_count * sizeof(request->rows[0]);
    request->rows = larder_alloc(bytes);
    if (!request->rows) {
        request_free(request);
        return larder_fail(-ENOMEM, "no memory for measures");
    }
    memcpy(request->rows, frame->items, bytes);
    request->row_count = frame->item_count;
    return request_submit(request);
}

static int list_measure(struct request *request)
{
    const uint32_t index = request->in.index.index;
    if (!measures_at(request->session->daemon->measures, &request->out.measure, index))
        return larder_fail(LARDER_ENOTFOUND, "there is no measure %u", index);
    return 0;
}

int admin_measures(struct session *session, const struct frame *frame)
{
    struct request *request;
    LARDER_TRY(request_new(&request, session, frame, list_measure, WIRE_ADMIN_MEASURES_OK,
                           sizeof(request->out.measure)));
    request->in.index = *(const struct wire_admin_index *)frame->body;
    return request_submit(request);
}
