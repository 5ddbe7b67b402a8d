"""Accuracies with 95 % Wilson intervals, as tables and as files."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("mergekit", "mergekit-mm", "torch", "transformers", "peft", "easy-vqa")
Cell = tuple[float, float]  # a value, and half the width of its 95 % interval, both in percent


class Score(NamedTuple):
    """`right` of `total` questions answered correctly."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    @property
    def wilson(self) -> tuple[float, float]:
        """The 95 % Wilson score interval of the accuracy."""
        z, n, p = 1.959964, self.total, self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return centre - half, centre + half

    @property
    def cell(self) -> Cell:
        low, high = self.wilson
        return 100 * self.accuracy, 50 * (high - low)


def from_results(results: Mapping[str, Any], tasks: Mapping[str, str]) -> dict[str, Score]:
    """The score of each column. `tasks` maps columns to lm-eval's tasks, `results` are those of lm-eval."""
    found = {}
    for column, task in tasks.items():
        total = results["n-samples"][task]["effective"]
        found[column] = Score(round(results["results"][task]["score,none"] * total), total)
    return found


def mean_of(cells: Iterable[Cell]) -> Cell:
    """The plain mean of the values. Its interval treats the columns as independent samples:

    half its width is the root of the summed squares of the columns' half widths, over the number of columns.
    """
    values, halves = zip(*cells, strict=True)
    return sum(values) / len(values), math.hypot(*halves) / len(values)


def aligned(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """A header and lines as a table, in Markdown or as text: names on the left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in rows
    ]
    if markdown:
        rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])
        lines = [f"| {' | '.join(row)} |" for row in padded]
        return "\n".join([lines[0], rule, *lines[1:]])
    lines = ["  ".join(row) for row in padded]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_results(
    out: Path,
    results: Mapping[str, Mapping[str, Score]],
    introduction: str,
    table: str,
    closing: Sequence[str],
    questions: int,
) -> None:
    """Write results.md (introduction, date, versions, table, closing lines) and results.json to the folder `out`.

    results.json has for each model and column `right`, `total`, `accuracy` and its interval `wilson95`, as fractions.
    """
    made = {"date": datetime.date.today().isoformat(), "versions": {name: version(name) for name in PACKAGES}}
    named = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    text = "\n".join([f"{introduction} {made['date']}; {named}.", "", table, "", *closing])
    (out / "results.md").write_text(text + "\n")
    numbers = {
        name: {
            column: {**score._asdict(), "accuracy": score.accuracy, "wilson95": list(score.wilson)}
            for column, score in scores.items()
        }
        for name, scores in results.items()
    }
    data = {**made, "questions": questions, "models": numbers}
    (out / "results.json").write_text(json.dumps(data, indent=2) + "\n")
