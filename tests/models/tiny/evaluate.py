# SPDX-License-Identifier: Apache-2.0
"""What the small model can do: bits per byte, and answers to questions over fresh facts.

`full`   the chunks are prefilled together, as one text.
`moved`  each chunk's keys and values come from [BOS] + chunk computed apart; keys get RoPE for
         their place in the text, every BOS but the first is dropped, nothing is recomputed.

Either way each question sees the chunks and itself, no other question; an answer counts when the
whole greedy line is right. `chance` is the score of the right attribute of a random person.
"""
import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from model import BOS, FOLDER, load, rotate
from questions import make_sample

WINDOW_BYTES = 2048


def as_tokens(texts):
    """Right-padded [texts, longest] bytes, and their lengths."""
    encoded = [torch.tensor(list(text.encode())) for text in texts]
    padded = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True)
    return padded, [len(text) for text in encoded]


def places(start, tokens):
    return torch.arange(start, start + tokens.shape[1]).expand_as(tokens)


def rotated(model, kept):
    """Per layer keys and values of one row, the keys rotated for places 0, 1, ..."""
    count = kept[0][0].shape[2]
    rope = model.rope(torch.arange(count)[None])
    return [(rotate(k, *rope), v) for k, v in kept]


def full_cache(model, chunks):
    tokens = torch.tensor([[BOS, *"".join(chunks).encode()]])
    kept = []
    model(tokens, places(0, tokens), kept=kept)
    return rotated(model, kept)


def moved_cache(model, chunks):
    tokens, lengths = as_tokens(chunks)
    tokens = F.pad(tokens, (1, 0), value=BOS)
    kept = []
    model(tokens, places(0, tokens), kept=kept)

    def joined(states):
        rows = [states[row:row + 1, :, 1 if row else 0:length + 1]
                for row, length in enumerate(lengths)]
        return torch.cat(rows, 2)

    return rotated(model, [(joined(k), joined(v)) for k, v in kept])


def right_answers(model, cache, questions):
    """For each question whether the greedy answer behind the cached chunks is right."""
    start = cache[0][0].shape[2]
    tokens, lengths = as_tokens([q.prompt + q.answer for q in questions])
    guesses = model(tokens, places(start, tokens), before=cache).argmax(-1)
    right = []
    for row, (question, length) in enumerate(zip(questions, lengths)):
        begin = length - len(question.answer)
        right.append(torch.equal(guesses[row, begin - 1:length - 1], tokens[row, begin:length]))
    return right


@torch.no_grad()
def accuracy(model, pair_count, per_kind, seed=1, caches=("full", "moved")):
    """{"direct": {"full": share, ...}, "cross": ...} over at least `per_kind` questions of each."""
    rng = random.Random(seed)
    makers = {"full": full_cache, "moved": moved_cache}
    scores = {kind: {name: [] for name in caches} for kind in ("direct", "cross")}
    while min(len(of_kind[caches[0]]) for of_kind in scores.values()) < per_kind:
        sample = make_sample(rng, pair_count)
        for name in caches:
            right = right_answers(model, makers[name](model, sample.chunks), sample.questions)
            for question, is_right in zip(sample.questions, right):
                scores[question.kind][name].append(is_right)
    return {kind: {name: float(np.mean(right)) for name, right in of_kind.items()}
            for kind, of_kind in scores.items()}


@torch.no_grad()
def bits_per_byte(model, data, window=WINDOW_BYTES):
    """Mean cost of a byte when each window is read from BOS on."""
    nats = 0.0
    for start in range(0, len(data), window):
        tokens = torch.tensor([[BOS, *data[start:start + window]]])
        logits = model(tokens[:, :-1], places(0, tokens[:, :-1]))
        nats += F.cross_entropy(logits[0].float(), tokens[0, 1:], reduction="sum").item()
    return nats / len(data) / math.log(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the checkpoint")
    parser.add_argument("--questions", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument("--pairs", type=int, nargs="+", default=[2, 4, 6], help="people a text")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    model = load(options.model)
    heldout = (FOLDER / "heldout.txt").read_bytes()
    result = {"questions_per_kind": options.questions, "seed": options.seed,
              "bits_per_byte": round(bits_per_byte(model, heldout), 4), "pairs": {}}
    if not options.json:
        print(f"held-out text: {result['bits_per_byte']:.3f} bits/byte")
        print("pairs  chance  direct full  direct moved  cross full  cross moved")
    for pairs in options.pairs:
        scores = accuracy(model, pairs, options.questions, options.seed)
        result["pairs"][pairs] = {"chance": 1 / pairs, **scores}
        if not options.json:
            direct, cross = scores["direct"], scores["cross"]
            print(f"{pairs:5}  {1 / pairs:6.3f}  {direct['full']:11.3f}  {direct['moved']:12.3f}  "
                  f"{cross['full']:10.3f}  {cross['moved']:11.3f}", flush=True)
    if options.json:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
