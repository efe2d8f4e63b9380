/* SPDX-License-Identifier: Apache-2.0 */
/* session_mark.c - WIRE_MARK, and the same on the control socket. */
#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/session_priv.h"

struct marking {
    struct completion completion;
    struct session *session;
    uint64_t request;
    int err;
};

static void marking_answer(struct completion *completion)
{
    struct marking *marking =
        (struct marking *)((char *)completion - offsetof(struct marking, completion));
    struct session *session = marking->session;
    enum wire_type type = session->side == FRAME_CONTROL ? WIRE_ADMIN_MARK_OK : WIRE_MARK_OK;
    if (marking->err < 0)
        session_fail_text(session, marking->request, marking->err, larder_error_text(marking->err));
    else
        session_reply(session, type, marking->request, NULL, 0);
    session_end(session);
    larder_free(marking);
}

/* On the storage thread, or before larder_store_mark() returns. */
static void marking_done(void *context, int err)
{
    struct marking *marking = context;
    marking->err = err;
    completions_post(marking->session->daemon->completions, &marking->completion);
}

int session_mark_key(struct session *session, uint64_t request, uint32_t tenant,
                     const struct wire_mark *wire)
{
    struct larder_key key;
    memcpy(key.bytes, wire->key, sizeof(key.bytes));
    struct marking *marking = larder_alloc_zero(1, sizeof(*marking));
    if (!marking)
        return larder_fail(-ENOMEM, "no memory for a mark");
    int err = session_begin(session);
    if (err < 0) {
        larder_free(marking);
        return err;
    }
    marking->session = session;
    marking->request = request;
    marking->completion.run = marking_answer;
    larder_store_mark(session->daemon->store, tenant, &key, &wire->mark, marking_done, marking);
    return 0;
}

int session_mark(struct session *session, const struct frame *frame)
{
    return session_mark_key(session, frame->request, session->tenant.index, frame->body);
}
