/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/blender.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "kernels/blend/blend.h"
#include "kernels/blend/probe.h"
#include "kernels/llama.h"
#include "tools/eval/coder.h"
#include "tools/eval/planes.h"
#include "tools/eval/stats.h"

#define QUESTION_TOKENS_MAX (EVAL_QUESTION_BYTES_MAX + EVAL_ANSWER_BYTES_MAX)
#define QUESTIONS_MAX       (EVAL_PEOPLE_MAX * EVAL_QUESTIONS_OF_EACH * EVAL_KINDS)
#define CHUNKS_MAX          (EVAL_PEOPLE_MAX * EVAL_CHUNKS_OF_PERSON)

struct eval_blender {
    struct eval_blender_options options;
    struct larder_device *device;
    struct larder_llama *model;
    const struct larder_model_config *config;
    struct larder_model_desc desc;
    uint32_t chunk_tokens_max;
    struct larder_kv_cache *alone; /* of one chunk */
    struct larder_kv_cache *full;  /* the reference */
    /* As computed alone and as stored: row j is the prompt's token j, K as at its piece's. */
    struct larder_kv_cache *computed;
    struct larder_kv_cache *stored;
    struct larder_kv_cache *blended;
    uint8_t *planes;  /* of one chunk */
    float *reference; /* log probabilities of answers: [question, then turn][byte][vocab] */
    float *logits;    /* of one question */

    /* What stands before a chunk when its tokens get scores. */
    uint32_t before[EVAL_CHUNKS_OF_PERSON * EVAL_CHUNK_BYTES_MAX];
    uint32_t before_count;

    /* of the facts in hand */
    const struct eval_facts *facts;
    uint32_t order[QUESTIONS_MAX]; /* of its questions */
    uint32_t *tokens;
    uint32_t token_count;
    struct larder_blend_span spans[CHUNKS_MAX]; /* the first has the start token, too */
    float *scores;                              /* per token: kernels/blend/probe.h */
    bool has_scores;
};

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void put_bytes(uint32_t *out, const char *text)
{
    for (size_t i = 0; text[i]; i++)
        out[i] = (uint8_t)text[i];
}

/* A person of other facts than any that are asked about. */
static void put_before(struct eval_blender *blender)
{
    struct eval_facts facts;
    struct eval_source source = {.state = UINT64_MAX};
    eval_facts_make(&facts, &source, 2);
    for (uint32_t i = 0; i < EVAL_CHUNKS_OF_PERSON; i++) {
        put_bytes(blender->before + blender->before_count, facts.chunks[i]);
        blender->before_count += (uint32_t)strlen(facts.chunks[i]);
    }
}

/* --- open and close --------------------------------------------------------------------------- */

static uint32_t question_room(const struct eval_blender *blender)
{
    return (uint32_t)larder_max_u64(blender->options.turns, 1) * QUESTION_TOKENS_MAX;
}

static int open_caches(struct eval_blender *blender)
{
    uint32_t chunks = blender->options.people_max * EVAL_CHUNKS_OF_PERSON;
    uint64_t wanted = (uint64_t)chunks * EVAL_CHUNK_BYTES_MAX + 1 + question_room(blender);
    uint32_t capacity = (uint32_t)larder_min_u64(wanted, blender->config->positions_max);
    struct {
        struct larder_kv_cache **cache;
        uint32_t tokens;
    } caches[] = {
        {&blender->alone, blender->chunk_tokens_max},
        {&blender->full, capacity},
        {&blender->computed, capacity},
        {&blender->stored, capacity},
        {&blender->blended, capacity},
    };
    for (size_t i = 0; i < LARDER_COUNT_OF(caches); i++)
        LARDER_TRY(larder_llama_cache_open(blender->model, caches[i].cache, caches[i].tokens, 0));
    return 0;
}

static int open_memory(struct eval_blender *blender)
{
    uint32_t vocab = blender->config->vocab;
    size_t kept = (size_t)(QUESTIONS_MAX + EVAL_TURNS_MAX) * EVAL_ANSWER_BYTES_MAX;
    blender->planes =
        larder_alloc_aligned(64, eval_planes_bytes(blender->alone, blender->chunk_tokens_max));
    blender->reference = larder_alloc_zero(kept * vocab, sizeof(float));
    blender->logits = larder_alloc_zero((size_t)QUESTION_TOKENS_MAX * vocab, sizeof(float));
    blender->tokens = larder_alloc_zero(blender->full->capacity, sizeof(*blender->tokens));
    blender->scores = larder_alloc_zero(blender->full->capacity, sizeof(*blender->scores));
    if (!blender->planes || !blender->reference || !blender->logits || !blender->tokens ||
        !blender->scores)
        return larder_fail(-ENOMEM, "no memory for questions");
    return 0;
}

static int check_model(const struct eval_blender *blender)
{
    const struct larder_model_config *config = blender->config;
    uint32_t least = question_room(blender) + EVAL_CHUNK_BYTES_MAX + 1;
    if (config->vocab < 256)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's vocabulary of %u is smaller than a byte's", config->vocab);
    if (config->positions_max < least)
        return larder_fail(LARDER_EUNSUPPORTED,
                           "the model's context of %u tokens is shorter than a chunk and its "
                           "questions: %u",
                           config->positions_max, least);
    return 0;
}

int eval_blender_open(struct eval_blender **out, const struct eval_blender_options *options)
{
    assert(options->people_max <= EVAL_PEOPLE_MAX);
    assert(options->turns <= EVAL_TURNS_MAX);
    *out = NULL;
    struct eval_blender *blender = larder_alloc_zero(1, sizeof(*blender));
    if (!blender)
        return larder_fail(-ENOMEM, "no memory for an evaluation");
    blender->options = *options;
    blender->chunk_tokens_max = EVAL_CHUNK_BYTES_MAX + 1;
    int err =
        larder_device_open(&blender->device, "cpu", &(struct larder_device_options){.threads = 1});
    if (err == 0)
        err = larder_llama_open(&blender->model, blender->device, options->model);
    if (err == 0) {
        blender->config = larder_llama_config(blender->model);
        err = check_model(blender);
    }
    if (err == 0)
        err = larder_llama_describe(blender->model, &blender->desc, 0);
    if (err == 0)
        err = open_caches(blender);
    if (err == 0)
        err = open_memory(blender);
    put_before(blender);
    if (err < 0) {
        eval_blender_close(blender);
        return err;
    }
    *out = blender;
    return 0;
}

void eval_blender_close(struct eval_blender *blender)
{
    if (!blender)
        return;
    larder_free(blender->scores);
    larder_free(blender->tokens);
    larder_free(blender->logits);
    larder_free(blender->reference);
    larder_free(blender->planes);
    larder_kv_cache_close(blender->blended);
    larder_kv_cache_close(blender->stored);
    larder_kv_cache_close(blender->computed);
    larder_kv_cache_close(blender->full);
    larder_kv_cache_close(blender->alone);
    larder_llama_close(blender->model);
    larder_device_close(blender->device);
    larder_free(blender);
}

const struct larder_model_config *eval_blender_config(const struct eval_blender *blender)
{
    return blender->config;
}

const struct larder_model_desc *eval_blender_desc(const struct eval_blender *blender)
{
    return &blender->desc;
}

uint32_t eval_blender_chunk_tokens(const struct eval_blender *blender)
{
    return blender->chunk_tokens_max;
}

/* --- questions -------------------------------------------------------------------------------- */

/* Where a question's answer leaves its figures. */
struct verdict {
    bool is_right;
    double kl;
};

/* A question behind what is in the cache. */
struct asking {
    const struct eval_question *question;
    uint32_t known;    /* bytes of its prompt that are in the cache, less than all */
    uint32_t place;    /* of its predictions among the reference's */
    bool is_reference; /* they are kept there, not compared */
};

static int ask(struct eval_blender *blender, struct larder_kv_cache *cache,
               const struct asking *asking, struct verdict *out)
{
    const struct eval_question *question = asking->question;
    uint32_t vocab = blender->config->vocab;
    uint32_t tokens[QUESTION_TOKENS_MAX];
    size_t prompt = strlen(question->prompt);
    size_t answer = strlen(question->answer);
    put_bytes(tokens, question->prompt);
    put_bytes(tokens + prompt, question->answer);
    LARDER_TRY(larder_llama_forward(blender->model, cache, blender->logits, LARDER_LOGITS_ALL,
                                    tokens + asking->known, prompt + answer - asking->known));
    *out = (struct verdict){.is_right = true};
    for (size_t i = 0; i < answer; i++) {
        float *here = blender->logits + (prompt - asking->known - 1 + i) * vocab;
        float *kept =
            blender->reference + ((size_t)asking->place * EVAL_ANSWER_BYTES_MAX + i) * vocab;
        out->is_right &= eval_largest(here, vocab) == tokens[prompt + i];
        eval_log_softmax(here, here, vocab);
        if (asking->is_reference)
            memcpy(kept, here, vocab * sizeof(*kept));
        else
            out->kl += eval_kl(kept, here, vocab);
    }
    if (!isfinite(out->kl))
        return larder_fail(-ERANGE, "the model's logits are no numbers");
    return 0;
}

/* Bytes that two prompts have in common at their start, less than all of `b`. */
static uint32_t common_bytes(const char *a, const char *b)
{
    uint32_t count = 0;
    while (a[count] && a[count] == b[count])
        count++;
    return (uint32_t)larder_min_u64(count, strlen(b) - 1);
}

/* Each question alone: one that begins like the one before it goes on from there. */
static int ask_alone(struct eval_blender *blender, struct larder_kv_cache *cache, bool is_reference,
                     struct eval_answers *out)
{
    const struct eval_facts *facts = blender->facts;
    const char *before = "";
    for (uint32_t i = 0; i < facts->question_count; i++) {
        uint32_t place = blender->order[i];
        const struct eval_question *question = &facts->questions[place];
        const struct asking asking = {.question = question,
                                      .known = common_bytes(before, question->prompt),
                                      .place = place,
                                      .is_reference = is_reference};
        struct verdict verdict;
        cache->count = blender->token_count + asking.known;
        LARDER_TRY(ask(blender, cache, &asking, &verdict));
        out->asked[question->kind]++;
        out->right[question->kind] += verdict.is_right;
        out->kl[question->kind] += verdict.kl;
        out->bytes[question->kind] += (uint32_t)strlen(question->answer);
        before = question->prompt;
    }
    return 0;
}

static int ask_in_turns(struct eval_blender *blender, struct larder_kv_cache *cache,
                        bool is_reference, struct eval_answers *out)
{
    cache->count = blender->token_count;
    for (uint32_t i = 0; i < blender->options.turns; i++) {
        const struct asking asking = {.question = &blender->facts->questions[i],
                                      .place = QUESTIONS_MAX + i,
                                      .is_reference = is_reference};
        struct verdict verdict;
        LARDER_TRY(ask(blender, cache, &asking, &verdict));
        out->turn_kind[i] = (uint8_t)asking.question->kind;
        out->turn_right[i] = verdict.is_right;
    }
    return 0;
}

/* The cache holds the facts, then and after. */
static int ask_all(struct eval_blender *blender, struct larder_kv_cache *cache, bool is_reference,
                   struct eval_answers *out)
{
    LARDER_TRY(ask_alone(blender, cache, is_reference, out));
    LARDER_TRY(ask_in_turns(blender, cache, is_reference, out));
    cache->count = blender->token_count;
    return 0;
}

/* Questions that begin alike one after another: by their prompts, no two of which are the same. */
static void order_questions(struct eval_blender *blender, const struct eval_facts *facts)
{
    for (uint32_t i = 0; i < facts->question_count; i++) {
        uint32_t smaller = 0;
        for (uint32_t k = 0; k < facts->question_count; k++)
            smaller += strcmp(facts->questions[k].prompt, facts->questions[i].prompt) < 0;
        blender->order[smaller] = i;
    }
}

/* --- chunks ----------------------------------------------------------------------------------- */

static int place_pieces(struct eval_blender *blender, const struct eval_facts *facts)
{
    bool has_bos = blender->config->bos >= 0;
    uint32_t count = 0;
    if (has_bos)
        blender->tokens[count++] = (uint32_t)blender->config->bos;
    for (uint32_t i = 0; i < facts->chunk_count; i++) {
        uint32_t bytes = (uint32_t)strlen(facts->chunks[i]);
        uint32_t room = blender->full->capacity - question_room(blender);
        if (bytes > room - count)
            return larder_fail(LARDER_ELIMIT,
                               "facts about %u people are longer than the model's context of %u "
                               "leaves room for; fewer people fit",
                               facts->people, blender->config->positions_max);
        put_bytes(blender->tokens + count, facts->chunks[i]);
        uint32_t first = i == 0 ? 0 : count;
        blender->spans[i] = (struct larder_blend_span){
            .first = first,
            .count = count + bytes - first,
            .stored_first = i > 0 && has_bos,
            .source = i == 0 ? LARDER_BLEND_PREFIX : LARDER_BLEND_MOVED,
            .piece = i,
        };
        count += bytes;
    }
    blender->token_count = count;
    return 0;
}

/* Rows of a layer from one cache to another. */
static void copy_rows(struct larder_kv_cache *to, const struct larder_kv_cache *from,
                      uint32_t layer, uint64_t to_first, uint64_t from_first, uint64_t count)
{
    for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
        uint64_t bytes = kv == LARDER_K ? to->k_token_bytes : to->v_token_bytes;
        memcpy((char *)larder_kv_cache_rows(to, layer, kv) + to_first * bytes,
               (char *)larder_kv_cache_rows(from, layer, kv) + from_first * bytes, count * bytes);
    }
}

/* What `alone` has of the chunk, to its place in the prompt. */
static void place_chunk(struct eval_blender *blender, struct larder_kv_cache *to, uint32_t index)
{
    const struct larder_blend_span *span = &blender->spans[index];
    for (uint32_t layer = 0; layer < to->layers; layer++)
        copy_rows(to, blender->alone, layer, span->first, span->stored_first, span->count);
}

/* A chunk's KV, of its start token too. */
static int compute_alone(struct eval_blender *blender, uint32_t index)
{
    const struct larder_blend_span *span = &blender->spans[index];
    uint32_t tokens[EVAL_CHUNK_BYTES_MAX + 1];
    uint32_t count = 0;
    if (span->stored_first > 0)
        tokens[count++] = (uint32_t)blender->config->bos;
    memcpy(tokens + count, blender->tokens + span->first, span->count * sizeof(*tokens));
    blender->alone->count = 0;
    return larder_llama_forward(blender->model, blender->alone, NULL, LARDER_LOGITS_NONE, tokens,
                                count + span->count);
}

int eval_blender_load(struct eval_blender *blender, const struct eval_facts *facts,
                      struct eval_answers *reference)
{
    assert(facts->people <= blender->options.people_max);
    assert(facts->question_count >= blender->options.turns);
    blender->facts = facts;
    order_questions(blender, facts);
    LARDER_TRY(place_pieces(blender, facts));
    *reference = (struct eval_answers){.share = 1};
    blender->has_scores = false;
    blender->full->count = 0;
    double started = now_s();
    LARDER_TRY(larder_llama_forward(blender->model, blender->full, NULL, LARDER_LOGITS_NONE,
                                    blender->tokens, blender->token_count));
    reference->blend_s = now_s() - started;
    LARDER_TRY(ask_all(blender, blender->full, true, reference));
    for (uint32_t i = 0; i < facts->chunk_count; i++) {
        LARDER_TRY(compute_alone(blender, i));
        place_chunk(blender, blender->computed, i);
    }
    return eval_blender_store(blender, NULL);
}

int eval_blender_store(struct eval_blender *blender, struct eval_coder *coder)
{
    if (!coder) {
        for (uint32_t layer = 0; layer < blender->desc.layers; layer++)
            copy_rows(blender->stored, blender->computed, layer, 0, 0, blender->token_count);
        return 0;
    }
    for (uint32_t i = 0; i < blender->facts->chunk_count; i++) {
        LARDER_TRY(compute_alone(blender, i));
        eval_planes_take(blender->planes, blender->alone, 0, blender->alone->count);
        LARDER_TRY(eval_coder_pass(coder, blender->planes, blender->alone->count));
        eval_planes_give(blender->planes, blender->alone, 0, blender->alone->count);
        place_chunk(blender, blender->stored, i);
    }
    return 0;
}

/* --- blending --------------------------------------------------------------------------------- */

static int fetch_layer(void *context, uint32_t layer)
{
    struct eval_blender *blender = context;
    copy_rows(blender->blended, blender->stored, layer, 0, 0, blender->token_count);
    return 0;
}

/* As a store would make them with each chunk, which knows nothing of the prompt. The first chunk is
 * never computed again. */
static int score_chunks(struct eval_blender *blender)
{
    for (uint32_t i = 1; i < blender->facts->chunk_count; i++) {
        const struct larder_blend_span *span = &blender->spans[i];
        LARDER_TRY(compute_alone(blender, i));
        const struct larder_blend_probe probe = {
            .alone = blender->alone,
            .alone_first = (uint32_t)span->stored_first,
            .tokens = blender->tokens + span->first,
            .count = (uint32_t)span->count,
            .before = blender->before,
            .before_count = blender->before_count,
        };
        LARDER_TRY(larder_blend_probe(blender->scores + span->first, blender->model, &probe));
    }
    blender->has_scores = true;
    return 0;
}

static int blend(struct eval_blender *blender, const char *method, uint64_t seed, double *share)
{
    struct larder_blend *blend;
    const struct larder_blend_prompt prompt = {.tokens = blender->tokens,
                                               .spans = blender->spans,
                                               .token_count = blender->token_count,
                                               .span_count = blender->facts->chunk_count};
    const struct larder_blend_options options = {
        .method = method, .seed = seed, .scores = blender->has_scores ? blender->scores : NULL};
    LARDER_TRY(larder_blend_open(&blend, blender->model, blender->blended, &prompt, &options));
    int err = larder_blend_run(blend, fetch_layer, blender, NULL);
    if (err == 0)
        *share = larder_blend_result(blend)->recomputed_share;
    larder_blend_close(blend);
    return err;
}

int eval_blender_run(struct eval_blender *blender, const char *method, uint64_t seed,
                     struct eval_answers *out)
{
    *out = (struct eval_answers){0};
    if (!blender->has_scores && strncmp(method, "probe", 5) == 0)
        LARDER_TRY(score_chunks(blender));
    double started = now_s();
    LARDER_TRY(blend(blender, method, seed, &out->share));
    out->blend_s = now_s() - started;
    return ask_all(blender, blender->blended, false, out);
}
