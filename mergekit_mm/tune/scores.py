"""Values of single questions, the mean of a candidate with its standard error, and differences of two candidates.

Questions come in sets: a task, or the samples of an expert. Question i of set s has the value v_i and the weight w_i,
which is 1 but where a question is a mean over tokens itself. With n questions in the set,

    m_s = sum_i w_i v_i / sum_i w_i,    var_s = n / (n - 1) sum_i w_i^2 (v_i - m_s)^2 / (sum_i w_i)^2 ,

which for equal weights is the variance of a mean, and for others that of a ratio to first order. All sets count alike:
the score is the mean of the m_s, its standard error sqrt(sum_s var_s) over the number of sets. The difference of two
candidates is that of their values, question by question, so that what makes a question hard for both cancels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959964  # half the width of a 95 % interval in standard errors
Value = tuple[float, float]  # of one question, and its weight
Values = Mapping[str, Mapping[int, Value | None]]  # by set and by place in the order of its questions; None: not asked


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which is None where a set has fewer than two questions."""

    value: float
    stderr: float | None

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval."""
        return None if self.stderr is None else NORMAL_95 * self.stderr

    @property
    def is_apart(self) -> bool:
        """Whether the 95 % interval leaves out zero; False if it is not known."""
        return self.half_width is not None and abs(self.value) > self.half_width


def estimate(values: Values) -> Estimate:
    """The mean of a candidate over all sets. ValueError: a set has no value at all."""
    return _mean([[each for each in own.values() if each is not None] for own in values.values()])


def difference(values: Values, others: Values) -> Estimate:
    """By how much the first candidate's mean is above the second's, on the questions that both were asked."""
    paired = []
    for name, own in values.items():
        pairs = [(one, two) for at, one in own.items() if one is not None and (two := others[name].get(at)) is not None]
        paired.append([(one[0] - two[0], one[1]) for one, two in pairs])
    return _mean(paired)


def _mean(sets: Sequence[Sequence[Value]]) -> Estimate:
    means, variances = [], []
    for own in sets:
        if not own:
            raise ValueError("a set without a value has no mean")
        total = math.fsum(weight for _, weight in own)
        mean = math.fsum(value * weight for value, weight in own) / total
        means.append(mean)
        squares = math.fsum((weight * (value - mean)) ** 2 for value, weight in own)
        variances.append(squares / total**2 * len(own) / (len(own) - 1) if len(own) > 1 else None)
    known = [each for each in variances if each is not None]
    stderr = math.sqrt(math.fsum(known)) / len(sets) if len(known) == len(sets) else None
    return Estimate(math.fsum(means) / len(sets), stderr)
