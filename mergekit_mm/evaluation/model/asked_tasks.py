"""Tasks of lm-eval, asked in this process a few questions at a time, with a value for each question.

lm-eval (0.4.13 up to 0.5) asks all documents of a task or the first ones. Here the questions are drawn, so the methods
by which a task gives its documents are replaced for the time of one evaluation.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval.api.metrics import mean
from lm_eval.evaluator import evaluate
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from mergekit_mm.errors import EvaluationError
from mergekit_mm.evaluation.model.found_tasks import load_tasks, task_manager
from mergekit_mm.evaluation.model.mllm import MLLM

_FEWSHOT_SEED = 1234  # lm-eval's own, by which examples are drawn


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of one task, in an order drawn by a seed, and the metric by which their answers are scored.

    metric, filter: as lm-eval calls them. order: the numbers of the documents in their split. digest: changes where the
    task's definition or the number of its documents does.
    """

    name: str
    metric: str
    filter: str
    higher_is_better: bool
    split: str
    order: Sequence[int]
    digest: str
    task: Any = field(repr=False)
    documents: Any = field(repr=False)  # of the split, which may decode what it gives

    @property
    def scored_by(self) -> str:
        """The metric as people write it: with its filter, unless there is but one."""
        return self.metric if self.filter == "none" else f"{self.metric},{self.filter}"


def load(
    names: Sequence[str], folders: Sequence[Path], metadata: Mapping[str, Any], metric: str | None, seed: int
) -> list[Questions]:
    """The leaf tasks that some names, groups or patterns mean, each once.

    folders: of task files; the tasks of lm-eval itself are looked through only for names that these do not have.
    metric: one of a task's metrics, perhaps as "metric,filter"; by default `score`, else the first that is a mean.

    Raises:
        EvaluationError: a name means no task, a task's data cannot be had, or a task has no metric that is a mean over
            its questions.
    """
    tasks = load_tasks(task_manager(names, folders, metadata), names)
    return [_questions(name, task, metric, seed) for name, task in tasks.items()]


def _questions(name: str, task: Any, metric: str | None, seed: int) -> Questions:
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    wanted, chosen_filter = _metric(name, task, metric)
    documents = task.eval_docs
    order = random.Random(f"{seed} {name}").sample(range(len(documents)), len(documents))
    split = task.get_config("test_split") or task.get_config("validation_split") or ""
    definition = re.sub(r" at 0x[0-9a-f]+", "", json.dumps(task.dump_config(), sort_keys=True, default=str))
    digest = hashlib.sha256(f"{definition} {len(documents)}".encode()).hexdigest()
    higher = task.higher_is_better().get(wanted, True)
    return Questions(name, wanted, chosen_filter, bool(higher), str(split), order, digest, task, documents)


def _metric(name: str, task: Any, asked: str | None) -> tuple[str, str]:
    """The metric and the filter by which a task is scored."""
    means = [each for each, aggregation in task.aggregation().items() if aggregation is mean]
    filters = [each.name for each in task._filters]
    if not means:
        raise EvaluationError(
            f"{name} has no metric that is a mean over its questions, so that there is no value for each of them to "
            f"compare models by; its metrics: {', '.join(task.aggregation()) or 'none'}. Leave it out."
        )
    if asked is None:
        return ("score" if "score" in means else means[0]), filters[0]
    metric, _, wanted = asked.partition(",")
    if metric not in means or wanted not in ("", *filters):
        known = [each if filters == ["none"] else f"{each},{kind}" for each in means for kind in filters]
        raise EvaluationError(f"{name} has no metric {asked!r} that is a mean; it has {', '.join(known)}.")
    return metric, wanted or filters[0]


@dataclass(frozen=True)
class Scored:
    """What came of asking. values: of each task's documents by their numbers, None where one could not be asked.

    cut: for each task, how many replies were not finished when their tokens were used up, and of how many.
    """

    values: Mapping[str, Mapping[int, float | None]]
    cut: Mapping[str, tuple[int, int]]


def ask(lm: MLLM, numbers: Mapping[Questions, Sequence[int]], progress: bool) -> Scored:
    """Ask a model some documents of each task. numbers: of these documents; there may be none.

    progress: whether a bar is shown.

    Raises:
        EvaluationError: a document cannot be asked; or its value is no number.
    """
    asked = [(each, wanted) for each, wanted in numbers.items() if wanted]
    nothing: dict[str, Mapping[int, float | None]] = {each.name: {} for each in numbers}
    if not asked:
        return Scored(nothing, {})
    lm.run.is_part = True
    tasks = {"tasks": {each.name: each.task for each, _ in asked}, "groups": {}, "group_map": {}}
    with _only(asked), _prompts_built_in_silence():
        found = evaluate(lm if progress else _Silent(lm), tasks, bootstrap_iters=0, log_samples=True)
    cut = lm.run.facts()["replies_cut_at_max_gen_toks"]
    values = {each.name: _values(each, wanted, found["samples"][each.name]) for each, wanted in asked}
    return Scored({**nothing, **values}, {task: (counted["cut"], counted["of"]) for task, counted in cut.items()})


def _values(questions: Questions, numbers: Sequence[int], samples: Sequence[Mapping[str, Any]]) -> dict[int, Any]:
    values: dict[int, float | None] = dict.fromkeys(numbers)
    for sample in samples:
        if sample["filter"] != questions.filter or questions.metric not in sample:
            continue
        value = sample[questions.metric]
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise EvaluationError(
                f"{questions.name}: {questions.scored_by} of document {numbers[sample['doc_id']]} is {value!r}, which "
                "is no finite number. Choose another metric."
            )
        values[numbers[sample["doc_id"]]] = float(value)
    return values


def model_arguments(text: str) -> dict[str, Any]:
    """The arguments of a model as lm-eval's command line takes them: `name=value,...`, or a JSON object.

    Raises:
        EvaluationError: the text is neither, or names what is given otherwise.
    """
    try:
        found = json.loads(text) if text.lstrip().startswith("{") else simple_parse_args_string(text)
    except ValueError as error:
        raise EvaluationError(f"{text!r} is no list of NAME=VALUE: {error}") from error
    if taken := {"pretrained", "dtype", "device", "batch_size"} & found.keys():
        raise EvaluationError(f"The argument {sorted(taken)[0]} of the model is given by the command itself.")
    return dict(found)


@contextmanager
def _only(asked: Sequence[tuple[Questions, Sequence[int]]]) -> Iterator[None]:
    """While open, each task has no documents but these, in this order."""
    for each, numbers in asked:
        chosen = _chosen(each.documents, numbers)
        vars(each.task).update(has_test_docs=lambda: True, test_docs=partial(_itself, chosen))
    try:
        yield
    finally:
        for each, _ in asked:
            del vars(each.task)["has_test_docs"], vars(each.task)["test_docs"]


def _itself(documents: Any) -> Any:
    return documents


@contextmanager
def _prompts_built_in_silence() -> Iterator[None]:
    """While open, tasks show no bar while they build prompts, which takes next to no time."""
    shown = lm_eval.api.task.tqdm
    lm_eval.api.task.tqdm = partial(tqdm, disable=True)
    try:
        yield
    finally:
        lm_eval.api.task.tqdm = shown


def _chosen(documents: Any, numbers: Sequence[int]) -> Any:
    select = getattr(documents, "select", None)
    return select(numbers) if select else [documents[at] for at in numbers]


class _Silent:
    """A model for lm-eval that answers without a bar of progress."""

    def __init__(self, lm: MLLM) -> None:
        self._lm = lm

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._lm, name)
        is_request = name in ("generate_until", "loglikelihood", "loglikelihood_rolling")
        return partial(found, disable_tqdm=True) if is_request else found
