"""What the report is made from, as files: every mean with its interval, and the scores of the questions if small."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from examples.minibench.evidence.board import Board
from examples.minibench.evidence.claims import Claim
from examples.minibench.evidence.preconditions import Precondition
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.tables import row_name
from examples.minibench.results import ALIGNED, FILE, Result

SCORES = "scores.npz"
LARGEST = 300_000  # bytes of the file of scores, which is left out beyond that


def write_record(
    folder: Path,
    about: Mapping[str, Any],
    boards: Sequence[Board],
    found: Sequence[Precondition],
    claims: Sequence[Claim],
    results: Sequence[Result] = (),
) -> None:
    """Write `results.json`; accuracies and differences are fractions. Scores go to `scores.npz` if it is small.

    results: of all draws of merges that learned from samples, which boards have the means of.
    """
    record = {
        "about": about,
        "sets": {board.way: _set(board) for board in boards},
        "preconditions": [asdict(each) for each in found],
        "claims": [{**asdict(each), "here": _numbers(each.here)} for each in claims],
        "draws": [_draw(each) for each in results if each.kind == ALIGNED],
    }
    (folder / FILE).write_text(json.dumps(record, indent=1) + "\n")
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **_scores(boards))
    (folder / SCORES).unlink(missing_ok=True)
    if len(file.getvalue()) <= LARGEST:
        (folder / SCORES).write_bytes(file.getvalue())


def _set(board: Board) -> dict[str, Any]:
    """The models of one way of training. `ranks` are among the merges of the main tables."""
    ranks = board.ranks(board.main()) if board.main() else {}
    models = []
    for model in (each for each in board.models if each.setting != "grid"):
        models.append(
            {
                "label": row_name(board, model),
                "kind": model.kind,
                "name": model.name,
                "setting": model.setting,
                "strengths": board.strengths(model),
                "seconds": board.seconds(model),
                "mean": _numbers(board.mean(model)),
                "columns": {column: _numbers(board.mean(model, column)) for column in board.columns},
                "rank": [ranks[model].value, ranks[model].low, ranks[model].high] if model in ranks else None,
            }
        )
    questions = {column: each.shape[2] for column, each in zip(board.columns, board.scores, strict=True)}
    return {"questions": questions, "runs": [list(run) for run in board.runs], "models": models}


def _draw(result: Result) -> dict[str, Any]:
    """One draw of samples in one run. `columns` are its accuracies."""
    columns = {column: round(float(np.mean(scores)), 5) for column, scores in result.scores.items()}
    kept = {name: getattr(result, name) for name in ("way", "base", "seed", "name", "setting", "seconds", "facts")}
    return {**kept, "columns": columns}


def _numbers(interval: Interval) -> list[float]:
    """Value, lower and upper end."""
    return [round(each, 5) for each in (interval.value, interval.low, interval.high)]


def _scores(boards: Sequence[Board]) -> dict[str, np.ndarray]:
    """For each way and column an array (models, runs, questions) in hundredths; 255 is a run that a model is not of."""
    found = {}
    for board in boards:
        for column, scores in zip(board.columns, board.scores, strict=True):
            found[f"{board.way}/{column}"] = np.nan_to_num(np.round(100 * scores), nan=255).astype(np.uint8)
    return found
