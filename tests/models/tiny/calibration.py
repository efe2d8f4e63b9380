# SPDX-License-Identifier: Apache-2.0
"""Writes calibration.txt, what `larder calibrate` reads: 64 KiB like the text that the model was
trained on and from its training part alone, never from what is held out. A quarter each is
scripture, word glosses, documentation, and facts with questions about them."""
import random
from pathlib import Path

import texts
from questions import make_sample

PART_BYTES = 16 * 1024
PIECE_BYTES = 2048  # one after another from the sources, so that every window sees several
SEED = 23


def natural(rng, data):
    """Lines from places all over a source."""
    pieces = []
    for _ in range(PART_BYTES // PIECE_BYTES):
        at = rng.randrange(len(data) - 2 * PIECE_BYTES)
        at = data.index(b"\n", at) + 1
        pieces.append(data[at:at + PIECE_BYTES])
    return pieces


def questions(rng):
    """Facts about two to six people, and all questions about them."""
    pieces = []
    for number in range(PART_BYTES // PIECE_BYTES):
        piece = b""
        while len(piece) < PIECE_BYTES:
            sample = make_sample(rng, 2 + number % 5, cloze=True)
            asked = "".join(q.prompt + q.answer for q in sample.questions)
            piece += ("".join(sample.chunks) + asked).encode()
        pieces.append(piece[:PIECE_BYTES])
    return pieces


if __name__ == "__main__":
    generator = random.Random(SEED)
    parts = [natural(generator, train) for train, _ in texts.sources().values()]
    parts.append(questions(generator))
    text = b"".join(piece for pieces in zip(*parts) for piece in pieces)
    Path(__file__).with_name("calibration.txt").write_bytes(text)
