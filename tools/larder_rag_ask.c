/* SPDX-License-Identifier: Apache-2.0 */
/* larder_rag_ask.c - `larder rag ask`: a question behind chunks, blended by larderd, answered here;
 * and what was done with each chunk. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "tools/larder_rag.h"
#include "tools/larder_text.h"
#include "tools/rag_catalogue.h"

struct question {
    const struct command_options *options;
    const char *text;
    struct rag_catalogue catalogue;
    /* of the catalogue, in the order of the prompt */
    size_t *chosen;
    size_t chosen_count;
    struct run_pieces pieces;
    char *prompt; /* the chunks, and the question behind them */
    size_t prompt_bytes;
    struct run_report report;
    struct run_report compared;
};

/* Tokens of a chunk in this prompt: where their KV came from, and what became of it. */
struct use {
    uint64_t tokens;
    uint64_t source[4]; /* by enum larder_blend_source */
    uint64_t partly;    /* of what was moved: computed again in some layers, in all */
    uint64_t again;
};

/* --- which chunks ---------------------------------------------------------------------------- */

static bool is_chosen(const struct question *question, size_t chunk)
{
    for (size_t i = 0; i < question->chosen_count; i++)
        if (question->chosen[i] == chunk)
            return true;
    return false;
}

static int choose_named(struct question *question, const char *pattern)
{
    bool any = false;
    for (size_t i = 0; i < question->catalogue.count; i++) {
        if (!rag_is_named(&question->catalogue.chunks[i], pattern))
            continue;
        any = true;
        if (!is_chosen(question, i))
            question->chosen[question->chosen_count++] = i;
    }
    return any ? 0
               : larder_fail(LARDER_ENOTFOUND, "no chunk is called '%s'; see larder rag ls",
                             pattern);
}

static int choose(struct question *question, const char *patterns)
{
    question->chosen = larder_alloc((question->catalogue.count + 1) * sizeof(size_t));
    char *list = larder_strdup(patterns ? patterns : "*");
    int err = question->chosen && list ? 0 : larder_fail(-ENOMEM, "no memory for a list of chunks");
    char *rest = list;
    while (err == 0 && rest)
        err = choose_named(question, strsep(&rest, ","));
    larder_free(list);
    return err;
}

/* Leaves the `top` that share most words with the question, in the order that they had; of equals
 * the earlier. */
static int choose_top(struct question *question, uint32_t top)
{
    uint32_t *words = larder_alloc_zero(question->chosen_count, sizeof(*words));
    int err = words ? 0 : larder_fail(-ENOMEM, "no memory for words");
    for (size_t i = 0; err == 0 && i < question->chosen_count; i++) {
        const struct rag_chunk *chunk = &question->catalogue.chunks[question->chosen[i]];
        char *text;
        err = rag_read(chunk, &text);
        if (err == 0)
            words[i] = rag_overlap(question->text, text, chunk->bytes);
        larder_free(text);
    }
    size_t kept = 0;
    for (size_t i = 0; err == 0 && i < question->chosen_count; i++) {
        size_t better = 0;
        for (size_t k = 0; k < question->chosen_count; k++)
            better += words[k] > words[i] || (words[k] == words[i] && k < i);
        if (better < top)
            question->chosen[kept++] = question->chosen[i];
    }
    larder_free(words);
    if (err == 0)
        question->chosen_count = kept;
    return err;
}

/* --- the prompt ------------------------------------------------------------------------------ */

static int read_chunks(struct question *question)
{
    struct run_pieces *pieces = &question->pieces;
    if (question->chosen_count > RUN_PIECES_MAX)
        return larder_fail(LARDER_ELIMIT,
                           "%zu chunks are more than %u in one question; name fewer with --chunks, "
                           "or say --top K",
                           question->chosen_count, RUN_PIECES_MAX);
    for (size_t i = 0; i < question->chosen_count; i++) {
        const struct rag_chunk *chunk = &question->catalogue.chunks[question->chosen[i]];
        LARDER_TRY(rag_read(chunk, &pieces->texts[i]));
        pieces->paths[i] = chunk->name;
        pieces->bytes[i] = chunk->bytes;
        pieces->count++;
    }
    return 0;
}

static int make_prompt(struct question *question)
{
    const char *template = question->options->rag.template;
    const char *place = strstr(template, "{}");
    if (!place)
        return larder_fail(-EINVAL, "--template '%s' has no {} for the question", template);
    char *suffix;
    if (asprintf(&suffix, "%.*s%s%s", (int)(place - template), template, question->text,
                 place + 2) < 0)
        return larder_fail(-ENOMEM, "no memory for a prompt");
    int err = run_pieces_join(&question->pieces, &question->prompt, &question->prompt_bytes, suffix,
                              strlen(suffix));
    free(suffix); /* asprintf's */
    return err;
}

/* --- answering ------------------------------------------------------------------------------- */

static int answer(struct question *question, struct run_options *run, struct run_report *report)
{
    struct run_engine engine;
    run->one_line = !question->options->rag.lines;
    int err = run_open(&engine, run);
    if (err == 0)
        err = run_answer(&engine, report, question->prompt, question->prompt_bytes);
    run_close(&engine);
    return err;
}

static int answer_computed(struct question *question)
{
    struct run_pieces none = {0};
    struct run_options run = rag_run_options(question->options);
    run.no_store = true;
    run.silent = true;
    run.pieces = &none;
    return answer(question, &run, &question->compared);
}

/* One question more in the catalogue, as it is by now. */
static int note_question(const struct question *question)
{
    struct rag_catalogue now;
    int err = rag_open(&now, question->options->rag.catalogue, RAG_CHANGE);
    for (size_t i = 0; err == 0 && i < now.count; i++) {
        for (size_t k = 0; k < question->chosen_count; k++) {
            const struct rag_chunk *chunk = &question->catalogue.chunks[question->chosen[k]];
            if (strcmp(chunk->name, now.chunks[i].name) == 0 &&
                memcmp(chunk->hash, now.chunks[i].hash, sizeof(chunk->hash)) == 0)
                now.chunks[i].asked++;
        }
    }
    if (err == 0)
        err = rag_save(&now);
    rag_close(&now);
    return err;
}

/* --- the report ------------------------------------------------------------------------------ */

static struct use use_of(const struct run_pieces *pieces, uint32_t piece)
{
    struct use use = {0};
    const struct larder_blended *result = &pieces->result;
    for (uint32_t i = 0; i < result->span_count; i++) {
        const struct larder_blend_span *span = &result->spans[i];
        if (span->piece != piece || span->source >= LARDER_BLEND_SUFFIX)
            continue;
        use.tokens += span->count;
        use.source[span->source] += span->count;
        for (uint64_t t = span->first;
             span->source == LARDER_BLEND_MOVED && t < span->first + span->count; t++) {
            use.partly += result->recomputed[t] == LARDER_BLEND_PARTLY;
            use.again += result->recomputed[t] == LARDER_BLEND_COMPUTED;
        }
    }
    return use;
}

static bool same_answer(const struct question *question)
{
    const struct run_report *a = &question->report;
    const struct run_report *b = &question->compared;
    return a->text_bytes == b->text_bytes && memcmp(a->text, b->text, a->text_bytes) == 0;
}

static json_t *chunks_json(const struct question *question)
{
    json_t *array = json_array();
    const struct run_pieces *pieces = &question->pieces;
    for (uint32_t i = 0; i < pieces->count; i++) {
        const struct use use = use_of(pieces, i);
        json_t *chunk = json_pack("{s:o, s:I}", "name", rag_string_json(pieces->paths[i]), "bytes",
                                  (json_int_t)pieces->bytes[i]);
        if (chunk && pieces->blended)
            json_object_update_new(
                chunk, json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "tokens", (json_int_t)use.tokens,
                                 "reused", (json_int_t)use.source[LARDER_BLEND_PREFIX], "moved",
                                 (json_int_t)use.source[LARDER_BLEND_MOVED], "missing",
                                 (json_int_t)use.source[LARDER_BLEND_MISSING], "recomputed_partly",
                                 (json_int_t)use.partly, "recomputed", (json_int_t)use.again));
        json_array_append_new(array, chunk);
    }
    return array;
}

static int print_json(const struct question *question)
{
    const struct run_report *report = &question->report;
    const struct rag_options *rag = &question->options->rag;
    json_t *json = json_pack(
        "{s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:f, s:f}", "question",
        rag_string_json(question->text), "answer", run_text_json(report->text, report->text_bytes),
        "chunks", chunks_json(question), "blend", run_pieces_json(&question->pieces),
        "prompt_tokens", (json_int_t)report->prompt_tokens, "restored_tokens",
        (json_int_t)report->loaded.tokens, "generated_tokens", (json_int_t)report->generated,
        "ttft_ms", report->ttft_ms, "generate_ms", report->generate_ms);
    if (json && rag->method)
        json_object_set_new(json, "method", rag_string_json(rag->method));
    if (json && rag->compare)
        json_object_set_new(
            json, "prefill",
            json_pack("{s:o, s:b, s:f}", "answer",
                      run_text_json(question->compared.text, question->compared.text_bytes), "same",
                      (int)same_answer(question), "ttft_ms", question->compared.ttft_ms));
    return rag_print_json(json);
}

static void print_row(const char *name, const struct use *use)
{
    fprintf(stderr,
            "%-24s %7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64 " %7" PRIu64 "\n",
            name, use->tokens, use->source[LARDER_BLEND_PREFIX], use->source[LARDER_BLEND_MOVED],
            use->source[LARDER_BLEND_MISSING], use->partly, use->again);
}

static void print_report(const struct question *question)
{
    const struct run_pieces *pieces = &question->pieces;
    const struct run_report *report = &question->report;
    struct use all = {0};
    putchar('\n');
    fflush(stdout);
    if (pieces->blended)
        fprintf(stderr, "\n%-24s %7s %7s %7s %7s %7s %7s\n", "CHUNK", "TOKENS", "REUSED", "MOVED",
                "MISSING", "PARTLY", "AGAIN");
    for (uint32_t i = 0; pieces->blended && i < pieces->count; i++) {
        const struct use use = use_of(pieces, i);
        print_row(pieces->paths[i], &use);
        all.tokens += use.tokens;
        for (uint32_t k = 0; k < 4; k++)
            all.source[k] += use.source[k];
        all.partly += use.partly;
        all.again += use.again;
    }
    if (pieces->blended)
        print_row("all", &all);
    else
        fprintf(stderr, "\nnot blended: %u tokens, %" PRIu64 " restored, the others computed\n",
                report->prompt_tokens, report->loaded.tokens);
    run_pieces_print(pieces);
    fprintf(stderr, "first token in   %.1f ms; %u tokens generated in %.1f ms\n", report->ttft_ms,
            report->generated, report->generate_ms);
    if (question->options->rag.compare)
        fprintf(stderr, "all computed     first token in %.1f ms here; %s answer: %.*s\n",
                question->compared.ttft_ms, same_answer(question) ? "the same" : "another",
                (int)question->compared.text_bytes, question->compared.text);
}

/* --- asking ---------------------------------------------------------------------------------- */

static int ask(struct question *question)
{
    const struct rag_options *rag = &question->options->rag;
    LARDER_TRY(rag_open(&question->catalogue, rag->catalogue, RAG_READ));
    LARDER_TRY(choose(question, rag->chunks));
    if (rag->top > 0)
        LARDER_TRY(choose_top(question, rag->top));
    LARDER_TRY(read_chunks(question));
    LARDER_TRY(make_prompt(question));
    struct run_options run = rag_run_options(question->options);
    question->pieces.method = rag->method;
    question->pieces.deadline_ms = rag->deadline_ms;
    run.pieces = &question->pieces;
    LARDER_TRY(answer(question, &run, &question->report));
    if (rag->compare)
        LARDER_TRY(answer_computed(question));
    if (!question->options->json)
        print_report(question);
    else
        LARDER_TRY(print_json(question));
    /* A catalogue of somebody else's can be asked, too. */
    if (note_question(question) < 0)
        fprintf(stderr, "larder: this question is not counted: %s\n", larder_error_message());
    return 0;
}

int rag_ask(const struct command_options *options, const char *text)
{
    struct question question = {.options = options, .text = text, .catalogue = {.lock = -1}};
    const int err = ask(&question);
    const bool blended = question.pieces.blended;
    run_pieces_close(&question.pieces);
    rag_close(&question.catalogue);
    larder_free(question.chosen);
    larder_free(question.prompt);
    larder_free(question.report.text);
    larder_free(question.compared.text);
    if (err < 0)
        return command_failed(err);
    return blended ? COMMAND_OK : COMMAND_PROBLEM;
}
