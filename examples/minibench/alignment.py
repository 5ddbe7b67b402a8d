"""The second stage of a base: projector and language model learn to look, by short queries about what is drawn.

This stands for the alignment of larger models by captions. A picture has many queries of a few words each (what is at a
point, where something is, how many of it there are), which teach to look at a picture much faster than questions do.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.minibench.material import STEP, box_text
from examples.minibench.rows import SIDE, Region
from examples.minibench.turns import Conversation

WORDS = ("at", "where", "count")  # that a query begins with
_POINTS = 2  # that are asked about for each region
_ABSENT = 2  # labels that a picture has not, whose number is asked for


def queries(pictures: Sequence[Sequence[Region]], seed: int) -> list[Conversation]:
    """One conversation for each picture, with all queries about it."""
    rng = random.Random(f"queries {seed}")
    labels = sorted({region.label for regions in pictures for region in regions})
    return [Conversation(at, _about(regions, labels, rng)) for at, regions in enumerate(pictures)]


def _about(regions: Sequence[Region], labels: Sequence[str], rng: random.Random) -> list[tuple[str, str]]:
    shown = [region.label for region in regions]
    turns = []
    for region in regions:
        left, top, right, bottom = region.box
        inside = [
            (rng.randrange(left, max(left + 1, right)), rng.randrange(top, max(top + 1, bottom)))
            for _ in range(_POINTS)
        ]
        for x, y in rng.sample(region.points, _POINTS) if len(region.points) > _POINTS else region.points or inside:
            turns.append((f"at [{_step(x)}, {_step(y)}]", region.label))
        if shown.count(region.label) == 1:
            turns.append((f"where {region.label}", box_text(region.box)))
    absent = [label for label in labels if label not in shown]
    for label in [*dict.fromkeys(shown), *rng.sample(absent, min(_ABSENT, len(absent)))]:
        turns.append((f"count {label}", str(shown.count(label))))
    return turns


def _step(pixels: int) -> str:
    return f"{STEP * round(pixels / SIDE / STEP):.2f}"
