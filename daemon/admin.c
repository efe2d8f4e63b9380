/* SPDX-License-Identifier: Apache-2.0 */
/* admin.c - the control socket's requests. What walks many entries or reads the disk runs on a
 * worker; the rest only copies numbers.
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
#include "daemon/demote.h"
#include "daemon/served.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

/* Entries looked at for one WIRE_ADMIN_LIST, so that an answer comes soon even if few match. */
#define LIST_SCAN_MAX 65536u

static void copy_entry(struct wire_admin_entry *out, const struct larder_entry_info *info)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->key, info->key.bytes, sizeof(out->key));
    memcpy(out->parent, info->parent.bytes, sizeof(out->parent));
    out->tenant = info->tenant;
    out->model = info->model;
    out->token_count = info->token_count;
    out->depth = info->depth;
    out->children = info->children;
    out->lease_count = info->lease_count;
    out->record_bytes = info->record_bytes;
    out->raw_bytes = info->raw_bytes;
    out->created_s = info->created_s;
    out->position = info->position;
    out->uses = info->uses;
    out->segment_id = info->segment_id;
    out->segment_page = info->segment_page;
    out->quality = info->quality;
    out->computed_on = info->computed_on;
    out->in_host = info->in_host;
    out->durable = info->durable;
    out->variant = info->variant;
    out->variants = info->variants;
    out->pinned = info->pinned;
    out->held = info->held;
    out->priority = info->priority;
    out->idle_s = (uint32_t)larder_min_u64(info->idle_s, UINT32_MAX);
    out->expires_s = info->expires_s;
    out->pin_expires_s = info->pin_expires_s;
    out->priority_expires_s = info->priority_expires_s;
    snprintf(out->recipe, sizeof(out->recipe), "%s", info->recipe);
}

/* --- at once ---------------------------------------------------------------------------------- */

static int admin_status(struct session *session, const struct frame *frame)
{
    const struct larderd *daemon = session->daemon;
    struct larder_store_stats stats;
    uint64_t fell_back = 0;
    larder_store_stats(daemon->store, &stats);
    for (uint32_t i = 0; i < LARDER_TENANTS_MAX; i++)
        fell_back += daemon->accounts.tenants[i].fell_back;
    struct wire_admin_status_ok ok = {
        .pid = (uint64_t)getpid(),
        .uptime_s = (larderd_now_ms() - daemon->started_ms) / 1000,
        .block_tokens = daemon->config.block_tokens,
        .threads = daemon->config.threads,
        .connections = daemon->session_count,
        .leases = daemon->lease_count,
        .in_flight = daemon->in_flight,
        .read_only = stats.read_only != 0,
        .entries = stats.entries,
        .entries_host = stats.entries_host,
        .entries_durable = stats.entries_durable,
        .raw_bytes = stats.raw_bytes,
        .bytes_host = stats.record_bytes_host,
        .bytes_ssd = stats.record_bytes_ssd,
        .host_bytes_max = stats.host_bytes_max,
        .slab_bytes = stats.slab_bytes_mapped,
        .ssd_bytes_max = stats.ssd_bytes_max,
        .segment_bytes = stats.segment_bytes,
        .segments = stats.segments,
        .staging_bytes = daemon->staging_bytes,
        .puts = stats.puts,
        .puts_refused = stats.puts_refused,
        .gets = stats.gets,
        .blocks_hit_host = stats.blocks_hit_host,
        .blocks_hit_ssd = stats.blocks_hit_ssd,
        .blocks_missed = stats.blocks_missed,
        .corrupt = stats.corrupt,
        .evicted_host = stats.evicted_host,
        .evicted_ssd = stats.evicted_ssd,
        .removed = stats.removed,
        .synced_groups = stats.synced_groups,
        .bytes_written = stats.bytes_written,
        .bytes_read = stats.bytes_read,
        .io_errors = stats.io_errors,
        .recovered_entries = stats.recovered_entries,
        .recovered_from_tail = stats.recovered_from_tail,
        .index_rebuilt = stats.index_rebuilt,
        .recovery_us = stats.recovery_us,
        .frames_refused = daemon->frames_refused,
        .bytes_not_admitted = stats.bytes_not_admitted,
        .bytes_demoted = stats.bytes_demoted,
        .bytes_hit_host = stats.bytes_hit_host,
        .bytes_hit_ssd = stats.bytes_hit_ssd,
        .fell_back = fell_back,
        .slab_bytes_retired = stats.slab_bytes_retired,
        .demote_entries = daemon->demote.demote->demoted_all,
        .demote_saved_bytes = daemon->demote.demote->saved_bytes_all,
    };
    snprintf(ok.version, sizeof(ok.version), "%s", LARDER_VERSION);
    snprintf(ok.directory, sizeof(ok.directory), "%.255s", daemon->config.directory);
    snprintf(ok.io, sizeof(ok.io), "%.15s", stats.io);
    snprintf(ok.recipe, sizeof(ok.recipe), "%.63s", daemon->config.recipe.text);
    session_reply(session, WIRE_ADMIN_STATUS_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_counters(struct session *session, const struct frame *frame)
{
    static_assert((unsigned)LARDER_EVENT_END <= LARDER_WIRE_EVENTS, "each has its place");
    struct wire_admin_counters_ok ok = {0};
    memcpy(ok.latencies, session->daemon->latencies, sizeof(ok.latencies));
    larder_store_event_counts(session->daemon->store, ok.events);
    session_reply(session, WIRE_ADMIN_COUNTERS_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_scrub(struct session *session, const struct frame *frame)
{
    const struct wire_admin_scrub *wire = frame->body;
    struct scrub *scrub = &session->daemon->scrub;
    if (wire->action == WIRE_SCRUB_START)
        scrub_start(scrub, wire->rate_bytes, 0);
    else if (wire->action == WIRE_SCRUB_CANCEL)
        scrub_cancel(scrub);
    session_reply(session, WIRE_ADMIN_SCRUB_OK, frame->request, &scrub->state,
                  sizeof(scrub->state));
    return 0;
}

static int admin_gc(struct session *session, const struct frame *frame)
{
    const struct wire_admin_gc *wire = frame->body;
    struct scrub *gc = &session->daemon->gc;
    if (wire->action == WIRE_SCRUB_START)
        scrub_start(gc, wire->rate_bytes, wire->live_percent);
    else if (wire->action == WIRE_SCRUB_CANCEL)
        scrub_cancel(gc);
    struct larder_store_stats stats;
    larder_store_stats(session->daemon->store, &stats);
    const struct wire_admin_gc_ok ok = {.pass = gc->state,
                                        .moved = gc->moved,
                                        .moved_bytes = gc->moved_bytes,
                                        .segments_before = gc->segments_before,
                                        .segments = stats.segments};
    session_reply(session, WIRE_ADMIN_GC_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_demote(struct session *session, const struct frame *frame)
{
    const struct wire_admin_scrub *wire = frame->body;
    struct scrub *pass = &session->daemon->demote;
    const struct config *config = &session->daemon->config;
    uint32_t pause_s;
    if (wire->action == WIRE_SCRUB_START && !demote_is_wanted(session->daemon, &pause_s))
        return larder_fail(-EINVAL, "no demote line of larderd.conf says what to keep smaller");
    if (wire->action == WIRE_SCRUB_START)
        scrub_start(pass, wire->rate_bytes, 0);
    else if (wire->action == WIRE_SCRUB_CANCEL)
        scrub_cancel(pass);
    const struct demote *demote = pass->demote;
    struct wire_admin_demote_ok ok = {.pass = pass->state,
                                      .demoted = demote->demoted,
                                      .saved_bytes = demote->saved_bytes,
                                      .demoted_all = demote->demoted_all,
                                      .saved_bytes_all = demote->saved_bytes_all,
                                      .failed_all = demote->failed_all};
    for (uint32_t i = 0; i < config->demote_count; i++)
        ok.lines += config->demotes[i].count > 0;
    session_reply(session, WIRE_ADMIN_DEMOTE_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

int admin_find_tenant(const struct session *session, struct larder_tenant_info *out,
                      const char *name)
{
    for (uint32_t i = 0;; i++) {
        int err = larder_store_tenant_at(session->daemon->store, out, i);
        if (err == LARDER_ENOTFOUND)
            return larder_fail(
                err, "there is no tenant '%s': tenants appear when they are first used", name);
        LARDER_TRY(err);
        if (strcmp(out->name, name) == 0)
            return 0;
    }
}

/* Root and the daemon's own user may be any tenant: they could read its key and its entries from
 * disk. What follows is that of an engine's connection, limits and all, from its hello on. */
static int admin_act(struct session *session, const struct frame *frame)
{
    const struct wire_admin_act *wire = frame->body;
    struct larder_tenant_info info;
    /* 1 of the session, 1 of whoever reads this frame. */
    if (session->refs > 2)
        return larder_fail(-EBUSY, "requests of this connection are unanswered; wait for them");
    LARDER_TRY(admin_find_tenant(session, &info, wire->tenant));
    session_reply(session, WIRE_ADMIN_ACT_OK, frame->request, NULL, 0);
    memcpy(session->tenant_name, info.name, sizeof(session->tenant_name));
    session->side = FRAME_ENGINE;
    session->opened_ms = larderd_now_ms();
    if (session->state == SESSION_READY)
        session->state = SESSION_NEW;
    return 0;
}

static int admin_models(struct session *session, const struct frame *frame)
{
    const struct wire_admin_index *wire = frame->body;
    struct larder_model_info info;
    LARDER_TRY(larder_store_model_at(session->daemon->store, &info, wire->index));
    struct wire_admin_model_ok ok = {.index = wire->index, .desc = info.desc};
    memcpy(ok.fingerprint, info.fingerprint.bytes, sizeof(ok.fingerprint));
    session_reply(session, WIRE_ADMIN_MODEL_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_tenants(struct session *session, const struct frame *frame)
{
    const struct wire_admin_index *wire = frame->body;
    const struct larderd *daemon = session->daemon;
    struct larder_tenant_info info;
    LARDER_TRY(larder_store_tenant_at(daemon->store, &info, wire->index));
    /* Never its key: with it keys of its prompts could be computed. */
    struct wire_admin_tenant_ok ok = {.index = wire->index};
    memcpy(ok.id, info.id, sizeof(ok.id));
    memcpy(ok.name, info.name, sizeof(ok.name));
    LARDER_TRY(session_tenant_stat(daemon, &ok.stat, wire->index));
    for (const struct session *other = daemon->sessions; other; other = other->next) {
        if (other->state == SESSION_READY && other->side == FRAME_ENGINE &&
            other->tenant.index == wire->index)
            ok.connections++;
    }
    session_reply(session, WIRE_ADMIN_TENANT_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_workers(struct session *session, const struct frame *frame)
{
    const struct wire_admin_index *wire = frame->body;
    struct wire_admin_worker_ok ok;
    LARDER_TRY(served_at(session->daemon->served, &ok, wire->index));
    session_reply(session, WIRE_ADMIN_WORKER_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

/* Of a body that begins with a key. */
static int find(struct session *session, struct larder_entry_info *info, const struct frame *frame)
{
    struct larder_key key;
    memcpy(key.bytes, frame->body, sizeof(key.bytes)); /* every such body begins with it */
    return larder_store_find(session->daemon->store, info, &key);
}

static int admin_show(struct session *session, const struct frame *frame)
{
    struct larder_entry_info info;
    LARDER_TRY(find(session, &info, frame));
    struct larder_model_info model;
    struct larder_tenant_info tenant;
    struct wire_admin_show_ok ok = {0};
    copy_entry(&ok.entry, &info);
    LARDER_TRY(larder_store_model_at(session->daemon->store, &model, info.model));
    LARDER_TRY(larder_store_tenant_at(session->daemon->store, &tenant, info.tenant));
    memcpy(ok.fingerprint, model.fingerprint.bytes, sizeof(ok.fingerprint));
    memcpy(ok.model_name, model.desc.name, sizeof(ok.model_name));
    memcpy(ok.tenant_name, tenant.name, sizeof(ok.tenant_name));
    session_reply(session, WIRE_ADMIN_SHOW_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

static int admin_history(struct session *session, const struct frame *frame)
{
    struct larder_key key;
    struct larder_event_info events[LARDER_EVENTS_FOUND_MAX];
    memcpy(key.bytes, ((const struct wire_admin_key *)frame->body)->key, sizeof(key.bytes));
    struct wire_admin_history_ok ok = {0};
    ok.count = larder_store_history(session->daemon->store, events, LARDER_EVENTS_FOUND_MAX, &key);
    for (uint32_t i = 0; i < ok.count; i++)
        ok.events[i] = (struct wire_event){.when_s = events[i].when_s, .what = events[i].what};
    session_reply(session, WIRE_ADMIN_HISTORY_OK, frame->request, &ok, sizeof(ok));
    return 0;
}

/* Who may ask this is root or the daemon itself, and could read the tenants' keys from disk. */
static int admin_derive(struct session *session, const struct frame *frame)
{
    const struct wire_admin_derive *wire = frame->body;
    struct larder_store *store = session->daemon->store;
    struct larder_tenant_info tenant;
    struct larder_model_info model;
    struct larder_hasher *hasher;
    struct larder_key parent, key;
    memcpy(parent.bytes, wire->parent, sizeof(parent.bytes));
    LARDER_TRY(larder_store_tenant_at(store, &tenant, wire->tenant));
    LARDER_TRY(larder_store_model_at(store, &model, wire->model));
    LARDER_TRY(larder_hasher_open(&hasher, tenant.key, &model.fingerprint));
    int err = larder_hasher_block(hasher, &key, &parent, wire->extra, wire->extra_bytes,
                                  frame->items, frame->item_count);
    larder_hasher_close(hasher);
    LARDER_TRY(err);
    session_reply(session, WIRE_ADMIN_DERIVE_OK, frame->request, key.bytes, sizeof(key.bytes));
    return 0;
}

static int admin_remove(struct session *session, const struct frame *frame)
{
    struct larder_entry_info info;
    const struct wire_admin_remove *wire = frame->body;
    LARDER_TRY(find(session, &info, frame));
    return session_remove_key(session, frame->request, info.tenant, &info.key, wire->variant,
                              wire->pinned ? LARDER_REMOVE_PINNED : LARDER_KEEP_PINNED);
}

static int admin_mark(struct session *session, const struct frame *frame)
{
    struct larder_entry_info info;
    LARDER_TRY(find(session, &info, frame));
    return session_mark_key(session, frame->request, info.tenant, frame->body);
}

/* --- on a worker ------------------------------------------------------------------------------ */

struct admin_job {
    struct job job;
    struct completion completion;
    struct session *session;
    uint64_t request;
    struct larder_key key;       /* verify */
    uint32_t variant;            /* verify */
    struct wire_admin_list wire; /* list */
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
    struct wire_admin_list_ok list;
    struct wire_admin_entry entries[LARDER_ADMIN_LIST_MAX];
};

static struct admin_job *job_of_completion(struct completion *completion)
{
    return (struct admin_job *)((char *)completion - offsetof(struct admin_job, completion));
}

static void end_job(struct admin_job *job)
{
    session_end(job->session);
    larder_free(job);
}

static int start_job(struct session *session, struct admin_job **out, const struct frame *frame,
                     void (*run)(struct job *, struct scratch *),
                     void (*answer)(struct completion *))
{
    *out = NULL;
    struct admin_job *job = larder_alloc_zero(1, sizeof(*job));
    if (!job)
        return larder_fail(-ENOMEM, "no memory for a request");
    int err = session_begin(session);
    if (err < 0) {
        larder_free(job);
        return err;
    }
    job->session = session;
    job->request = frame->request;
    job->job.run = run;
    job->completion.run = answer;
    *out = job;
    return 0;
}

static bool has_prefix(const uint8_t *key, const struct wire_admin_list *wire)
{
    uint32_t whole = wire->prefix_digits / 2;
    if (memcmp(key, wire->prefix, whole) != 0)
        return false;
    return wire->prefix_digits % 2 == 0 || (key[whole] & 0xf0) == wire->prefix[whole];
}

static void list_run(struct job *base, struct scratch *scratch)
{
    struct admin_job *job = (struct admin_job *)((char *)base - offsetof(struct admin_job, job));
    struct larderd *daemon = job->session->daemon;
    uint64_t cursor = job->wire.cursor;
    uint32_t scanned = 0;
    struct larder_entry_info *infos =
        scratch_reserve(scratch, LARDER_ADMIN_LIST_MAX * sizeof(*infos));
    if (!infos)
        job->err = larder_fail(-ENOMEM, "no memory to list");
    while (job->err == 0) {
        uint32_t count = 0;
        job->err = larder_store_list(daemon->store, infos, &count, &cursor,
                                     job->wire.count_max - job->list.count);
        for (uint32_t i = 0; job->err == 0 && i < count; i++) {
            if (has_prefix(infos[i].key.bytes, &job->wire))
                copy_entry(&job->entries[job->list.count++], &infos[i]);
        }
        scanned += count;
        if (cursor == 0 || job->list.count == job->wire.count_max || scanned >= LIST_SCAN_MAX)
            break;
    }
    job->list.cursor = cursor;
    if (job->err < 0)
        snprintf(job->message, sizeof(job->message), "%s", larder_error_message());
    completions_post(daemon->completions, &job->completion);
}

static void list_answer(struct completion *completion)
{
    struct admin_job *job = job_of_completion(completion);
    if (job->err < 0) {
        session_fail_text(job->session, job->request, job->err, job->message);
    } else {
        const struct iovec parts[] = {{&job->list, sizeof(job->list)},
                                      {job->entries, job->list.count * sizeof(job->entries[0])}};
        session_reply_parts(job->session, WIRE_ADMIN_LIST_OK, job->request, parts, 2, -1);
    }
    end_job(job);
}

static int admin_list(struct session *session, const struct frame *frame)
{
    struct admin_job *job;
    LARDER_TRY(start_job(session, &job, frame, list_run, list_answer));
    job->wire = *(const struct wire_admin_list *)frame->body;
    workers_submit(session->daemon->workers, WORKERS_OWN, &job->job);
    return 0;
}

static void verify_done(void *context, int err)
{
    struct admin_job *job = context;
    job->err = err;
    completions_post(job->session->daemon->completions, &job->completion);
}

static void verify_run(struct job *base, struct scratch *scratch)
{
    struct admin_job *job = (struct admin_job *)((char *)base - offsetof(struct admin_job, job));
    (void)scratch;
    larder_store_verify(job->session->daemon->store, &job->key, job->variant, verify_done, job);
}

static void verify_answer(struct completion *completion)
{
    struct admin_job *job = job_of_completion(completion);
    struct wire_admin_verify_ok ok = {.result = job->err};
    session_reply(job->session, WIRE_ADMIN_VERIFY_OK, job->request, &ok, sizeof(ok));
    end_job(job);
}

static int admin_verify(struct session *session, const struct frame *frame)
{
    struct admin_job *job;
    LARDER_TRY(start_job(session, &job, frame, verify_run, verify_answer));
    const struct wire_admin_variant *wire = frame->body;
    job->variant = wire->variant;
    memcpy(job->key.bytes, wire->key, sizeof(job->key.bytes));
    workers_submit(session->daemon->workers, WORKERS_OWN, &job->job);
    return 0;
}

int admin_request(struct session *session, const struct frame *frame)
{
    switch (frame->type) {
    case WIRE_ADMIN_STATUS:
        return admin_status(session, frame);
    case WIRE_ADMIN_LIST:
        return admin_list(session, frame);
    case WIRE_ADMIN_SHOW:
        return admin_show(session, frame);
    case WIRE_ADMIN_VERIFY:
        return admin_verify(session, frame);
    case WIRE_ADMIN_REMOVE:
        return admin_remove(session, frame);
    case WIRE_ADMIN_MARK:
        return admin_mark(session, frame);
    case WIRE_ADMIN_MODELS:
        return admin_models(session, frame);
    case WIRE_ADMIN_TENANTS:
        return admin_tenants(session, frame);
    case WIRE_ADMIN_WORKERS:
        return admin_workers(session, frame);
    case WIRE_ADMIN_COUNTERS:
        return admin_counters(session, frame);
    case WIRE_ADMIN_HISTORY:
        return admin_history(session, frame);
    case WIRE_ADMIN_TOKENS:
        return admin_tokens(session, frame);
    case WIRE_PROFILE:
        return session_profile(session, frame);
    case WIRE_ADMIN_PROFILE_NEW:
        return admin_profile_new(session, frame);
    case WIRE_ADMIN_PROFILE_ADD:
        return admin_profile_add(session, frame);
    case WIRE_ADMIN_PROFILES:
        return admin_profiles(session, frame);
    case WIRE_ADMIN_PROFILE_RM:
        return admin_profile_rm(session, frame);
    case WIRE_ADMIN_MEASURE:
        return admin_measure(session, frame);
    case WIRE_ADMIN_MEASURES:
        return admin_measures(session, frame);
    case WIRE_ADMIN_SECTIONS:
        return admin_sections(session, frame);
    case WIRE_ADMIN_PURGE:
        return admin_purge(session, frame);
    case WIRE_ADMIN_ACT:
        return admin_act(session, frame);
    case WIRE_ADMIN_SCRUB:
        return admin_scrub(session, frame);
    case WIRE_ADMIN_GC:
        return admin_gc(session, frame);
    case WIRE_ADMIN_DEMOTE:
        return admin_demote(session, frame);
    case WIRE_ADMIN_DERIVE:
        return admin_derive(session, frame);
    default:
        assert(0 && "frame_parse() lets no other type through");
        return LARDER_EPROTO;
    }
}
