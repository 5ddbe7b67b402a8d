"""What was measured: the score of each question, for each model that was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "results.json"  # in the folder of a product that asks questions
ALIGNED, START = "aligned", "start"  # a kind of result, and the name of those of that kind before any step


@dataclass(frozen=True)
class Result:
    """The scores of one model on the questions of one split.

    kind: `blind` (the most frequent replies), `base`, `expert`, `mixture`, `merge`, `aligned` (a merge that learned
    from unlabelled samples), or `unmerged` (the donors' towers and projectors on the language model that they grew
    from). name: the capability or modality of an expert, the method of a merge, the way to align, else the kind. way:
    how the experts were trained, `full`, `lora` or `modality`; empty where there is none. seed: of the experts; None
    where there is none. setting: of a merge, `published` (as its authors give it), `chosen` (the strength that is best
    on validation questions) or `grid` (one of those that were tried); of an aligned one, the samples for each expert,
    such as `64` or `64 without ocr`; empty for other kinds. scores: for each column (a capability, or a sort of
    question about modalities) a number from 0 to 1 for each question, in the order of the questions, which is the same
    for all models. seconds: of CPU, of the command that merged or aligned, where one did, reading and writing included,
    but not its imports.
    """

    kind: str
    name: str
    split: str
    scores: Mapping[str, list[float]]
    base: int = 0
    way: str = ""
    seed: int | None = None
    setting: str = ""
    strength: float | None = None
    seconds: float | None = None
    facts: Mapping[str, Any] = field(
        default_factory=dict
    )  # what else is to be known, such as `tried`: how many strengths


def write_results(results: list[Result], folder: Path) -> None:
    """Write the results of a product into its folder."""
    (folder / FILE).write_text(json.dumps([asdict(each) for each in results]) + "\n")


def read_results(folder: Path) -> list[Result]:
    """What `write_results` wrote."""
    return [Result(**each) for each in json.loads((folder / FILE).read_text())]
