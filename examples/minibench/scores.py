"""The scores of a model on the benchmark's questions, by lm-eval."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from examples.common.commands import lm_eval_here
from examples.common.scores import aligned
from examples.minibench.material import CAPABILITIES

TASK_FOLDER = Path(__file__).parent / "tasks"
GROUP = "minibench"


def score(material: Path, model: Path, base: Path | None, split: str, limit: int) -> dict[str, float]:
    """The score of a model, or of the adapter `model` on `base`, for each capability, as a fraction."""
    adapter = (model / "adapter_config.json").exists()
    arguments = {"pretrained": str(base if adapter else model), "dtype": "float32"}
    arguments |= {"peft": str(model)} if adapter else {}
    sources = {f"{GROUP}/{name}": str(material / name) for name in CAPABILITIES}
    results = lm_eval_here(arguments, GROUP, TASK_FOLDER, limit, {"split": split, "sources": sources})["results"]
    return {name: results[f"{GROUP}_{name}"]["score,none"] for name in CAPABILITIES}


def write_scores(material: Path, model: Path, base: Path | None, split: str, limit: int, folder: Path) -> None:
    """Write the scores to `scores.json`."""
    found = score(material, model, base, split, limit)
    (folder / "scores.json").write_text(json.dumps(found, indent=2) + "\n")


def read_scores(folder: Path) -> dict[str, float]:
    """What `write_scores` wrote."""
    return json.loads((folder / "scores.json").read_text())


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each model, in percent: the capabilities and their mean."""
    rows = [["model", *CAPABILITIES, "mean"]]
    for name, found in scores.items():
        values = [*found.values(), sum(found.values()) / len(found)]
        rows.append([name, *(f"{100 * value:.1f}" for value in values)])
    return aligned(rows, markdown=False)
