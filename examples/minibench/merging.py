"""Merge experts by a method at several strengths, and ask the merges questions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from examples.common import forked
from examples.common.commands import ROOT
from examples.minibench.methods import Method
from examples.minibench.products import cpu_time
from examples.minibench.results import Result, read_results, write_results
from examples.minibench.scores import ask, mean_score

_MERGED = "merged"  # in the folder of an unfinished product; never kept


@dataclass(frozen=True)
class Merge:
    """A method and the experts of one base, way of training and seed that it merges.

    number: of the base. The seed is that of the experts, and also what a method draws by.
    """

    method: Method
    base: Path
    experts: Sequence[Path]
    number: int
    way: str
    seed: int

    def recipe(self, strength: float | None) -> dict[str, Any]:
        """A config for mergekit."""
        base = _named(self.base)
        form = f"{base}+{{}}" if self.way == "lora" else "{}"
        models = [{"model": form.format(_named(each))} for each in self.experts]
        # mergekit's `linear` would average a base model with the experts, so it gets none.
        start = {} if self.method.merge_method == "linear" else {"base_model": base}
        return {**self.method.recipe(self.way, strength), **start, "models": models}

    def write(self, strength: float | None, file: Path, target: Path) -> float:
        """Write the recipe and merge by `mergekit-yaml`. Returns the CPU seconds that this took, without imports."""
        self.save(strength, file)
        used = cpu_time()
        forked.run(["mergekit-yaml", str(file), str(target), "--quiet", "--random-seed", str(self.seed)])
        return cpu_time() - used

    def sweep(self, grid: Sequence[float], file: Path, target: Path) -> Iterator[tuple[float, Path]]:
        """Write the recipe, merge at each strength of the grid by `mergekit-mm sweep`, and yield strengths and models.

        The merges of this package's methods are those of `mergekit-yaml`, byte for byte; those of mergekit's methods
        differ from them by one rounding in float32.
        """
        self.save(1.0, file)
        options = ["--quiet", "--scaling", ",".join(map(str, grid)), "--random-seed", str(self.seed)]
        forked.run(["mergekit-mm", "sweep", str(file), str(target), *options])
        for strength in grid:
            yield strength, target / f"scaling_{strength:g}"

    def result(self, **found: Any) -> Result:
        """What was measured of this merge."""
        return Result("merge", self.method.name, base=self.number, way=self.way, seed=self.seed, **found)

    def save(self, strength: float | None, file: Path) -> None:
        """Write the recipe."""
        file.write_text(yaml.safe_dump(self.recipe(strength), sort_keys=False))


def try_strengths(merge: Merge, grid: Sequence[float], material: Path, count: int, folder: Path) -> None:
    """Ask merges at each strength of the grid validation questions, and write their results."""
    merged = _empty(folder)
    results = [
        merge.result(
            split="validation",
            scores=ask(material, model, None, "validation", count),
            setting="grid",
            strength=strength,
        )
        for strength, model in merge.sweep(grid, folder / "recipe.yaml", merged)
    ]
    shutil.rmtree(merged)
    write_results(results, folder)


def best_strength(results: Sequence[Result]) -> float:
    """The strength with the best mean of the capabilities, and of equal ones the smallest."""
    return min((-mean_score(each.scores), each.strength) for each in results if each.strength is not None)[1]


def examine(merge: Merge, choice: Path | None, material: Path, count: int, folder: Path) -> None:
    """Ask the merges at the published and at the chosen strength test questions, and write their results.

    choice: the folder with the results of `try_strengths`; None for a method without a strength.
    """
    published = merge.method.settings[merge.way].strength
    tries = read_results(choice) if choice else []
    chosen = best_strength(tries) if tries else published
    tried = len(tries) or 1
    measured: dict[float | None, dict[str, Any]] = {}
    results = []
    for setting, strength in (("published", published), ("chosen", chosen)):
        file = folder / f"{setting}.yaml"
        if strength not in measured:
            merged = _empty(folder)
            seconds = merge.write(strength, file, merged)
            measured[strength] = {"seconds": seconds, "scores": ask(material, merged, None, "test", count)}
            shutil.rmtree(merged)
        else:
            merge.save(strength, file)
        about: dict[str, Any] = {"split": "test", "setting": setting, "strength": strength, "facts": {"tried": tried}}
        results.append(merge.result(**about, **measured[strength]))
    write_results(results, folder)


def _empty(folder: Path) -> Path:
    """Where merged models go for a while; an interrupted run may have left some there."""
    merged = folder / _MERGED
    shutil.rmtree(merged, ignore_errors=True)
    return merged


def _named(path: Path) -> str:
    """A path as recipes have it: from the repository's root, where the commands are run, if it is in there."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
