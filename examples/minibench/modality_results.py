"""The results about modalities: merges and donors of one seed, by the stock `mergekit-yaml` and `lm_eval`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from examples.common import commands, forked
from examples.minibench.methods import Method
from examples.minibench.modalities import WAY
from examples.minibench.products import cpu_time
from examples.minibench.results import Result
from examples.omni.facts import MODALITIES
from examples.omni.run import recipe_of
from examples.omni.scores import GROUP, TASK_FOLDER, TASKS, asked

Scores = dict[str, list[float]]


def ask(model: Path, questions: Path) -> Scores:
    """The scores of a model on written questions: 0 or 1 for each, in their order, by the sort of question."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = {"pretrained": str(model), "dtype": "float32"}
        given: dict[str, Any] = {"metadata": asked(model), "data": questions, "start": forked.run}
        _, samples = commands.lm_eval(arguments, GROUP, TASK_FOLDER, Path(scratch) / "lm_eval", **given)
    return {
        column: [float(each["score"]) for each in sorted(samples[task], key=lambda each: int(each["doc_id"]))]
        for column, task in TASKS.items()
    }


def _recipe(method: Method, strength: float | None, models: Path) -> dict[str, Any]:
    """The recipe of the example with a method at a strength."""
    given = method.recipe(WAY, strength)
    return recipe_of({"merge_method": given["merge_method"], **given["parameters"]}, models)


def _merge(recipe: Mapping[str, Any], folder: Path) -> tuple[Path, float]:
    """Merge in a folder. Returns the model and the CPU seconds that this took, without imports."""
    file, model = folder / "recipe.yaml", folder / "merge"
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    used = cpu_time()
    forked.run(["mergekit-yaml", str(file), str(model), "--quiet"])
    return model, cpu_time() - used


def _sweep(recipe: Mapping[str, Any], grid: Sequence[float], folder: Path) -> Iterator[tuple[float, Path]]:
    """The merges of a recipe with a strength of 1 at each strength of the grid."""
    file, models = folder / "recipe.yaml", folder / "sweep"
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    forked.run(["mergekit-mm", "sweep", str(file), str(models), "--quiet", "--scaling", ",".join(map(str, grid))])
    for strength in grid:
        yield strength, models / f"scaling_{strength:g}"


def try_strengths(method: Method, grid: Sequence[float], models: Path, questions: Path, seed: int) -> list[Result]:
    """A method at each strength of the grid, asked validation questions."""
    with tempfile.TemporaryDirectory() as scratch:
        return [
            _merge_result(method, "validation", ask(path, questions), seed, setting="grid", strength=strength)
            for strength, path in _sweep(_recipe(method, 1.0, models), grid, Path(scratch))
        ]


def best(tried: Sequence[Result]) -> float | None:
    """The strength with most right answers, the smallest of equals; None if none was tried."""
    right = {each.strength: sum(map(sum, each.scores.values())) for each in tried}
    return max(sorted(right), key=lambda strength: right[strength]) if right else None


def merged(method: Method, tried: Sequence[Result], models: Path, questions: Path, seed: int) -> list[Result]:
    """A method asked test questions as published, and with the best of the strengths that were tried, if any were.

    One merge serves for both where the strengths are equal.
    """
    published, chosen = method.settings[WAY].strength, best(tried)
    found = [_asked_merge(method, published, models, questions, seed, {"setting": "published"})]
    if chosen is None:
        return found
    facts = {"setting": "chosen", "facts": {"tried": len(tried)}}
    if chosen == published:
        (same,) = found
        return [same, _merge_result(method, "test", same.scores, seed, chosen, seconds=same.seconds, **facts)]
    return [*found, _asked_merge(method, chosen, models, questions, seed, facts)]


def _asked_merge(
    method: Method, strength: float | None, models: Path, questions: Path, seed: int, facts: Mapping[str, Any]
) -> Result:
    with tempfile.TemporaryDirectory() as scratch:
        path, seconds = _merge(_recipe(method, strength, models), Path(scratch))
        return _merge_result(method, "test", ask(path, questions), seed, strength, seconds=seconds, **facts)


def _merge_result(
    method: Method, split: str, scores: Mapping[str, list[float]], seed: int, strength: float | None, **more: Any
) -> Result:
    return Result("merge", method.name, split, scores, way=WAY, seed=seed, strength=strength, **more)


def donors_and_unmerged(models: Path, questions: Path, seed: int) -> list[Result]:
    """The donors, each shown its own medium only, and their towers and projectors on the text LLM."""
    found = [
        Result("expert", modality, "test", ask(models / modality, questions), way=WAY, seed=seed)
        for modality in MODALITIES
    ]
    nothing = {"merge_method": "task_arithmetic", "weight": 1.0, "lambda": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        path, _ = _merge(recipe_of(nothing, models), Path(scratch))
        return [*found, Result("unmerged", "unmerged", "test", ask(path, questions), way=WAY, seed=seed)]
