"""Grounding: the box of the picture that an expression refers to."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from PIL import Image

from examples.minibench.pictures import NAMES, named
from examples.minibench.rows import Row
from examples.minibench.scenes import Thing, background, paste, side_of

_SIDES = {"left": "left", "right": "right", "above": "upper", "below": "lower"}


def generate(split: str, seed: int) -> Iterator[Row]:
    """One row for each expression that fits exactly one thing of a picture. See `rows.Generator`."""
    rng = random.Random(f"grounding {split} {seed}")
    pictures = named(split)
    while True:
        canvas = background(rng)
        first, *others = rng.sample(NAMES, 3)
        names = [first, rng.choice([first, others[0]]), *others[1 : rng.randint(1, 2)]]
        rng.shuffle(names)
        things = paste(rng, canvas, [(name, rng.choice(pictures[name])) for name in names])
        yield from _expressions(rng, canvas, things)


def _expressions(rng: random.Random, canvas: Image.Image, things: list[Thing]) -> Iterator[Row]:
    contents = tuple(sorted({thing.key for thing in things}))
    counts = Counter(thing.name for thing in things)

    def row(kind: str, phrase: str, thing: Thing) -> Row:
        return Row(canvas, kind, phrase, str(thing.box), contents, box=thing.box)

    single = [thing for thing in things if counts[thing.name] == 1]
    if single:
        thing = rng.choice(single)
        yield row("name", f"the {thing.name}", thing)
    twins = [thing for thing in things if counts[thing.name] == 2]
    if twins and (side := side_of(*twins)):
        yield row("side", f"the {_SIDES[side]} {twins[0].name}", twins[0])
    by_area = sorted(things, key=lambda thing: thing.area)
    if len(things) > 1 and by_area[-1].area > 1.5 * by_area[-2].area:
        yield row("size", "the largest thing", by_area[-1])
    if len(things) > 1 and by_area[1].area > 1.5 * by_area[0].area:
        yield row("size", "the smallest thing", by_area[0])
