"""How much of a sound a processor takes in, and what is done with longer ones: nothing is cut off unseen.

Feature extractors keep the first 30 s (Whisper's) or 300 s of a sound and drop the rest without a word; the processors
of other families cut a sound into windows themselves. Which is the case is tried out, since no attribute tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model import decoding
from mergekit_mm.evaluation.model.chat import Part

POLICIES = ("error", "cut", "chunk")
_STEP = 0.05  # seconds at the end of a sound whose influence is tried out


@dataclass(frozen=True)
class Piece:
    """One of `of` equal windows of a sound, the last one shorter, given to the model as a sound of its own."""

    sound: Mapping[str, Any]
    at: int
    of: int


class Window:
    """What a processor hears of one sound, and the `policy` for longer ones.

    `error` names them before the run, `cut` lets the processor cut them, `chunk` gives each as several sounds.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise EvaluationError(f"long_audio is {policy!r}; it must be one of {', '.join(POLICIES)}")
        self.policy = policy
        self.seconds: float | None = None  # None: as far as it was tried, all of it

    @property
    def chunks(self) -> bool:
        return self.policy == "chunk" and self.seconds is not None

    def measure(self, hears: Callable[[int], bool], longest: float, rate: int) -> None:
        """Find out what is heard of sounds up to `longest` seconds; hears(n): whether the end of n samples matters."""
        if self.seconds is not None:
            return
        step = max(int(rate * _STEP), 1)
        heard, not_heard = step, math.ceil(longest * rate)
        if not_heard <= step or hears(not_heard):
            return
        while not_heard - heard > step // 2:
            middle = (heard + not_heard) // 2
            heard, not_heard = (middle, not_heard) if hears(middle) else (heard, middle)
        self.seconds = (heard - heard % step) / rate

    def longer_than(self, seconds: float) -> bool:
        return self.seconds is not None and seconds > self.seconds + 2 * _STEP

    def split(self, parts: Sequence[Sequence[Part]], sounds: Sequence[Any]) -> tuple[list[list[Part]], list[Any]]:
        """The parts of all turns with several sounds in the place of a long one, and the sounds in their order."""
        pieces: list[Any] = []
        made: list[list[Part]] = []
        for turn in parts:
            made.append([])
            for kind, what in turn:
                if kind != "audio":
                    made[-1].append((kind, what))
                    continue
                sound, count = sounds[int(what)], 1
                if self.longer_than(length := decoding.seconds(sound)):
                    assert self.seconds
                    count = math.ceil(length / self.seconds)
                for at in range(count):
                    made[-1].append((kind, len(pieces)))
                    pieces.append(Piece(sound, at, count) if count > 1 else sound)
        return made, pieces

    def heard(self, given: Any, rate: int) -> decoding.Samples:
        """The samples (n,) of a sound or of a piece of one. ValueError: it is longer than its header said."""
        if isinstance(given, Piece):
            assert self.seconds
            size = int(self.seconds * rate)
            start = given.at * size
            samples = decoding.sound(given.sound, rate)[start:]
            if given.at + 1 < given.of:
                return _padded(samples[:size], rate)
        else:
            samples = decoding.sound(given, rate)
        if self.policy != "cut" and self.longer_than(len(samples) / rate):
            raise ValueError("it is longer than its header says, and than the model hears")
        return _padded(samples, rate) if isinstance(given, Piece) else samples


def _padded(samples: decoding.Samples, rate: int) -> decoding.Samples:
    """At least a tenth of a second: extractors refuse what is shorter than one of their steps."""
    return np.pad(samples, (0, max(rate // 10 - len(samples), 0)))


def probe(samples: int, rate: int, loud_end: bool) -> dict[str, Any]:
    """A sound whose last bit is one of two."""
    made = 0.1 * np.sin(np.arange(samples) * (2 * np.pi * 220 / rate))
    step = max(int(rate * _STEP), 1)
    if loud_end:
        made[-step:] += np.random.default_rng(0).uniform(-0.5, 0.5, min(step, samples))
    return {"array": made.astype(np.float32), "sampling_rate": rate}
