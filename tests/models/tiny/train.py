# SPDX-License-Identifier: Apache-2.0
"""Train the small model: natural text, and questions over made-up facts.

    python3 train.py --minutes 120 --work DIR     writes DIR/{checkpoint.pt,model.safetensors,...}
    python3 train.py --minutes 150 --work DIR     goes on from DIR/checkpoint.pt

Muon trains the hidden matrices, AdamW the rest. The rate stays constant until the last fifth of
the minutes and then falls to zero; a run may be stopped and given other --minutes at any time.

A byte model does not learn to find a fact by its name from questions alone: it has to carry the
name over ten to forty bytes, and stays at the score of a guess. Drills teach that step by step;
questions with two people in 768 bytes follow, and last, in three steps of four, two to six people
in 2,048 bytes.
"""
import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import evaluate
import texts
from model import BOS, Llama, save
from questions import (FOLLOW_UPS, INTRODUCTIONS, SAME_PERSON, made_up_people,
                       made_up_word, make_sample, questions_about)

MADE_UP_WEIGHT = 0.03  # what is not an answer cannot be known
DECAY_SHARE = 0.2
WARMUP_STEPS = 100
LINKS = (": ", " is ", " has ", " likes ", " lives in ", " keeps a ", " works as a ", " live?\nA: ",
         ".\n* The same person likes ", ".\n* This person keeps a ", ".\n* That person has ")
LEARNED = 0.9  # of both kinds of two-person questions: then come the long rows,
LONG_SHARE = 0.68  # or after this share of the minutes


@dataclass(frozen=True)
class Shape:
    rows: int
    natural: int  # rows of natural text
    length: int
    pairs: tuple  # fewest and most people
    filler_share: float
    drill_share: float  # of the other rows
    copy_share: float


FIRST = Shape(8, 1, 768, (2, 2), 0.0, 0.4, 0.05)
SHORT = Shape(8, 1, 768, (2, 3), 0.5, 0.1, 0.05)
LONG = Shape(4, 1, 2048, (3, 6), 0.5, 0.05, 0.05)


class Row:
    """Pieces of text side by side, with what the mask needs to keep them apart.

    A token sees the earlier tokens of its document that are context (piece 0) or of its own piece.
    """

    def __init__(self, length):
        self.length, self.used, self.documents = length, 0, 0
        self.tokens, self.targets, self.places, self.document, self.piece = np.zeros(
            (5, length), dtype=np.int64)
        self.weights = np.zeros(length, dtype=np.float32)
        self.document[:] = -1

    @property
    def room(self):
        return self.length - self.used

    def add(self, ids, weights, start=0, piece=0):
        """Inputs ids[:-1] from place `start` on, targets ids[1:] with a weight for each."""
        count = min(len(ids) - 1, self.room)
        at = slice(self.used, self.used + count)
        self.tokens[at], self.targets[at] = ids[:count], ids[1:count + 1]
        self.weights[at] = weights[:count] if isinstance(weights, list) else weights
        self.places[at] = np.arange(start, start + count)
        self.document[at], self.piece[at] = self.documents, piece
        self.used += count


def natural_piece(rng, sources, count):
    data = rng.choice(sources)
    start = rng.randrange(len(data) - count)
    return data[start:start + count]


def repeated_strings(rng, row):
    """Random words, then the same again and again: teaches copying."""
    while row.room > 64:
        words = [made_up_word(rng, rng.randint(1, 4)) for _ in range(rng.randint(2, 12))]
        text = (" ".join(words) + "\n").encode()
        times = rng.randint(2, 4)
        ids = [BOS, *text * times]
        row.add(ids, [MADE_UP_WEIGHT] * len(text) + [1.0] * (len(text) * (times - 1)))
        row.documents += 1


def drill(rng, row, answer_weight):
    """A few facts told again and again in random order: teaches to find a fact by its name.

    Four grades: "Brialo ... kite" with any number of dots, another link, the sentences of the
    questions, and these among introductions and the questions themselves.
    """
    people = made_up_people(rng, rng.randint(2, 5), 1)
    grade = rng.choices(("dots", "bare", "sentences", "mixed"), (0.1, 0.35, 0.1, 0.45))[0]
    links, longest = rng.sample(LINKS, 2), rng.randint(0, 40)
    facts = []  # (name, value, forms), a form being (prompt, answer)
    for person in people:
        name, values = person["name"], list(person.values())[1:]
        if grade in ("dots", "bare"):
            value = rng.choice(values)
            facts.append((name, value, [(name + link, value + "\n") for link in links]))
            continue
        forms = [(q.prompt, q.answer)
                 for q in questions_about(person, True, asked=grade == "mixed", cloze=True)]
        each = len(forms) // len(values)
        facts += [(name, value, forms[number * each:(number + 1) * each])
                  for number, value in enumerate(values)]
    facts = rng.sample(facts, rng.randint(len(people), len(facts)))
    ids, weights, told = [BOS], [], set()
    while len(ids) < row.room + 1:
        if grade == "mixed" and rng.random() < 0.15:
            person = rng.choice(people)
            who = rng.choice((person["name"],) + SAME_PERSON)
            told_now = f"* {rng.choice(INTRODUCTIONS)}\n* {rng.choice(FOLLOW_UPS)}\n".format(
                who=who, **person)
            ids += told_now.encode()
            weights += [MADE_UP_WEIGHT] * len(told_now)
            told |= {(person["name"], value) for value in person.values()}
            continue
        name, value, forms = rng.choice(facts)
        prompt, answer = rng.choice(forms)
        if grade == "dots":
            prompt = f"{name} {'.' * rng.randint(0, longest)} "
        known = (name, value) in told
        ids += (prompt + answer).encode()
        weights += [MADE_UP_WEIGHT] * len(prompt)
        weights += [answer_weight if known else MADE_UP_WEIGHT] * len(answer)
        told.add((name, value))
    row.add(ids, weights)


def questions(rng, row, sources, shape, answer_weight):
    """As many samples as fit; natural text fills the row, sometimes as a sample's beginning."""
    while True:
        sample = make_sample(rng, rng.randint(*shape.pairs), named_share=0.5, cloze=True,
                             filler_share=shape.filler_share)
        context = "".join(sample.chunks).encode()
        asked = [((q.prompt + q.answer).encode(), len(q.answer)) for q in sample.questions]
        most = row.room - len(context) - 1
        if most < row.length // 8:
            break
        while sum(len(text) - 1 for text, _ in asked) > most:
            asked.pop()
        spare = most - sum(len(text) - 1 for text, _ in asked)
        before = b""
        if spare > 100 and rng.random() < 0.25:
            before = natural_piece(rng, sources, spare - 1) + b"\n"
        ids = [BOS, *before, *context]
        row.add(ids, [1.0] * len(before) + [MADE_UP_WEIGHT] * len(context))
        # the last context token has no target of its own; the next piece begins at its place + 1
        row.tokens[row.used], row.places[row.used] = ids[-1], len(ids) - 1
        row.document[row.used], row.piece[row.used] = row.documents, 0
        row.used += 1
        for number, (text, answer_bytes) in enumerate(asked, 1):
            weights = [MADE_UP_WEIGHT] * (len(text) - 1 - answer_bytes)
            row.add([*text], weights + [answer_weight] * answer_bytes, len(ids), number)
        row.documents += 1
    if row.room > 1:
        row.add([BOS, *natural_piece(rng, sources, row.room)], 1.0)


def make_batch(rng, sources, shape, answer_weight):
    """Arrays of [rows, length]; the first rows are natural text, plainly causal."""
    rows = []
    for number in range(shape.rows):
        row = Row(shape.length)
        kind = rng.random()
        if number < shape.natural:
            row.add([BOS, *natural_piece(rng, sources, shape.length)], 1.0)
        elif kind < shape.copy_share:
            repeated_strings(rng, row)
        elif kind < shape.copy_share + shape.drill_share:
            drill(rng, row, answer_weight)
        else:
            questions(rng, row, sources, shape, answer_weight)
        rows.append(row)
    return [torch.from_numpy(np.stack([getattr(row, name) for row in rows]))
            for name in ("tokens", "targets", "weights", "places", "document", "piece")]


def blocked(q, k, v, mask):
    """Attention in blocks of queries: on a CPU faster than the fused one, above all backward."""
    batch, heads, count, width = q.shape
    group, size = heads // k.shape[1], 192
    q = (q * width ** -0.5).view(batch, -1, group, count, width)
    blocks = []
    for begin in range(0, count, size):
        end = begin + size
        rows = q[:, :, :, begin:end].reshape(batch, -1, group * size, width)
        scores = (rows @ k[:, :, :end].transpose(2, 3)).view(batch, -1, group, size, end)
        scores = scores.float() + mask[:, None, None, begin:end, :end]
        shares = torch.softmax(scores, -1).to(v.dtype).view(batch, -1, group * size, end)
        blocks.append((shares @ v[:, :, :end]).view(batch, -1, group, size, width))
    return torch.cat(blocks, 3).reshape(batch, heads, count, width)


def loss_of(model, plain, tokens, targets, weights, places, document, piece):
    count = tokens.shape[1]
    document, piece = document[plain:], piece[plain:]
    past = torch.ones(count, count, dtype=torch.bool).tril()
    seen = past & (document[:, :, None] == document[:, None, :]) & (
        (piece[:, None, :] == 0) | (piece[:, None, :] == piece[:, :, None]))
    past, seen = (torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, -math.inf)
                  for allowed in (past[None], seen))

    def attend(q, k, v):
        if count < 1024:  # longer rows have too many blocks to compile
            return torch.cat((blocked(q[:plain], k[:plain], v[:plain], past),
                              blocked(q[plain:], k[plain:], v[plain:], seen)))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        natural = F.scaled_dot_product_attention(q[:plain], k[:plain], v[:plain], is_causal=True)
        return torch.cat((natural, F.scaled_dot_product_attention(
            q[plain:], k[plain:], v[plain:], attn_mask=seen[:, None])))

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens, places, attend)
    nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    weights = weights.flatten()
    return (nats * weights).sum() / weights.sum()


class Trainer:
    def __init__(self, options):
        self.options = options
        self.rng = random.Random(options.seed)
        torch.manual_seed(options.seed)
        self.sources = [train for train, _ in texts.sources().values()]
        self.heldout = texts.HELDOUT_PATH.read_bytes()
        self.model = Llama()
        hidden = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.dim() == 1 or "embed" in n]
        self.optimizers = [
            torch.optim.Muon(hidden, lr=options.muon_rate, weight_decay=0.02),
            torch.optim.AdamW(others, lr=options.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)]
        self.rates = [options.muon_rate, options.adam_rate]
        self.step, self.seconds, self.tokens, self.learned = 0, 0.0, 0, False
        self.checkpoint = options.work / "checkpoint.pt"
        if self.checkpoint.exists():
            self.resume()
        self.loss_of = torch.compile(loss_of, dynamic=False)

    def resume(self):
        held = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(held["model"])
        for optimizer, state in zip(self.optimizers, held["optimizers"]):
            optimizer.load_state_dict(state)
        for name in ("step", "seconds", "tokens", "learned"):
            setattr(self, name, held[name])
        self.rng.seed(self.options.seed + self.step)

    def keep(self):
        held = {name: getattr(self, name) for name in ("step", "seconds", "tokens", "learned")}
        held["model"] = self.model.state_dict()
        held["optimizers"] = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(held, self.checkpoint.with_suffix(".new"))
        self.checkpoint.with_suffix(".new").replace(self.checkpoint)
        save(self.model, self.options.work)

    def set_rates(self):
        left = 1 - self.seconds / (60 * self.options.minutes)
        factor = min(1.0, (self.step + 1) / WARMUP_STEPS, max(0.0, left / DECAY_SHARE))
        for optimizer, rate in zip(self.optimizers, self.rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def train_step(self):
        shape = FIRST if not self.learned else LONG if self.step % 4 else SHORT
        batch = make_batch(self.rng, self.sources, shape, self.options.answer_weight)
        loss = self.loss_of(self.model, shape.natural, *batch)
        loss.backward()
        self.set_rates()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch[0].numel()
        return loss.item()

    def report(self, mean_loss):
        self.model.eval()
        scores = {pairs: evaluate.accuracy(self.model, pairs, 80, seed=self.step)
                  for pairs in ((2, 6) if self.learned else (2,))}
        window = (LONG if self.learned else FIRST).length
        bits = evaluate.bits_per_byte(self.model, self.heldout, window)
        self.model.train()
        self.learned |= self.seconds > 60 * self.options.minutes * LONG_SHARE
        self.learned |= min(kind["full"] for kind in scores[2].values()) >= LEARNED
        shown = "  ".join(f"{pairs} pairs " + " ".join(
            f"{kind} {s['full']:.2f} ({s['moved']:.2f} moved)" for kind, s in by_kind.items())
            for pairs, by_kind in scores.items())
        print(f"step {self.step}  {self.seconds / 60:.1f} min  {self.tokens / 1e6:.2f} M tokens  "
              f"loss {mean_loss:.3f}  {bits:.3f} bits/byte  {shown}", flush=True)

    def run(self):
        losses, reported = [], self.seconds
        while self.seconds < 60 * self.options.minutes:
            began = time.monotonic()
            losses.append(self.train_step())
            self.seconds += time.monotonic() - began
            if self.step % 20 == 0:
                print(f"  step {self.step}  loss {np.mean(losses[-20:]):.3f}  "
                      f"{time.monotonic() - began:.2f} s/step", flush=True)
            if self.seconds - reported >= 60 * self.options.report_minutes:
                self.report(float(np.mean(losses)))
                self.keep()
                losses, reported = [], self.seconds
        self.report(float(np.mean(losses or [math.nan])))
        self.keep()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120, help="of training in all (120)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--report-minutes", type=float, default=3)
    parser.add_argument("--muon-rate", type=float, default=0.01)
    parser.add_argument("--adam-rate", type=float, default=1e-3)
    parser.add_argument("--answer-weight", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    Trainer(options).run()


if __name__ == "__main__":
    main()
