"""The scores of a model on the benchmark's questions, by lm-eval."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from lm_eval.tasks import TaskManager

from examples.common.commands import lm_eval_here
from examples.common.scores import aligned
from examples.minibench.material import CAPABILITIES
from examples.minibench.turns import PLACEHOLDER, asked

TASK_FOLDER = Path(__file__).parent / "tasks"
GROUP = "minibench"


def score(material: Path, model: Path, base: Path | None, split: str, limit: int) -> dict[str, float]:
    """The score of a model, or of the adapter `model` on `base`, for each capability, as a fraction."""
    adapter = (model / "adapter_config.json").exists()
    arguments = {"pretrained": str(base if adapter else model), "dtype": "float32"}
    arguments |= {"peft": str(model)} if adapter else {}
    results = lm_eval_here(arguments, GROUP, TASK_FOLDER, limit, _metadata(material, split))["results"]
    return {name: results[f"{GROUP}_{name}"]["score,none"] for name in CAPABILITIES}


def blind_score(material: Path, split: str, limit: int) -> dict[str, float]:
    """As `score`, of the most frequent training reply to a prompt, or of the most frequent of all to a new prompt."""
    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False, metadata=_metadata(material, split))
    tasks = manager.load([GROUP])["tasks"]
    found = {}
    for name in CAPABILITIES:
        told: dict[str, Counter[str]] = defaultdict(Counter)
        for prompt, reply in asked(material, name, "train"):
            told[f"{PLACEHOLDER}{prompt}"][reply] += 1
            told[""][reply] += 1
        task = tasks[f"{GROUP}_{name}"]
        docs = itertools.islice(task.eval_docs, limit)
        guesses = ((doc, told.get(doc["prompt"], told[""]).most_common(1)[0][0]) for doc in docs)
        found[name] = mean(task.process_results(doc, [guess])["score"] for doc, guess in guesses)
    return found


def _metadata(material: Path, split: str) -> dict[str, Any]:
    return {"split": split, "sources": {f"{GROUP}/{name}": str(material / name) for name in CAPABILITIES}}


def write_scores(found: Mapping[str, float], folder: Path) -> None:
    """Write the scores to `scores.json`."""
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
