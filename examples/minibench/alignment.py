"""The second stage of a base: projector and language model learn to look, by short queries about what is drawn.

This stands for the alignment of larger models by captions. A picture has many queries of a few words each, which teach
to look at pictures faster than questions do:

    at [0.20, 0.35]    what is at a point, across and down: the label of the region
    where bird         the box of the only region with that label
    count bird         how many regions have that label
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples.minibench.material import box_text, coordinate
from examples.minibench.rows import Region
from examples.minibench.turns import Conversation

_POINTS = 2  # points of each region that are asked about; a region with a single point has one
_ABSENT = 2  # labels of regions that a picture does not have and that are counted all the same


def queries(pictures: Sequence[Sequence[Region]], seed: int) -> list[Conversation]:
    """One conversation for each picture, with all queries about it. pictures: their regions.

    Labels that a picture does not have are drawn from those of all `pictures`.
    """
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
            turns.append((f"at [{coordinate(x)}, {coordinate(y)}]", region.label))
        if shown.count(region.label) == 1:
            turns.append((f"where {region.label}", box_text(region.box)))
    absent = [label for label in labels if label not in shown]
    for label in [*dict.fromkeys(shown), *rng.sample(absent, min(_ABSENT, len(absent)))]:
        turns.append((f"count {label}", str(shown.count(label))))
    return turns
