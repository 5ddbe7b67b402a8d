"""Geometry: drawn figures whose answers follow from their parameters. A split has figures that no other one has."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

from examples.minibench.rows import SIDE, Box, Region, Row
from examples.minibench.splits import share

_FINE = 4  # figures are drawn so many times larger, then shrunk, which makes their edges smooth
_CELL = 16  # pixels of a square of the grid
_GRID = 7  # squares in each direction
_MARGIN = (SIDE - _GRID * _CELL) // 2
_UNIT = "The squares of the grid have sides of 1."
COLORS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (20, 130, 50), "black": (20, 20, 20)}
_CORNERS = {"triangle": 3, "square": 4, "circle": 48}  # a circle is drawn as a polygon
ANGLES = ("acute", "right", "obtuse")
_LENGTHS = tuple(range(30, 105, 5))
_THICK, _THIN = 4, 2  # pixels of the segments and of the sides of an angle

Figure = tuple[int, ...]


def generate(split: str, seed: int) -> Iterator[Row]:
    """A figure of each kind in turn, with all questions about it. See `rows.Generator`."""
    rng = random.Random(f"geometry {split} {seed}")
    while True:
        for kind, make in _MAKE.items():
            yield from make(rng, rng.choice(figures(kind, split)))


@lru_cache
def figures(kind: str, split: str) -> list[Figure]:
    """The parameters of a split's figures of a kind, which the function of the kind describes."""
    keys = share((" ".join(map(str, figure)) for figure in _PARAMETERS[kind]), split)
    return [tuple(map(int, key.split())) for key in keys]


def _shown(picture: Image.Image) -> Image.Image:
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (_FINE * SIDE,) * 2, tuple(rng.randint(235, 255) for _ in range(3)))
    return canvas, ImageDraw.Draw(canvas)


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(_FINE * x, _FINE * y) for x, y in points]


def _polygon(corners: int, centre: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + math.tau * at / corners for at in range(corners)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _around(points: Sequence[tuple[float, float]], width: int = 0) -> Box:
    """The box around points, or around lines of a width between them."""
    across, down = zip(*points, strict=True)
    edges = min(across) - width / 2, min(down) - width / 2, max(across) + width / 2, max(down) + width / 2
    left, top, right, bottom = map(round, edges)
    return left, top, right, bottom


def _count(rng: random.Random, figure: Figure) -> Iterator[Row]:
    """Figures: one shape, how many there are, another shape, how many of it, and the number of a layout."""
    canvas, draw = _canvas(rng)
    names = {corners: shape for shape, corners in _CORNERS.items()}
    shape, number, other, others, layout = figure
    cells = random.Random(layout).sample([(x, y) for x in range(3) for y in range(3)], number + others)
    regions = []
    for at, (x, y) in enumerate(cells):
        centre = 22 + 42 * x + rng.uniform(-3, 3), 22 + 42 * y + rng.uniform(-3, 3)
        corners = shape if at < number else other
        outline = _polygon(corners, centre, rng.uniform(14, 18), rng.uniform(0, math.tau))
        draw.polygon(_scaled(outline), fill=rng.choice(list(COLORS.values())))
        regions.append(Region(names[corners], _around(outline)))
    picture, contents = _shown(canvas), (f"count {figure}",)
    for corners, answer in ((shape, number), (other, others)):
        question = f"How many {names[corners]}s are in the figure?"
        yield Row(picture, "count", question, str(answer), contents, tuple(regions))


def _compare(rng: random.Random, figure: Figure) -> Iterator[Row]:
    """Figures: the lengths of two segments in pixels, and their direction in degrees."""
    canvas, draw = _canvas(rng)
    names = rng.sample(list(COLORS), 2)
    *lengths, degrees = figure
    across = math.radians(degrees + 90)
    regions = []
    for name, length, shift in zip(names, lengths, (-18, 18), strict=True):
        middle = SIDE / 2 + shift * math.cos(across), SIDE / 2 + shift * math.sin(across)
        ends = _polygon(2, middle, length / 2, math.radians(degrees))
        draw.line(_scaled(ends), fill=COLORS[name], width=_THICK * _FINE)
        regions.append(Region(f"{name} segment", _around(ends, _THICK), _between(*ends)))
    picture, contents = _shown(canvas), (f"compare {figure}",)
    for word, best in (("longer", max), ("shorter", min)):
        answer = names[lengths.index(best(lengths))]
        question = f"Which segment is {word}?"
        yield Row(picture, "compare", question, answer, contents, tuple(regions), tuple(sorted(names)))


def _between(one: tuple[float, float], other: tuple[float, float]) -> tuple[tuple[int, int], ...]:
    """Points on a segment, as pixels across and down."""
    parts = (at / 12 for at in range(13))
    return tuple(
        (round(one[0] + part * (other[0] - one[0])), round(one[1] + part * (other[1] - one[1]))) for part in parts
    )


def _angle(rng: random.Random, figure: Figure) -> Iterator[Row]:
    """Figures: the angle and the direction of its first side, in degrees."""
    degrees, first = figure
    canvas, draw = _canvas(rng)
    sides = [math.radians(first), math.radians(first + degrees)]
    middle = math.radians(first + degrees / 2)
    corner = SIDE / 2 - 22 * math.cos(middle), SIDE / 2 - 22 * math.sin(middle)
    points: tuple[tuple[int, int], ...] = ()
    for side in sides:
        end = corner[0] + 52 * math.cos(side), corner[1] + 52 * math.sin(side)
        draw.line(_scaled([corner, end]), fill=COLORS["black"], width=_THIN * _FINE)
        points += _between(corner, end)
    arc = [_FINE * each for each in (corner[0] - 14, corner[1] - 14, corner[0] + 14, corner[1] + 14)]
    draw.arc(arc, first, first + degrees, fill=COLORS["red"], width=2 * _FINE)
    answer = ANGLES[(degrees >= 90) + (degrees > 90)]
    region = Region(f"{answer} angle", _around(points, _THIN), points)
    yield Row(_shown(canvas), "angle", "What kind of angle is it?", answer, (f"angle {figure}",), (region,), ANGLES)


def _grid(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    shade = rng.randint(170, 200)
    for at in range(_GRID + 1):
        place, far = _MARGIN + at * _CELL, _MARGIN + _GRID * _CELL
        draw.line(_scaled([(place, _MARGIN), (place, far)]), fill=(shade,) * 3, width=_FINE)
        draw.line(_scaled([(_MARGIN, place), (far, place)]), fill=(shade,) * 3, width=_FINE)


def _rectangle(rng: random.Random, figure: Figure) -> Iterator[Row]:
    """Figures: width, height, left and top of a rectangle, in squares of the grid."""
    width, height, left, top = figure
    canvas, draw = _canvas(rng)
    _grid(draw, rng)
    ends = [(_MARGIN + _CELL * x, _MARGIN + _CELL * y) for x, y in ((left, top), (left + width, top + height))]
    draw.rectangle(sum(_scaled(ends), ()), fill=rng.choice(list(COLORS.values())))
    picture, regions = _shown(canvas), (Region("rectangle", _around(ends)),)
    for kind, answer in (("area", width * height), ("perimeter", 2 * (width + height))):
        question = f"{_UNIT} What is the {kind} of the rectangle?"
        yield Row(picture, kind, question, str(answer), (f"rectangle {figure}",), regions)


_RECTANGLES = [
    (width, height, left, top)
    for width in range(1, 6)
    for height in range(1, 6)
    for left in range(_GRID + 1 - width)
    for top in range(_GRID + 1 - height)
]
_MAKE: dict[str, Callable[[random.Random, Figure], Iterator[Row]]] = {
    "count": _count,
    "compare": _compare,
    "angle": _angle,
    "rectangle": _rectangle,
}
_PARAMETERS: dict[str, Sequence[Figure]] = {
    "count": [
        (shape, number, other, others, layout)
        for shape in _CORNERS.values()
        for number in range(1, 5)
        for other in _CORNERS.values()
        if other != shape
        for others in range(4)
        for layout in range(10)
    ],
    "compare": [
        (first, second, degrees)
        for first in _LENGTHS
        for second in _LENGTHS
        if abs(first - second) >= 30
        for degrees in range(0, 180, 15)
    ],
    "angle": [
        *((degrees, first) for degrees in range(25, 75, 5) for first in range(0, 360, 10)),
        *((90, first) for first in range(360)),
        *((degrees, first) for degrees in range(110, 160, 5) for first in range(0, 360, 10)),
    ],
    "rectangle": _RECTANGLES,
}
