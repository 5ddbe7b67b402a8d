"""Pictures pasted on a background, which the questions of VQA and grounding are about."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.minibench.pictures import picture
from examples.minibench.rows import SIDE, Box, Region

SMALLEST, LARGEST = 34, 60  # pixels of the longer side of a pasted picture
_GAP = 4  # pixels at least between two pictures


@dataclass(frozen=True)
class Thing:
    """A pasted picture and the box of what is visible of it."""

    name: str
    key: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    @property
    def region(self) -> Region:
        return Region(self.name, self.box)

    @property
    def area(self) -> int:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def background(rng: random.Random, light: tuple[int, int] = (150, 255)) -> Image.Image:
    """A colour that runs into another one, with specks. light: the range of the three channels."""
    corners = np.array([[rng.randint(*light) for _ in range(3)] for _ in range(2)], dtype=float)
    along = np.linspace(0, 1, SIDE)[:, None]
    ramp = corners[0] * (1 - along) + corners[1] * along
    pixels = np.broadcast_to(ramp[:, None, :] if rng.random() < 0.5 else ramp[None, :, :], (SIDE, SIDE, 3))
    noise = np.random.default_rng(rng.getrandbits(32))
    specks = noise.choice([-12, 0, 12], (SIDE, SIDE, 1), p=[0.03, 0.94, 0.03])
    return Image.fromarray((pixels + specks).clip(0, 255).astype(np.uint8))


def paste(rng: random.Random, canvas: Image.Image, keys: list[tuple[str, str]]) -> list[Thing]:
    """Paste pictures, given as name and key, side by side at random places and sizes; some are mirrored.

    Fewer than asked for come back if no place was found for one.
    """
    things: list[Thing] = []
    for name, key in keys:
        shape = picture(key)
        scale = rng.randint(SMALLEST, LARGEST) / max(shape.size)
        shape = shape.resize([max(1, round(scale * length)) for length in shape.size], Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            shape = shape.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        place = _place(rng, shape.size, things)
        if place is not None:
            canvas.paste(shape, place, shape)
            things.append(Thing(name, key, (*place, place[0] + shape.width, place[1] + shape.height)))
    return things


def _place(rng: random.Random, size: tuple[int, int], things: list[Thing]) -> tuple[int, int] | None:
    for _ in range(50):
        left, top = (rng.randint(0, SIDE - length) for length in size)
        right, bottom = left + size[0], top + size[1]
        if all(
            right + _GAP <= other.box[0] or other.box[2] + _GAP <= left
            or bottom + _GAP <= other.box[1] or other.box[3] + _GAP <= top
            for other in things
        ):  # fmt: skip
            return left, top
    return None


def side_of(first: Thing, second: Thing) -> str | None:
    """Where `first` is, seen from `second`: left, right, above or below; None if that would be open to doubt."""
    across, down = (a - b for a, b in zip(first.centre, second.centre, strict=True))
    if max(abs(across), abs(down)) < 2 * min(abs(across), abs(down)):
        return None
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"
