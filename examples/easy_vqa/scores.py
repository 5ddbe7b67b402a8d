"""Score any checkpoint of this example by lm-eval: accuracy per question type with 95 % Wilson intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from vqa_commands import BATCH
from vqa_data import FIRST_VALIDATION_IMAGE, TYPES, Question, blind_answers, questions

GROUP = "mllm_demo_easy_vqa"  # eval_tasks/demo
COLUMNS = (*TYPES, "mean")
# lm-eval's `--metadata`: which of the package's questions
SPLITS: dict[str, dict[str, Any]] = {
    "test": {},
    "validation": {"split": "train", "images": (FIRST_VALIDATION_IMAGE, 4000)},
}


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


def model_arguments(directory: Path | str, base: Path | str | None = None) -> dict[str, str]:
    """lm-eval's `--model_args`: in float32; a LoRA adapter goes on `base` (default: its neighbour `base/`)."""
    directory = Path(directory)
    if not (directory / "adapter_config.json").exists():
        return {"pretrained": str(directory), "dtype": "float32"}
    full = Path(base or directory.parent / "base")
    full = full if full.exists() else Path(PeftConfig.from_pretrained(directory).base_model_name_or_path)
    return {"pretrained": str(full), "peft": str(directory), "dtype": "float32"}


def load(directory: Path | str) -> tuple[Any, Any]:
    """A full checkpoint in float32 and its processor, to train on."""
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(directory)


def score(
    directory: Path | str, split: str = "test", limit: int | None = None, base: Path | None = None
) -> dict[str, Score]:
    """A checkpoint's score on at most `limit` questions, a third of each type, by lm-eval in this process."""
    from lm_eval.evaluator import evaluate  # slow to import, and `run.py` calls the command
    from lm_eval.tasks import TaskManager

    from mergekit_mm.evaluation.model.mllm import MLLM
    from mergekit_mm.hosts.lm_eval_tasks import task_directory

    manager = TaskManager(include_path=str(task_directory()), include_defaults=False, metadata=SPLITS[split])
    model = MLLM(**model_arguments(directory, base), batch_size=BATCH)
    loaded = manager.load([GROUP])
    found = evaluate(model, loaded, limit=limit and -(-limit // len(TYPES)), bootstrap_iters=0, log_samples=False)
    return from_results(found)


def from_results(results: Mapping[str, Any]) -> dict[str, Score]:
    """The scores in lm-eval's results, of which the file that it writes is a copy."""
    found = {}
    for kind in TYPES:
        name = f"{GROUP}_{kind}"
        total = results["n-samples"][name]["effective"]
        found[kind] = Score(round(results["results"][name]["score,none"] * total), total)
    return found


def tally(rows: Sequence[Question], told: Sequence[str]) -> dict[str, Score]:
    """The score of each type that occurs in `rows`."""
    right: dict[str, list[bool]] = {}
    for row, answer in zip(rows, told, strict=True):
        right.setdefault(row.type, []).append(answer == row.answer)
    return {kind: Score(sum(right[kind]), len(right[kind])) for kind in TYPES if kind in right}


def blind_score(rows: Sequence[Question]) -> dict[str, Score]:
    """The score of the most frequent training answer to each wording, without looking at any image."""
    guess = blind_answers(questions("train"))
    return tally(rows, [guess[row.text] for row in rows])


def percentages(scores: Mapping[str, Score]) -> dict[str, tuple[float, float]]:
    """Per type and for their plain mean: the accuracy and half the width of its 95 % interval, in percent.

    The mean's interval treats the types as independent samples: the root of the summed squares of their half widths,
    over their number.
    """
    cells = {kind: (100 * s.accuracy, 50 * (s.wilson[1] - s.wilson[0])) for kind, s in scores.items()}
    mean = sum(value for value, _ in cells.values()) / len(cells)
    return {**cells, "mean": (mean, math.sqrt(sum(half**2 for _, half in cells.values())) / len(cells))}


def table(results: Mapping[str, Mapping[str, Score]], markdown: bool = False) -> str:
    """One line per model, one column per question type and their plain mean, aligned."""
    head = ["model", *(f"{column} %" for column in COLUMNS)]
    body = []
    for name, scores in results.items():
        cells = percentages(scores)
        body.append([name, *(f"{cells[c][0]:5.1f} ±{cells[c][1]:4.1f}" for c in COLUMNS)])
    rows = [head, *body]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    padded = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    if markdown:
        rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
        lines = [f"| {' | '.join(row)} |" for row in padded]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
    lines = ["  ".join(row) for row in padded]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_json(results: Mapping[str, Mapping[str, Score]]) -> dict[str, dict[str, dict[str, float | int | list[float]]]]:
    """Per model and type: `right`, `total`, `accuracy` and its interval `wilson95`, as fractions."""
    return {
        name: {kind: {**s._asdict(), "accuracy": s.accuracy, "wilson95": list(s.wilson)} for kind, s in scores.items()}
        for name, scores in results.items()
    }
