/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/samples.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"

#define TEXT_BYTES_MAX (64u << 20)
/* Of a text sample behind its start token, and of a question's run. */
#define TEXT_TOKENS (EVAL_PREFIX_TOKENS + EVAL_NEXT_TOKENS + 1)
#define RUN_TOKENS  (EVAL_NEXT_TOKENS + 1)

struct text {
    uint8_t *bytes;
    size_t count;
};

static int read_text(struct text *out, const char *path)
{
    *out = (struct text){0};
    FILE *file = fopen(path, "rb");
    if (!file)
        return larder_fail(-errno, "%s: %s", path, strerror(errno));
    int err = 0;
    out->bytes = larder_alloc(TEXT_BYTES_MAX);
    if (!out->bytes)
        err = larder_fail(-ENOMEM, "no memory for a text");
    else
        out->count = fread(out->bytes, 1, TEXT_BYTES_MAX, file);
    if (err == 0 && ferror(file))
        err = larder_fail(-EIO, "%s: cannot be read", path);
    if (err == 0 && out->count < TEXT_TOKENS)
        err = larder_fail(-EINVAL, "%s has %zu bytes; a sample takes %u", path, out->count,
                          TEXT_TOKENS);
    fclose(file);
    if (err < 0) {
        larder_free(out->bytes);
        *out = (struct text){0};
    }
    return err;
}

/* The start token, where the model has one, and bytes. */
static void put_tokens(uint32_t *out, uint32_t count, int64_t bos, const uint8_t *bytes)
{
    uint32_t i = 0;
    if (bos >= 0)
        out[i++] = (uint32_t)bos;
    while (i < count)
        out[i++] = *bytes++;
}

static void add_text(struct eval_samples *samples, const struct larder_model_config *config,
                     const struct text *text, uint32_t *tokens, uint32_t index, uint32_t wanted)
{
    size_t room = text->count - TEXT_TOKENS;
    size_t first = wanted > 1 ? room * index / (wanted - 1) : 0;
    put_tokens(tokens, TEXT_TOKENS, config->bos, text->bytes + first);
    samples->prefixes[samples->count++] = (struct eval_prefix){
        .tokens = tokens,
        .run_count = 1,
        .runs = {{.tokens = tokens + EVAL_PREFIX_TOKENS,
                  .count = EVAL_NEXT_TOKENS,
                  .place = samples->text_scored}},
    };
    samples->text_scored += EVAL_NEXT_TOKENS;
}

/* Held-out text, a line end, the facts: so many that the prefix is full. */
static int put_facts(uint32_t *tokens, const struct larder_model_config *config,
                     const struct text *text, const char *facts, uint32_t index)
{
    uint8_t bytes[EVAL_PREFIX_TOKENS];
    size_t room = EVAL_PREFIX_TOKENS - (config->bos >= 0);
    size_t facts_bytes = strlen(facts);
    if (facts_bytes + 1 > room)
        return larder_fail(-EINVAL, "sample %u: facts of %zu bytes; at most %zu fit a prefix",
                           index, facts_bytes, room - 1);
    size_t before = room - facts_bytes - 1;
    size_t first = (size_t)index * 4099 % (text->count - before);
    memcpy(bytes, text->bytes + first, before);
    bytes[before] = '\n';
    memcpy(bytes + before + 1, facts, facts_bytes);
    put_tokens(tokens, EVAL_PREFIX_TOKENS, config->bos, bytes);
    return 0;
}

static int add_questions(struct eval_samples *samples, const struct larder_model_config *config,
                         const struct text *text, uint32_t *tokens, const json_t *sample,
                         uint32_t index)
{
    const char *facts = json_string_value(json_object_get(sample, "facts"));
    const json_t *questions = json_object_get(sample, "questions");
    size_t count = json_array_size(questions);
    if (!facts || count == 0 || count > EVAL_RUNS_MAX)
        return larder_fail(-EINVAL, "sample %u: no facts, or not 1..%u questions", index,
                           EVAL_RUNS_MAX);
    LARDER_TRY(put_facts(tokens, config, text, facts, index));
    struct eval_prefix *prefix = &samples->prefixes[samples->count++];
    *prefix = (struct eval_prefix){.tokens = tokens, .is_question = true};
    tokens += EVAL_PREFIX_TOKENS;
    for (size_t i = 0; i < count; i++) {
        const json_t *question = json_array_get(questions, i);
        const char *asked = json_string_value(json_object_get(question, "prompt"));
        const char *answer = json_string_value(json_object_get(question, "answer"));
        size_t asked_bytes = asked ? strlen(asked) : 0;
        size_t answer_bytes = answer ? strlen(answer) : 0;
        if (asked_bytes == 0 || answer_bytes == 0 || asked_bytes + answer_bytes > RUN_TOKENS)
            return larder_fail(-EINVAL,
                               "sample %u: question %zu has no prompt, no answer, or both have "
                               "more than %u bytes",
                               index, i + 1, RUN_TOKENS);
        struct eval_run *run = &prefix->runs[prefix->run_count++];
        *run = (struct eval_run){.tokens = tokens,
                                 .count = (uint32_t)(asked_bytes + answer_bytes - 1),
                                 .scored = (uint32_t)asked_bytes - 1,
                                 .place = samples->answer_scored};
        put_tokens(tokens, (uint32_t)asked_bytes, -1, (const uint8_t *)asked);
        put_tokens(tokens + asked_bytes, (uint32_t)answer_bytes, -1, (const uint8_t *)answer);
        samples->answer_scored += (uint32_t)answer_bytes;
        tokens += RUN_TOKENS;
    }
    return 0;
}

static int read_questions(json_t **out, const char *path)
{
    json_error_t error;
    *out = json_load_file(path, 0, &error);
    if (!*out)
        return larder_fail(-EINVAL, "%s: line %d: %s", path, error.line, error.text);
    if (!json_is_array(*out) || json_array_size(*out) == 0) {
        json_decref(*out);
        *out = NULL;
        return larder_fail(-EINVAL, "%s is no array of samples", path);
    }
    return 0;
}

int eval_samples_open(struct eval_samples *out, const struct larder_model_config *config,
                      const char *text_path, const char *questions_path, uint32_t wanted)
{
    *out = (struct eval_samples){0};
    if (config->vocab < 256)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's vocabulary of %u is smaller than a byte's", config->vocab);
    if (config->positions_max < TEXT_TOKENS)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's context of %u tokens is shorter than a sample's %u",
                           config->positions_max, TEXT_TOKENS);
    struct text text;
    json_t *questions = NULL;
    LARDER_TRY(read_text(&text, text_path));
    int err = questions_path ? read_questions(&questions, questions_path) : 0;
    size_t question_count = larder_min_u64(json_array_size(questions), wanted);
    size_t count = wanted + question_count;
    size_t each = EVAL_PREFIX_TOKENS + EVAL_RUNS_MAX * RUN_TOKENS;
    if (err == 0) {
        out->prefixes = larder_alloc_zero(count, sizeof(*out->prefixes));
        out->tokens = larder_alloc_zero(count * each, sizeof(*out->tokens));
        if (!out->prefixes || !out->tokens)
            err = larder_fail(-ENOMEM, "no memory for %zu samples", count);
    }
    uint32_t *tokens = out->tokens;
    for (uint32_t i = 0; i < wanted && err == 0; i++, tokens += each)
        add_text(out, config, &text, tokens, i, wanted);
    out->text_count = out->count;
    for (uint32_t i = 0; i < question_count && err == 0; i++, tokens += each)
        err = add_questions(out, config, &text, tokens, json_array_get(questions, i), i);
    json_decref(questions);
    larder_free(text.bytes);
    if (err < 0)
        eval_samples_close(out);
    return err;
}

void eval_samples_close(struct eval_samples *samples)
{
    larder_free(samples->prefixes);
    larder_free(samples->tokens);
    *samples = (struct eval_samples){0};
}
