"""A loaded task of lm-eval, made to follow the option `missing` for documents that cannot be asked."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_mm.evaluation.tasks.missing import LISTED, NoAnswer, NoScore, check, none_left, of_task, told

LOG = logging.getLogger(__name__)


def prepare(task: Any) -> None:
    """Make a task of lm-eval (0.4.13 up to 0.5) follow its option `missing`, and record what was left out.

    The methods `process_results` and `apply_filters` of the task are replaced. `left_out` in its metadata, which
    lm-eval writes into the results, has the number of documents that were left out and the first reasons.
    """
    given = getattr(getattr(task, "config", None), "metadata", None)
    metadata = given if isinstance(given, Mapping) else {}
    policy = check(metadata.get("missing", "error"))
    of_task.pop(task.task_name, None)
    if "missing" in metadata:
        of_task[task.task_name] = policy
    if left := list(getattr(getattr(task, "dataset", None), "left_out", ())):
        LOG.warning("%s: %s", task.task_name, told(left, task.dataset.total))
        _record(task, policy, left)
    original, filtering = task.process_results, task.apply_filters
    counted: set[int] = set()  # ids of stand-ins; with several filters each stand-in is scored several times

    @functools.wraps(filtering)
    def apply_filters() -> Any:
        """Apply the task's filters, but keep stand-ins: a filter would make an ordinary text of them."""
        found = filtering()
        stand_ins = [
            next((each for each in instance.resps if isinstance(each, (NoAnswer, NoScore))), None)
            for instance in task.instances
        ]
        if stand_ins and None not in stand_ins:
            raise none_left(task.task_name, "see the warning above")
        for instance, stand_in in zip(task.instances, stand_ins, strict=True):
            if stand_in is not None:
                instance.filtered_resps = dict.fromkeys(instance.filtered_resps, stand_in)
        return found

    @functools.wraps(original)
    def process_results(doc: Any, results: Any) -> Any:
        stand_in = next((each for each in results if isinstance(each, (NoAnswer, NoScore))), None)
        if stand_in is None and not _lacks(doc):
            return original(doc, results)
        known = of_task.get(task.task_name, policy if stand_in is None else stand_in.policy)
        if stand_in is not None and id(stand_in) not in counted:  # documents without media were counted above
            counted.add(id(stand_in))
            _record(task, known, [])
        return {} if known == "skip" else original(doc, [""])

    task.process_results, task.apply_filters = process_results, apply_filters


def _lacks(doc: Any) -> bool:
    return bool(isinstance(doc, Mapping) and doc.get("lacks"))


def _record(task: Any, policy: str, reasons: Sequence[str]) -> None:
    metadata = task.config.metadata = dict(task.config.metadata or {})
    before = metadata.get("left_out") or {"documents": 0, "counted": "wrong" if policy == "wrong" else "not at all"}
    metadata["left_out"] = {**before, "documents": before["documents"] + max(len(reasons), 1)}
    if reasons:
        metadata["left_out"]["first"] = list(reasons[:LISTED])
