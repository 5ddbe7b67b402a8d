"""What the generators of all capabilities make: questions about pictures, with exact answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import Image

SIDE = 128  # pixels of every picture, in both directions
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the right and the lower edge are outside


@dataclass(frozen=True)
class Region:
    """Something that is drawn in a picture, for the tower and the alignment to learn from. box: around it.

    Boxes of lines are those of their middle, without their width, and those of letters are not turned with the text.
    points: places on it, as pixels across and down, if it fills little of its box; without points, all of its box is
    taken to show it.
    """

    label: str
    box: Box
    points: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Row:
    """A question about a picture. Questions about the same picture share the object."""

    picture: Image.Image
    kind: str  # of question, within the capability
    question: str  # for grounding, the referring expression
    answer: str
    contents: tuple[str, ...]  # what the picture is made of that no other split has
    regions: tuple[Region, ...]  # what is drawn where
    choices: tuple[str, ...] = ()  # one of them is the answer; empty for a free answer
    box: Box | None = None  # the answer to a referring expression


# A generator yields rows of one split for ever; the same split and seed give the same rows.
Generator = Callable[[str, int], Iterator[Row]]


def png(picture: Image.Image) -> bytes:
    """The picture as a file: the same bytes for the same pixels."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()
