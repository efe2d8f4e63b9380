/* SPDX-License-Identifier: Apache-2.0 */
/* session_get.c - WIRE_LOOKUP, WIRE_GET, WIRE_RELEASE, and the leases between them.
 *
 * What is all in the host tier is leased on the event thread, in microseconds. What must be read
 * from SSD is leased by a worker: making room may add a slab, which takes a tenth of a second.
 *
 * A lease that is let go while the storage thread still loads it is revoked, which ends the reads
 * that nobody else wants, and stays until `done` has come back.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/key.h"
#include "base/mem.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

/* A GET whose lease a worker takes. */
struct ssd_get {
    struct job job;
    struct completion completion;
    struct lease *lease;
    struct larder_match match;
    struct larder_want want;
    /* worker, until the completion is posted */
    int err;
    bool ready;
    uint32_t ref_count;
    char message[LARDER_MESSAGE_BYTES_MAX];
    struct larder_ref *refs; /* as many as keys, behind them */
    struct larder_key keys[];
};

static_assert(sizeof(struct larder_tail) == sizeof(struct wire_tail), "tails are sent as they are");
static_assert(offsetof(struct larder_tail, token_count) == offsetof(struct wire_tail, token_count),
              "tails are sent as they are");
static_assert(sizeof(struct larder_ref) == sizeof(struct wire_ref), "refs are sent as they are");
static_assert(offsetof(struct larder_ref, slot) == offsetof(struct wire_ref, slot),
              "refs are sent as they are");
static_assert(offsetof(struct larder_ref, generation) == offsetof(struct wire_ref, generation),
              "refs are sent as they are");

static enum larder_quality least_quality(const struct wire_keys *wire)
{
    uint32_t flag = wire->flags & WIRE_KEYS_SMALLEST ? (uint32_t)LARDER_QUALITY_SMALLEST : 0;
    return (enum larder_quality)(wire->worst | flag);
}

/* --- lookup ----------------------------------------------------------------------------------- */

static int lookup(struct session *session, struct larder_match *match, const struct frame *frame)
{
    const struct wire_keys *wire = frame->body;
    struct larder_key parent;
    if (!session_model_of(session, wire->model))
        return LARDER_EPROTO;
    memcpy(parent.bytes, wire->parent, sizeof(parent.bytes));
    const struct larder_want want = {
        .tenant = session->tenant.index,
        .keys = frame->items,
        .key_count = frame->item_count,
        .worst = least_quality(wire),
        .max_kl = wire->max_kl,
    };
    return larder_store_lookup(session->daemon->store, match, &want, &parent,
                               session->daemon->config.block_tokens);
}

int session_lookup(struct session *session, const struct frame *frame)
{
    struct larder_match match;
    uint64_t began_us = larderd_now_us();
    LARDER_TRY(lookup(session, &match, frame));
    larderd_note_latency(session->daemon, WIRE_LATENCY_LOOKUP, began_us);
    struct wire_lookup_ok ok = {.matched = match.count,
                                .quality = match.quality,
                                .kl = match.kl,
                                .tail_count = match.tail_count,
                                .bytes = match.bytes,
                                .bytes_host = match.bytes_host};
    const struct iovec parts[] = {{&ok, sizeof(ok)},
                                  {match.tails, match.tail_count * sizeof(match.tails[0])}};
    session_reply_parts(session, WIRE_LOOKUP_OK, frame->request, parts, 2, -1);
    return 0;
}

/* --- leases ----------------------------------------------------------------------------------- */

static struct lease *lease_new(struct larderd *daemon)
{
    struct lease *lease = daemon->lease_free;
    if (lease)
        daemon->lease_free = lease->next;
    else
        lease = larder_alloc(sizeof(*lease));
    if (lease)
        memset(lease, 0, sizeof(*lease));
    return lease;
}

static void lease_recycle(struct larderd *daemon, struct lease *lease)
{
    lease->next = daemon->lease_free;
    daemon->lease_free = lease;
}

void session_free_pool(struct larderd *daemon)
{
    struct lease *lease;
    while ((lease = daemon->lease_free)) {
        daemon->lease_free = lease->next;
        larder_free(lease);
    }
}

static struct lease **bucket_of(struct session *session, uint64_t request)
{
    static_assert(LEASE_BUCKETS == 1u << 8, "the hash's highest 8 bits");
    return &session->leases[request * session->daemon->lease_hash >> 56];
}

static void lease_link(struct session *session, struct lease *lease)
{
    struct larderd *daemon = session->daemon;
    struct lease **bucket = bucket_of(session, lease->request);
    lease->next = *bucket;
    lease->link = bucket;
    if (lease->next)
        lease->next->link = &lease->next;
    *bucket = lease;
    session->lease_count++;

    lease->older = daemon->lease_newest;
    if (lease->older)
        lease->older->newer = lease;
    else
        daemon->lease_oldest = lease;
    daemon->lease_newest = lease;
    daemon->lease_count++;
    session->account->leases++;
}

static void lease_unlink(struct lease *lease)
{
    struct larderd *daemon = lease->session->daemon;
    *lease->link = lease->next;
    if (lease->next)
        lease->next->link = lease->link;
    lease->session->lease_count--;

    if (lease->older)
        lease->older->newer = lease->newer;
    else
        daemon->lease_oldest = lease->newer;
    if (lease->newer)
        lease->newer->older = lease->older;
    else
        daemon->lease_newest = lease->older;
    daemon->lease_count--;
    lease->session->account->leases--;
}

/* Gives back what no one waits for any more. */
static void lease_drop(struct lease *lease)
{
    struct larderd *daemon = lease->session->daemon;
    assert(lease->released);
    if (lease->get)
        return;
    if (lease->loading) {
        larder_store_revoke(daemon->store, lease->handle);
        return;
    }
    if (lease->handle)
        larder_store_release(daemon->store, lease->handle);
    lease_recycle(daemon, lease);
}

static void lease_end(struct lease *lease)
{
    lease_unlink(lease);
    lease->released = true;
    lease_drop(lease);
}

static void tell_loaded(struct lease *lease)
{
    larderd_note_latency(lease->session->daemon, WIRE_LATENCY_GET, lease->began_us);
    struct wire_loaded loaded = {.loaded = lease->loaded, .error = lease->err};
    session_reply(lease->session, WIRE_LOADED, lease->request, &loaded, sizeof(loaded));
}

static void lease_loaded(struct completion *completion)
{
    struct lease *lease = (struct lease *)((char *)completion - offsetof(struct lease, completion));
    struct session *session = lease->session;
    assert(lease->loading);
    lease->loading = false;
    /* It may be loaded before the event thread has heard that it was taken: ssd_get_done() goes
     * on then. */
    if (lease->get)
        return;
    if (lease->released)
        lease_drop(lease);
    else
        tell_loaded(lease);
    session_end(session);
}

/* On the storage thread. */
static void lease_done(void *context, uint32_t loaded, int err)
{
    struct lease *lease = context;
    lease->loaded = loaded;
    lease->err = err;
    completions_post(lease->session->daemon->completions, &lease->completion);
}

static struct lease *lease_find(struct session *session, uint64_t request)
{
    struct lease *lease = *bucket_of(session, request);
    while (lease && lease->request != request)
        lease = lease->next;
    return lease;
}

/* --- slabs ------------------------------------------------------------------------------------ */

static bool slab_was_sent(const struct session *session, uint32_t slab_id)
{
    return slab_id / 8 < session->slabs_sent_bytes &&
           (session->slabs_sent[slab_id / 8] & (1u << slab_id % 8));
}

static int mark_slab_sent(struct session *session, uint32_t slab_id)
{
    if (slab_id / 8 >= session->slabs_sent_bytes) {
        uint32_t bytes = (uint32_t)larder_round_up(slab_id / 8 + 1, 64);
        uint8_t *grown = larder_realloc(session->slabs_sent, bytes);
        if (!grown)
            return larder_fail(-ENOMEM, "no memory to remember slab %u", slab_id);
        memset(grown + session->slabs_sent_bytes, 0, bytes - session->slabs_sent_bytes);
        session->slabs_sent = grown;
        session->slabs_sent_bytes = bytes;
    }
    session->slabs_sent[slab_id / 8] |= (uint8_t)(1u << slab_id % 8);
    return 0;
}

/* The lease on `refs` keeps their slabs, and so the descriptors, until they are sent. */
static int send_slabs(struct session *session, const struct larder_ref *refs, uint32_t ref_count)
{
    for (uint32_t i = 0; i < ref_count; i++) {
        uint32_t slab_id = refs[i].slab_id;
        if (slab_was_sent(session, slab_id))
            continue;
        int fd;
        uint64_t bytes;
        LARDER_TRY(larder_store_slab_fd(session->daemon->store, &fd, &bytes, session->tenant.index,
                                        slab_id));
        /* Not before there is a descriptor: without one the client knows nothing of the slab. */
        int err = mark_slab_sent(session, slab_id);
        struct wire_slab slab = {.slab_id = slab_id, .bytes = bytes};
        const struct iovec part = {&slab, sizeof(slab)};
        if (err == 0)
            session_reply_parts(session, WIRE_SLAB, 0, &part, 1, fd);
        close(fd);
        LARDER_TRY(err);
    }
    return 0;
}

/* --- get -------------------------------------------------------------------------------------- */

static int check_get(struct session *session, const struct frame *frame)
{
    uint32_t max = session->daemon->config.leases_max;
    if (lease_find(session, frame->request))
        return larder_fail(LARDER_EPROTO, "request %llu names a lease that is held; release it",
                           (unsigned long long)frame->request);
    if (session->account->leases >= max)
        return larder_fail(-EBUSY, "uid %u holds %u leases, leases_max is %u; release some",
                           session->uid, session->account->leases, max);
    return 0;
}

int session_want(struct session *session, struct larder_want *out, const struct wire_keys *wire,
                 const struct larder_key *keys)
{
    const struct session_model *model = session_model_of(session, wire->model);
    if (!model)
        return LARDER_EPROTO;
    const uint32_t layers = model->info.desc.layers;
    if (wire->layer_first >= layers || wire->layer_count > layers - wire->layer_first)
        return larder_fail(-EINVAL, "layers %u to %u of a model of %u", wire->layer_first,
                           wire->layer_first + wire->layer_count - 1u, layers);
    *out = (struct larder_want){
        .tenant = session->tenant.index,
        .keys = keys,
        .key_count = wire->key_count,
        .worst = least_quality(wire),
        .max_kl = wire->max_kl,
        .layer_first = wire->layer_first,
        .layer_count = wire->layer_first + wire->layer_count == layers ? 0u : wire->layer_count,
    };
    return 0;
}

static void answer_get(struct session *session, uint64_t request, const struct larder_match *match,
                       const struct larder_ref *refs, uint32_t ref_count, bool ready)
{
    struct wire_get_ok ok = {.matched = match->count > ref_count ? match->count : ref_count,
                             .ref_count = ref_count,
                             .quality = match->quality,
                             .kl = match->kl,
                             .ready = ready,
                             .tail_count = match->tail_count,
                             .bytes = match->bytes,
                             .bytes_host = match->bytes_host};
    const struct iovec parts[] = {
        {&ok, sizeof(ok)},
        {(void *)(uintptr_t)refs, ref_count * sizeof(refs[0])},
        {(void *)(uintptr_t)match->tails, match->tail_count * sizeof(match->tails[0])}};
    session_reply_parts(session, WIRE_GET_OK, request, parts, 3, -1);
}

/* Tells the client what it holds. A session that is closed by sending lets go of the lease. */
static int answer_lease(struct lease *lease, const struct larder_match *match,
                        const struct larder_ref *refs, uint32_t ref_count, bool ready)
{
    struct session *session = lease->session;
    uint64_t request = lease->request;
    if (ready)
        larderd_note_latency(session->daemon, WIRE_LATENCY_GET, lease->began_us);
    int err = send_slabs(session, refs, ref_count);
    if (err < 0 && session->state != SESSION_CLOSED)
        lease_end(lease);
    if (err == 0)
        answer_get(session, request, match, refs, ref_count, ready);
    return err;
}

static struct lease *lease_prepare(struct session *session, uint64_t request)
{
    struct lease *lease = lease_new(session->daemon);
    if (!lease)
        return NULL;
    lease->session = session;
    lease->request = request;
    lease->began_us = larderd_now_us();
    lease->started_ms = lease->began_us / 1000;
    lease->completion.run = lease_loaded;
    return lease;
}

/* --- get of what is on SSD -------------------------------------------------------------------- */

static void ssd_get_run(struct job *job, struct scratch *scratch)
{
    struct ssd_get *get = (struct ssd_get *)((char *)job - offsetof(struct ssd_get, job));
    struct session *session = get->lease->session;
    (void)scratch;
    get->err = larder_store_lease(session->daemon->store, &get->lease->handle, get->refs,
                                  &get->ref_count, &get->ready, &get->want, lease_done, get->lease);
    if (get->err < 0)
        snprintf(get->message, sizeof(get->message), "%s", larder_error_message());
    completions_post(session->daemon->completions, &get->completion);
}

static void ssd_get_done(struct completion *completion)
{
    struct ssd_get *get =
        (struct ssd_get *)((char *)completion - offsetof(struct ssd_get, completion));
    struct lease *lease = get->lease;
    struct session *session = lease->session;
    bool taken = get->err == 0 && get->ref_count > 0;
    /* lease_loaded() comes, or has come. */
    bool was_loaded = taken && !get->ready && !lease->loading;
    bool waits = taken && !get->ready && lease->loading;
    lease->get = NULL;
    if (!waits)
        lease->loading = false;

    if (lease->released) {
        session_fail_text(session, lease->request, -ECANCELED, "released before it was answered");
        lease_drop(lease);
    } else if (!taken) {
        if (get->err < 0)
            session_fail_text(session, lease->request, get->err, get->message);
        else
            answer_get(session, lease->request, &get->match, get->refs, 0, true);
        if (session->state != SESSION_CLOSED)
            lease_end(lease);
    } else {
        uint64_t request = lease->request;
        int err = answer_lease(lease, &get->match, get->refs, get->ref_count, get->ready);
        if (err < 0)
            session_fail(session, request, err);
        else if (was_loaded && session->state != SESSION_CLOSED)
            tell_loaded(lease);
    }
    if (!waits)
        session_end(session);
    larder_free(get);
}

static int start_ssd_get(struct session *session, const struct frame *frame,
                         const struct larder_match *match, const struct larder_want *want)
{
    uint32_t count = want->key_count;
    struct ssd_get *get = larder_alloc_zero(
        1, sizeof(*get) + count * (sizeof(struct larder_key) + sizeof(struct larder_ref)));
    struct lease *lease = get ? lease_prepare(session, frame->request) : NULL;
    if (!lease) {
        larder_free(get);
        return larder_fail(-ENOMEM, "no memory for a lease");
    }
    get->lease = lease;
    get->match = *match;
    get->want = *want;
    get->want.keys = get->keys;
    memcpy(get->keys, want->keys, count * sizeof(get->keys[0]));
    get->refs = (struct larder_ref *)(void *)(get->keys + count);
    get->job.run = ssd_get_run;
    get->completion.run = ssd_get_done;
    lease->get = get;
    lease->loading = true; /* `done` may come before ssd_get_done() */
    lease_link(session, lease);
    workers_submit(session->daemon->workers, session->tenant.index, &get->job);
    return 0;
}

/* --- get of what is in the host tier ---------------------------------------------------------- */

/* -EAGAIN: something of it left the host tier since it was looked up, and a slab is to be made for
 * it: for a worker. */
static int start_host_get(struct session *session, const struct frame *frame,
                          const struct larder_match *match, struct larder_want want)
{
    /* The event thread's; too large for its stack to be taken lightly. */
    static struct larder_ref refs[LARDER_REQUEST_KEYS_MAX];
    struct larderd *daemon = session->daemon;
    uint32_t ref_count = 0;
    bool ready = false;
    struct lease *lease = lease_prepare(session, frame->request);
    if (!lease) {
        session_end(session);
        return larder_fail(-ENOMEM, "no memory for a lease");
    }
    want.now = true;
    int err = larder_store_lease(daemon->store, &lease->handle, refs, &ref_count, &ready, &want,
                                 lease_done, lease);
    if (err < 0 || ref_count == 0) {
        if (err == 0)
            answer_get(session, frame->request, match, refs, 0, true);
        lease_recycle(daemon, lease);
        if (err != -EAGAIN)
            session_end(session);
        return err;
    }
    lease->loading = !ready;
    lease_link(session, lease);
    err = answer_lease(lease, match, refs, ref_count, ready);
    if (ready)
        session_end(session); /* else lease_loaded() does */
    return err;
}

int session_get(struct session *session, const struct frame *frame)
{
    struct larder_match match;
    struct larder_want want;
    LARDER_TRY(check_get(session, frame));
    LARDER_TRY(session_want(session, &want, frame->body, frame->items));
    LARDER_TRY(lookup(session, &match, frame));
    LARDER_TRY(session_begin(session));
    int err =
        match.bytes_host == match.bytes ? start_host_get(session, frame, &match, want) : -EAGAIN;
    if (err != -EAGAIN)
        return err;
    err = session_may_work(session);
    if (err == 0)
        err = start_ssd_get(session, frame, &match, &want);
    if (err < 0)
        session_end(session);
    return err;
}

int session_release(struct session *session, const struct frame *frame)
{
    const uint64_t *requests = frame->items;
    for (uint32_t i = 0; i < frame->item_count; i++) {
        /* Unknown ones are no error: the lease may have been revoked, or never have been. */
        struct lease *lease = lease_find(session, requests[i]);
        if (lease)
            lease_end(lease);
        else
            session_blend_release(session, requests[i]);
    }
    return 0;
}

void session_release_all(struct session *session)
{
    for (uint32_t i = 0; i < LEASE_BUCKETS; i++) {
        while (session->leases[i])
            lease_end(session->leases[i]);
    }
    assert(session->lease_count == 0);
}

void session_expire_leases(struct larderd *daemon, uint64_t now_ms)
{
    uint32_t lease_ms = daemon->config.lease_ms;
    uint32_t revoked = 0;
    int32_t pid = 0;
    struct lease *newer;
    for (struct lease *lease = daemon->lease_oldest; lease; lease = newer) {
        newer = lease->newer;
        if (now_ms - lease->started_ms <= lease_ms)
            break;
        /* One that still loads waits for the disk, not for its client. */
        if (lease->get || lease->loading)
            continue;
        pid = lease->session->pid;
        revoked++;
        larder_store_revoke(daemon->store, lease->handle);
        lease_end(lease);
    }
    if (revoked)
        larder_log(LARDER_LOG_WARN, "%u leases were held for more than %u ms (by pid %d); revoked",
                   revoked, lease_ms, pid);
}

/* Some at a tick, the oldest first: the store may soon have what it wants. */
#define FEED_MAX 16u

void session_feed_starving(struct larderd *daemon, uint64_t now_ms)
{
    uint32_t grace_ms = daemon->config.lease_grace_ms;
    uint32_t from;
    if (!daemon->lease_oldest || now_ms - daemon->lease_oldest->started_ms <= grace_ms ||
        !larder_store_starving(daemon->store, &from))
        return;
    uint32_t revoked = 0;
    struct lease *newer;
    for (struct lease *lease = daemon->lease_oldest; lease && revoked < FEED_MAX; lease = newer) {
        newer = lease->newer;
        if (now_ms - lease->started_ms <= grace_ms)
            break;
        if (lease->get || lease->loading || lease->session->tenant.index != from)
            continue;
        revoked++;
        larder_store_revoke(daemon->store, lease->handle);
        lease_end(lease);
    }
    if (revoked)
        larder_log(LARDER_LOG_WARN,
                   "%u leases of a tenant with more than its share of host memory were older than "
                   "%u ms while another waited for some; revoked",
                   revoked, grace_ms);
}
