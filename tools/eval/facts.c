/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/eval/facts.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"

#define NAME_SYLLABLES 2u
#define TOWN_SYLLABLES 3u
#define LETTERS        26u
/* The longest onset and vowel, so often as the longest word has them. */
#define WORD_BYTES_MAX (TOWN_SYLLABLES * 4 + 1)

static const char *const onsets[] = {"b", "c", "d", "f", "g", "h",  "k",  "l",  "m",  "n",  "p",
                                     "r", "s", "t", "v", "z", "br", "dr", "gr", "kr", "tr", "st"};
static const char *const vowels[] = {"a", "e", "i", "o", "u", "ia", "ei"};
static const char *const jobs[] = {"baker",  "painter", "sailor",    "teacher", "farmer", "weaver",
                                   "potter", "miller",  "carpenter", "doctor",  "hunter", "singer"};
static const char *const colours[] = {"red",    "green",  "blue",   "white", "black", "golden",
                                      "silver", "copper", "wooden", "glass", "tin",   "paper"};
static const char *const objects[] = {"lantern", "kite",   "drum",   "basket", "mirror",
                                      "clock",   "knife",  "lamp",   "boat",   "ladder",
                                      "bell",    "carpet", "cup",    "chair",  "violin",
                                      "compass", "hammer", "kettle", "ring",   "coat"};
static const char *const foods[] = {"bread", "apples", "cheese", "olives", "soup",
                                    "rice",  "honey",  "plums",  "fish",   "beans"};
static const char *const same_person[] = {"The same person", "This person", "That person"};
static const char *const fillers[] = {
    "The road was quiet that morning and nobody was in a hurry.",
    "It rained for most of the week, and the river rose a little.",
    "People in the market talked about the price of salt.",
    "The old bridge had been repaired the year before.",
    "A long wall ran along the edge of the field.",
    "Some of the letters were never answered.",
    "The harvest came late, but it was better than expected.",
    "There were three wells in the square, and one of them was dry.",
    "The school opened again after the winter.",
    "Birds gathered on the roof in the evening.",
    "Nobody could remember who had planted the trees.",
    "The mail arrived twice a week, on a slow cart.",
};

struct person {
    char name[WORD_BYTES_MAX];
    char town[WORD_BYTES_MAX];
    const char *job;
    const char *colour;
    const char *object;
    const char *food;
};

/* SplitMix64, its published constants. */
static uint64_t next_number(struct eval_source *source)
{
    uint64_t z = source->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Below `count`, which is so small that the remainder's bias is not seen. */
static uint32_t below(struct eval_source *source, size_t count)
{
    return (uint32_t)(next_number(source) % count);
}

#define CHOOSE(source, list) (list)[below(source, LARDER_COUNT_OF(list))]

/* `count` different numbers below `all`, in random order. */
static void sample(struct eval_source *source, uint32_t *out, uint32_t count, uint32_t all)
{
    uint32_t rest[64];
    assert(count <= all);
    assert(all <= LARDER_COUNT_OF(rest));
    for (uint32_t i = 0; i < all; i++)
        rest[i] = i;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t chosen = below(source, all - i);
        out[i] = rest[chosen];
        rest[chosen] = rest[all - i - 1];
    }
}

/* Sentences are bounded by their lists: one that does not fit is a bug. */
static void write_text(char *out, size_t out_bytes, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void write_text(char *out, size_t out_bytes, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int bytes = vsnprintf(out, out_bytes, format, args);
    va_end(args);
    assert(bytes >= 0);
    assert((size_t)bytes < out_bytes);
}

/* An onset for each of `count` words, no two of the same first letter. */
static void choose_onsets(struct eval_source *source, const char **out, uint32_t count)
{
    const char *first[LETTERS]; /* of each letter that begins an onset */
    uint32_t letters = 0;
    for (size_t i = 0; i < LARDER_COUNT_OF(onsets); i++)
        if (!onsets[i][1])
            first[letters++] = onsets[i];
    uint32_t chosen[EVAL_PEOPLE_MAX];
    sample(source, chosen, count, letters);
    for (uint32_t i = 0; i < count; i++) {
        const char *same[LARDER_COUNT_OF(onsets)];
        uint32_t same_count = 0;
        for (size_t k = 0; k < LARDER_COUNT_OF(onsets); k++)
            if (onsets[k][0] == first[chosen[i]][0])
                same[same_count++] = onsets[k];
        out[i] = same[below(source, same_count)];
    }
}

static void make_word(struct eval_source *source, char out[WORD_BYTES_MAX], uint32_t syllables,
                      const char *onset)
{
    size_t used = 0;
    for (uint32_t i = 0; i < syllables; i++) {
        const char *begin = i == 0 ? onset : CHOOSE(source, onsets);
        int bytes =
            snprintf(out + used, WORD_BYTES_MAX - used, "%s%s", begin, CHOOSE(source, vowels));
        used += (size_t)bytes;
        assert(used < WORD_BYTES_MAX);
    }
    out[0] = (char)(out[0] - 'a' + 'A');
}

static void make_people(struct eval_source *source, struct person *out, uint32_t count)
{
    const char *names[EVAL_PEOPLE_MAX];
    const char *towns[EVAL_PEOPLE_MAX];
    uint32_t job[EVAL_PEOPLE_MAX];
    uint32_t object[EVAL_PEOPLE_MAX];
    uint32_t food[EVAL_PEOPLE_MAX];
    choose_onsets(source, names, count);
    choose_onsets(source, towns, count);
    sample(source, job, count, LARDER_COUNT_OF(jobs));
    sample(source, object, count, LARDER_COUNT_OF(objects));
    sample(source, food, count, LARDER_COUNT_OF(foods));
    for (uint32_t i = 0; i < count; i++) {
        out[i] = (struct person){.job = jobs[job[i]],
                                 .colour = CHOOSE(source, colours),
                                 .object = objects[object[i]],
                                 .food = foods[food[i]]};
        make_word(source, out[i].name, NAME_SYLLABLES, names[i]);
        make_word(source, out[i].town, TOWN_SYLLABLES, towns[i]);
    }
}

/* A sentence that says nothing comes before it, behind it, or in half of the chunks not at all. */
static void make_chunk(struct eval_source *source, char *out, const char *sentence)
{
    const char *filler = CHOOSE(source, fillers);
    switch (below(source, 4)) {
    case 0:
        write_text(out, EVAL_CHUNK_BYTES_MAX, "* %s %s\n", filler, sentence);
        break;
    case 1:
        write_text(out, EVAL_CHUNK_BYTES_MAX, "* %s %s\n", sentence, filler);
        break;
    default:
        write_text(out, EVAL_CHUNK_BYTES_MAX, "* %s\n", sentence);
    }
}

static void introduce(struct eval_source *source, char *out, const struct person *person)
{
    char text[EVAL_CHUNK_BYTES_MAX];
    switch (below(source, 3)) {
    case 0:
        write_text(text, sizeof(text), "%s works as a %s in %s.", person->name, person->job,
                   person->town);
        break;
    case 1:
        write_text(text, sizeof(text), "%s is a %s from %s.", person->name, person->job,
                   person->town);
        break;
    default:
        write_text(text, sizeof(text), "%s, a %s, lives in %s.", person->name, person->job,
                   person->town);
    }
    make_chunk(source, out, text);
}

static void follow_up(struct eval_source *source, char *out, const struct person *person)
{
    char text[EVAL_CHUNK_BYTES_MAX];
    const char *who = CHOOSE(source, same_person);
    switch (below(source, 3)) {
    case 0:
        write_text(text, sizeof(text), "%s keeps a %s %s and likes %s.", who, person->colour,
                   person->object, person->food);
        break;
    case 1:
        write_text(text, sizeof(text), "%s likes %s and keeps a %s %s.", who, person->food,
                   person->colour, person->object);
        break;
    default:
        write_text(text, sizeof(text), "%s has always liked %s, and keeps a %s %s at home.", who,
                   person->food, person->colour, person->object);
    }
    make_chunk(source, out, text);
}

static void ask(struct eval_facts *out, enum eval_kind kind, const char *verb, const char *name,
                const char *answer)
{
    struct eval_question *question = &out->questions[out->question_count++];
    question->kind = kind;
    write_text(question->prompt, sizeof(question->prompt),
               "Q: %s %s %s?\nA: ", strcmp(verb, "live") == 0 ? "Where does" : "What does", name,
               verb);
    write_text(question->answer, sizeof(question->answer), "%s\n", answer);
}

static void ask_about(struct eval_facts *out, const struct person *person)
{
    char thing[EVAL_ANSWER_BYTES_MAX];
    write_text(thing, sizeof(thing), "a %s %s", person->colour, person->object);
    ask(out, EVAL_DIRECT, "live", person->name, person->town);
    ask(out, EVAL_DIRECT, "do", person->name, person->job);
    ask(out, EVAL_CROSS, "keep", person->name, thing);
    ask(out, EVAL_CROSS, "like", person->name, person->food);
}

static void shuffle_questions(struct eval_source *source, struct eval_facts *facts)
{
    for (uint32_t left = facts->question_count; left > 1; left--) {
        uint32_t chosen = below(source, left);
        struct eval_question question = facts->questions[chosen];
        facts->questions[chosen] = facts->questions[left - 1];
        facts->questions[left - 1] = question;
    }
}

void eval_facts_make(struct eval_facts *out, struct eval_source *source, uint32_t people)
{
    assert(people >= 2);
    assert(people <= EVAL_PEOPLE_MAX);
    struct person list[EVAL_PEOPLE_MAX];
    make_people(source, list, people);
    *out = (struct eval_facts){.people = people};
    for (uint32_t i = 0; i < people; i++) {
        introduce(source, out->chunks[out->chunk_count++], &list[i]);
        follow_up(source, out->chunks[out->chunk_count++], &list[i]);
        ask_about(out, &list[i]);
    }
    shuffle_questions(source, out);
}
