# SPDX-License-Identifier: Apache-2.0
"""Writes eval_samples.json, the questions of larder-eval: facts about two, four or six people, and
of the questions about them one `direct` and one `cross`."""
import json
import random
from pathlib import Path

from questions import make_sample

SAMPLES = 128
SEED = 11
FACTS_BYTES_MAX = 960  # they end a prefix of 1,024 tokens


def made(rng, people):
    while True:
        sample = make_sample(rng, people)
        facts = "".join(sample.chunks)
        if len(facts) <= FACTS_BYTES_MAX:
            break
    asked = [next(q for q in sample.questions if q.kind == kind) for kind in ("direct", "cross")]
    return {"facts": facts,
            "questions": [{"kind": q.kind, "prompt": q.prompt, "answer": q.answer} for q in asked]}


if __name__ == "__main__":
    generator = random.Random(SEED)
    lines = [json.dumps(made(generator, (2, 4, 6)[number % 3])) for number in range(SAMPLES)]
    Path(__file__).with_name("eval_samples.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
