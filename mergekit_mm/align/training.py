"""The optimiser's loop: few steps of Adam, judged by samples that are held back, going on where it was interrupted."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mergekit_mm.align.inputs import Inputs, batches, on_device
from mergekit_mm.align.objective import Answer, divergence
from mergekit_mm.errors import MergeError
from mergekit_mm.evaluation.model.likelihood import logits_of_answers
from mergekit_mm.evaluation.model.mllm import MLLM

Sums = list[list[float]]  # the divergence of each lesson held back in nats, by expert


@dataclass(frozen=True)
class Lesson:
    """One sample as the merged model reads it, with the answer after the prompt, and what the expert says there."""

    inputs: Inputs
    answer: Answer


@dataclass(frozen=True)
class Lessons:
    """The lessons of one expert, by its name."""

    expert: str
    trained: Sequence[Lesson]
    held_back: Sequence[Lesson]


@dataclass(frozen=True)
class Schedule:
    """steps: of Adam, at the constant rate `rate`. per_step: samples in each, as many of every expert, without
    repetition until all have been seen. at_once: samples in one forward. check: steps between two looks at the samples
    held back. patience: looks without a lower divergence after which the training ends. anchor: how much the mean
    distance of what is trained from its start counts beside the divergence. clip: the longest gradient, by its norm.
    gate: the standard errors by which the divergence must have fallen on the samples held back."""

    steps: int
    rate: float
    per_step: int
    at_once: int
    check: int
    patience: int
    seed: int
    anchor: float = 0.0
    clip: float | None = None
    gate: float = 0.0


class Way(Protocol):
    """What is trained, and how it acts on the model."""

    lm: MLLM
    model: Any  # gives the logits
    parameters: list[Tensor]  # in float32

    def apply(self) -> None:
        """Let the model follow the parameters, which have changed."""

    def distance(self) -> Tensor:
        """The mean distance of what is trained from its start, by which gradients flow."""


@dataclass
class Result:
    """What a training came to.

    history: (step, divergence of each expert's samples held back), in nats per token. best: the step whose parameters
    are kept, 0 for the start. why: the reason why the training ended before its last step. fell: by how much the mean
    divergence had fallen at the best of all steps, and the standard error of that; None if it never fell.
    """

    history: list[tuple[int, list[float]]]
    best: int = 0
    why: str = ""
    fell: tuple[float, float] | None = None

    @property
    def before(self) -> list[float]:
        return self.history[0][1]

    @property
    def after(self) -> list[float]:
        return next(found for step, found in self.history if step == self.best)

    def __str__(self) -> str:
        before, after = _mean(self.before), _mean(self.after)
        ended = f"; {self.why}" if self.why else ""
        if self.best:
            return f"divergence on the samples held back: {before:.4f} -> {after:.4f} at step {self.best}{ended}"
        if not self.fell:
            return f"on the samples held back the divergence did not fall below {before:.4f}: the start is kept{ended}"
        fell, error = self.fell
        told = f"on the samples held back the divergence of {before:.4f} fell by {fell:.4f}, with a standard error of"
        return f"{told} {error:.4f}, which may be chance (more samples tell more): the start is kept{ended}"


def train(
    way: Way, lessons: Sequence[Lessons], schedule: Schedule, state: Path, key: str, tell: Callable[[str], None]
) -> Result:
    """Train, and leave in the way the parameters with the lowest divergence on the lessons held back, or its start.

    The start stays unless the divergence fell by more than `schedule.gate` standard errors.

    lessons: of each expert; all experts count alike, whatever their samples and the length of their answers. state: the
    file in which an interrupted training of the same `key` goes on.

    Raises:
        MergeError: the start's divergence is no number.
    """
    optimiser = torch.optim.Adam(way.parameters, lr=schedule.rate)
    start, result = 0, Result([])
    first = best = [parameter.detach().clone() for parameter in way.parameters]
    if state.is_file() and (saved := torch.load(state, weights_only=True))["key"] == key:
        start, best = saved["step"], [one.to(p.device) for one, p in zip(saved["best"], way.parameters, strict=True)]
        result = Result([(step, found) for step, found in saved["history"]], saved["at"], saved["why"])
        at_first, at_best = saved["at_first"], saved["at_best"]
        optimiser.load_state_dict(saved["optimiser"])
        _copy(way, saved["parameters"])
        way.apply()
        tell(f"going on from step {start}")
    else:
        way.apply()
        began = time.monotonic()
        at_first = at_best = held_back(way, lessons, schedule.at_once)
        result.history.append((0, _of_the_start(at_first, lessons)))
        tell(_line(0, result.before))
        tell(expected_time(lessons, schedule, time.monotonic() - began))
    began = time.monotonic()
    for step in range(start + 1, schedule.steps + 1):
        if result.why:
            break
        optimiser.zero_grad()
        if not math.isfinite(_backward(way, lessons, schedule, step)):
            result.why = _not_finite(step)
            break
        if schedule.clip is not None:
            torch.nn.utils.clip_grad_norm_(way.parameters, schedule.clip)
        optimiser.step()
        way.apply()
        if step % schedule.check and step < schedule.steps:
            continue
        seconds = (time.monotonic() - began) / ((step - 1) % schedule.check + 1)
        sums = held_back(way, lessons, schedule.at_once)
        found = _per_token(sums, lessons)
        if not all(map(math.isfinite, found)):
            result.why = _not_finite(step)
            break
        result.history.append((step, found))
        tell(f"{_line(step, found)}, {_duration(seconds)} a step")
        if _mean(found) < _mean(result.after):
            result.best, best = step, [parameter.detach().clone() for parameter in way.parameters]
            at_best = sums
        elif sum(at > result.best for at, _ in result.history) >= schedule.patience:
            result.why = f"no lower divergence since step {result.best}"
        _save(state, key, step, way, optimiser, best, result, at_first, at_best)
        began = time.monotonic()
    if result.best:
        result.fell = _fall(at_first, at_best, lessons)
        if not result.fell[0] > schedule.gate * result.fell[1]:
            result.best, best = 0, first
    _copy(way, best)
    return result


def _fall(before: Sums, after: Sums, lessons: Sequence[Lessons]) -> tuple[float, float]:
    """By how much the mean divergence per token fell, and the standard error of that over the lessons held back.

    Lessons vary around the mean of their expert. Where every expert has a single one, they are taken as lessons of one
    expert; of a single one in all nothing is known, and its error is infinite.
    """
    shares = [1 / (len(lessons) * _tokens(own.held_back)) for own in lessons]
    parts = [
        [share * (was - now) for was, now in zip(*sums, strict=True)]
        for share, *sums in zip(shares, before, after, strict=True)
    ]
    fell, count = sum(map(sum, parts)), sum(map(len, parts))
    if count == len(parts):
        parts = [[value for own in parts for value in own]]
    if count == 1:
        return fell, math.inf
    squares = sum((value - _mean(own)) ** 2 for own in parts for value in own)
    return fell, math.sqrt(count * squares / (count - len(parts)))


def _of_the_start(sums: Sums, lessons: Sequence[Lessons]) -> list[float]:
    """The divergences before the first step. MergeError if one is no number."""
    found = _per_token(sums, lessons)
    for own, value in zip(lessons, found, strict=True):
        if not math.isfinite(value):
            raise MergeError(
                f"Before the first step, the merged model's divergence from {own.expert} is {value}: the merge is "
                "damaged, or its numbers exceed the dtype (choose --dtype float32)."
            )
    return found


def _not_finite(step: int) -> str:
    return f"at step {step} the divergence was no longer finite (a lower --rate may help)"


def expected_time(lessons: Sequence[Lessons], schedule: Schedule, seconds: float) -> str:
    """A line on how long the training will take, from how long one look at the samples held back took.

    A step is counted as three forwards of its samples: one, and a backward of twice its cost.
    """
    one = seconds / sum(len(own.held_back) for own in lessons)
    step = 3 * one * sum(min(_per_expert(schedule, lessons), len(own.trained)) for own in lessons)
    total = schedule.steps * step + math.ceil(schedule.steps / schedule.check) * seconds
    return f"expected: {_duration(step)} a step, {_duration(total)} for all {schedule.steps}"


def _duration(seconds: float) -> str:
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s"


def held_back(way: Way, lessons: Sequence[Lessons], at_once: int) -> Sums:
    """The divergence of each lesson held back, in nats."""
    with torch.no_grad():
        found = [[0.0] * len(own.held_back) for own in lessons]
        for sums, own in zip(found, lessons, strict=True):
            for indices, values in _divergences(way, own.held_back, at_once):
                for at, value in zip(indices, values.tolist(), strict=True):
                    sums[at] = value
        return found


def _per_token(sums: Sums, lessons: Sequence[Lessons]) -> list[float]:
    """The divergence of each expert's lessons held back, in nats per token."""
    return [sum(own) / _tokens(each.held_back) for own, each in zip(sums, lessons, strict=True)]


def _backward(way: Way, lessons: Sequence[Lessons], schedule: Schedule, step: int) -> float:
    """Add to the gradients those of the objective on the samples of a step, and return it.

    It is the mean over experts of the divergence per token, and the distance from the start times the anchor.
    """
    objective, count = 0.0, _per_expert(schedule, lessons)
    for number, own in enumerate(lessons):
        drawn = [own.trained[at] for at in _drawn(len(own.trained), count, step, f"{schedule.seed} {number}")]
        share = 1 / (len(lessons) * _tokens(drawn))
        for _, values in _divergences(way, drawn, schedule.at_once):
            total = values.sum()
            (total * share).backward()
            objective += float(total.detach()) * share
    if schedule.anchor:
        penalty = schedule.anchor * way.distance()
        penalty.backward()
        objective += float(penalty.detach())
    return objective


def _per_expert(schedule: Schedule, lessons: Sequence[Lessons]) -> int:
    """How many samples of each expert are in a step, if it has so many."""
    return max(1, schedule.per_step // len(lessons))


def _drawn(total: int, count: int, step: int, seed: str) -> list[int]:
    """The indices of a step: each epoch is a new order of all, which depends on the seed and the epoch alone."""
    if count >= total:
        return list(range(total))
    first = (step - 1) * count
    orders: dict[int, list[int]] = {}
    drawn = []
    for place in range(first, first + count):
        epoch = place // total
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed} {epoch}").sample(range(total), total)
        drawn.append(orders[epoch][place % total])
    return drawn


def _divergences(way: Way, lessons: Sequence[Lesson], at_once: int) -> Iterator[tuple[list[int], Tensor]]:
    """For each batch, the indices of its lessons, and the divergence of each."""
    for indices, inputs in batches([lesson.inputs for lesson in lessons], at_once):
        answers = [lessons[at].answer for at in indices]
        moved = {**on_device(way.lm, inputs), "use_cache": False}  # keys and values serve no later token
        logits = logits_of_answers(way.model, moved, [answer.ids.tolist() for answer in answers])
        yield indices, torch.stack([divergence(*each) for each in zip(answers, logits, strict=True)])


def _tokens(lessons: Sequence[Lesson]) -> int:
    return sum(len(lesson.answer.ids) for lesson in lessons)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _line(step: int, found: Sequence[float]) -> str:
    return f"step {step}: divergence {_mean(found):.4f} ({', '.join(f'{each:.4f}' for each in found)})"


def _copy(way: Way, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(way.parameters, values, strict=True):
            parameter.copy_(value)


def _save(
    state: Path,
    key: str,
    step: int,
    way: Way,
    optimiser: Any,
    best: Sequence[Tensor],
    result: Result,
    at_first: Sums,
    at_best: Sums,
) -> None:
    content = {
        "key": key,
        "step": step,
        "parameters": [parameter.detach() for parameter in way.parameters],
        "optimiser": optimiser.state_dict(),
        "best": list(best),
        "history": result.history,
        "at": result.best,
        "why": result.why,
        "at_first": at_first,
        "at_best": at_best,
    }
    unfinished = state.with_suffix(".unfinished")
    torch.save(content, unfinished)
    os.replace(unfinished, state)
