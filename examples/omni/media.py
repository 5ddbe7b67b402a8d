"""The media of this example, by split: easy-VQA images, synthesised tones, short videos of a moving disc or square.

`pools(split)` returns the media with their facts. `payload(medium, split)` makes a medium itself: a PIL image, samples
(16 000,) at 16 kHz, or frames (4, 32, 32, 3) of uint8, always the same for one medium. Nothing is trained on validation
or test media, nor on those of the split `unasked`, about which this example asks no questions: they are for a test
after the example's own has been looked at.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

import numpy as np

from examples.easy_vqa import data
from examples.omni.facts import ATTRIBUTES, COLORS, PLACES, Medium
from examples.omni.pixels import facts_in

COUNTS = {"train": 4000, "validation": 400, "test": 1000, "unasked": 1000}  # synthesised sounds and videos
RATE = 16_000
PITCHES = {"low": (200, 350), "medium": (700, 1100), "high": (2000, 3200)}  # Hz
VOLUMES = {"soft": (0.02, 0.06), "loud": (0.4, 0.9)}  # amplitude
SLOT = 0.3  # seconds from one beep to the next; a beep takes half to two thirds of it
FRAMES, SIDE = 4, 32
RGB = {"blue": (0, 0, 255), "green": (0, 128, 0), "red": (255, 0, 0), "yellow": (255, 255, 0)}  # as in easy-VQA
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@lru_cache
def pools(split: str) -> dict[str, list[Medium]]:
    """All media of a split, by modality."""
    rng = random.Random(f"omni {split}")
    return {
        "image": _images(split),
        "audio": [_sound(rng) for _ in range(COUNTS[split])],
        "video": [_video(rng) for _ in range(COUNTS[split])],
    }


def payload(medium: Medium, split: str) -> Any:
    """The medium itself, in the form in which its donor's processor takes it."""
    if medium.modality == "image":
        return data.image(_easy_vqa_split(split), medium.source)
    return waveform(*medium.source) if medium.modality == "audio" else frames(*medium.source)


# ------------------------------------------------------------------------------------------------------------ images


def _images(split: str) -> list[Medium]:
    """The images whose questions in the package reveal both the colour and the kind of their one shape.

    `unasked`: the other images of the package's test split, with what their pixels say.
    """
    facts = _revealed(split) if split != "unasked" else _unrevealed("test")
    return [Medium("image", f, [list(f.values())], n) for n, f in sorted(facts.items())]


def _easy_vqa_split(split: str) -> str:
    return "test" if split == "unasked" else split


def _revealed(split: str) -> dict[int, dict[str, str]]:
    """The facts of the images of which the questions reveal both, by the number of the image."""
    facts: dict[int, dict[str, str]] = {}
    for row in data.questions(split):
        named = row.text.rstrip("?").split() if row.answer == "yes" and not row.negated else [row.answer]
        for attribute, values in (("color", COLORS), ("shape", ATTRIBUTES["image"]["shape"])):
            for word in set(named) & set(values):
                facts.setdefault(row.image, {})[attribute] = word
    return {number: found for number, found in facts.items() if len(found) == 2}


def _unrevealed(split: str) -> dict[int, dict[str, str]]:
    """The facts of the other images."""
    others = {row.image for row in data.questions(split)} - _revealed(split).keys()
    return {number: facts_in(data.image(split, number)) for number in others}


# ------------------------------------------------------------------------------------------------------------ sounds


def _sound(rng: random.Random) -> Medium:
    facts = {attribute: rng.choice(values) for attribute, values in ATTRIBUTES["audio"].items()}
    frequency, amplitude = rng.uniform(*PITCHES[facts["pitch"]]), rng.uniform(*VOLUMES[facts["volume"]])
    count = ATTRIBUTES["audio"]["count"].index(facts["count"]) + 1
    start = rng.uniform(0.0, 1 - SLOT * count)
    length = rng.uniform(0.5, 0.67) * SLOT
    return Medium("audio", facts, [list(facts.values())], (frequency, amplitude, count, start, length, rng.random()))


def waveform(
    frequency: float, amplitude: float, count: int, start: float, length: float, seed: float
) -> np.ndarray[Any, Any]:
    """`count` beeps of one pitch in one second of faint noise."""
    time = np.arange(RATE) / RATE
    beeps = np.zeros(RATE)
    for number in range(count):
        inside = time - start - number * SLOT
        envelope = np.clip(np.minimum(inside, length - inside) / 0.01, 0, 1)  # 10 ms to rise and to fall
        beeps += envelope * np.sin(2 * np.pi * frequency * inside)
    noise = np.random.default_rng(int(seed * 2**32)).normal(0, 0.002, RATE)
    return (amplitude * beeps + noise).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ videos


def _video(rng: random.Random) -> Medium:
    """A shape crosses the frame on any line, so that no single frame tells the direction."""
    facts = {attribute: rng.choice(values) for attribute, values in ATTRIBUTES["video"].items()}
    way = STEP[facts["direction"]]
    distance = rng.uniform(17, 20)
    begin = []
    for sign in way:
        low, high = 5.0, SIDE - 5.0
        begin.append(rng.uniform(low + distance * (sign < 0), high - distance * (sign > 0)))
    path = [tuple(b + s * distance * n / (FRAMES - 1) for b, s in zip(begin, way, strict=True)) for n in range(FRAMES)]
    parts = [[facts["color"], *(third(axis, value) for axis, value in enumerate(point))] for point in path]
    background = tuple(rng.randint(225, 255) for _ in range(3))
    return Medium("video", facts, parts, (facts["color"], path, rng.uniform(3, 4.5), rng.random() < 0.5, background))


def third(axis: int, value: float) -> str:
    """The word for a coordinate of the shape's centre."""
    return PLACES[axis][min(2, int(3 * value / SIDE))]


def frames(
    color: str, path: list[tuple[float, ...]], radius: float, is_round: bool, background: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """A disc, or a square, at each point of the path."""
    down, across = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    shown = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    shown[:] = background
    for frame, (x, y) in zip(shown, path, strict=True):
        dx, dy = np.abs(across - x), np.abs(down - y)
        frame[np.hypot(dx, dy) < radius if is_round else np.maximum(dx, dy) < radius] = RGB[color]
    return shown
