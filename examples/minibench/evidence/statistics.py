"""Intervals for accuracies that were measured with few seeds and many questions.

Two things vary by chance: which questions are asked, and how the experts of a run (a base and a seed) turned out. All
models of all runs answer the same questions, so the two are crossed, and are resampled independently of each other:

- Questions are drawn with replacement, column by column, the same for all models and runs. What two models have in
  common on a question thus cancels in their difference. Where questions share a picture, whole pictures are drawn, for
  all columns that ask about them at once.
- Runs cannot be drawn with replacement: four values have too few resamples, and a percentile interval of them covers
  the truth in about 80 % of cases instead of 95 %. Random weights of mean zero take the place of draws, so that a mean
  over runs varies as Student's t does with (runs - 1) degrees of freedom, around what was measured. Without noise of
  questions the interval is exactly the t interval, which is right for any number of runs whose values are normal.

The noise of a question within a run is in both parts, so that intervals are rather too wide than too narrow.

What such an interval can tell with 3 + 1 runs: how much of a difference is due to the choice of questions, and whether
it is large beside the spread over seeds. Its factor is 3.2 with four runs and 12.7 with two, in the place of 1.96, so
only differences that nearly every run shows exclude zero. What it cannot tell: how results vary over bases. Four runs
count as exchangeable, although three share a base; if bases differ by more than seeds do, intervals are too narrow, and
that of a base itself, which is one model in three runs, is nearly of questions alone. They say nothing about other
material, sizes of models or settings of training. With one run there is nothing to learn about seeds from, and an
interval is about questions alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
RESAMPLES = 10_000
LEVEL = 0.95
MEAN = -1  # the column that is the plain mean of all others


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; accuracies and differences of them are fractions."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width."""
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero on that side, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Bootstrap:
    """Resamples of the accuracies of models on some columns of questions.

    Args:
        scores: for each column an array (models, runs, questions) from 0 to 1; NaN for a run that a model is not of.
        groups: for each column the group (such as the picture) of each question; None where each is its own. Equal
            numbers are the same group in all columns.
        resamples, seed: how many there are, and of the random numbers.
    """

    def __init__(
        self,
        scores: Sequence[Array],
        groups: Sequence[Sequence[int] | None] | None = None,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        models, runs, _ = scores[0].shape
        self.present = ~np.isnan(scores[0][:, :, 0])  # (models, runs)
        # (models, runs, columns), the last column being the mean of all others; and the same for each resample
        self.means = _with_mean(np.stack([each.mean(axis=2) for each in scores], axis=2))
        self._drawn = np.empty((models, runs, len(scores) + 1, resamples), np.float32)
        drawn = _question_weights(rng, [each.shape[2] for each in scores], groups, resamples)
        for at, (each, weights) in enumerate(zip(scores, drawn, strict=True)):
            flat = each.reshape(models * runs, -1).astype(np.float32)
            self._drawn[:, :, at] = (flat @ weights.T).reshape(models, runs, resamples)
        self._drawn[:, :, MEAN] = self._drawn[:, :, :-1].mean(axis=2)
        self._normal = rng.standard_normal((runs, resamples))
        self._chi = rng.standard_normal((max(runs - 1, 1), resamples))

    def common_runs(self, models: Sequence[int]) -> NDArray[np.intp]:
        """The runs that all of these models are of."""
        return np.flatnonzero(self.present[list(models)].all(axis=0))

    def draws(self, models: Sequence[int], column: int = MEAN) -> tuple[Array, Array]:
        """The means over the common runs of some models, (models,), and their resamples, (models, resamples).

        ValueError: the models have no run in common.
        """
        runs = self.common_runs(models)
        if not len(runs):
            raise ValueError("these models have no run in common")
        place = np.array(models)[:, None], runs, column
        measured = self.means[place]
        drawn = self._drawn[place].mean(axis=1, dtype=np.float64)
        if len(runs) > 1:
            free = len(runs) - 1
            weights = self._normal[runs] / np.sqrt(len(runs) * (self._chi[:free] ** 2).sum(axis=0))
            drawn += (measured - measured.mean(axis=1, keepdims=True)) @ weights
        return measured.mean(axis=1), drawn

    def contrast(self, weights: Mapping[int, float], column: int = MEAN) -> Interval:
        """The interval of a weighted sum of models' accuracies, such as {a: 1, b: -1} of a difference."""
        values, drawn = self.draws(list(weights), column)
        factors = np.array(list(weights.values()))
        return _interval(float(factors @ values), factors @ drawn)

    def mean(self, model: int, column: int = MEAN) -> Interval:
        """The interval of one model's accuracy, within 0 and 1."""
        found = self.contrast({model: 1.0}, column)
        return Interval(found.value, max(found.low, 0.0), min(found.high, 1.0))

    def by_run(self, weights: Mapping[int, float], column: int = MEAN) -> Array:
        """A weighted sum of accuracies in each of the common runs."""
        runs = self.common_runs(list(weights))
        return np.array(list(weights.values())) @ self.means[np.array(list(weights))[:, None], runs, column]

    def above_all(self, model: int, others: Sequence[int], column: int = MEAN) -> Interval:
        """How far a model is above the best of others, over the runs that all of them are of.

        It lies above zero only if the model's interval against each other one does, which needs no correction for
        their number; its upper end allows for having picked the best of several others.
        """
        values, drawn = self.draws([model, *others], column)
        gaps, drawn = values[0] - values[1:], drawn[0] - drawn[1:]
        halves, factor = _simultaneous(gaps, drawn)
        low = min(_interval(float(gap), each).low for gap, each in zip(gaps, drawn, strict=True))
        return Interval(float(gaps.min()), low, float((gaps + factor * halves).min().round(6)))

    def together(self, pairs: Sequence[tuple[int, int]], column: int = MEAN) -> list[Interval]:
        """How far the first model of each pair is above the second, by intervals that allow for the number of pairs."""
        found = [self.draws(pair, column) for pair in pairs]
        gaps = np.array([values[0] - values[1] for values, _ in found])
        halves, factor = _simultaneous(gaps, np.array([drawn[0] - drawn[1] for _, drawn in found]))
        ends = zip(gaps.tolist(), (factor * halves).round(6).tolist(), strict=True)
        return [Interval(gap, gap - half, gap + half) for gap, half in ends]

    def ranks(self, models: Sequence[int], column: int = MEAN) -> list[Interval]:
        """The rank of each model among these, 1 for the most accurate, with the ranks that cannot be ruled out.

        A rank is ruled out if too many others are better or worse, by differences that allow for their number
        (Mogstad, Romano, Shaikh and Wilhelm, 2024). Ranks of resamples would be too narrow where models are close.
        """
        values, drawn = self.draws(models, column)
        found = []
        for at in range(len(models)):
            others = np.arange(len(models)) != at
            gap = values[at] - values[others]
            halves, factor = _simultaneous(gap, drawn[at] - drawn[others])
            better, worse = int((gap < -factor * halves).sum()), int((gap > factor * halves).sum())
            found.append(Interval(1 + int((gap < 0).sum()), 1 + better, len(models) - worse))
        return found


def _with_mean(columns: Array) -> Array:
    return np.concatenate([columns, columns.mean(axis=-1, keepdims=True)], axis=-1)


def _question_weights(
    rng: np.random.Generator, counts: Sequence[int], groups: Sequence[Sequence[int] | None] | None, resamples: int
) -> Iterator[Array]:
    """For each column and resample the weight of each question, (resamples, count): how often drawn, with sum one."""
    known = [each for each in groups or () if each is not None]
    shared = np.unique(np.concatenate(known)) if known else np.arange(0)
    drawn = _times(rng, len(shared), resamples)
    for count, group in zip(counts, groups or [None] * len(counts), strict=True):
        times = _times(rng, count, resamples) if group is None else drawn[:, np.searchsorted(shared, group)]
        times = np.where(times.any(axis=1, keepdims=True), times, np.float32(1))  # a column of which nothing was drawn
        yield times / times.sum(axis=1, keepdims=True)


def _times(rng: np.random.Generator, size: int, resamples: int) -> Array:
    """How often each of `size` things is drawn, (resamples, size)."""
    drawn = rng.integers(0, max(size, 1), (resamples, size), dtype=np.int32) + size * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size).astype(np.float32)


def _interval(value: float, drawn: Array) -> Interval:
    """The ends are rounded, as resamples are in float32, whose rounding would give a difference of nothing a sign."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).round(6)
    return Interval(value, float(low), float(high))


def _simultaneous(values: Array, drawn: Array) -> tuple[Array, float]:
    """Half widths of intervals, and the factor by which all of them together hold. Shapes (n,) and (n, resamples)."""
    if not len(values):
        return values, 0.0
    deviation = np.abs(drawn - values[:, None])
    halves = np.quantile(deviation, LEVEL, axis=1)
    safe = np.where(halves > 0, halves, 1.0)  # two models that answer alike have no width to divide by
    return halves, float(np.quantile((deviation / safe[:, None]).max(axis=0), LEVEL))
