/* SPDX-License-Identifier: Apache-2.0 */
/* session_prefetch.c - WIRE_PREFETCH: what a client will ask for is read from SSD before it does.
 * Always by a worker, since room may have to be made; the answer says what is coming, not that it
 * has come.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

struct prefetch {
    struct job job;
    struct completion completion;
    struct session *session;
    uint64_t request;
    struct larder_want want;
    struct wire_prefetch_ok answer;
    /* worker, until the completion is posted */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
    struct larder_key keys[];
};

static void prefetch_run(struct job *job, struct scratch *scratch)
{
    struct prefetch *prefetch = (struct prefetch *)((char *)job - offsetof(struct prefetch, job));
    struct larderd *daemon = prefetch->session->daemon;
    (void)scratch;
    prefetch->err = larder_store_prefetch(daemon->store, &prefetch->answer.coming, &prefetch->want);
    if (prefetch->err < 0)
        snprintf(prefetch->message, sizeof(prefetch->message), "%s", larder_error_message());
    completions_post(daemon->completions, &prefetch->completion);
}

static void prefetch_done(struct completion *completion)
{
    struct prefetch *prefetch =
        (struct prefetch *)((char *)completion - offsetof(struct prefetch, completion));
    struct session *session = prefetch->session;
    if (prefetch->answer.matched < prefetch->answer.coming)
        prefetch->answer.matched = prefetch->answer.coming; /* stored since it was looked up */
    if (prefetch->err < 0)
        session_fail_text(session, prefetch->request, prefetch->err, prefetch->message);
    else
        session_reply(session, WIRE_PREFETCH_OK, prefetch->request, &prefetch->answer,
                      sizeof(prefetch->answer));
    session_end(session);
    larder_free(prefetch);
}

int session_prefetch(struct session *session, const struct frame *frame)
{
    const struct wire_keys *wire = frame->body;
    struct larder_want want;
    struct larder_match match;
    struct larder_key parent;
    LARDER_TRY(session_want(session, &want, wire, frame->items));
    memcpy(parent.bytes, wire->parent, sizeof(parent.bytes));
    LARDER_TRY(larder_store_lookup(session->daemon->store, &match, &want, &parent,
                                   session->daemon->config.block_tokens));
    LARDER_TRY(session_may_work(session));
    LARDER_TRY(session_begin(session));
    struct prefetch *prefetch =
        larder_alloc_zero(1, sizeof(*prefetch) + want.key_count * sizeof(want.keys[0]));
    if (!prefetch) {
        session_end(session);
        return larder_fail(-ENOMEM, "no memory for a prefetch");
    }
    prefetch->session = session;
    prefetch->request = frame->request;
    prefetch->answer.matched = match.count;
    prefetch->want = want;
    prefetch->want.keys = prefetch->keys;
    memcpy(prefetch->keys, want.keys, want.key_count * sizeof(want.keys[0]));
    prefetch->job.run = prefetch_run;
    prefetch->completion.run = prefetch_done;
    workers_submit(session->daemon->workers, session->tenant.index, &prefetch->job);
    return 0;
}
