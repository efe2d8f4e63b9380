/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: agents that are told the same texts again and again, each behind a prompt of its own, are
 * given most of them from anchors ("kvcomm"), and answer questions about single texts as they would
 * behind a prefill. What becomes of questions across texts is printed beside the other methods'.
 * Method: five agents, each told about a few of the same people in every round; a pool of anchors
 * for each agent and place; greedy answers of the small model. LARDER_AGENTS_ROUNDS=32 runs all
 * methods, for docs/BLENDING.md.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "kernels/blend/blend.h"
#include "kernels/llama.h"
#include "tools/eval/facts.h"

#define TINY          "tests/models/tiny"
#define AGENTS        5u
#define PEOPLE        8u /* that are told about, again and again */
#define TOLD          3u /* in one round */
#define SLOTS         (TOLD * EVAL_CHUNKS_OF_PERSON)
#define TEXTS         (PEOPLE * EVAL_CHUNKS_OF_PERSON)
#define ROUNDS        28u
#define TOKENS_MAX    1280u
#define SPANS_MAX     (1 + SLOTS + TOLD)
#define QUESTION_MAX  (EVAL_QUESTION_BYTES_MAX + EVAL_ANSWER_BYTES_MAX)
#define BETWEEN       "* Birds gathered on the roof in the evening.\n"
#define QUESTION_HEAD "Q: "

/* Of a short run the first three. */
enum { PREFILL, KVCOMM, SAME_MOVED, ALL_MOVED, CACHEBLEND, WAYS };
#define WAYS_SHORT ALL_MOVED
static const char *const way_names[WAYS] = {"prefill", "kvcomm", "none, the same computed", "none",
                                            "cacheblend r=.15 layer=3"};
static const char *const way_methods[WAYS] = {"full", "kvcomm", "none", "none",
                                              "cacheblend r=.15 layer=3"};

struct figures {
    uint32_t right[EVAL_KINDS];
    double share;
};

struct town {
    struct larder_device *device;
    struct larder_llama *model;
    struct larder_model_desc desc;
    struct eval_facts facts;
    struct larder_kv_cache *alone[TEXTS];
    struct larder_kv_cache *between;
    struct larder_kv_cache *head;
    struct larder_kv_cache *leader[AGENTS]; /* each agent's own prompt */
    struct larder_blend_anchors *pools[AGENTS][SLOTS];
    struct larder_kv_cache *cache;
    float *logits;
    uint64_t random;

    /* the prompt in hand */
    uint32_t agent;
    uint32_t texts[SLOTS];
    bool shares[SLOTS];
    uint32_t tokens[TOKENS_MAX];
    uint32_t count;
    struct larder_blend_span spans[SPANS_MAX]; /* piece: the slot */
    uint32_t span_count;
    struct larder_blend_reuse reuses[SLOTS]; /* of all slots, whether they share or not */

    struct figures ways[WAYS];
    int way_count;
    uint32_t prompts;
    uint32_t reused;
};

static uint32_t below(struct town *town, uint32_t count)
{
    town->random = town->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(town->random >> 33) % count;
}

static void forward(struct town *town, struct larder_kv_cache **cache, const char *const *texts,
                    uint32_t count)
{
    uint32_t tokens[TOKENS_MAX] = {(uint32_t)larder_llama_config(town->model)->bos};
    uint32_t used = 1;
    for (uint32_t i = 0; i < count; i++)
        for (const char *at = texts[i]; *at; at++)
            tokens[used++] = (unsigned char)*at;
    ck_assert_int_eq(larder_llama_cache_open(town->model, cache, used, 0), 0);
    ck_assert_int_eq(
        larder_llama_forward(town->model, *cache, NULL, LARDER_LOGITS_NONE, tokens, used), 0);
}

/* What an agent's prompt has behind a slot; NULL: nothing, for a follow-up comes right behind its
 * introduction. */
static const char *text_after(uint32_t slot)
{
    if (slot % EVAL_CHUNKS_OF_PERSON + 1 < EVAL_CHUNKS_OF_PERSON)
        return NULL;
    return slot + 1 < SLOTS ? BETWEEN : QUESTION_HEAD;
}

static struct larder_blend_rows rows_after(const struct town *town, uint32_t slot)
{
    struct larder_blend_rows rows = {.first = 1};
    if (text_after(slot)) {
        rows.cache = slot + 1 < SLOTS ? town->between : town->head;
        rows.count = rows.cache->count - 1;
    }
    return rows;
}

static void open_town(struct town *town)
{
    ck_assert_int_eq(
        larder_device_open(&town->device, "cpu", &(struct larder_device_options){.threads = 1}), 0);
    ck_assert_int_eq(larder_llama_open(&town->model, town->device, TINY), 0);
    ck_assert_int_eq(larder_llama_describe(town->model, &town->desc, 0), 0);
    town->logits = calloc((size_t)QUESTION_MAX * town->desc.vocab, sizeof(float));
    ck_assert_int_eq(larder_llama_cache_open(town->model, &town->cache, TOKENS_MAX, 0), 0);
    struct eval_source source = {.state = 11};
    eval_facts_make(&town->facts, &source, PEOPLE);
    const char *text = BETWEEN;
    forward(town, &town->between, &text, 1);
    text = QUESTION_HEAD;
    forward(town, &town->head, &text, 1);
    for (uint32_t i = 0; i < TEXTS; i++) {
        text = town->facts.chunks[i];
        forward(town, &town->alone[i], &text, 1);
    }
    for (uint32_t agent = 0; agent < AGENTS; agent++) {
        struct eval_facts own;
        eval_facts_make(&own, &source, 2);
        const char *const texts[] = {own.chunks[0], own.chunks[1]};
        forward(town, &town->leader[agent], texts, 2);
        for (uint32_t slot = 0; slot < SLOTS; slot++)
            ck_assert_int_eq(
                larder_blend_anchors_open(&town->pools[agent][slot], &town->desc,
                                          &(struct larder_blend_anchors_options){
                                              .first = 1,
                                              .after_first = 1,
                                              .after_count = rows_after(town, slot).count,
                                              .anchors_max = LARDER_ANCHORS_MAX,
                                              .gamma = LARDER_BLEND_GAMMA_DEFAULT}),
                0);
    }
}

static void close_town(struct town *town)
{
    for (uint32_t agent = 0; agent < AGENTS; agent++) {
        larder_kv_cache_close(town->leader[agent]);
        for (uint32_t slot = 0; slot < SLOTS; slot++)
            larder_blend_anchors_close(town->pools[agent][slot]);
    }
    for (uint32_t i = 0; i < TEXTS; i++)
        larder_kv_cache_close(town->alone[i]);
    larder_kv_cache_close(town->head);
    larder_kv_cache_close(town->between);
    larder_kv_cache_close(town->cache);
    free(town->logits);
    larder_llama_close(town->model);
    larder_device_close(town->device);
}

/* --- a prompt --------------------------------------------------------------------------------- */

static void add_tokens(struct town *town, const char *text)
{
    for (const char *at = text; *at; at++)
        town->tokens[town->count++] = (unsigned char)*at;
}

/* What one agent is told, and which of it the pools share. */
static void compose(struct town *town, uint32_t agent)
{
    struct larder_kv_cache *leader = town->leader[agent];
    town->agent = agent;
    /* The prefix's tokens are not looked at: it is never computed. */
    town->count = leader->count;
    town->spans[0] = (struct larder_blend_span){0, leader->count, 0, LARDER_BLEND_PREFIX, 0};
    town->span_count = 1;
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        struct larder_kv_cache *alone = town->alone[town->texts[slot]];
        struct larder_blend_reuse *reuse = &town->reuses[slot];
        *reuse = (struct larder_blend_reuse){
            .anchors = town->pools[agent][slot],
            .base = {.own = {alone, 1, alone->count - 1}, .after = rows_after(town, slot)},
            .first = town->count};
        add_tokens(town, town->facts.chunks[town->texts[slot]]);
        town->spans[town->span_count++] = (struct larder_blend_span){
            reuse->first, reuse->base.own.count, 1, LARDER_BLEND_MOVED, slot};
        reuse->after_first = town->count;
        if (text_after(slot)) {
            add_tokens(town, text_after(slot));
            town->spans[town->span_count++] = (struct larder_blend_span){
                reuse->after_first, reuse->base.after.count, 1, LARDER_BLEND_MOVED, slot};
        }
        struct larder_blend_sharing sharing;
        ck_assert_int_eq(
            larder_blend_anchors_ask(town->pools[agent][slot], &reuse->base.own, &sharing), 0);
        town->shares[slot] = sharing.shares;
        town->reused += sharing.shares;
    }
}

static void copy_rows(struct town *town, uint32_t layer, uint32_t to_first,
                      const struct larder_blend_rows *from)
{
    for (enum larder_kv kv = LARDER_K; kv <= LARDER_V; kv++) {
        uint64_t bytes = kv == LARDER_K ? town->cache->k_token_bytes : town->cache->v_token_bytes;
        memcpy((char *)larder_kv_cache_rows(town->cache, layer, kv) + to_first * bytes,
               (char *)larder_kv_cache_rows(from->cache, layer, kv) + from->first * bytes,
               from->count * bytes);
    }
}

static int fetch(void *context, uint32_t layer)
{
    struct town *town = context;
    struct larder_kv_cache *leader = town->leader[town->agent];
    copy_rows(town, layer, 0, &(struct larder_blend_rows){leader, 0, leader->count});
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        const struct larder_blend_reuse *reuse = &town->reuses[slot];
        copy_rows(town, layer, reuse->first, &reuse->base.own);
        if (reuse->base.after.count > 0)
            copy_rows(town, layer, reuse->after_first, &reuse->base.after);
    }
    return 0;
}

static void put_together(struct town *town, int way)
{
    struct larder_blend_span spans[SPANS_MAX];
    struct larder_blend_reuse reuses[SLOTS];
    uint32_t reuse_count = 0;
    memcpy(spans, town->spans, sizeof(spans));
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (town->shares[slot])
            reuses[reuse_count++] = town->reuses[slot];
    if (way == KVCOMM || way == SAME_MOVED)
        for (uint32_t i = 1; i < town->span_count; i++)
            if (!town->shares[spans[i].piece])
                spans[i].source = LARDER_BLEND_MISSING;
    struct larder_blend *blend;
    int err = larder_blend_open(
        &blend, town->model, town->cache,
        &(struct larder_blend_prompt){town->tokens, spans, town->count, town->span_count},
        &(struct larder_blend_options){
            .method = way_methods[way], .reuses = reuses, .reuse_count = reuse_count});
    ck_assert_msg(err == 0, "%s", larder_error_message());
    err = larder_blend_run(blend, fetch, town, NULL);
    ck_assert_msg(err == 0, "%s", larder_error_message());
    town->ways[way].share += larder_blend_result(blend)->recomputed_share;
    larder_blend_close(blend);
}

/* What the pools did not know they know from here on. */
static void learn(struct town *town)
{
    const struct larder_rope_table *table;
    ck_assert_int_eq(larder_llama_rope(town->model, &table, town->count), 0);
    for (uint32_t slot = 0; slot < SLOTS; slot++) {
        const struct larder_blend_reuse *reuse = &town->reuses[slot];
        const struct larder_blend_segment whole = {
            .own = {town->cache, reuse->first, reuse->base.own.count},
            .after = {town->cache, reuse->after_first, reuse->base.after.count}};
        if (!town->shares[slot])
            ck_assert_int_eq(larder_blend_anchors_add(town->pools[town->agent][slot], table,
                                                      &reuse->base, &whole),
                             0);
    }
}

/* Behind the cache's prompt, whose end is the question's head. */
static bool is_answered(struct town *town, const struct eval_question *question)
{
    uint32_t tokens[QUESTION_MAX];
    uint32_t count = 0;
    for (const char *at = question->prompt + strlen(QUESTION_HEAD); *at; at++)
        tokens[count++] = (unsigned char)*at;
    uint32_t prompt = count;
    for (const char *at = question->answer; *at; at++)
        tokens[count++] = (unsigned char)*at;
    ck_assert_int_eq(larder_llama_forward(town->model, town->cache, town->logits, LARDER_LOGITS_ALL,
                                          tokens, count),
                     0);
    town->cache->count = town->count;
    for (uint32_t i = prompt; i < count; i++) {
        const float *logits = town->logits + (size_t)(i - 1) * town->desc.vocab;
        for (uint32_t k = 0; k < town->desc.vocab; k++)
            if (logits[k] > logits[tokens[i]])
                return false;
    }
    return true;
}

/* The person's name is in the question and in their introduction. */
static bool is_about(const struct eval_question *question, const char *text)
{
    char name[EVAL_QUESTION_BYTES_MAX];
    ck_assert_int_eq(sscanf(question->prompt, "Q: %*s does %47s", name), 1);
    const char *found = strstr(text, name);
    return found && strchr(" ,", found[strlen(name)]);
}

/* One question of a kind about one that the agent was told of. */
static const struct eval_question *pick_question(struct town *town, enum eval_kind kind)
{
    uint32_t slot = below(town, TOLD) * EVAL_CHUNKS_OF_PERSON;
    const struct eval_question *found[EVAL_QUESTIONS_OF_EACH];
    uint32_t count = 0;
    for (uint32_t i = 0; i < town->facts.question_count; i++) {
        const struct eval_question *question = &town->facts.questions[i];
        if (question->kind == kind && is_about(question, town->facts.chunks[town->texts[slot]]))
            found[count++] = question;
    }
    ck_assert_uint_eq(count, EVAL_QUESTIONS_OF_EACH);
    return found[below(town, count)];
}

static void tell(struct town *town, uint32_t agent)
{
    const struct eval_question *questions[EVAL_KINDS];
    compose(town, agent);
    for (int kind = 0; kind < EVAL_KINDS; kind++)
        questions[kind] = pick_question(town, (enum eval_kind)kind);
    for (int way = 0; way < town->way_count; way++) {
        put_together(town, way);
        for (int kind = 0; kind < EVAL_KINDS; kind++)
            town->ways[way].right[kind] += is_answered(town, questions[kind]);
        if (way == KVCOMM)
            learn(town);
    }
    town->prompts++;
}

START_TEST(test_script)
{
    static struct town town = {.random = 5};
    open_town(&town);
    const char *wanted = getenv("LARDER_AGENTS_ROUNDS");
    town.way_count = wanted ? WAYS : WAYS_SHORT;
    uint32_t rounds = wanted ? (uint32_t)strtoul(wanted, NULL, 10) : ROUNDS;
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t people[PEOPLE];
        for (uint32_t i = 0; i < PEOPLE; i++)
            people[i] = i;
        for (uint32_t i = 0; i < TOLD; i++) {
            uint32_t chosen = i + below(&town, PEOPLE - i);
            uint32_t person = people[chosen];
            people[chosen] = people[i];
            for (uint32_t k = 0; k < EVAL_CHUNKS_OF_PERSON; k++)
                town.texts[i * EVAL_CHUNKS_OF_PERSON + k] = person * EVAL_CHUNKS_OF_PERSON + k;
        }
        for (uint32_t agent = 0; agent < AGENTS; agent++)
            tell(&town, agent);
    }
    double n = town.prompts;
    double reused = town.reused / (n * SLOTS);
    printf("%u prompts of %u agents; %.3f of the segments from anchors\n", town.prompts, AGENTS,
           reused);
    for (int way = 0; way < town.way_count; way++)
        printf("%-26s computed %.3f  cross %.3f  direct %.3f\n", way_names[way],
               town.ways[way].share / n, town.ways[way].right[EVAL_CROSS] / n,
               town.ways[way].right[EVAL_DIRECT] / n);
    const struct figures *prefill = &town.ways[PREFILL];
    const struct figures *kvcomm = &town.ways[KVCOMM];
    ck_assert_double_ge(prefill->right[EVAL_DIRECT] / n, .95);
    ck_assert_double_ge(reused, .7);
    ck_assert_double_ge(kvcomm->right[EVAL_DIRECT] / n, prefill->right[EVAL_DIRECT] / n - .03);
    close_town(&town);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("blend_agents");
    TCase *all = tcase_create("blend_agents");
    tcase_set_timeout(all, 600);
    tcase_add_test(all, test_script);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
