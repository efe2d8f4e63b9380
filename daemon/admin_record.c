/* SPDX-License-Identifier: Apache-2.0 */
/* admin_record.c - what only the head of a record knows: WIRE_ADMIN_TOKENS, the tokens of a stored
 * block, for an export of its chain; WIRE_ADMIN_SECTIONS, the sizes and errors of its sections.
 *
 * The record may have to be read from SSD: a lease is taken for it, on a worker, and given back
 * when the answer has been made.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "daemon/session_priv.h"
#include "daemon/workers.h"

struct record_job {
    struct job job;
    struct completion completion;
    struct session *session;
    uint64_t request;
    uint32_t tenant;
    struct larder_key key;
    uint32_t variant;
    void (*answer)(struct record_job *job, const struct larder_record *record);
    /* Of the worker, which asks, and of the storage thread, which may have loaded it before the
     * worker has heard that it got the lease: the last of them posts the completion. */
    atomic_int waits;
    struct larder_lease *lease;
    struct larder_ref ref;
    uint32_t loaded;
    int err;
    char message[LARDER_MESSAGE_BYTES_MAX];
};

static void settle(struct record_job *job)
{
    if (atomic_fetch_sub(&job->waits, 1) == 1)
        completions_post(job->session->daemon->completions, &job->completion);
}

static void loaded(void *context, uint32_t loaded, int err)
{
    struct record_job *job = context;
    job->loaded = loaded;
    if (loaded == 0)
        job->err = err < 0 ? err : LARDER_ENOTFOUND;
    settle(job);
}

static void record_run(struct job *base, struct scratch *scratch)
{
    struct record_job *job = (struct record_job *)((char *)base - offsetof(struct record_job, job));
    (void)scratch;
    uint32_t count = 0;
    bool ready = false;
    /* The head comes along whatever of the rest is asked for. */
    const struct larder_want want = {.tenant = job->tenant,
                                     .keys = &job->key,
                                     .key_count = 1,
                                     .layer_count = 1,
                                     .peek = true,
                                     .variant = job->variant};
    int err = larder_store_lease(job->session->daemon->store, &job->lease, &job->ref, &count,
                                 &ready, &want, loaded, job);
    if (err == 0 && count == 0)
        err = larder_fail(LARDER_ENOTFOUND, "no entry of this key is stored");
    if (err < 0) {
        job->err = err;
        snprintf(job->message, sizeof(job->message), "%s", larder_error_message());
    }
    if (err < 0 || ready) { /* loaded() is not called */
        job->loaded = ready;
        settle(job);
    }
    settle(job);
}

static void answer_tokens(struct record_job *job, const struct larder_record *record)
{
    struct wire_admin_tokens_ok ok = {.token_count = record->token_count,
                                      .extra_bytes = record->extra_bytes};
    memcpy(ok.extra, larder_record_extra(record), record->extra_bytes);
    const struct iovec parts[] = {
        {&ok, sizeof(ok)},
        {(void *)(uintptr_t)larder_record_tokens(record), record->token_count * sizeof(uint32_t)}};
    session_reply_parts(job->session, WIRE_ADMIN_TOKENS_OK, job->request, parts, 2, -1);
}

static void answer_sections(struct record_job *job, const struct larder_record *record)
{
    struct wire_admin_section sections[LARDER_SECTIONS_MAX];
    struct wire_admin_sections_ok ok = {.record_bytes = record->record_bytes,
                                        .raw_bytes = record->raw_bytes,
                                        .head_bytes = record->head_bytes,
                                        .token_count = record->token_count,
                                        .section_count = record->section_count,
                                        .k_error = record->k_error,
                                        .v_error = record->v_error};
    memcpy(ok.profile, record->profile, sizeof(ok.profile));
    memcpy(ok.recipe, larder_record_recipe(record), record->recipe_bytes);
    const struct larder_section *from = larder_record_directory(record);
    for (uint32_t i = 0; i < record->section_count; i++)
        sections[i] = (struct wire_admin_section){.layer_first = from[i].layer_first,
                                                  .layer_count = from[i].layer_count,
                                                  .head_first = from[i].head_first,
                                                  .head_count = from[i].head_count,
                                                  .kind = from[i].kind,
                                                  .flags = from[i].flags,
                                                  .error = larder_section_error(&from[i]),
                                                  .bytes = from[i].bytes};
    const struct iovec parts[] = {{&ok, sizeof(ok)},
                                  {sections, record->section_count * sizeof(sections[0])}};
    session_reply_parts(job->session, WIRE_ADMIN_SECTIONS_OK, job->request, parts, 2, -1);
}

static void record_done(struct completion *completion)
{
    struct record_job *job =
        (struct record_job *)((char *)completion - offsetof(struct record_job, completion));
    struct larder_store *store = job->session->daemon->store;
    if (job->loaded > 0)
        job->answer(job, larder_store_ref_record(store, job->tenant, &job->ref));
    else
        session_fail_text(job->session, job->request, job->err, job->message);
    if (job->lease)
        larder_store_release(store, job->lease);
    session_end(job->session);
    larder_free(job);
}

/* `variant` UINT32_MAX: the best. */
static int ask(struct session *session, uint64_t request, const uint8_t name[32], uint32_t variant,
               void (*answer)(struct record_job *job, const struct larder_record *record))
{
    struct larder_entry_info info;
    struct larder_key key;
    memcpy(key.bytes, name, sizeof(key.bytes));
    LARDER_TRY(larder_store_find(session->daemon->store, &info, &key));
    struct record_job *job = larder_alloc_zero(1, sizeof(*job));
    if (!job)
        return larder_fail(-ENOMEM, "no memory for a request");
    int err = session_begin(session);
    if (err < 0) {
        larder_free(job);
        return err;
    }
    job->session = session;
    job->request = request;
    job->tenant = info.tenant;
    job->key = key;
    job->variant = variant == UINT32_MAX ? info.variant : variant;
    job->answer = answer;
    job->job.run = record_run;
    job->completion.run = record_done;
    atomic_init(&job->waits, 2);
    workers_submit(session->daemon->workers, info.tenant, &job->job);
    return 0;
}

int admin_tokens(struct session *session, const struct frame *frame)
{
    const struct wire_admin_key *wire = frame->body;
    return ask(session, frame->request, wire->key, UINT32_MAX, answer_tokens);
}

int admin_sections(struct session *session, const struct frame *frame)
{
    const struct wire_admin_variant *wire = frame->body;
    return ask(session, frame->request, wire->key, wire->variant, answer_sections);
}
