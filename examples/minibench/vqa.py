"""VQA: what is in a picture, whether something is, how many, and where."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from PIL import Image

from examples.minibench.pictures import NAMES, named
from examples.minibench.rows import Row
from examples.minibench.scenes import Thing, background, paste, side_of

MOST = 4  # things in a picture
_PLURALS = {name: name if name == "fish" else f"{name}s" for name in NAMES}
_PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def generate(split: str, seed: int) -> Iterator[Row]:
    """What and where if they have one answer, the count of each name, and of two names whether there is such a thing.

    See `rows.Generator`.
    """
    rng = random.Random(f"vqa {split} {seed}")
    pictures = named(split)
    while True:
        canvas = background(rng)
        first, other = rng.sample(NAMES, 2)
        names = [first] * rng.choice((1, 1, 2, 2, 3, 4))
        if len(names) < MOST and rng.random() < 0.6:
            names.append(other)
        rng.shuffle(names)
        things = paste(rng, canvas, [(name, rng.choice(pictures[name])) for name in names])
        yield from _questions(rng, canvas, things)


def _questions(rng: random.Random, canvas: Image.Image, things: list[Thing]) -> Iterator[Row]:
    contents = tuple(sorted({thing.key for thing in things}))
    regions = tuple(thing.region for thing in things)
    counts = Counter(thing.name for thing in things)

    def row(kind: str, question: str, answer: str) -> Row:
        return Row(canvas, kind, question, answer, contents, regions)

    if len(counts) == 1:
        (name,) = counts
        yield row("what", "What is in the picture?", name)
    for name in sorted(counts):
        yield row("count", f"How many {_PLURALS[name]} are there?", str(counts[name]))
    absent = [name for name in NAMES if name not in counts]
    for asked, answer in ((rng.choice(sorted(counts)), "yes"), (rng.choice(absent), "no")):
        yield row("exists", f"Is there a {asked} in the picture?", answer)
    if len(things) == 2 and len(counts) == 2:
        for one, other in (things, things[::-1]):
            if side := side_of(one, other):
                yield row("where", f"What is {_PHRASES[side]} the {other.name}?", one.name)
