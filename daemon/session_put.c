/* SPDX-License-Identifier: Apache-2.0 */
/* session_put.c - WIRE_STAGING and WIRE_PUT. A session's PUTs are encoded one after the other, in
 * the order they came, so that a block's parent is stored before it; each spreads over workers.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "daemon/put.h"
#include "daemon/session_priv.h"

void session_staging_count(struct session *session, uint64_t bytes)
{
    struct larderd *daemon = session->daemon;
    struct tenant_account *account = &daemon->accounts.tenants[session->tenant.index];
    account->staging_bytes = account->staging_bytes - session->staging.bytes + bytes;
    daemon->staging_bytes = daemon->staging_bytes - session->staging.bytes + bytes;
}

/* One tenant leaves half for the others, but a connection may always have what it is promised. */
static int check_tenant_staging(const struct session *session, uint64_t bytes)
{
    const struct larderd *daemon = session->daemon;
    const struct config *config = &daemon->config;
    uint64_t others =
        daemon->accounts.tenants[session->tenant.index].staging_bytes - session->staging.bytes;
    uint64_t bytes_max = config->staging_bytes_all / 2;
    if (bytes_max < config->staging_bytes_max)
        bytes_max = config->staging_bytes_max;
    bytes_max = larder_round_up(bytes_max, LARDER_PAGE_BYTES);
    if (bytes <= bytes_max && others <= bytes_max - bytes)
        return 0;
    return larder_fail(-EBUSY,
                       "staging of %llu bytes and the %llu of tenant '%s' are more than the %llu "
                       "that one tenant may have; try later or raise staging_bytes_all",
                       (unsigned long long)bytes, (unsigned long long)others, session->tenant.name,
                       (unsigned long long)bytes_max);
}

int session_staging(struct session *session, const struct frame *frame)
{
    const struct wire_staging *wire = frame->body;
    struct larderd *daemon = session->daemon;
    const struct config *config = &daemon->config;
    if (wire->bytes > config->staging_bytes_max)
        return larder_fail(LARDER_ELIMIT,
                           "staging of %llu bytes is more than staging_bytes_max=%llu; use smaller "
                           "blocks or raise it",
                           (unsigned long long)wire->bytes,
                           (unsigned long long)config->staging_bytes_max);
    if (session->put_open > 0)
        return larder_fail(-EBUSY, "%u PUTs still read the old staging; wait for their answers",
                           session->put_open);
    uint64_t bytes = larder_round_up(wire->bytes, LARDER_PAGE_BYTES);
    uint64_t others = daemon->staging_bytes - session->staging.bytes;
    if (bytes > config->staging_bytes_all || others > config->staging_bytes_all - bytes)
        return larder_fail(-EBUSY,
                           "staging of %llu bytes and the %llu of other connections are more than "
                           "staging_bytes_all=%llu; try later or raise it",
                           (unsigned long long)bytes, (unsigned long long)others,
                           (unsigned long long)config->staging_bytes_all);
    LARDER_TRY(check_tenant_staging(session, bytes));

    struct staging fresh;
    LARDER_TRY(staging_open(&fresh, bytes));
    session_staging_count(session, bytes);
    staging_close(&session->staging);
    session->staging = fresh;
    struct wire_staging_ok ok = {.bytes = bytes};
    const struct iovec part = {&ok, sizeof(ok)};
    session_reply_parts(session, WIRE_STAGING_OK, frame->request, &part, 1, fresh.fd);
    return 0;
}

/* Staging is not read for this one any more: the answer says so as much as `idle` does, and comes
 * first when the client waited only for the host tier. */
static void end_reading(struct put *put)
{
    if (!put->reads_staging)
        return;
    put->reads_staging = false;
    put->session->put_open--;
}

static void put_answer(struct put *put)
{
    struct session *session = put->session;
    end_reading(put);
    if (put->err < 0) {
        session_fail_text(session, put->request, put->err, put->message);
    } else {
        session->daemon->accounts.tenants[session->tenant.index].fell_back += put->fell_back;
        struct wire_put_ok ok = {.stored_bytes = put->stored_bytes,
                                 .existed = put->existed,
                                 .quality = put->quality,
                                 .kl = put->kl,
                                 .unmeasured = put->unmeasured};
        memcpy(ok.recipe, put->recipe, sizeof(ok.recipe));
        larderd_note_latency(session->daemon, WIRE_LATENCY_PUT, put->began_us);
        session_reply(session, WIRE_PUT_OK, put->request, &ok, sizeof(ok));
    }
    session_end(session);
}

static void put_idle(struct put *put)
{
    struct session *session = put->session;
    assert(session->put_first == put);
    session->put_first = put->next;
    if (session->put_first)
        put_start(session->put_first);
    else
        session->put_last_next = &session->put_first;
    end_reading(put);
    session_unref(session);
}

static int check_range(const struct session *session, const struct session_model *model,
                       const struct wire_put *wire)
{
    struct put_region region;
    uint64_t staging_bytes = session->staging.bytes;
    put_region(&region, &model->info.desc, wire);
    if (wire->staging_bytes != region.bytes)
        return larder_fail(LARDER_EPROTO,
                           "staging_bytes=%llu, but %u tokens of this model with %u bytes of extra "
                           "take %llu",
                           (unsigned long long)wire->staging_bytes, wire->token_count,
                           wire->extra_bytes, (unsigned long long)region.bytes);
    if (wire->staging_bytes > staging_bytes ||
        wire->staging_offset > staging_bytes - wire->staging_bytes)
        return larder_fail(LARDER_EPROTO,
                           "bytes %llu to %llu are not within the connection's staging of %llu",
                           (unsigned long long)wire->staging_offset,
                           (unsigned long long)(wire->staging_offset + wire->staging_bytes),
                           (unsigned long long)staging_bytes);
    return 0;
}

int session_put(struct session *session, const struct frame *frame)
{
    const struct wire_put *wire = frame->body;
    struct session_model *model = session_model_of(session, wire->model);
    if (!model)
        return LARDER_EPROTO;
    LARDER_TRY(check_range(session, model, wire));
    uint32_t block_tokens = session->daemon->config.block_tokens;
    if (wire->token_count > block_tokens)
        return larder_fail(LARDER_ELIMIT, "a block of %u tokens is longer than block_tokens=%u",
                           wire->token_count, block_tokens);

    LARDER_TRY(session_may_work(session));
    LARDER_TRY(session_begin(session));
    struct put *put = put_new(session, model, frame->request, wire, put_idle, put_answer);
    if (!put) {
        session_end(session);
        return larder_fail(-ENOMEM, "no memory for a put");
    }
    put->began_us = larderd_now_us();
    session_ref(session); /* until put_idle() */
    session->put_open++;
    put->reads_staging = true;
    bool is_first = !session->put_first;
    *session->put_last_next = put;
    session->put_last_next = &put->next;
    if (is_first)
        put_start(put);
    return 0;
}
