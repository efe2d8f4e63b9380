#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the table of codec/lloyd.c: the levels of the quantizers of a standard normal number with
the least squared error (Lloyd, 1957; Max, 1960), the positive half of each, and that error.

Lloyd's iteration: each level is the mean of the numbers that are nearer to it than to the others,
until nothing moves. The levels lie symmetrically about 0. Needs nothing but Python."""
import math


def density(x):
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def share(low, high):
    """Of the numbers between low and high; both are at least 0."""
    return (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2))) / 2


def bounds_of(levels, odd):
    """Of the positive levels' cells; the cell of level 0 is not among them."""
    first = levels[0] / 2 if odd else 0.0
    between = [(a + b) / 2 for a, b in zip(levels, levels[1:])]
    return [first] + between + [math.inf]


def lloyd_max(count):
    odd = count % 2 == 1
    levels = [(i + (1.0 if odd else 0.5)) * 4 / count for i in range(count // 2)]
    while True:
        bounds = bounds_of(levels, odd)
        moved = [(density(a) - density(b)) / share(a, b) for a, b in zip(bounds, bounds[1:])]
        if max(abs(a - b) for a, b in zip(levels, moved)) < 1e-15:
            return moved
        levels = moved


def squared_error(levels, odd):
    bounds = bounds_of(levels, odd)
    kept = sum(level * level * share(a, b) for level, a, b in zip(levels, bounds, bounds[1:]))
    return 1 - 2 * kept


for count in range(2, 17):
    half = lloyd_max(count)
    numbers = ", ".join(f"{level:.9f}f" for level in half)
    print(f"    [{count}] = {{{numbers}}}, /* {squared_error(half, count % 2 == 1):.6f} */")
