"""The option `missing`: what becomes of documents that cannot be asked.

A document cannot be asked if one of its media is missing, cannot be read, or is refused by the processor. With `error`,
the default, the run is refused and all such documents are named; with `skip` they are left out of the scores; with
`wrong` they count as wrong. Their number is written into the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit_mm.errors import EvaluationError

POLICIES = ("error", "skip", "wrong")
LISTED = 10
# The option by task, if the task's metadata have it. A model of lm-eval sees requests only, which do not hold metadata.
of_task: dict[str, str] = {}


class NoAnswer(str):
    """A stand-in for the reply to a document that could not be asked. policy: `skip` or `wrong`."""

    policy: str = "wrong"


class NoScore(tuple[float, bool]):
    """A stand-in for the likelihood of a choice, if the document could not be asked. policy: `skip` or `wrong`."""

    policy: str = "skip"


class Documents(dict[str, Any]):
    """The splits of a data set. left_out: the reason for each document that was left out, of `total` documents."""

    left_out: Sequence[str] = ()
    total: int = 0


def check(policy: Any) -> str:
    """The policy itself. EvaluationError: there is no such policy."""
    if policy not in POLICIES:
        raise EvaluationError(f"missing is {policy!r}; it must be one of {', '.join(POLICIES)}")
    return str(policy)


def told(reasons: Sequence[str], total: int) -> str:
    """A message with the number of documents that cannot be asked, and the first reasons, one per line."""
    more = [f"... and {len(reasons) - LISTED} more"] if len(reasons) > LISTED else []
    return "\n  ".join([f"{len(reasons)} of {total} documents cannot be asked:", *reasons[:LISTED], *more])


def refusal(reasons: Sequence[str], total: int) -> EvaluationError:
    """The error of the policy `error`."""
    return EvaluationError(
        f'{told(reasons, total)}\nTo go on without them: --metadata \'{{"missing": "skip"}}\' (they are left out) or '
        '\'{"missing": "wrong"}\' (they count as wrong)'
    )


def none_left(tasks: str, example: str) -> EvaluationError:
    """The error for tasks without any document that can be asked."""
    return EvaluationError(f"no document of {tasks} can be asked, for instance: {example}")
