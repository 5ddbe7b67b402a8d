"""How much of an audio input a processor takes in, and what is done with longer ones: nothing is cut off unseen.

Feature extractors keep the first 30 s (Whisper's) or 300 s of audio and drop the rest without a word; the processors of
other families cut audio into windows themselves. No attribute of a processor tells which is the case: it is tried out.
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
_STEP = 0.05  # seconds at the end of an input, whose influence on the processor's output is tried out


@dataclass(frozen=True)
class Chunk:
    """Window `at` of an audio input that is cut into `of` windows, all of one length but the last: an input itself."""

    audio: Mapping[str, Any]
    at: int
    of: int


class AudioWindow:
    """How many seconds of one audio input a processor hears, and the `policy` for longer inputs.

    `error` lists them before the run, `cut` lets the processor cut them, `chunk` gives each as several inputs.
    """

    def __init__(self, policy: str) -> None:
        if policy not in POLICIES:
            raise EvaluationError(f"long_audio is {policy!r}; it must be one of {', '.join(POLICIES)}")
        self.policy = policy
        self.seconds: float | None = None  # None: all inputs that were tried are heard whole

    @property
    def chunks(self) -> bool:
        """Whether long inputs are given as several."""
        return self.policy == "chunk" and self.seconds is not None

    def measure(self, hears: Callable[[int], bool], longest: float, rate: int) -> None:
        """Find out, by bisection, how much is heard of inputs of up to `longest` seconds at `rate` Hz.

        hears: whether the processor's output depends on the end of an input of so many samples.
        """
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

    def is_shorter_than(self, seconds: float) -> bool:
        """Whether the end of an input of so many seconds is not heard."""
        return self.seconds is not None and seconds > self.seconds + 2 * _STEP

    def split(self, parts: Sequence[Sequence[Part]], audio: Sequence[Any]) -> tuple[list[list[Part]], list[Any]]:
        """The parts of all turns with several placeholders for each long input, and the inputs in their order."""
        inputs: list[Any] = []
        made: list[list[Part]] = []
        for turn in parts:
            made.append([])
            for kind, what in turn:
                if kind != "audio":
                    made[-1].append((kind, what))
                    continue
                one, count = audio[int(what)], 1
                if self.is_shorter_than(length := decoding.seconds(one)):
                    assert self.seconds
                    count = math.ceil(length / self.seconds)
                for at in range(count):
                    made[-1].append((kind, len(inputs)))
                    inputs.append(Chunk(one, at, count) if count > 1 else one)
        return made, inputs

    def samples(self, given: Any, rate: int) -> decoding.Samples:
        """The samples (n,) at `rate` Hz of an audio input or a chunk. ValueError: it is longer than its header said."""
        if isinstance(given, Chunk):
            assert self.seconds
            size = int(self.seconds * rate)
            samples = decoding.sound(given.audio, rate)[given.at * size :]
            if given.at + 1 < given.of:
                return _padded(samples[:size], rate)
        else:
            samples = decoding.sound(given, rate)
        if self.policy != "cut" and self.is_shorter_than(len(samples) / rate):
            raise ValueError("it is longer than its header says, and than the model hears")
        return _padded(samples, rate) if isinstance(given, Chunk) else samples


def _padded(samples: decoding.Samples, rate: int) -> decoding.Samples:
    """At least a tenth of a second: feature extractors refuse what is shorter than one of their steps."""
    return np.pad(samples, (0, max(rate // 10 - len(samples), 0)))


def probe(samples: int, rate: int, loud_end: bool) -> dict[str, Any]:
    """A tone of so many samples at `rate` Hz, which has noise in its last `_STEP` seconds if `loud_end`."""
    made = 0.1 * np.sin(np.arange(samples) * (2 * np.pi * 220 / rate))
    step = max(int(rate * _STEP), 1)
    if loud_end:
        made[-step:] += np.random.default_rng(0).uniform(-0.5, 0.5, min(step, samples))
    return {"array": made.astype(np.float32), "sampling_rate": rate}
