/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: made-up facts are those that the small model was trained on, and tell blending apart from
 * none: what the model answers behind them, prefilled and merely moved, is near the figures of
 * tests/models/tiny/README.md.
 * Method: the rules of questions.py on many samples; then a hundred questions of each kind through
 * the model.
 */
#include <check.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "tools/eval/blender.h"
#include "tools/eval/facts.h"

START_TEST(same_seed_same_facts)
{
    struct eval_source a = {.state = 5};
    struct eval_source b = {.state = 5};
    struct eval_source c = {.state = 6};
    static struct eval_facts first;
    static struct eval_facts second;
    static struct eval_facts other;
    eval_facts_make(&first, &a, 4);
    eval_facts_make(&second, &b, 4);
    eval_facts_make(&other, &c, 4);
    ck_assert_mem_eq(&first, &second, sizeof(first));
    ck_assert(memcmp(&first, &other, sizeof(first)) != 0);
    eval_facts_make(&second, &b, 4);
    ck_assert(memcmp(&first, &second, sizeof(first)) != 0);
}
END_TEST

/* The answer without its line end. */
static void strip_answer(char out[EVAL_ANSWER_BYTES_MAX], const struct eval_question *question)
{
    strcpy(out, question->answer);
    char *end = strchr(out, '\n');
    ck_assert_ptr_nonnull(end);
    ck_assert_int_eq(end[1], 0);
    *end = 0;
}

/* A name is followed by a verb or a comma; a town, which may begin like it, by a full stop. */
static uint32_t chunk_of(const struct eval_facts *facts, const char *name)
{
    uint32_t found = UINT32_MAX;
    for (uint32_t i = 0; i < facts->chunk_count; i++) {
        const char *place = strstr(facts->chunks[i], name);
        if (!place || !strchr(" ,", place[strlen(name)]))
            continue;
        ck_assert_msg(found == UINT32_MAX, "'%s' is in two chunks", name);
        found = i;
    }
    ck_assert_msg(found != UINT32_MAX, "'%s' is nowhere", name);
    return found;
}

static void check_question(const struct eval_facts *facts, const struct eval_question *question)
{
    char answer[EVAL_ANSWER_BYTES_MAX];
    char name[EVAL_QUESTION_BYTES_MAX];
    char verb[16];
    strip_answer(answer, question);
    int fields = sscanf(question->prompt, "Q: %*s does %47s %15[a-z]", name, verb);
    ck_assert_int_eq(fields, 2);
    ck_assert(isupper((unsigned char)name[0]));
    const char *end = strstr(question->prompt, "?\nA: ");
    ck_assert_ptr_nonnull(end);
    ck_assert_int_eq(end[5], 0);
    /* Only the introduction has the name; its follow-up comes right behind it. */
    uint32_t introduction = chunk_of(facts, name);
    ck_assert_uint_eq(introduction % 2, 0);
    bool is_direct = strcmp(verb, "live") == 0 || strcmp(verb, "do") == 0;
    ck_assert_int_eq(question->kind, is_direct ? EVAL_DIRECT : EVAL_CROSS);
    uint32_t chunk = introduction + !is_direct;
    ck_assert_msg(strstr(facts->chunks[chunk], answer) != NULL, "%s not in %s", answer,
                  facts->chunks[chunk]);
    if (!is_direct)
        ck_assert(strstr(facts->chunks[chunk], " person ") != NULL);
}

static void check_facts(const struct eval_facts *facts, uint32_t people)
{
    ck_assert_uint_eq(facts->people, people);
    ck_assert_uint_eq(facts->chunk_count, 2 * people);
    ck_assert_uint_eq(facts->question_count, 4 * people);
    uint32_t of_kind[EVAL_KINDS] = {0};
    for (uint32_t i = 0; i < facts->question_count; i++) {
        check_question(facts, &facts->questions[i]);
        of_kind[facts->questions[i].kind]++;
        /* A right answer is right for one person only. */
        for (uint32_t k = 0; k < i; k++)
            ck_assert_str_ne(facts->questions[i].answer, facts->questions[k].answer);
    }
    ck_assert_uint_eq(of_kind[EVAL_DIRECT], of_kind[EVAL_CROSS]);
    for (uint32_t i = 0; i < facts->chunk_count; i++) {
        size_t bytes = strlen(facts->chunks[i]);
        ck_assert(strncmp(facts->chunks[i], "* ", 2) == 0);
        ck_assert_ptr_eq(strchr(facts->chunks[i], '\n'), facts->chunks[i] + bytes - 1);
    }
}

START_TEST(rules_hold)
{
    static struct eval_facts facts;
    struct eval_source source = {.state = 1};
    uint32_t with_filler = 0;
    uint32_t filler_first = 0;
    uint32_t chunks = 0;
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t people = 2 + i % (EVAL_PEOPLE_MAX - 1);
        eval_facts_make(&facts, &source, people);
        check_facts(&facts, people);
        for (uint32_t k = 0; k < facts.chunk_count; k++, chunks++) {
            const char *stop = strchr(facts.chunks[k], '.');
            bool has_filler = stop[1] == ' ';
            const char *second = has_filler ? stop + 2 : "";
            bool is_first = has_filler && (strstr(second, " person ") || strstr(second, " in ") ||
                                           strstr(second, " from "));
            with_filler += has_filler;
            filler_first += is_first && (isupper((unsigned char)second[0]) != 0);
        }
    }
    ck_assert_uint_gt(with_filler, chunks * 48 / 100);
    ck_assert_uint_lt(with_filler, chunks * 52 / 100);
    ck_assert_uint_gt(filler_first, with_filler * 40 / 100);
}
END_TEST

/* README: with four people direct 1.000 and 1.000, cross .940 and .237 of 1,000 each; the bounds
 * are four standard errors of 128 questions away, and more where samples differ in difficulty. */
START_TEST(model_answers_as_trained)
{
    struct eval_blender *blender;
    static struct eval_facts facts;
    struct eval_source source = {.state = 3};
    const struct eval_blender_options options = {
        .model = "tests/models/tiny", .people_max = 4, .turns = 4};
    ck_assert_msg(eval_blender_open(&blender, &options) == 0, "%s", larder_error_message());
    uint32_t full[EVAL_KINDS] = {0};
    uint32_t moved[EVAL_KINDS] = {0};
    uint32_t asked = 0;
    for (uint32_t i = 0; i < 16; i++) {
        struct eval_answers answers;
        eval_facts_make(&facts, &source, 4);
        ck_assert_int_eq(eval_blender_load(blender, &facts, &answers), 0);
        ck_assert_uint_eq(answers.asked[EVAL_CROSS], 8);
        asked += answers.asked[EVAL_CROSS];
        ck_assert(answers.kl[EVAL_CROSS] == 0);
        for (int kind = 0; kind < EVAL_KINDS; kind++)
            full[kind] += answers.right[kind];
        struct eval_answers again;
        ck_assert_int_eq(eval_blender_run(blender, "full", 0, &again), 0);
        ck_assert_mem_eq(again.right, answers.right, sizeof(again.right));
        ck_assert_mem_eq(again.turn_right, answers.turn_right, sizeof(again.turn_right));
        ck_assert(again.kl[EVAL_DIRECT] + again.kl[EVAL_CROSS] < 1e-6);
        ck_assert_int_eq(eval_blender_run(blender, "none", 0, &again), 0);
        ck_assert(again.kl[EVAL_CROSS] > 0);
        ck_assert(again.share == 0);
        for (int kind = 0; kind < EVAL_KINDS; kind++)
            moved[kind] += again.right[kind];
    }
    eval_blender_close(blender);
    ck_assert_uint_eq(asked, 128);
    ck_assert_uint_ge(full[EVAL_DIRECT], asked - 2);
    ck_assert_uint_ge(moved[EVAL_DIRECT], asked - 3);
    ck_assert_uint_ge(full[EVAL_CROSS], asked * 84 / 100);
    ck_assert_uint_le(moved[EVAL_CROSS], asked * 40 / 100);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval_facts");
    TCase *tcase = tcase_create("all");
    tcase_set_timeout(tcase, 300);
    tcase_add_test(tcase, same_seed_same_facts);
    tcase_add_test(tcase, rules_hold);
    tcase_add_test(tcase, model_answers_as_trained);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
