# SPDX-License-Identifier: Apache-2.0
"""Writes prompt.txt, the demo's prompt: held-out text, facts about six people, one question."""
import random
from pathlib import Path

from questions import make_sample

FOLDER = Path(__file__).parent
PROMPT_BYTES = 1950  # the model has seen 2,048 positions
SEED = 7

sample = make_sample(random.Random(SEED), 6)
context = "".join(sample.chunks)
asked = next(q for q in sample.questions if q.kind == "direct")
before = (FOLDER / "heldout.txt").read_text(errors="ignore")
before = before[before.index("\n") + 1:]
room = PROMPT_BYTES - len(context) - len(asked.prompt) - 1
before = before[:room].rsplit(" ", 1)[0]
(FOLDER / "prompt.txt").write_text(before + "\n" + context + asked.prompt.rstrip(" "))
print("answer:", asked.answer.strip())
