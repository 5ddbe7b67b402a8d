"""What merges that learned from unlabelled samples gained and lost: from results of the kind `aligned`.

A row of these results is a way to align (`Model.name`) in a case (`Model.setting`): so many samples for each expert, or
as many without those of one capability, or from elsewhere. `start` is the merge before any step. Samples were drawn
several times in some cases; a board has the mean over the draws of a run, question by question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.statistics import Bootstrap, Interval
from examples.minibench.results import ALIGNED, START, Result

BASELINES = ("expert_merging", "adapter_on_base")  # rows that the others are compared with
_WITHOUT, _ELSEWHERE = " without ", " elsewhere"


def over_draws(results: Sequence[Result]) -> list[Result]:
    """The results with one for all draws of a case in a run, whose scores are their means, in place of these."""
    found: dict[tuple[object, ...], list[Result]] = {}
    for at, each in enumerate(results):
        case = (each.name, each.split, each.base, each.way, each.seed, each.setting)
        found.setdefault(case if each.kind == ALIGNED else (at,), []).append(each)
    return [_mean(several) for several in found.values()]


def _mean(several: Sequence[Result]) -> Result:
    first = several[0]
    if len(several) == 1:
        return first
    scores = {column: np.mean([each.scores[column] for each in several], axis=0).tolist() for column in first.scores}
    return replace(first, scores=scores, seconds=mean(each.seconds or 0.0 for each in several), facts={})


def start_of(board: Board) -> Model | None:
    """The merge that all rows begin with."""
    return board.one(ALIGNED, START)


def rows_of(board: Board) -> list[str]:
    """The names of the rows, in the order of their results."""
    return list(dict.fromkeys(each.name for each in board.results if each.kind == ALIGNED and each.name != START))


def usual(board: Board, row: str) -> dict[int, Model]:
    """By the samples for each expert, in ascending order, the models of a row with samples of all experts."""
    found = {int(each.setting): each for each in board.of(ALIGNED, row) if each.setting.isdecimal()}
    return dict(sorted(found.items()))


def without(board: Board, row: str) -> dict[str, tuple[Model, Model]]:
    """By a capability, a row's model without samples of it, and that with as many samples of all experts."""
    every = usual(board, row)
    found = {}
    for each in board.of(ALIGNED, row):
        samples, is_without, column = each.setting.partition(_WITHOUT)
        if is_without and int(samples) in every:
            found[column] = (each, every[int(samples)])
    return found


def elsewhere(board: Board, row: str) -> tuple[Model, Model] | None:
    """A row's model with samples from elsewhere, and that with as many usual ones; None if there are none."""
    every = usual(board, row)
    for each in board.of(ALIGNED, row):
        samples = each.setting.removesuffix(_ELSEWHERE)
        if samples != each.setting and int(samples) in every:
            return each, every[int(samples)]
    return None


@dataclass(frozen=True)
class Draws:
    """All draws of a case, each against the start of its run, by intervals over questions that allow for their number.

    changed: how many of them ended with another model than the start. seconds: of CPU, and tokens: in an answer of an
    expert, both on average.
    """

    gaps: Sequence[Interval]
    changed: int
    seconds: float
    tokens: float

    @property
    def worst(self) -> Interval:
        return min(self.gaps, key=lambda gap: gap.value)

    @property
    def below(self) -> int:
        """How many are clearly below the start."""
        return sum(gap.sign < 0 for gap in self.gaps)


def draws_of(board: Board, results: Sequence[Result]) -> dict[Model, Draws]:
    """The draws of each model with samples of all experts, from the results of all draws."""
    own = [each for each in results if (each.kind, each.way, each.split) == (ALIGNED, board.way, board.split)]
    starts = {(each.base, each.seed): each for each in own if each.name == START}
    found = {}
    for model in (model for row in rows_of(board) for model in usual(board, row).values()):
        drawn = [each for each in own if (each.name, each.setting) == (model.name, model.setting)]
        drawn = [each for each in drawn if (each.base, each.seed) in starts]
        if drawn:
            gaps = _gaps(drawn, starts, board)
            seconds = mean(each.seconds or 0.0 for each in drawn)
            changed = sum(bool(each.facts["best"]) for each in drawn)
            found[model] = Draws(gaps, changed, seconds, mean(each.facts["tokens"] for each in drawn))
    return found


def _gaps(drawn: Sequence[Result], starts: Mapping[tuple[int, int | None], Result], board: Board) -> list[Interval]:
    runs = list(starts)
    models = [*drawn, *starts.values()]
    scores = [np.array([each.scores[column] for each in models])[:, None] for column in board.columns]
    pairs = [(at, len(drawn) + runs.index((each.base, each.seed))) for at, each in enumerate(drawn)]
    return Bootstrap(scores, resamples=board.resamples).together(pairs)


def kept_and_left(board: Board, row: str) -> Iterator[tuple[str, Mapping[str, Interval]]]:
    """For each capability without samples, how far a row's models are above the start.

    `left`: on that capability, without its samples; `with_samples`: on it, with samples of all; `others`: the mean of
    the other columns, without its samples.
    """
    start = start_of(board)
    for column, (model, every) in without(board, row).items() if start else ():
        assert start
        others = [each for each in board.columns if each != column]
        part = board.among([start, model]).only(others)
        yield (
            column,
            {
                "left": board.difference(model, start, column),
                "with_samples": board.difference(every, start, column),
                "others": part.difference(model, start),
            },
        )
