"""Documents that cannot be asked: one of their media is missing, cannot be read, or is refused by the processor.

The option `missing` says what becomes of them: `error` (the default: the run is refused, and all are named), `skip`
(they are left out of the scores) or `wrong` (they count as wrong). How many there were is written into the results.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mergekit_mm.errors import EvaluationError

LOG = logging.getLogger(__name__)
POLICIES = ("error", "skip", "wrong")
_LISTED = 10
of_task: dict[str, str] = {}  # task -> what its metadata say, for the model, which sees requests only


class NoAnswer(str):
    """Stands for the reply to a document that could not be asked. `policy`: what becomes of the document."""

    policy: str = "wrong"


class NoScore(tuple[float, bool]):
    """Stands for the likelihood of a choice about a document that could not be asked. `policy` as of `NoAnswer`."""

    policy: str = "skip"


class Documents(dict[str, Any]):
    """Splits of a data set, and what was left out of them: reasons by split."""

    left_out: Sequence[str] = ()
    total: int = 0


def check(policy: Any) -> str:
    """The policy. EvaluationError: it is none."""
    if policy not in POLICIES:
        raise EvaluationError(f"missing is {policy!r}; it must be one of {', '.join(POLICIES)}")
    return str(policy)


def told(reasons: Sequence[str], total: int) -> str:
    """The number of documents concerned, and the first reasons, one a line."""
    more = [f"... and {len(reasons) - _LISTED} more"] if len(reasons) > _LISTED else []
    return "\n  ".join([f"{len(reasons)} of {total} documents cannot be asked:", *reasons[:_LISTED], *more])


def refusal(reasons: Sequence[str], total: int) -> EvaluationError:
    """For the policy `error`."""
    return EvaluationError(
        f'{told(reasons, total)}\nTo go on without them: --metadata \'{{"missing": "skip"}}\' (they are left out) or '
        '\'{"missing": "wrong"}\' (they count as wrong)'
    )


def none_left(tasks: str, example: str) -> EvaluationError:
    """For tasks without any document that can be asked."""
    return EvaluationError(f"no document of {tasks} can be asked, for instance: {example}")


def prepare(task: Any) -> None:
    """Make a task of lm-eval follow its `missing` option, and write into its metadata what was left out."""
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
    counted: set[int] = set()  # stand-ins that were counted: with several filters each is scored several times

    @functools.wraps(filtering)
    def apply_filters() -> Any:
        """Filters make other texts of replies; that there is no reply must not get lost on the way."""
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
        if stand_in is not None and id(stand_in) not in counted:  # those without media are counted before
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
        metadata["left_out"]["first"] = list(reasons[:_LISTED])
