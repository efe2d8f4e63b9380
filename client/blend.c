/* SPDX-License-Identifier: Apache-2.0 */
/* larder_blend: has the daemon's worker blend, and copies the KV out of staging, into which the
 * worker puts it part by part.
 *
 * I1  Staging is the worker's from the BLEND until its answer, and from a BLEND_READ until that
 *     one's; the blend is released before put_turn is given back. Of a BLEND or a read that failed
 *     the worker may know only later: its staging is dropped.
 */
#include "client/blend.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/record.h"
#include "client/chain.h"
#include "client/layout.h"
#include "client/workers.h"

/* Staging asked for, so that few reads are needed. */
#define STAGING_BYTES_WANTED (64u << 20)

struct blend_run {
    struct larder_model *model;
    struct larder_link *link;
    const struct larder_blend_request *request;
    struct blend_prompt prompt;
    struct layout_view view;
    uint64_t token_first; /* the engine has what is before */
    struct larder_blended *out;
    uint32_t handle;
    uint64_t blend; /* its request; 0: none to be released */
};

/* --- the request ----------------------------------------------------------------------------- */

/* Where the parts of the region begin (base/wire.h). */
struct blend_region {
    uint64_t tokens; /* of the request */
    uint64_t recomputed;
    uint64_t spans;
    uint64_t bytes; /* of request and answer, whichever is longer */
};

static struct blend_region region_of(const struct blend_run *run)
{
    const struct larder_blend_request *request = run->request;
    struct blend_region at = {.tokens = 8ull * request->piece_count +
                                        larder_round_up(request->suffix.extra_bytes, 4)};
    for (size_t i = 0; i < request->piece_count; i++)
        at.tokens += larder_round_up(request->pieces[i].extra_bytes, 4);
    at.recomputed = larder_round_up(4ull * run->model->desc.vocab, 64);
    at.spans = at.recomputed + larder_round_up(run->prompt.count, 64);
    at.bytes = larder_max_u64(at.tokens + 4ull * run->prompt.count,
                              at.spans + LARDER_BLEND_SPANS_MAX(request->piece_count) *
                                             sizeof(struct larder_blend_span));
    return at;
}

static char *put_extra(char *at, const struct larder_prompt *piece)
{
    const uint64_t bytes = larder_round_up(piece->extra_bytes, 4);
    memset(at, 0, bytes);
    if (piece->extra_bytes > 0)
        memcpy(at, piece->extra, piece->extra_bytes);
    return at + bytes;
}

static void fill_region(const struct blend_run *run, char *region)
{
    const struct larder_blend_request *request = run->request;
    char *at = region;
    for (size_t i = 0; i < request->piece_count; i++, at += 8) {
        const uint32_t row[2] = {(uint32_t)request->pieces[i].token_count,
                                 (uint32_t)request->pieces[i].extra_bytes};
        memcpy(at, row, sizeof(row));
    }
    at = put_extra(at, &request->suffix);
    for (size_t i = 0; i < request->piece_count; i++)
        at = put_extra(at, &request->pieces[i]);
    memcpy(at, run->prompt.tokens, 4ull * run->prompt.count);
}

static uint32_t wire_start(const struct larder_blend_request *request)
{
    if (request->start == LARDER_START_TOKEN)
        return request->start_token;
    return request->start == LARDER_START_NONE ? WIRE_TOKEN_NONE : WIRE_TOKEN_MODEL;
}

static struct wire_blend wire_request(const struct blend_run *run)
{
    const struct larder_blend_request *request = run->request;
    const unsigned worst = (unsigned)request->worst;
    struct wire_blend body = {
        .model = run->handle,
        .piece_count = (uint32_t)request->piece_count,
        .staging_bytes = region_of(run).bytes,
        .token_count = run->prompt.count,
        .suffix_tokens = (uint32_t)request->suffix.token_count,
        .extra_bytes = (uint32_t)request->suffix.extra_bytes,
        .deadline_ms = request->deadline_ms ? request->deadline_ms : LARDER_BLEND_MS_DEFAULT,
        .start = wire_start(request),
        .worst = worst & ~(unsigned)LARDER_QUALITY_SMALLEST,
        .max_kl = request->max_kl,
        .flags = (worst & LARDER_QUALITY_SMALLEST ? (uint32_t)WIRE_BLEND_SMALLEST : 0) |
                 (request->keep == LARDER_KEEP_CACHED ? (uint32_t)WIRE_BLEND_KEEP : 0) |
                 (request->keep == LARDER_KEEP_DURABLE ? (uint32_t)WIRE_BLEND_DURABLE : 0),
        .seed = request->seed,
    };
    if (request->method)
        memcpy(body.method, request->method, strlen(request->method));
    return body;
}

static int send_blend(struct blend_run *run, struct wire_blend_ok *answer)
{
    const struct wire_blend body = wire_request(run);
    const struct client_part part = {&body, sizeof(body)};
    struct client_call call = {
        .type = WIRE_BLEND,
        .answer_type = WIRE_BLEND_OK,
        .answer = answer,
        .answer_capacity = sizeof(*answer),
        .patience_ms = body.deadline_ms,
    };
    int err = client_call(run->link, &call, NULL, &part, 1);
    if (err < 0) {
        client_staging_drop(run->link);
        return err;
    }
    run->blend = call.id;
    if (call.answer_bytes != sizeof(*answer) || answer->span_count == 0 ||
        answer->span_count > LARDER_BLEND_SPANS_MAX(body.piece_count) ||
        answer->quality > LARDER_QUALITY_BLENDED || !(answer->kl >= 0) || answer->keep_error > 0)
        return client_malformed(run->link, "BLEND");
    return 0;
}

/* --- the answer ------------------------------------------------------------------------------ */

static int copy_part(void **out, const char *from, uint64_t bytes)
{
    *out = larder_alloc(bytes);
    if (!*out)
        return larder_fail(-ENOMEM, "no memory for what became of a prompt's tokens");
    memcpy(*out, from, bytes);
    return 0;
}

/* Spans must cover the prompt: callers index by them. */
static bool spans_cover(const struct larder_blended *out, uint64_t tokens)
{
    uint64_t at = 0;
    for (uint32_t i = 0; i < out->span_count; i++) {
        const struct larder_blend_span *span = &out->spans[i];
        if (span->first != at || span->count == 0 || span->count > tokens - at ||
            span->source > LARDER_BLEND_SUFFIX)
            return false;
        at += span->count;
    }
    return at == tokens;
}

static int take_answer(struct blend_run *run, const struct wire_blend_ok *answer)
{
    struct larder_blended *out = run->out;
    const struct blend_region at = region_of(run);
    const char *region = run->link->staging;
    void *spans, *recomputed, *logits;
    LARDER_TRY(copy_part(&spans, region + at.spans,
                         answer->span_count * sizeof(struct larder_blend_span)));
    out->spans = spans;
    LARDER_TRY(copy_part(&recomputed, region + at.recomputed, run->prompt.count));
    out->recomputed = recomputed;
    LARDER_TRY(copy_part(&logits, region, 4ull * run->model->desc.vocab));
    out->logits = logits;
    out->span_count = answer->span_count;
    out->quality = answer->quality;
    out->tokens = run->prompt.count;
    out->share = answer->share;
    out->rows = answer->rows;
    out->bytes = answer->bytes;
    out->bytes_ssd = answer->bytes_ssd;
    out->wait_us = answer->wait_us;
    out->load_us = answer->load_us;
    out->compute_us = answer->compute_us;
    out->keep_us = answer->keep_us;
    out->kept_tokens = answer->kept_tokens;
    out->keep_error = answer->keep_error;
    out->kl = answer->kl;
    out->replanned = answer->replanned;
    for (uint32_t i = 0; i < run->prompt.count; i++) {
        if (out->recomputed[i] > LARDER_BLEND_COMPUTED)
            return client_malformed(run->link, "BLEND");
    }
    return spans_cover(out, run->prompt.count) ? 0 : client_malformed(run->link, "BLEND");
}

/* --- the KV ---------------------------------------------------------------------------------- */

struct blend_scatter {
    const struct blend_run *run;
    const struct wire_blend_read *read;
};

/* On a thread: K or V of one layer of what was read, in the order in which they lie. */
static void scatter_plane(void *context, uint32_t index, void *scratch)
{
    (void)scratch;
    const struct blend_scatter *scatter = context;
    const struct wire_blend_read *read = scatter->read;
    const struct larder_model_desc *desc = &scatter->run->model->desc;
    const struct layout_move move = {
        .slice = {.layer_first = (uint16_t)(read->layer_first + index / 2),
                  .layer_count = 1,
                  .head_count = (uint16_t)desc->kv_heads,
                  .kind = (uint8_t)(index % 2)},
        .plane_tokens = (uint32_t)read->token_count,
        .row_count = (uint32_t)read->token_count,
        .token_first = read->token_first,
        .past_cache = true,
    };
    const uint64_t dim_bytes = read->token_count * desc->kv_heads * larder_dtype_bytes(desc->dtype);
    const char *planes =
        scatter->run->link->staging + index / 2 * dim_bytes * (desc->k_dims + desc->v_dims);
    if (index % 2 == LARDER_SECTION_V)
        planes += dim_bytes * desc->k_dims;
    layout_scatter(&scatter->run->view, planes, &move);
}

static int read_part(struct blend_run *run, const struct wire_blend_read *read)
{
    const struct client_part part = {read, sizeof(*read)};
    uint8_t nothing;
    struct client_call call = {
        .type = WIRE_BLEND_READ,
        .answer_type = WIRE_BLEND_READ_OK,
        .answer = &nothing,
        .answer_capacity = sizeof(nothing),
    };
    int err = client_call(run->link, &call, NULL, &part, 1);
    if (err < 0) {
        client_staging_drop(run->link);
        return err;
    }
    if (call.answer_bytes != 0)
        return client_malformed(run->link, "BLEND_READ");
    struct blend_scatter scatter = {.run = run, .read = read};
    return client_workers_run(run->model->larder->workers, scatter_plane, &scatter,
                              2 * read->layer_count, 0);
}

/* As many layers at a time as staging holds; of a layer that it does not hold, as many tokens. */
static int read_all(struct blend_run *run)
{
    const uint32_t layers = run->model->desc.layers;
    const uint64_t token_bytes = run->model->token_bytes / layers; /* in a layer */
    const uint64_t room = run->link->staging_bytes / token_bytes;
    const uint64_t count = run->prompt.count - run->token_first;
    if (room == 0)
        return larder_fail(LARDER_ELIMIT,
                           "staging of %llu bytes holds not even one token of a layer; raise "
                           "staging_bytes_max in larderd.conf",
                           (unsigned long long)run->link->staging_bytes);
    const uint64_t tokens_at_once = larder_min_u64(count, room);
    const uint64_t layers_at_once =
        tokens_at_once == 0 ? layers : larder_min_u64(layers, room / tokens_at_once);
    for (uint32_t layer = 0; layer < layers; layer += (uint32_t)layers_at_once) {
        for (uint64_t token = 0; token < count; token += tokens_at_once) {
            struct wire_blend_read read = {
                .blend = run->blend,
                .token_first = run->token_first + token,
                .token_count = larder_min_u64(tokens_at_once, count - token),
                .layer_first = layer,
                .layer_count = (uint32_t)larder_min_u64(layers_at_once, layers - layer),
            };
            read.staging_bytes = read.layer_count * read.token_count * token_bytes;
            LARDER_TRY(read_part(run, &read));
        }
    }
    return 0;
}

static void release(struct blend_run *run)
{
    if (run->blend == 0)
        return;
    struct client_lease lease = {.id = run->blend, .held = true};
    struct client_lease *leases[] = {&lease};
    client_leases_end(run->link, leases, 1);
}

/* --- the call -------------------------------------------------------------------------------- */

static int blend_in_turn(struct blend_run *run)
{
    struct wire_blend_ok answer;
    const uint64_t region_bytes = region_of(run).bytes;
    const uint64_t limit = run->link->hello.staging_bytes_max;
    if (region_bytes > limit)
        return larder_fail(
            LARDER_ELIMIT,
            "blend: a prompt of %u tokens and logits of %u need %llu bytes of "
            "staging, the daemon gives %llu; raise staging_bytes_max in larderd.conf",
            run->prompt.count, run->model->desc.vocab, (unsigned long long)region_bytes,
            (unsigned long long)limit);
    uint64_t wanted =
        larder_max_u64(region_bytes, larder_min_u64(run->prompt.count * run->model->token_bytes,
                                                    STAGING_BYTES_WANTED));
    LARDER_TRY(client_staging(run->link, larder_min_u64(wanted, limit)));
    fill_region(run, run->link->staging);
    LARDER_TRY(send_blend(run, &answer));
    LARDER_TRY(take_answer(run, &answer));
    const uint64_t start_ns = client_now_ns();
    LARDER_TRY(read_all(run));
    run->out->copy_us = (client_now_ns() - start_ns) / 1000;
    return 0;
}

static int blend(struct blend_run *run, const struct larder_layout *layout)
{
    struct larder_model *model = run->model;
    LARDER_TRY(layout_open(&run->view, layout, &model->desc));
    if (run->prompt.count > run->view.token_capacity)
        return larder_fail(-EINVAL, "blend: the prompt has %u tokens, the layout room for %llu",
                           run->prompt.count, (unsigned long long)run->view.token_capacity);
    if (layout->token_first > run->prompt.count)
        return larder_fail(-EINVAL, "layout: token_first=%llu is behind the prompt's %u tokens",
                           (unsigned long long)layout->token_first, run->prompt.count);
    run->token_first = layout->token_first;
    LARDER_TRY(client_link_acquire(model->larder, &run->link));
    LARDER_TRY(client_model_handle(model, run->link, &run->handle));
    pthread_mutex_lock(&model->larder->put_turn);
    int err = blend_in_turn(run);
    release(run);
    pthread_mutex_unlock(&model->larder->put_turn);
    return err;
}

int larder_blend(struct larder_model *model, struct larder_blended *out,
                 const struct larder_blend_request *request, const struct larder_layout *layout)
{
    memset(out, 0, sizeof(*out));
    struct blend_run run = {.model = model, .request = request, .out = out};
    LARDER_TRY(blend_prompt_open(&run.prompt, model, request));
    int err = blend(&run, layout);
    if (run.link)
        client_link_release(run.link);
    blend_prompt_close(&run.prompt);
    if (err < 0)
        larder_blended_free(out);
    return err;
}

void larder_blended_free(struct larder_blended *blended)
{
    larder_free(blended->spans);
    larder_free(blended->recomputed);
    larder_free(blended->logits);
    blended->spans = NULL;
    blended->recomputed = NULL;
    blended->logits = NULL;
    blended->span_count = 0;
}
