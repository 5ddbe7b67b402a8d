"""Score any checkpoint of this example by lm-eval: accuracy per question type with 95 % Wilson intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig

from examples.common.commands import lm_eval_here
from examples.common.scores import Cell, Score, aligned, from_results, mean_of
from examples.easy_vqa.data import FIRST_VALIDATION_IMAGE, TYPES, Question, blind_answers, questions

GROUP = "mllm_demo_easy_vqa"
TASK_FOLDER = Path(__file__).parent / "tasks"
TASKS = {kind: f"{GROUP}_{kind}" for kind in TYPES}
COLUMNS = (*TYPES, "mean")
# lm-eval's `--metadata` says which of the package's questions are asked.
SPLITS: dict[str, dict[str, Any]] = {
    "test": {},
    "validation": {"split": "train", "images": (FIRST_VALIDATION_IMAGE, 4000)},
}


def model_arguments(directory: Path | str, base: Path | str | None = None) -> dict[str, str]:
    """lm-eval's `--model_args`: in float32; a LoRA adapter goes on `base` (default: its neighbour `base/`)."""
    directory = Path(directory)
    if not (directory / "adapter_config.json").exists():
        return {"pretrained": str(directory), "dtype": "float32"}
    full = Path(base or directory.parent / "base")
    full = full if full.exists() else Path(PeftConfig.from_pretrained(directory).base_model_name_or_path)
    return {"pretrained": str(full), "peft": str(directory), "dtype": "float32"}


def score(
    directory: Path | str, split: str = "test", limit: int | None = None, base: Path | None = None
) -> dict[str, Score]:
    """A checkpoint's score on at most `limit` questions, a third of each type, by lm-eval in this process."""
    share = limit and -(-limit // len(TYPES))
    found = lm_eval_here(model_arguments(directory, base), GROUP, TASK_FOLDER, share, SPLITS[split])
    return from_results(found, TASKS)


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


def percentages(scores: Mapping[str, Score]) -> dict[str, Cell]:
    """Accuracy and half the width of its 95 % interval, in percent, of each type and of their plain mean."""
    cells = {kind: score.cell for kind, score in scores.items()}
    return {**cells, "mean": mean_of(cells.values())}


def table(results: Mapping[str, Mapping[str, Score]], markdown: bool = False) -> str:
    """One line per model, one column per question type and their plain mean."""
    rows = [["model", *(f"{column} %" for column in COLUMNS)]]
    for name, scores in results.items():
        cells = percentages(scores)
        rows.append([name, *(f"{cells[column][0]:5.1f} ±{cells[column][1]:4.1f}" for column in COLUMNS)])
    return aligned(rows, markdown)
