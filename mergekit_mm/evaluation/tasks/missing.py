"""Documents that cannot be asked: one of their media is missing, cannot be read, or is refused by the processor.

The option `missing` says what becomes of them: `error` (the default: the run is refused, and all are named), `skip`
(they are left out of the scores) or `wrong` (they count as wrong). How many there were is written into the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergekit_mm.errors import EvaluationError

POLICIES = ("error", "skip", "wrong")
LISTED = 10
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
    more = [f"... and {len(reasons) - LISTED} more"] if len(reasons) > LISTED else []
    return "\n  ".join([f"{len(reasons)} of {total} documents cannot be asked:", *reasons[:LISTED], *more])


def refusal(reasons: Sequence[str], total: int) -> EvaluationError:
    """For the policy `error`."""
    return EvaluationError(
        f'{told(reasons, total)}\nTo go on without them: --metadata \'{{"missing": "skip"}}\' (they are left out) or '
        '\'{"missing": "wrong"}\' (they count as wrong)'
    )


def none_left(tasks: str, example: str) -> EvaluationError:
    """For tasks without any document that can be asked."""
    return EvaluationError(f"no document of {tasks} can be asked, for instance: {example}")
