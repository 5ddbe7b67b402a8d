"""Align a start to its experts by `mergekit-mm align`, as often as samples are drawn, and ask the models questions."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from safetensors import safe_open

from examples.common import forked
from examples.minibench.aligned import Case, Row
from examples.minibench.merging import Merge, best_strength
from examples.minibench.products import cpu_time
from examples.minibench.results import ALIGNED, FILE, START, Result, read_results, write_results
from examples.minibench.scores import ask, mean_score

_RECIPE, _OF_BASE = "recipe.yaml", "base.yaml"  # the config of the start, and the same at a strength of 0
_WORK = "work"  # in the folder of an unfinished draw; never kept

Options = tuple[str, ...]


def choose_start(candidates: Sequence[tuple[Merge, Path, Path]], folder: Path) -> None:
    """Write the recipe of the merge that is best on validation questions, and its scores on test questions.

    candidates: merges with the folders of their results, on validation questions at each strength that was tried, and
    on test questions. Of equal ones the first is taken.
    """
    tries = [read_results(choice) for _, choice, _ in candidates]
    best = max(range(len(candidates)), key=lambda at: max(mean_score(each.scores) for each in tries[at]))
    merge, _, test = candidates[best]
    merge.save(best_strength(tries[best]), folder / _RECIPE)
    merge.save(0.0, folder / _OF_BASE)
    (tested,) = (each for each in read_results(test) if each.setting == "chosen")
    facts = {"method": merge.method.name, "tried": sum(map(len, tries))}
    write_results([replace(tested, kind=ALIGNED, name=START, setting="", facts=facts)], folder)


@dataclass(frozen=True)
class Alignment:
    """What is aligned, by which samples.

    start, samples: the folders of these products. experts: by capability, the names of the experts. about: base, way
    and seed of the experts, for the results. counts: by split, the questions of each capability to ask.
    """

    start: Path
    samples: Path
    experts: Mapping[str, str]
    row: Row
    case: Case
    about: Mapping[str, Any]
    material: Path
    counts: Mapping[str, int]

    def run(self, options: Options, draw: int, folder: Path) -> tuple[Path, dict[str, Any]]:
        """Align in a folder. Returns the model, and what the command reported with its CPU seconds, without imports.

        The seconds are those of the merge, the experts' answers, and the training. What is in the folder after an
        interruption is used.
        """
        out = folder / "model"
        shutil.rmtree(out, ignore_errors=True)
        recipe = self.start / (_OF_BASE if self.row.on_base else _RECIPE)
        command = ["mergekit-mm", "align", str(recipe), str(out), "--quiet", "--work", str(folder / "kept")]
        command += ["--per-expert", str(self.case.samples), "--seed", str(draw), *self.row.options, *options]
        for capability, expert in self.experts.items():
            if capability != self.case.without:
                command += ["--samples", f"{expert}={self.samples / capability}.jsonl"]
        command += ["--partial"] * bool(self.case.without)
        used = cpu_time()
        forked.run(command)
        return out, {"seconds": cpu_time() - used, **json.loads((out / "align" / "report.json").read_text())}

    def result(self, split: str, scores: Mapping[str, list[float]], report: Mapping[str, Any], **facts: Any) -> Result:
        """What was measured of one model. Divergences are means over experts, in nats per token."""
        divergence = {each["step"]: mean(each["divergence"].values()) for each in report["history"]}
        facts |= {"best": report["best"], "before": divergence[0], "after": divergence[report["best"]]}
        about = {**self.about, "setting": self.case.name, "seconds": report["seconds"], "facts": facts}
        return Result(ALIGNED, self.row.name, split, scores, **about)


def align_and_ask(
    alignment: Alignment, tries: Sequence[Options], draws: Sequence[int], split: str, folder: Path
) -> None:
    """Align with each of the options to each draw of samples, ask the models questions, and write the results.

    What was finished before an interruption is kept, model by model.
    """
    results = []
    for at, options in enumerate(tries):
        for draw in draws:
            finished = folder / f"{at}-{draw}"
            if not (finished / FILE).exists():
                finished.mkdir(exist_ok=True)
                work = finished / _WORK
                model, report = alignment.run(options, draw, work)
                scores = ask(alignment.material, model, None, split, alignment.counts[split])
                facts = {"options": options, "draw": draw, "tokens": tokens_of_answers(work / "kept")}
                shutil.rmtree(work)
                write_results([alignment.result(split, scores, report, **facts)], finished)
            results += read_results(finished)
    write_results(results, folder)
    for finished in folder.glob("*-*/"):
        shutil.rmtree(finished)


def tokens_of_answers(kept: Path) -> float:
    """How many tokens the answers that an alignment keeps have on average."""
    return mean(_lengths(kept / "answers"))


def _lengths(answers: Path) -> Iterator[int]:
    for file in answers.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as stored:
            yield stored.get_slice("ids").get_shape()[0]


def best_options(results: Sequence[Result]) -> Options:
    """The options with the best mean score over the draws, and of equal ones the first."""
    found: dict[Options, list[float]] = defaultdict(list)
    for each in results:
        found[tuple(each.facts["options"])].append(mean_score(each.scores))
    return max(found, key=lambda options: mean(found[options]))
