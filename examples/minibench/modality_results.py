"""The results about modalities: merges and donors of one seed, by the stock `mergekit-yaml` and `lm_eval`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.common import commands
from examples.minibench.results import Result
from examples.omni.facts import MODALITIES
from examples.omni.run import merge, recipe_of
from examples.omni.scores import GROUP, TASK_FOLDER, TASKS, asked

WAY = "modality"
Scores = dict[str, list[float]]


def ask(model: Path, questions: Path) -> Scores:
    """The scores of a model on written questions: 0 or 1 for each, in their order, by the sort of question."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = {"pretrained": str(model), "dtype": "float32"}
        given = {"metadata": asked(model), "data": questions}
        _, samples = commands.lm_eval(arguments, GROUP, TASK_FOLDER, Path(scratch) / "lm_eval", **given)
    return {
        column: [float(each["score"]) for each in sorted(samples[task], key=lambda each: int(each["doc_id"]))]
        for column, task in TASKS.items()
    }


def strength_of(recipe: Mapping[str, Any]) -> float | None:
    """The strength in a recipe; None for a method that has none."""
    return recipe.get(commands.strength_parameter(recipe["merge_method"]))


def grid(method: str, recipe: Mapping[str, Any], models: Path, questions: Path, seed: int) -> list[Result]:
    """A method at each strength of the grid, asked validation questions."""
    with tempfile.TemporaryDirectory() as scratch:
        return [
            _merge_result(method, "validation", ask(path, questions), seed, setting="grid", strength=strength)
            for strength, path in commands.sweep(recipe_of(recipe, models), Path(scratch))
        ]


def best(tried: Sequence[Result]) -> float | None:
    """The strength with most right answers, the smallest of equals; None if none was tried."""
    right = {each.strength: sum(map(sum, each.scores.values())) for each in tried}
    return max(sorted(right), key=lambda strength: right[strength]) if right else None


def merged(
    method: str, recipe: Mapping[str, Any], tried: Sequence[Result], models: Path, questions: Path, seed: int
) -> list[Result]:
    """A method asked test questions as published, and with the best of the strengths that were tried, if any were.

    One merge serves for both where the strengths are equal.
    """
    published, chosen = strength_of(recipe), best(tried)
    found = [_asked_merge(method, recipe, models, questions, seed, {"setting": "published", "strength": published})]
    if chosen is None:
        return found
    facts = {"setting": "chosen", "strength": chosen, "facts": {"tried": len(tried)}}
    if chosen == published:
        (same,) = found
        return [same, _merge_result(method, "test", same.scores, seed, seconds=same.seconds, **facts)]
    changed = {**recipe, commands.strength_parameter(recipe["merge_method"]): chosen}
    return [*found, _asked_merge(method, changed, models, questions, seed, facts)]


def _asked_merge(
    method: str, recipe: Mapping[str, Any], models: Path, questions: Path, seed: int, facts: Mapping[str, Any]
) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        path = merge(recipe_of(recipe, models), Path(scratch) / "merge")
        seconds = time.monotonic() - started
        return _merge_result(method, "test", ask(path, questions), seed, seconds=seconds, **facts)


def _merge_result(method: str, split: str, scores: Mapping[str, list[float]], seed: int, **more: Any) -> Result:
    return Result("merge", method, split, scores, way=WAY, seed=seed, **more)


def donors_and_unmerged(models: Path, questions: Path, seed: int) -> list[Result]:
    """The donors, each shown its own medium only, and their towers and projectors on the text LLM."""
    found = [
        Result("expert", modality, "test", ask(models / modality, questions), way=WAY, seed=seed)
        for modality in MODALITIES
    ]
    nothing = {"merge_method": "task_arithmetic", "weight": 1.0, "lambda": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        path = merge(recipe_of(nothing, models), Path(scratch) / "unmerged")
        return [*found, Result("unmerged", "unmerged", "test", ask(path, questions), way=WAY, seed=seed)]
