"""Geometry: drawn figures whose answers follow from their parameters. A split has figures that no other one has."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

from examples.minibench.rows import SIDE, Row
from examples.minibench.splits import share

_FINE = 4  # figures are drawn so many times larger, then shrunk, which makes their edges smooth
_CELL = 16  # pixels of a square of the grid
_GRID = 7  # squares in each direction
_MARGIN = (SIDE - _GRID * _CELL) // 2
_UNIT = "The squares of the grid have sides of 1."
COLORS = {"red": (200, 30, 30), "blue": (30, 60, 200), "green": (20, 130, 50), "black": (20, 20, 20)}
_CORNERS = {"triangle": 3, "square": 4, "hexagon": 6}
_ANGLES = tuple(range(20, 165, 5))
_APART = 25  # degrees at least between the choices
_LENGTHS = tuple(range(30, 105, 5))

Figure = tuple[int, ...]


def generate(split: str, seed: int) -> Iterator[Row]:
    """A row of each kind in turn. See `rows.Generator`."""
    rng = random.Random(f"geometry {split} {seed}")
    while True:
        for kind, make in _KINDS.items():
            yield make(rng, rng.choice(figures(kind, split)))


@lru_cache
def figures(kind: str, split: str) -> list[Figure]:
    """The parameters of a split's figures of a kind, which the function of the kind describes."""
    keys = share((" ".join(map(str, figure)) for figure in _PARAMETERS[kind]), split)
    return [tuple(map(int, key.split())) for key in keys]


def _row(
    kind: str, figure: Figure, picture: Image.Image, question: str, answer: str, choices: Sequence[str] = ()
) -> Row:
    shrunk = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return Row(shrunk, kind, question, answer, (f"{kind} {figure}",), tuple(choices))


def _canvas(rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    canvas = Image.new("RGB", (_FINE * SIDE,) * 2, tuple(rng.randint(235, 255) for _ in range(3)))
    return canvas, ImageDraw.Draw(canvas)


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(_FINE * x, _FINE * y) for x, y in points]


def _polygon(corners: int, centre: tuple[float, float], radius: float, turn: float) -> list[tuple[float, float]]:
    angles = [turn + math.tau * at / corners for at in range(corners)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _count(rng: random.Random, figure: Figure) -> Row:
    """Figures: the shape asked for, how many there are, the other shape, how many of it, and the number of a layout."""
    asked, number, other, others, layout = figure
    canvas, draw = _canvas(rng)
    cells = random.Random(layout).sample([(x, y) for x in range(3) for y in range(3)], number + others)
    for at, (x, y) in enumerate(cells):
        centre = 22 + 42 * x + rng.uniform(-5, 5), 22 + 42 * y + rng.uniform(-5, 5)
        shape = asked if at < number else other
        outline = _polygon(shape, centre, rng.uniform(11, 15), rng.uniform(0, math.tau))
        draw.polygon(_scaled(outline), fill=rng.choice(list(COLORS.values())))
    name = {corners: shape for shape, corners in _CORNERS.items()}[asked]
    return _row("count", figure, canvas, f"How many {name}s are in the figure?", str(number))


def _compare(rng: random.Random, figure: Figure) -> Row:
    """Figures: the lengths of two segments in pixels, and their direction in degrees."""
    canvas, draw = _canvas(rng)
    names = rng.sample(list(COLORS), 2)
    *lengths, degrees = figure
    across = math.radians(degrees + 90)
    for name, length, shift in zip(names, lengths, (-14, 14), strict=True):
        middle = SIDE / 2 + shift * math.cos(across), SIDE / 2 + shift * math.sin(across)
        ends = _polygon(2, middle, length / 2, math.radians(degrees))
        draw.line(_scaled(ends), fill=COLORS[name], width=3 * _FINE)
    word, best = rng.choice([("longer", max), ("shorter", min)])
    answer = names[lengths.index(best(lengths))]
    return _row("compare", figure, canvas, f"Which segment is {word}?", answer, names)


def _angle(rng: random.Random, figure: Figure) -> Row:
    """Figures: the angle and the direction of its first side, in degrees."""
    degrees, first = figure
    canvas, draw = _canvas(rng)
    sides = [math.radians(first), math.radians(first + degrees)]
    middle = math.radians(first + degrees / 2)
    corner = SIDE / 2 - 22 * math.cos(middle), SIDE / 2 - 22 * math.sin(middle)
    for side in sides:
        end = corner[0] + 52 * math.cos(side), corner[1] + 52 * math.sin(side)
        draw.line(_scaled([corner, end]), fill=COLORS["black"], width=2 * _FINE)
    arc = [_FINE * each for each in (corner[0] - 14, corner[1] - 14, corner[0] + 14, corner[1] + 14)]
    draw.arc(arc, first, first + degrees, fill=COLORS["red"], width=2 * _FINE)
    choices = [degrees]
    for other in rng.sample(_ANGLES, len(_ANGLES)):
        if len(choices) < 4 and all(abs(other - choice) >= _APART for choice in choices):
            choices.append(other)
    return _row(
        "angle", figure, canvas, "How large is the angle?", f"{degrees}°", [f"{each}°" for each in sorted(choices)]
    )


def _grid(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    shade = rng.randint(170, 200)
    for at in range(_GRID + 1):
        place, far = _MARGIN + at * _CELL, _MARGIN + _GRID * _CELL
        draw.line(_scaled([(place, _MARGIN), (place, far)]), fill=(shade,) * 3, width=_FINE)
        draw.line(_scaled([(_MARGIN, place), (far, place)]), fill=(shade,) * 3, width=_FINE)


def _rectangle(rng: random.Random, figure: Figure) -> Image.Image:
    width, height, left, top = figure
    canvas, draw = _canvas(rng)
    _grid(draw, rng)
    ends = [(_MARGIN + _CELL * x, _MARGIN + _CELL * y) for x, y in ((left, top), (left + width, top + height))]
    draw.rectangle(sum(_scaled(ends), ()), fill=rng.choice(list(COLORS.values())))
    return canvas


def _area(rng: random.Random, figure: Figure) -> Row:
    """Figures: width, height, left and top of a rectangle, in squares of the grid."""
    return _row(
        "area",
        figure,
        _rectangle(rng, figure),
        f"{_UNIT} What is the area of the rectangle?",
        str(figure[0] * figure[1]),
    )


def _perimeter(rng: random.Random, figure: Figure) -> Row:
    """Figures as those of `_area`."""
    question = f"{_UNIT} What is the perimeter of the rectangle?"
    return _row("perimeter", figure, _rectangle(rng, figure), question, str(2 * (figure[0] + figure[1])))


_RECTANGLES = [
    (width, height, left, top)
    for width in range(1, 6)
    for height in range(1, 6)
    for left in range(_GRID + 1 - width)
    for top in range(_GRID + 1 - height)
]
_KINDS: dict[str, Callable[[random.Random, Figure], Row]] = {
    "count": _count,
    "compare": _compare,
    "angle": _angle,
    "area": _area,
    "perimeter": _perimeter,
}
_PARAMETERS: dict[str, Sequence[Figure]] = {
    "count": [
        (asked, number, other, others, layout)
        for asked in _CORNERS.values()
        for number in range(1, 6)
        for other in _CORNERS.values()
        if other != asked
        for others in range(4)
        for layout in range(10)
    ],
    "compare": [
        (first, second, degrees)
        for first in _LENGTHS
        for second in _LENGTHS
        if abs(first - second) >= 10
        for degrees in range(0, 180, 15)
    ],
    "angle": [(degrees, first) for degrees in _ANGLES for first in range(0, 360, 15)],
    "area": _RECTANGLES,
    "perimeter": _RECTANGLES,
}
