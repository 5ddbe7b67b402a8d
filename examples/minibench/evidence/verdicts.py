"""Whether an interval supports a statement."""

from __future__ import annotations

from collections.abc import Sequence

from examples.minibench.evidence.statistics import Interval

HOLDS, FAILS, UNDECIDED = "holds", "does not", "undecided"


def verdict(interval: Interval, margin: float = 0.0) -> str:
    """Whether a difference that shall be above `-margin` is: only if its 95 % interval excludes the contrary.

    Two models that answer all questions alike differ by nothing, so that neither is above the other one.
    """
    return HOLDS if interval.low > -margin else FAILS if interval.high <= -margin else UNDECIDED


def all_hold(verdicts: Sequence[str]) -> str:
    """The verdict on a statement that is the sum of others: it fails if one fails."""
    return FAILS if FAILS in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, which zero has none of."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "−")


def points(interval: Interval) -> str:
    """A difference and its interval in percentage points: `+1.2 (−0.3 to +2.8)`."""
    return f"{signed(100 * interval.value)} ({span(interval)})"


def percent(interval: Interval) -> str:
    """An accuracy and its interval: `51.2 % (49.7 to 52.8)`."""
    return f"{100 * interval.value:.1f} % ({span(interval, sign=False)})"


def span(interval: Interval, sign: bool = True) -> str:
    """The ends of an interval in percentage points."""
    ends = (100 * interval.low, 100 * interval.high)
    return " to ".join(signed(each) if sign else f"{each:.1f}" for each in ends)
