"""The scores of a model on the benchmark's questions, by lm-eval."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from examples.common import forked
from examples.common.commands import lm_eval
from examples.common.scores import aligned
from examples.minibench.material import CAPABILITIES
from examples.minibench.results import Result
from examples.minibench.turns import PLACEHOLDER, asked

TASK_FOLDER = Path(__file__).parent / "tasks"
GROUP = "minibench"
Scores = dict[str, list[float]]  # by capability, for each question from 0 to 1


def ask(material: Path, model: Path, base: Path | None, split: str, count: int) -> Scores:
    """The scores of a model, or of the adapter `model` on `base`, on the first `count` questions of each capability.

    Raises:
        SystemExit: lm-eval did not score all these questions.
    """
    adapter = (model / "adapter_config.json").exists()
    arguments = {"pretrained": str(base if adapter else model), "dtype": "float32"}
    arguments |= {"peft": str(model)} if adapter else {}
    options: dict[str, Any] = {"metadata": _metadata(material, split), "start": forked.run}
    with TemporaryDirectory() as scratch:
        _, samples = lm_eval(arguments, GROUP, TASK_FOLDER, Path(scratch), count, **options)
    return {name: _in_order(samples[f"{GROUP}_{name}"], count, f"{split} questions of {name}") for name in CAPABILITIES}


def _in_order(samples: Sequence[Mapping[str, Any]], count: int, questions: str) -> list[float]:
    """The scores in the order of the documents."""
    found = {sample["doc_id"]: float(sample["score"]) for sample in samples}
    if sorted(found) != list(range(count)):
        raise SystemExit(f"lm-eval scored {len(found)} {questions}, not {count}: models could not be compared by them")
    return [found[number] for number in range(count)]


def ask_blind(material: Path, split: str, count: int) -> Scores:
    """As `ask`, of the most frequent training reply to a prompt, or of the most frequent of all to a new prompt."""
    from lm_eval.tasks import TaskManager  # local: slow to import

    manager = TaskManager(include_path=str(TASK_FOLDER), include_defaults=False, metadata=_metadata(material, split))
    tasks = manager.load([GROUP])["tasks"]
    found = {}
    for name in CAPABILITIES:
        told: dict[str, Counter[str]] = defaultdict(Counter)
        for prompt, reply in asked(material, name, "train"):
            told[f"{PLACEHOLDER}{prompt}"][reply] += 1
            told[""][reply] += 1
        task = tasks[f"{GROUP}_{name}"]
        docs = itertools.islice(task.eval_docs, count)
        guesses = ((doc, told.get(doc["prompt"], told[""]).most_common(1)[0][0]) for doc in docs)
        found[name] = [float(task.process_results(doc, [guess])["score"]) for doc, guess in guesses]
    return found


def _metadata(material: Path, split: str) -> dict[str, Any]:
    return {"split": split, "sources": {f"{GROUP}/{name}": str(material / name) for name in CAPABILITIES}}


def mean_score(scores: Mapping[str, Sequence[float]]) -> float:
    """The plain mean of the columns' means; equal sums in another order give the same number."""
    return round(mean(map(mean, scores.values())), 9)


def table(results: Sequence[Result]) -> str:
    """A line for each result, in percent: the capabilities and their mean."""
    rows = [["model", *CAPABILITIES, "mean"]]
    for result in results:
        values = [*map(mean, result.scores.values()), mean_score(result.scores)]
        rows.append([_label(result), *(f"{100 * value:.1f}" for value in values)])
    return aligned(rows, markdown=False)


def _label(result: Result) -> str:
    if result.kind == "blind":
        return "without looking"
    parts: list[Any] = [result.name, f"base {result.base}", result.way, result.setting]
    parts += [] if result.seed is None else [f"seed {result.seed}"]
    parts += [] if result.strength is None else [f"strength {result.strength:g}"]
    return ", ".join(part for part in parts if part)
