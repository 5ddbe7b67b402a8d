"""Whether an interval supports a statement."""

from __future__ import annotations

from collections.abc import Sequence

from examples.minibench.evidence.statistics import Interval

HOLDS, FAILS, UNDECIDED = "holds", "does not", "undecided"


def verdict(interval: Interval, margin: float = 0.0) -> str:
    """Whether a difference that shall be above `-margin` is: only if its 95 % interval excludes the contrary."""
    return HOLDS if interval.low > -margin else FAILS if interval.high < -margin else UNDECIDED


def all_hold(verdicts: Sequence[str]) -> str:
    """The verdict on a statement that is the sum of others: it fails if one fails."""
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def points(interval: Interval, sign: bool = True) -> str:
    """A fraction and its interval in percentage points, such as `+1.2 (-0.3 to +2.8)`."""
    form = "+.1f" if sign else ".1f"
    value, low, high = (format(100 * each, form).replace("-", "−") for each in _ends(interval))
    return f"{value} ({low} to {high})"


def _ends(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
