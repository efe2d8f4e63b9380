# SPDX-License-Identifier: Apache-2.0
"""Questions over made-up facts, the half of the small model's training that makes it useful here.

A sample is a list of chunks, two for each person, then questions about them:

    * Brialo is a weaver from Tokara.                   an introduction, naming the person
    * The same person keeps a green kite.               its follow-up, which does not
    Q: Where does Brialo live?                          direct: answered by the introduction alone
    A: Tokara
    Q: What does Brialo keep?                           cross: answered by the follow-up, whose
    A: a green kite                                     meaning depends on the chunk before it

A cache that puts together chunks computed apart still answers `direct`, and fails `cross`. In
training, half of the follow-ups repeat the name (`named` questions), and half of the questions are
cloze sentences ("Brialo keeps a green kite."): both make the task learnable at all.
The people of one sample differ in every attribute and in the first letter of their names, so a
guess between people is right one time in `pair_count`.

tools/eval/facts.c makes such samples for `larder-eval blend`, with the same words and sentences:
whoever changes one changes the other.
"""
import random
from dataclasses import dataclass

ONSETS = "b c d f g h k l m n p r s t v z br dr gr kr tr st".split()
VOWELS = "a e i o u ia ei".split()
JOBS = "baker painter sailor teacher farmer weaver potter miller carpenter doctor hunter singer"
COLOURS = "red green blue white black golden silver copper wooden glass tin paper"
OBJECTS = ("lantern kite drum basket mirror clock knife lamp boat ladder bell carpet cup chair "
           "violin compass hammer kettle ring coat")
FOODS = "bread apples cheese olives soup rice honey plums fish beans"
INTRODUCTIONS = ("{name} works as a {job} in {town}.",
                 "{name} is a {job} from {town}.",
                 "{name}, a {job}, lives in {town}.")
FOLLOW_UPS = ("{who} keeps a {thing} and likes {food}.",
              "{who} likes {food} and keeps a {thing}.",
              "{who} has always liked {food}, and keeps a {thing} at home.")
SAME_PERSON = ("The same person", "This person", "That person")
FILLERS = ("The road was quiet that morning and nobody was in a hurry.",
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
           "The mail arrived twice a week, on a slow cart.")
# (attribute, question, cloze sentence, whether the introduction holds the answer)
ASKED = (("town", "Where does {name} live?", "{name} lives in", True),
         ("job", "What does {name} do?", "{name} works as a", True),
         ("thing", "What does {name} keep?", "{name} keeps a", False),
         ("food", "What does {name} like?", "{name} likes", False))


@dataclass(frozen=True)
class Question:
    prompt: str  # ends where the answer begins
    answer: str  # one line, its newline included
    kind: str  # direct, cross or named
    cloze: bool


@dataclass(frozen=True)
class Sample:
    chunks: list
    questions: list


def made_up_word(rng, syllables, onset=None):
    parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables)]
    if onset:
        parts[0] = onset + rng.choice(VOWELS)
    return "".join(parts).capitalize()


def distinct_initials(rng, count):
    """Onsets of `count` words, no two with the same first letter."""
    by_letter = {}
    for onset in ONSETS:
        by_letter.setdefault(onset[0], []).append(onset)
    return [rng.choice(by_letter[letter]) for letter in rng.sample(sorted(by_letter), count)]


def made_up_people(rng, count, name_words):
    columns = {
        "name": [" ".join([made_up_word(rng, 2, onset)] +
                          [made_up_word(rng, 2) for _ in range(name_words - 1)])
                 for onset in distinct_initials(rng, count)],
        "town": [made_up_word(rng, 3, onset) for onset in distinct_initials(rng, count)],
        "job": rng.sample(JOBS.split(), count),
        "thing": [f"{rng.choice(COLOURS.split())} {thing}"
                  for thing in rng.sample(OBJECTS.split(), count)],
        "food": rng.sample(FOODS.split(), count),
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def chunk(rng, sentence, filler_share):
    """One chunk; a filler sentence may come before or after what it says."""
    sentences = [sentence]
    if rng.random() < filler_share:
        sentences.insert(rng.randrange(2), rng.choice(FILLERS))
    return f"* {' '.join(sentences)}\n"


def questions_about(person, named, asked=True, cloze=False):
    """The questions about one person, in either form or both."""
    found = []
    for attribute, question, sentence, introduced in ASKED:
        kind = "direct" if introduced else "named" if named else "cross"
        value = person[attribute]
        if asked:
            answer = f"a {value}" if attribute == "thing" else value
            prompt = f"Q: {question.format(**person)}\nA: "
            found.append(Question(prompt, answer + "\n", kind, False))
        if cloze:
            found.append(Question(sentence.format(**person) + " ", value + ".\n", kind, True))
    return found


def make_sample(rng, pair_count, named_share=0.0, cloze=False, filler_share=0.5, name_words=1):
    """Chunks and every question about them, in random order.

    named_share: how many of the follow-ups repeat the person's name.
    cloze: whether each question comes a second time as a sentence to finish.
    """
    chunks, questions = [], []
    for person in made_up_people(rng, pair_count, name_words):
        named = rng.random() < named_share
        who = person["name"] if named else rng.choice(SAME_PERSON)
        chunks.append(chunk(rng, rng.choice(INTRODUCTIONS).format(**person), filler_share))
        chunks.append(chunk(rng, rng.choice(FOLLOW_UPS).format(who=who, **person), filler_share))
        questions += questions_about(person, named, cloze=cloze)
    rng.shuffle(questions)
    return Sample(chunks, questions)


if __name__ == "__main__":
    shown = make_sample(random.Random(0), 3, named_share=0.5, cloze=True)
    print("".join(shown.chunks) + "".join(q.prompt + q.answer for q in shown.questions))
