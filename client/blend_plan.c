/* SPDX-License-Identifier: Apache-2.0 */
/* larder_blend_plan: which tokens of a blended prompt are stored, and what the rest will take. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "client/blend.h"
#include "client/chain.h"

/* --- the request ----------------------------------------------------------------------------- */

static int check_piece(const char *what, size_t index, const struct larder_prompt *piece,
                       uint32_t vocab)
{
    if (piece->token_count == 0 || !piece->tokens)
        return larder_fail(-EINVAL, "blend: %s %zu is empty; leave it out", what, index);
    if (piece->token_count > LARDER_PROMPT_TOKENS_MAX)
        return larder_fail(LARDER_ELIMIT, "blend: %s %zu has %zu tokens, more than %u", what, index,
                           piece->token_count, LARDER_PROMPT_TOKENS_MAX);
    if (piece->extra_bytes > LARDER_EXTRA_BYTES_MAX || (piece->extra_bytes && !piece->extra))
        return larder_fail(-EINVAL, "blend: %s %zu has an extra of %zu bytes; at most %u", what,
                           index, piece->extra_bytes, LARDER_EXTRA_BYTES_MAX);
    for (size_t i = 0; i < piece->token_count; i++) {
        if (piece->tokens[i] >= vocab)
            return larder_fail(-EINVAL,
                               "blend: token %u of %s %zu is not below the model's vocabulary of "
                               "%u",
                               piece->tokens[i], what, index, vocab);
    }
    return 0;
}

static int check_request(const struct larder_model *model,
                         const struct larder_blend_request *request)
{
    const uint32_t vocab = model->desc.vocab;
    uint64_t tokens = request->suffix.token_count;
    if (request->piece_count == 0 || !request->pieces)
        return larder_fail(-EINVAL, "blend: no pieces; a prompt without any is a plain get");
    if (request->piece_count > LARDER_PIECES_MAX)
        return larder_fail(LARDER_ELIMIT, "blend: %zu pieces are more than %u",
                           request->piece_count, LARDER_PIECES_MAX);
    if (!larder_all_zero(request->reserved, sizeof(request->reserved)))
        return larder_fail(-EINVAL, "blend: reserved bytes are not zero");
    if ((unsigned)request->start > LARDER_START_TOKEN || (unsigned)request->keep > 2)
        return larder_fail(-EINVAL, "blend: start=%d or keep=%d is unknown", (int)request->start,
                           (int)request->keep);
    if (request->start == LARDER_START_TOKEN && request->start_token >= vocab)
        return larder_fail(-EINVAL, "blend: start_token=%u is not below the vocabulary of %u",
                           request->start_token, vocab);
    if (request->method && strlen(request->method) >= LARDER_METHOD_BYTES_MAX)
        return larder_fail(-EINVAL, "blend: a method of %zu bytes is longer than %u",
                           strlen(request->method), LARDER_METHOD_BYTES_MAX - 1);
    LARDER_TRY(client_check_quality(request->worst));
    LARDER_TRY(client_check_kl("blend: max_kl", request->max_kl));
    for (size_t i = 0; i < request->piece_count; i++) {
        LARDER_TRY(check_piece("piece", i, &request->pieces[i], vocab));
        tokens += request->pieces[i].token_count;
        if (tokens > LARDER_PROMPT_TOKENS_MAX)
            return larder_fail(LARDER_ELIMIT, "blend: more than %u tokens",
                               LARDER_PROMPT_TOKENS_MAX);
    }
    return check_piece("suffix", 0, &request->suffix, vocab);
}

int blend_prompt_open(struct blend_prompt *out, const struct larder_model *model,
                      const struct larder_blend_request *request)
{
    *out = (struct blend_prompt){0};
    LARDER_TRY(check_request(model, request));
    uint64_t count = request->suffix.token_count;
    for (size_t i = 0; i < request->piece_count; i++)
        count += request->pieces[i].token_count;
    out->tokens = larder_alloc(count * sizeof(*out->tokens));
    out->firsts = larder_alloc((request->piece_count + 1) * sizeof(*out->firsts));
    if (!out->tokens || !out->firsts) {
        blend_prompt_close(out);
        return larder_fail(-ENOMEM, "no memory for a prompt of %llu tokens",
                           (unsigned long long)count);
    }
    for (size_t i = 0; i <= request->piece_count; i++) {
        const struct larder_prompt *piece =
            i < request->piece_count ? &request->pieces[i] : &request->suffix;
        out->firsts[i] = out->count;
        memcpy(out->tokens + out->count, piece->tokens, piece->token_count * sizeof(uint32_t));
        out->count += (uint32_t)piece->token_count;
    }
    out->piece_count = (uint32_t)request->piece_count;
    return 0;
}

void blend_prompt_close(struct blend_prompt *prompt)
{
    larder_free(prompt->firsts);
    larder_free(prompt->tokens);
}

int blend_ask_worker(struct larder_model *model, struct wire_worker_ok *out)
{
    struct larder_link *link;
    LARDER_TRY(client_link_acquire(model->larder, &link));
    struct wire_worker body = {0};
    const struct client_part part = {&body, sizeof(body)};
    struct client_call call = {
        .type = WIRE_WORKER,
        .answer_type = WIRE_WORKER_OK,
        .answer = out,
        .answer_capacity = sizeof(*out),
    };
    int err = client_model_handle(model, link, &body.model);
    if (err == 0)
        err = client_call(link, &call, NULL, &part, 1);
    if (err == 0 && (call.answer_bytes != sizeof(*out) || !(out->row_ns >= 0) ||
                     !memchr(out->method, 0, sizeof(out->method)) || !(out->pair_ns >= 0) ||
                     !isfinite(out->row_ns) || !isfinite(out->pair_ns)))
        err = client_malformed(link, "WORKER");
    client_link_release(link);
    return err;
}

/* --- what is stored -------------------------------------------------------------------------- */

struct plan_run {
    struct larder_model *model;
    const struct larder_blend_request *request;
    struct larder_get_options accept;
    struct larder_blend_plan *plan;
    struct blend_prompt prompt;
    uint32_t *chunk; /* room for the longest piece and a start token */
    bool has_start;
    uint32_t start;
};

static void add_span(struct larder_blend_plan *plan, enum larder_blend_source source,
                     uint32_t piece, uint64_t first, uint64_t end, uint64_t stored_first)
{
    if (first >= end)
        return;
    plan->spans[plan->span_count++] = (struct larder_blend_span){.first = first,
                                                                 .count = end - first,
                                                                 .stored_first = stored_first,
                                                                 .source = source,
                                                                 .piece = piece};
    plan->source_tokens[source] += end - first;
}

static void add_load(struct larder_blend_plan *plan, const struct larder_lookup_result *found)
{
    plan->bytes += found->bytes;
    plan->bytes_host += found->bytes_host;
    plan->load_us += found->estimate_us;
    if (found->quality > plan->quality)
        plan->quality = found->quality;
    if (found->kl > plan->kl)
        plan->kl = found->kl;
}

/* The whole prompt's leading tokens that are stored as such; the last one is computed. */
static int plan_prefix(struct plan_run *run, uint64_t *tokens)
{
    const struct blend_prompt *prompt = &run->prompt;
    const struct larder_prompt whole = {.tokens = prompt->tokens,
                                        .token_count = prompt->count,
                                        .extra = run->request->suffix.extra,
                                        .extra_bytes = run->request->suffix.extra_bytes};
    struct larder_lookup_result found;
    LARDER_TRY(larder_lookup_for(run->model, &found, &whole, &run->accept));
    add_load(run->plan, &found);
    *tokens = larder_min_u64(found.tokens, prompt->count - 1);
    uint32_t piece = 0;
    while (piece < prompt->piece_count && prompt->firsts[piece + 1] < *tokens)
        piece++;
    add_span(run->plan, LARDER_BLEND_PREFIX, piece, 0, *tokens, 0);
    return 0;
}

/* What is left of a piece behind the prefix: as a chunk, as far as its chain is stored. */
static int plan_piece(struct plan_run *run, uint32_t index, uint64_t prefix)
{
    const struct larder_prompt *piece = &run->request->pieces[index];
    const uint64_t first = run->prompt.firsts[index];
    const uint64_t end = run->prompt.firsts[index + 1];
    if (end <= prefix)
        return 0;
    const uint64_t from = larder_max_u64(first, prefix);
    /* Left out when it is moved. */
    const uint32_t lead = run->has_start && piece->tokens[0] != run->start;
    run->chunk[0] = run->start;
    memcpy(run->chunk + lead, piece->tokens, piece->token_count * sizeof(uint32_t));
    const struct larder_prompt chunk = {.tokens = run->chunk,
                                        .token_count = piece->token_count + lead,
                                        .extra = piece->extra,
                                        .extra_bytes = piece->extra_bytes};
    struct larder_lookup_result found;
    LARDER_TRY(larder_lookup_for(run->model, &found, &chunk, &run->accept));
    const uint64_t stored = found.tokens > lead ? first + found.tokens - lead : first;
    if (stored > from)
        add_load(run->plan, &found);
    const uint64_t moved_end = larder_max_u64(from, stored);
    add_span(run->plan, LARDER_BLEND_MOVED, index, from, moved_end, lead + from - first);
    add_span(run->plan, LARDER_BLEND_MISSING, index, moved_end, end, moved_end);
    return 0;
}

static int plan_spans(struct plan_run *run)
{
    const struct blend_prompt *prompt = &run->prompt;
    uint64_t longest = 0, prefix;
    for (uint32_t i = 0; i < prompt->piece_count; i++)
        longest = larder_max_u64(longest, prompt->firsts[i + 1] - prompt->firsts[i]);
    run->chunk = larder_alloc((longest + 1) * sizeof(*run->chunk));
    run->plan->spans =
        larder_alloc_zero(LARDER_BLEND_SPANS_MAX(prompt->piece_count), sizeof(*run->plan->spans));
    if (!run->chunk || !run->plan->spans)
        return larder_fail(-ENOMEM, "no memory for a plan of %u pieces", prompt->piece_count);
    LARDER_TRY(plan_prefix(run, &prefix));
    for (uint32_t i = 0; i < prompt->piece_count; i++)
        LARDER_TRY(plan_piece(run, i, prefix));
    const uint64_t suffix = prompt->firsts[prompt->piece_count];
    add_span(run->plan, LARDER_BLEND_SUFFIX, prompt->piece_count, larder_max_u64(suffix, prefix),
             prompt->count, larder_max_u64(suffix, prefix));
    return 0;
}

/* --- what it takes --------------------------------------------------------------------------- */

/* The last of the values that a key has: r=.5,.15 goes down to .15. */
static double number_of(const char *method, const char *key, double missing)
{
    const char *at = strstr(method, key);
    if (!at)
        return missing;
    char *end;
    double value = strtod(at + strlen(key), &end);
    while (*end == ',')
        value = strtod(end + 1, &end);
    return value;
}

static bool is_method(const char *method, const char *name)
{
    const size_t length = strlen(name);
    return strncmp(method, name, length) == 0 && (method[length] == ' ' || !method[length]);
}

/* Of a method that is not known here: it takes up to all, and promises nothing. */
#define UNKNOWN_SHARE 2

/* Of the layers of a moved span's tokens, the share that will be computed; the worker reads the
 * text in earnest. */
static double repaired_share(const char *method, double layers,
                             const struct larder_blend_span *span)
{
    if (is_method(method, "none") || is_method(method, "kvcomm"))
        return 0;
    if (is_method(method, "link"))
        return fmin(number_of(method, " k=", 16), (double)span->count) / (double)span->count;
    if (is_method(method, "random") || is_method(method, "probe"))
        return fmin(number_of(method, " r=", .15), 1);
    /* All tokens as far as the check layer, to choose. */
    if (is_method(method, "cacheblend") || is_method(method, "kvshare")) {
        const double check = fmin(number_of(method, " layer=", 1), layers);
        return (check + (layers - check) * fmin(number_of(method, " r=", .15), 1)) / layers;
    }
    return is_method(method, "full") ? 1 : UNKNOWN_SHARE;
}

/* Query-key pairs of the tokens [first, end), each of which sees itself and all before it. */
static double pairs(uint64_t first, uint64_t end)
{
    return ((double)end * (double)(end + 1) - (double)first * (double)(first + 1)) / 2;
}

static void estimate(struct plan_run *run, const struct wire_worker_ok *worker)
{
    struct larder_blend_plan *plan = run->plan;
    const uint64_t suffix = run->prompt.firsts[run->prompt.piece_count];
    const char *method = run->request->method ? run->request->method : worker->method;
    double context = 0, compute_ns = 0, prefill_ns = 0;
    bool all_computed = true;
    for (uint32_t i = 0; i < plan->span_count; i++) {
        const struct larder_blend_span *span = &plan->spans[i];
        const uint64_t end = span->first + span->count;
        if (span->source == LARDER_BLEND_PREFIX)
            continue;
        double share = 1;
        if (span->source == LARDER_BLEND_MOVED) {
            const double repaired = repaired_share(method, run->model->desc.layers, span);
            /* The text may say anything: no share below none, and none above all. */
            share = fmin(fmax(repaired, 0), 1);
            all_computed = all_computed && repaired == 1;
        }
        const double ns =
            worker->row_ns * (double)span->count + worker->pair_ns * pairs(span->first, end);
        compute_ns += share * ns;
        prefill_ns += ns;
        if (span->source != LARDER_BLEND_SUFFIX)
            context += share * (double)span->count;
    }
    plan->share = context / (double)suffix;
    plan->compute_us = (uint64_t)(compute_ns / 1000);
    plan->prefill_us = (uint64_t)(prefill_ns / 1000);
    if (!all_computed)
        plan->quality = LARDER_QUALITY_BLENDED;
}

static int set_start(struct plan_run *run, struct wire_worker_ok *worker)
{
    int err = blend_ask_worker(run->model, worker);
    run->has_start = run->request->start == LARDER_START_TOKEN;
    run->start = run->request->start_token;
    if (run->request->start == LARDER_START_MODEL) {
        LARDER_TRY(err);
        run->has_start = worker->start != WIRE_TOKEN_NONE;
        run->start = worker->start;
    } else if (err == LARDER_EUNSUPPORTED || err == LARDER_EMODEL || err == -EBUSY) {
        /* Of use to engines that run their own layers. */
        *worker = (struct wire_worker_ok){.ready = 0};
    } else {
        LARDER_TRY(err);
    }
    run->plan->ready = worker->ready;
    run->plan->waiting = worker->waiting;
    run->plan->positions_max = worker->positions_max;
    return 0;
}

int larder_blend_plan(struct larder_model *model, struct larder_blend_plan *out,
                      const struct larder_blend_request *request)
{
    memset(out, 0, sizeof(*out));
    struct wire_worker_ok worker;
    struct plan_run run = {
        .model = model,
        .request = request,
        .accept = {.worst = request->worst, .max_kl = request->max_kl},
        .plan = out,
    };
    LARDER_TRY(blend_prompt_open(&run.prompt, model, request));
    out->tokens = run.prompt.count;
    int err = set_start(&run, &worker);
    if (err == 0 && worker.positions_max > 0 && run.prompt.count > worker.positions_max)
        err = larder_fail(LARDER_ELIMIT,
                          "blend: a prompt of %u tokens is longer than the model's %u positions",
                          run.prompt.count, worker.positions_max);
    if (err == 0)
        err = plan_spans(&run);
    if (err == 0)
        estimate(&run, &worker);
    larder_free(run.chunk);
    blend_prompt_close(&run.prompt);
    if (err < 0)
        larder_blend_plan_free(out);
    return err;
}

void larder_blend_plan_free(struct larder_blend_plan *plan)
{
    larder_free(plan->spans);
    plan->spans = NULL;
    plan->span_count = 0;
}
