"""Where a tensor is in its model: the layer, and the part of a layer, both read off its name.

No family is known here: a stack of layers is what has numbers in its names, a part is what all layers have.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Place(NamedTuple):
    """stack: the path of the list of layers, empty outside of it. part: the name without stack, layer and `.weight`."""

    stack: str
    layer: int | None
    part: str


def place_of(name: str) -> Place:
    """The place of a tensor by its name in memory: `model.layers.7.mlp.up_proj.weight` is `mlp.up_proj` of layer 7.

    A module in a mere list, such as `projector.2.weight`, is no layer, as it has no parts. Experts of a mixture that
    are stored one by one are one part, `mlp.experts.*.up_proj`.
    """
    found = re.match(r"(.+?)\.(\d+)\.(.+\..+)$", name)
    if found is None:
        return Place("", None, _part(name))
    return Place(found[1], int(found[2]), _part(found[3]))


def _part(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removesuffix(".weight"))
