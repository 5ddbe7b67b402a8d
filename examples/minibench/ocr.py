"""OCR: short words and numbers in many fonts, and handwritten digits.

The words are those of three or four letters in the names of the airports and towns in `vega-datasets` (United States
government data). The handwriting is the digits of scikit-learn (UCI, CC BY 4.0), of 8 x 8 pixels each.
"""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator
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
_WIDEST, _HIGHEST = 116, 44  # pixels of a line


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
    regions = _write(rng, canvas, text.upper(), family, rng.randint(24, SIDE - 24))
    yield Row(canvas, kind, question, text, (f"{kind} {text}", f"font {family}"), regions)


def _two(rng: random.Random, split: str) -> Iterator[Row]:
    canvas, family = background(rng), rng.choice(families(split))
    pair = rng.sample(words(split), 2)
    regions: tuple[Region, ...] = ()
    for text, middle in zip(pair, (32, 96), strict=True):
        regions += _write(rng, canvas, text.upper(), family, middle + rng.randint(-6, 6))
    contents = (*(f"word {text}" for text in pair), f"font {family}")
    for text, place in zip(pair, ("upper", "lower"), strict=True):
        yield Row(canvas, "line", f"What is the {place} word?", text, contents, regions)


def _write(rng: random.Random, canvas: Image.Image, text: str, family: str, middle: int) -> tuple[Region, ...]:
    """Write a line around the height `middle`, as large as it fits or somewhat smaller, dark and slightly turned.

    Returns where its characters are before the line is turned; all have its height.
    """
    size = _largest(text, family)
    shape = font(family, rng.randint(max(18, round(0.8 * size)), max(18, size)))
    left, top, right, bottom = (round(edge) for edge in shape.getbbox(text))
    line = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(line).text((-left, -top), text, fill=255, font=shape)
    across, down = rng.randint(0, max(0, SIDE - line.width)), middle - line.height // 2
    ink = Image.new("L", canvas.size)
    ink.paste(line, (across, down))
    ink = ink.rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC, center=(across + line.width / 2, middle))
    canvas.paste(tuple(rng.randint(0, 90) for _ in range(3)), (0, 0), ink)
    ends = [across + round(shape.getlength(text[:at])) - left for at in range(len(text) + 1)]
    return tuple(Region(letter, (ends[at], down, ends[at + 1], down + line.height)) for at, letter in enumerate(text))


@cache
def _largest(text: str, family: str) -> int:
    left, top, right, bottom = font(family, 40).getbbox(text)
    return int(40 * min(_WIDEST / (right - left), _HIGHEST / (bottom - top)))


def _handwriting(rng: random.Random, split: str) -> Row:
    canvas = background(rng)
    places = rng.choices(digits(split), k=rng.randint(1, 3))
    images, numbers_shown = handwritten()
    height = rng.randint(34, 40)
    left = rng.randint(2, SIDE - 2 - height * len(places))
    top = rng.randint(2, SIDE - 2 - height)
    regions = []
    for at, place in enumerate(places):
        ink = Image.fromarray((images[place] * (255 / 16)).astype(np.uint8)).resize((height, height))
        canvas.paste((20, 20, 60), (left + at * height, top), ink)
        box = (left + at * height, top, left + (at + 1) * height, top + height)
        regions.append(Region(str(numbers_shown[place]), box))
    written = "".join(str(numbers_shown[place]) for place in places)
    contents = tuple(f"digit {place}" for place in sorted(set(places)))
    question = "What number is written by hand?"
    return Row(canvas, "handwriting", question, written, contents, tuple(regions))


@lru_cache(maxsize=1)
def handwritten() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits as images of 8 x 8 in 0 to 16, and what they are."""
    data = load_digits()
    return data.images, data.target
