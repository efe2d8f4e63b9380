/* SPDX-License-Identifier: Apache-2.0 */
/* session_entry.c - WIRE_REMOVE and WIRE_STAT. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/session_priv.h"

struct removal {
    struct completion completion;
    struct session *session;
    uint64_t request;
    int err;
    uint64_t removed;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

static void removal_answer(struct completion *completion)
{
    struct removal *removal =
        (struct removal *)((char *)completion - offsetof(struct removal, completion));
    struct session *session = removal->session;
    enum wire_type type = session->side == FRAME_CONTROL ? WIRE_ADMIN_REMOVE_OK : WIRE_REMOVE_OK;
    if (removal->err < 0) {
        session_fail_text(session, removal->request, removal->err, removal->message);
    } else {
        struct wire_remove_ok ok = {.removed = removal->removed};
        session_reply(session, type, removal->request, &ok, sizeof(ok));
    }
    session_end(session);
    larder_free(removal);
}

/* On the storage thread. */
static void removal_done(void *context, int err, uint64_t removed)
{
    struct removal *removal = context;
    removal->err = err;
    removal->removed = removed;
    if (err < 0)
        snprintf(removal->message, sizeof(removal->message), "%s", larder_error_text(err));
    completions_post(removal->session->daemon->completions, &removal->completion);
}

int session_remove_key(struct session *session, uint64_t request, uint32_t tenant,
                       const struct larder_key *key, uint32_t variant,
                       enum larder_remove_pinned pinned)
{
    struct removal *removal = larder_alloc_zero(1, sizeof(*removal));
    if (!removal)
        return larder_fail(-ENOMEM, "no memory for a removal");
    int err = session_begin(session);
    if (err < 0) {
        larder_free(removal);
        return err;
    }
    removal->session = session;
    removal->request = request;
    removal->completion.run = removal_answer;
    if (variant == WIRE_VARIANT_ALL)
        larder_store_remove(session->daemon->store, tenant, key, pinned, removal_done, removal);
    else
        larder_store_remove_variant(session->daemon->store, tenant, key, variant, removal_done,
                                    removal);
    return 0;
}

int session_remove(struct session *session, const struct frame *frame)
{
    struct larder_key key;
    memcpy(key.bytes, ((const struct wire_remove *)frame->body)->key, sizeof(key.bytes));
    return session_remove_key(session, frame->request, session->tenant.index, &key,
                              WIRE_VARIANT_ALL, LARDER_KEEP_PINNED);
}

int session_tenant_stat(const struct larderd *daemon, struct wire_stat_ok *out, uint32_t tenant)
{
    struct larder_store_stats stats;
    LARDER_TRY(larder_store_tenant_stats(daemon->store, &stats, tenant));
    *out = (struct wire_stat_ok){.entries = stats.entries,
                                 .entries_host = stats.entries_host,
                                 .entries_durable = stats.entries_durable,
                                 .bytes_host = stats.record_bytes_host,
                                 .bytes_ssd = stats.record_bytes_ssd,
                                 .gets = stats.gets,
                                 .puts = stats.puts,
                                 .blocks_hit_host = stats.blocks_hit_host,
                                 .blocks_hit_ssd = stats.blocks_hit_ssd,
                                 .blocks_missed = stats.blocks_missed,
                                 .corrupt = stats.corrupt,
                                 .bytes_pinned = stats.record_bytes_held,
                                 .bytes_slabs = stats.slab_bytes_mapped,
                                 .ssd_bytes_max = stats.ssd_bytes_max,
                                 .host_bytes_max = stats.host_bytes_max,
                                 .fell_back = daemon->accounts.tenants[tenant].fell_back,
                                 .bytes_slabs_retired = stats.slab_bytes_retired};
    return 0;
}

int session_stat(struct session *session, const struct frame *frame)
{
    struct wire_stat_ok ok;
    LARDER_TRY(session_tenant_stat(session->daemon, &ok, session->tenant.index));
    session_reply(session, WIRE_STAT_OK, frame->request, &ok, sizeof(ok));
    return 0;
}
