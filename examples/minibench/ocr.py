"""OCR: short words and numbers in many fonts, and handwritten digits, one character beside the other as on tiles.

The words are those of three or four letters in the names of the airports and towns in `vega-datasets` (United States
government data). The handwriting is the digits of scikit-learn (UCI, CC BY 4.0), of 8 x 8 pixels each.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from examples.minibench.fonts import families, font
from examples.minibench.rows import SIDE, Region, Row
from examples.minibench.scenes import background
from examples.minibench.splits import share

_SHORTEST, _LONGEST = 3, 4  # letters of a word
_CELL = 32  # pixels of the square that a character is in
_CELLS = SIDE // _CELL  # in a line, and lines in a picture
_ROOM = 29  # pixels of a character at most, in both directions
_SMALLEST = 0.8  # of the size at which the characters of a line fill their squares


def generate(split: str, seed: int) -> Iterator[Row]:
    """A picture of each kind in turn; there are two questions about a picture with two words. See `rows.Generator`."""
    rng = random.Random(f"ocr {split} {seed}")
    while True:
        yield from _one(rng, split, "word", rng.choice(words(split)), "What is written in the picture?")
        yield from _one(rng, split, "number", rng.choice(numbers(split)), "What number is written in the picture?")
        yield from _two(rng, split)
        yield _handwriting(rng, split)


@lru_cache
def words(split: str) -> list[str]:
    """The short words of a split in the names of airports and towns, in lower case."""
    with (files("vega_datasets") / "_data/airports.csv").open(encoding="utf-8") as file:
        names = " ".join(f"{row['city']} {row['name']}" for row in csv.DictReader(file))
    return share(re.findall(rf"\b[a-z]{{{_SHORTEST},{_LONGEST}}}\b", names.lower()), split)


@lru_cache
def numbers(split: str) -> list[str]:
    """The numbers of a split, of two or three digits."""
    return share(map(str, range(10, 1000)), split)


@lru_cache
def digits(split: str) -> list[int]:
    """The places in scikit-learn's set of the handwritten digits of a split."""
    return [int(key) for key in share(map(str, range(len(handwritten()[1]))), split)]


def _one(rng: random.Random, split: str, kind: str, text: str, question: str) -> Iterator[Row]:
    canvas, family = background(rng), rng.choice(families(split))
    regions = _write(rng, canvas, text.upper(), family, rng.randrange(_CELLS))
    yield Row(canvas, kind, question, text, (f"{kind} {text}", f"font {family}"), regions)


def _two(rng: random.Random, split: str) -> Iterator[Row]:
    canvas, family = background(rng), rng.choice(families(split))
    pair = rng.sample(words(split), 2)
    lines = sorted(rng.sample(range(_CELLS), 2))
    regions: tuple[Region, ...] = ()
    for text, line in zip(pair, lines, strict=True):
        regions += _write(rng, canvas, text.upper(), family, line)
    contents = (*(f"word {text}" for text in pair), f"font {family}")
    for text, place in zip(pair, ("upper", "lower"), strict=True):
        yield Row(canvas, "line", f"What is the {place} word?", text, contents, regions)


def _write(rng: random.Random, canvas: Image.Image, text: str, family: str, line: int) -> tuple[Region, ...]:
    """Write a text in one of the lines, dark, each character a little turned. Returns where its characters are."""
    shape = font(family, round(rng.uniform(_SMALLEST, 1) * _largest(text, family)))
    glyphs = []
    for letter in text:
        left, top, right, bottom = (round(edge) for edge in shape.getbbox(letter))
        glyph = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(glyph).text((-left, -top), letter, fill=255, font=shape)
        glyphs.append(glyph.rotate(rng.uniform(-6, 6), Image.Resampling.BICUBIC, expand=True))
    color = tuple(rng.randint(0, 90) for _ in range(3))
    return _paste(rng, canvas, list(zip(text, glyphs, strict=True)), line, color)


def _paste(
    rng: random.Random,
    canvas: Image.Image,
    glyphs: Sequence[tuple[str, Image.Image]],
    line: int,
    color: tuple[int, ...],
) -> tuple[Region, ...]:
    """Paste characters, given with their ink from 0 to 255, near the middles of neighbouring squares of a line."""
    first = rng.randint(0, _CELLS - len(glyphs))
    regions = []
    for at, (letter, ink) in enumerate(glyphs, first):
        left = _CELL * at + (_CELL - ink.width) // 2 + rng.randint(-2, 2)
        top = _CELL * line + (_CELL - ink.height) // 2 + rng.randint(-3, 3)
        canvas.paste(color, (left, top), ink)
        box = max(0, left), max(0, top), min(SIDE, left + ink.width), min(SIDE, top + ink.height)
        regions.append(Region(letter, box))
    return tuple(regions)


@cache
def _largest(text: str, family: str) -> int:
    """The size in pixels of a font at which no character of a text is larger than its room."""
    boxes = [font(family, 40).getbbox(letter) for letter in text]
    return int(40 * _ROOM / max(max(right - left, bottom - top) for left, top, right, bottom in boxes))


def _handwriting(rng: random.Random, split: str) -> Row:
    canvas = background(rng)
    places = rng.choices(digits(split), k=rng.randint(1, 3))
    images, shown = handwritten()
    side = rng.randint(26, 32)
    glyphs = []
    for place in places:
        ink = Image.fromarray((images[place] * (255 / 16)).astype(np.uint8)).resize((side, side))
        glyphs.append((str(shown[place]), ink))
    regions = _paste(rng, canvas, glyphs, rng.randrange(_CELLS), (20, 20, 60))
    contents = tuple(f"digit {place}" for place in sorted(set(places)))
    written = "".join(letter for letter, _ in glyphs)
    return Row(canvas, "handwriting", "What number is written by hand?", written, contents, regions)


@lru_cache(maxsize=1)
def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits as images of 8 x 8 in 0 to 16, and what they are."""
    data = load_digits()
    return data.images, data.target
