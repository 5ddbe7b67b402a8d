"""Results, arranged by way of training into boards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from examples.minibench.evidence.board import Board, Groups, Model, Rows, Run
from examples.minibench.evidence.statistics import RESAMPLES
from examples.minibench.results import ALIGNED, Result

_KINDS = ("blind", "base", "unmerged", "expert", "merge", ALIGNED, "mixture")  # in the order of a table


def ways_of(results: Sequence[Result]) -> list[str]:
    """The ways in which experts were trained, in the order of the results."""
    return list(dict.fromkeys(each.way for each in results if each.way))


def arranged(
    results: Sequence[Result],
    way: str,
    split: str,
    rows: Rows | None = None,
    groups: Groups | None = None,
    resamples: int = RESAMPLES,
) -> Board | None:
    """The results of one way on one split; None if there are none with experts or merges of a seed.

    Results without a way belong to each way that has their columns, those without a seed to each run of their base,
    and those without looking to all runs. Methods are in the order of `rows`, others follow in that of the results.

    ValueError: two results are of the same model and run, or one was asked other questions than the others.
    """
    own = [each for each in results if each.split == split and each.way == way and each.seed is not None]
    if not own:
        return None
    columns = tuple(own[0].scores)
    runs = tuple(sorted({(each.base, each.seed) for each in own if each.seed is not None}))
    kept = [
        each for each in results if each.split == split and each.way in (way, "") and set(each.scores) == set(columns)
    ]
    found: dict[Model, list[Result]] = {}
    for each in kept:
        strength = each.strength if each.setting == "grid" else None
        found.setdefault(Model(each.kind, each.name, each.setting, strength), []).append(each)
    named = list(dict.fromkeys([*(rows.methods if rows else ()), *(model.name for model in found)]))
    models = tuple(sorted(found, key=lambda model: (_KINDS.index(model.kind), named.index(model.name))))
    counts = [len(own[0].scores[column]) for column in columns]
    scores = [np.full((len(models), len(runs), count), np.nan) for count in counts]
    for at, model in enumerate(models):
        for result in found[model]:
            for run in (run for run, place in enumerate(runs) if _is_of(result, place)):
                if not np.isnan(scores[0][at, run, 0]):
                    raise ValueError(f"two results of {model} in the run {runs[run]} of {way}, {split}")
                for column, into in zip(columns, scores, strict=True):
                    if len(result.scores[column]) != into.shape[2]:
                        raise ValueError(f"{model} was asked other questions of {column} than the others")
                    into[at, run] = result.scores[column]
    return Board(way, split, columns, runs, models, found, scores, groups or {}, rows or Rows(), resamples)


def _is_of(result: Result, run: Run) -> bool:
    if result.kind == "blind":
        return True
    return result.base == run[0] and result.seed in (None, run[1])
