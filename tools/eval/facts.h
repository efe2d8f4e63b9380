/* SPDX-License-Identifier: Apache-2.0 */
/* facts.h - fresh made-up facts in chunks, and questions about them: what blending is judged by.
 * Threads: pure functions; a source belongs to one thread at a time.
 * I1  The same seed gives the same samples, everywhere.
 * I2  Words, sentences and shares are those of tests/models/tiny/questions.py, which trained the
 *     small model and explains why they are as they are; whoever changes one changes the other. Of
 *     that file this has what an evaluation asks: follow-ups that never repeat the name, whole
 *     questions, no cloze sentences. The random numbers differ.
 *
 * Every person has two chunks, an introduction with the name and right behind it a follow-up that
 * says only "the same person"; people come in random order, and a sentence that says nothing may
 * stand before either. `direct` questions are answered by the introduction alone, `cross` ones by
 * the follow-up, which means something only to who has seen the chunk before.
 */
#ifndef LARDER_TOOLS_EVAL_FACTS_H
#define LARDER_TOOLS_EVAL_FACTS_H

#include <stdint.h>

/* At least 2, and as many as differ in every attribute. */
#define EVAL_PEOPLE_MAX         10u
#define EVAL_CHUNKS_OF_PERSON   2u
#define EVAL_QUESTIONS_OF_EACH  2u /* person, and of each kind */
#define EVAL_CHUNK_BYTES_MAX    160u
#define EVAL_QUESTION_BYTES_MAX 48u
#define EVAL_ANSWER_BYTES_MAX   24u

enum eval_kind {
    EVAL_DIRECT,
    EVAL_CROSS,
    EVAL_KINDS,
};

struct eval_question {
    enum eval_kind kind;
    char prompt[EVAL_QUESTION_BYTES_MAX]; /* ends where the answer begins */
    char answer[EVAL_ANSWER_BYTES_MAX];   /* one line with its end */
};

struct eval_facts {
    uint32_t people; /* a guess among them is right once in so many */
    uint32_t chunk_count;
    uint32_t question_count; /* half of each kind, in random order */
    char chunks[EVAL_PEOPLE_MAX * EVAL_CHUNKS_OF_PERSON][EVAL_CHUNK_BYTES_MAX];
    struct eval_question questions[EVAL_PEOPLE_MAX * EVAL_QUESTIONS_OF_EACH * EVAL_KINDS];
};

/* Set to the seed, advances. */
struct eval_source {
    uint64_t state;
};

void eval_facts_make(struct eval_facts *out, struct eval_source *source, uint32_t people);

#endif
