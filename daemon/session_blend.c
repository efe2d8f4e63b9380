/* SPDX-License-Identifier: Apache-2.0 */
/* session_blend.c - WIRE_WORKER, WIRE_BLEND and WIRE_BLEND_READ: handed to the model's worker,
 * which reads and writes the connection's staging by itself. A connection has one blend at a time.
 * One that it has let go may go on for a while, in the staging of its time: a client takes another.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/served.h"
#include "daemon/session_priv.h"

static int find_served(struct session *session, struct served **out, uint32_t handle)
{
    struct session_model *model = session_model_of(session, handle);
    if (!model)
        return LARDER_EPROTO;
    return served_find(session->daemon->served, out, model->info.desc.name,
                       &model->info.fingerprint);
}

int session_worker(struct session *session, const struct frame *frame)
{
    const struct wire_worker *wire = frame->body;
    struct served *served;
    struct wire_worker_ok ok;
    LARDER_TRY(find_served(session, &served, wire->model));
    served_describe(served, &ok);
    session_reply(session, WIRE_WORKER_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int check_range(const struct session *session, uint64_t offset, uint64_t bytes)
{
    const uint64_t all = session->staging.bytes;
    if (bytes <= all && offset <= all - bytes)
        return 0;
    return larder_fail(
        LARDER_EPROTO, "bytes %llu to %llu are not within the connection's staging of %llu",
        (unsigned long long)offset, (unsigned long long)(offset + bytes), (unsigned long long)all);
}

/* The answer's region (base/wire.h): what the worker may write. */
static int check_region(const struct wire_blend *wire, uint32_t vocab)
{
    uint64_t bytes = larder_round_up(4ull * vocab, 64) + larder_round_up(wire->token_count, 64) +
                     LARDER_BLEND_SPANS_MAX(wire->piece_count) * sizeof(struct larder_blend_span);
    if (wire->staging_bytes >= bytes)
        return 0;
    return larder_fail(LARDER_EPROTO,
                       "staging_bytes=%llu, but the answer about %u tokens and %u pieces takes up "
                       "to %llu",
                       (unsigned long long)wire->staging_bytes, wire->token_count,
                       wire->piece_count, (unsigned long long)bytes);
}

int session_blend(struct session *session, const struct frame *frame)
{
    const struct wire_blend *wire = frame->body;
    const struct session_model *model = session_model_of(session, wire->model);
    struct served *served;
    if (!model)
        return LARDER_EPROTO;
    LARDER_TRY(check_range(session, wire->staging_offset, wire->staging_bytes));
    LARDER_TRY(check_region(wire, model->info.desc.vocab));
    LARDER_TRY(find_served(session, &served, wire->model));
    if (session->blend)
        return larder_fail(-EBUSY, "this connection has a blend under way; release it first");
    struct blend *blend = larder_alloc_zero(1, sizeof(*blend));
    if (!blend)
        return larder_fail(-ENOMEM, "no memory for a blend");
    int err = session_begin(session);
    if (err < 0)
        goto fail_free;
    blend->staging_fd = fcntl(session->staging.fd, F_DUPFD_CLOEXEC, 0);
    if (blend->staging_fd < 0) {
        err = larder_fail(-errno, "no descriptor for a blend: %m");
        goto fail_end;
    }
    blend->staging_bytes = session->staging.bytes;
    blend->served = served;
    blend->session = session;
    blend->request = frame->request;
    blend->wire = *wire;
    blend->began_us = larderd_now_us();
    blend->until_ms = larderd_now_ms() + wire->deadline_ms;
    session_ref(session); /* until blend_free() */
    session->blend = blend;
    err = served_submit(served, blend);
    if (err == 0)
        return 0;
    session->blend = NULL;
    session_unref(session);
    close(blend->staging_fd);
fail_end:
    session_end(session);
fail_free:
    larder_free(blend);
    return err;
}

int session_blend_read(struct session *session, const struct frame *frame)
{
    const struct wire_blend_read *wire = frame->body;
    struct blend *blend = session->blend;
    LARDER_TRY(check_range(session, wire->staging_offset, wire->staging_bytes));
    if (!blend || blend->request != wire->blend)
        return larder_fail(LARDER_ESTALE, "that blend is gone: its worker ended, or it was held "
                                          "for longer than lease_ms; ask again");
    if (blend->state != BLEND_HELD)
        return larder_fail(-EBUSY, "that blend is not done, or another part of it is being read");
    LARDER_TRY(session_begin(session));
    served_read(blend, frame->request, wire);
    return 0;
}

void session_blend_release(struct session *session, uint64_t request)
{
    struct blend *blend = session->blend;
    if (!blend || blend->request != request)
        return;
    if (!blend->answered) {
        struct wire_error error = {.code = -ECANCELED,
                                   .message = "the blend was released before it was done"};
        blend_answer(blend, &error, NULL);
    }
    blend_let_go(blend);
}

void blend_let_go(struct blend *blend)
{
    if (blend->session->blend == blend)
        blend->session->blend = NULL;
    served_let_go(blend);
}

void session_blend_close(struct session *session)
{
    if (session->blend)
        session->blend->abandoned = true;
}

void blend_answer(struct blend *blend, const struct wire_error *error,
                  const struct wire_blend_ok *ok)
{
    struct session *session = blend->session;
    assert(!blend->answered);
    blend->answered = true;
    if (error) {
        session_fail_text(session, blend->request, error->code, error->message);
    } else {
        struct wire_blend_ok answer = *ok;
        answer.wait_us = blend->wait_us;
        session_reply(session, WIRE_BLEND_OK, blend->request, &answer, sizeof(answer));
    }
    session_end(session);
}

void blend_read_answer(struct blend *blend, const struct wire_error *error)
{
    struct session *session = blend->session;
    if (error)
        session_fail_text(session, blend->read_request, error->code, error->message);
    else
        session_reply(session, WIRE_BLEND_READ_OK, blend->read_request, NULL, 0);
    blend->read_request = 0;
    session_end(session);
}

void blend_free(struct blend *blend)
{
    struct session *session = blend->session;
    if (session->blend == blend)
        session->blend = NULL;
    /* Its client is gone, and was told nothing. */
    if (!blend->answered)
        session_end(session);
    close(blend->staging_fd);
    larder_free(blend);
    session_unref(session);
}
