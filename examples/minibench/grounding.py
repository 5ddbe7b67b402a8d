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
_LARGER = 1.4  # factor between the areas of two things, of which an expression says that one is larger


def generate(split: str, seed: int) -> Iterator[Row]:
    """All expressions that fit exactly one thing of a picture. See `rows.Generator`."""
    rng = random.Random(f"grounding {split} {seed}")
    pictures = named(split)
    while True:
        canvas = background(rng)
        first, *others = rng.sample(NAMES, 3)
        names = [first, rng.choice([first, others[0]]), *others[1 : rng.randint(1, 2)]]
        rng.shuffle(names)
        things = paste(rng, canvas, [(name, rng.choice(pictures[name])) for name in names])
        yield from _expressions(canvas, things)


def _expressions(canvas: Image.Image, things: list[Thing]) -> Iterator[Row]:
    contents = tuple(sorted({thing.key for thing in things}))
    regions = tuple(thing.region for thing in things)
    counts = Counter(thing.name for thing in things)

    def row(kind: str, phrase: str, thing: Thing) -> Row:
        return Row(canvas, kind, phrase, str(thing.box), contents, regions, box=thing.box)

    for thing in things:
        if counts[thing.name] == 1:
            yield row("name", f"the {thing.name}", thing)
    twins = [thing for thing in things if counts[thing.name] == 2]
    if twins:
        for one, other in (twins, twins[::-1]):
            if side := side_of(one, other):
                yield row("side", f"the {_SIDES[side]} {one.name}", one)
    by_area = sorted(things, key=lambda thing: thing.area)
    if len(things) > 1 and by_area[-1].area > _LARGER * by_area[-2].area:
        yield row("size", "the largest thing", by_area[-1])
    if len(things) > 1 and by_area[1].area > _LARGER * by_area[0].area:
        yield row("size", "the smallest thing", by_area[0])
