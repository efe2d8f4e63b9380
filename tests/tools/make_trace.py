#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic trace for larder-sim: make_trace.py SHAPE REQUESTS > FILE.

rag     questions on documents, Zipf popularity that drifts; the question is never seen again
agents  long sessions on four system prompts, many short gaps and a few long ones
scans   the same, with as many long prompts that never return
loop    six hundred documents in turn, with others that never return in between
shift   conversations that return; from half way on, popular documents instead
small   a little of everything, for tests

The same bytes in every run and on every machine: times and lengths are whole numbers.
"""
import bisect
import heapq
import itertools
import json
import random
import sys

BLOCK = 512


class Writer:
    """Numbers blocks by the whole prefix that they end."""

    def __init__(self, limit):
        self.ids = {}
        self.left = limit
        self.base = 0
        self.last = 0

    def put(self, when, names, tail_tokens):
        ids = []
        prefix = None
        for name in names:
            prefix = self.ids.setdefault((prefix, name), len(self.ids))
            ids.append(prefix)
        tokens = BLOCK * (len(names) - 1) + tail_tokens
        self.last = self.base + int(when)
        print(json.dumps({"timestamp": self.last, "input_length": tokens,
                          "output_length": 100, "hash_ids": ids}))
        self.left -= 1


def rag(out, rng, documents=3000):
    sizes = [rng.choice([4, 8, 8, 16, 24, 48]) for _ in range(documents)]
    ranks = list(range(documents))
    rng.shuffle(ranks)
    sums = list(itertools.accumulate(1 / (i + 1) ** 0.9 for i in range(documents)))
    when = 0
    for question in itertools.count():
        if out.left == 0:
            return
        when += rng.expovariate(1 / 300)
        if question % 1500 == 1499:
            for _ in range(documents // 10):
                a, b = rng.randrange(documents), rng.randrange(documents)
                ranks[a], ranks[b] = ranks[b], ranks[a]
        document = ranks[bisect.bisect(sums, rng.random() * sums[-1])]
        blocks = [("d", document, i) for i in range(sizes[document])]
        out.put(when, blocks + [("q", question)], rng.randint(1, BLOCK - 1))


def agents(out, rng, scans=0.0, every_ms=4000):
    order = itertools.count()
    events = [(0.0, next(order), None)]
    while out.left:
        when, _, session = heapq.heappop(events)
        if session is None:
            heapq.heappush(events, (when + rng.expovariate(1 / every_ms), next(order), None))
            number = next(order)
            if rng.random() < scans:
                names = [("scan", number, i) for i in range(rng.randint(50, 200))]
                out.put(when, names, BLOCK)
                continue
            kind = rng.choice([0, 0, 1, 2])
            turns = 1 if rng.random() < 0.3 else int(rng.expovariate(1 / 25)) + 1
            session = [number, [("s", kind, i) for i in range(6 + 4 * kind)], turns]
        number, names, turns = session
        for _ in range(rng.randint(1, 4)):
            names.append(("t", number, len(names)))
        out.put(when, names + [("tail", number, turns)], rng.randint(1, BLOCK - 1))
        session[2] -= 1
        if session[2] > 0:
            soon = rng.random() < 0.95
            gap = rng.lognormvariate(8.5, 0.8) if soon else rng.lognormvariate(12, 0.7)
            heapq.heappush(events, (when + gap, next(order), session))


def loop(out, rng, documents=600):
    for number in itertools.count():
        if out.left == 0:
            return
        if number % 3 == 0:
            out.put(number * 500, [("once", number, i) for i in range(10)], BLOCK)
        else:
            document = number * 2 // 3 % documents
            blocks = [("d", document, i) for i in range(20)]
            out.put(number * 500, blocks + [("q", number)], 100)


def shift(out, rng):
    half = out.left // 2
    for number in itertools.count():
        if out.left == 0:
            return
        if number < half:
            who = max(number - rng.choice([0, 0, 40, 80, 160, 320]), 0)
            blocks = [("c", who, i) for i in range(12)]
        else:
            who = int(rng.paretovariate(0.6)) % 2000
            blocks = [("d", who, i) for i in range(16)]
        out.put(number * 300, blocks + [("q", number)], 77)


def small(out, rng):
    rest = out.left // 2
    out.left -= rest
    agents(out, rng, 0.1)
    out.left = rest
    out.base = out.last
    rag(out, rng, 60)


SHAPES = {"rag": rag, "agents": agents, "loop": loop, "shift": shift, "small": small,
          "scans": lambda out, rng: agents(out, rng, 0.5)}

if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    SHAPES[sys.argv[1]](Writer(int(sys.argv[2])), random.Random(sys.argv[1]))
