"""The interference that WUDI and its closed forms lower for one matrix, measured in float64.

    L(x) = sum_i w_i || (x - tau_i) tau_i^T ||^2,   w_i = 1 / || tau_i ||^2,   gradient 2 (x A - B),
    A = sum_i w_i tau_i^T tau_i,   B = sum_i w_i tau_i tau_i^T tau_i

From a start x_0 in the span of the tau_i, a spectral filter f on A = V Lambda V^T moves to

    x_0 (I - V f V^T) + B V (f / Lambda) V^T  =  x_0 + (B - x_0 A) V (f / Lambda) V^T .

The rows of x_0 and of B lie in the range of A, so A's null directions add nothing whatever f is there, and need not be
found. Float32 is not enough: a filter that goes far, or stops at a rank, loses up to four digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.deltas import Init, in_joint_core, mean_and_peaks, square_norm, start_share
from mergekit_mm.numerics.filters import filter_by_eigenvectors
from mergekit_mm.numerics.polar import numerical_rank
from mergekit_mm.numerics.quadratic import GramTerm, Quadratic, Term
from mergekit_mm.numerics.row_space import RowSpace
from mergekit_mm.numerics.spectral import gram
from mergekit_mm.numerics.task_vector import TaskVector

Filter = Literal["exponential", "tikhonov", "none"]
Time = Literal["absolute", "relative"]
Quotient = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Interference:
    """L of one matrix around its start, for deltas divided by `scale`: x_0 = start * mean."""

    problem: Quadratic
    mean: Tensor
    start: float
    scale: float

    @classmethod
    def measure(cls, task_vectors: Sequence[TaskVector], init: Init) -> Interference | None:
        """None when no expert changed the matrix. Deltas are formed one at a time, twice: for the mean, then for A, B.

        An expert with a zero delta has weight 0; it still counts in the mean.
        """
        mean, peaks = mean_and_peaks(task_vectors, torch.float64)
        if max(peaks) == 0:
            return None
        scale = 2.0 ** math.frexp(max(peaks))[1]  # a power of two: no square leaves the range, no rounding is added
        mean /= scale
        start = start_share(init, len(task_vectors)) * len(task_vectors)
        live = [t for t, peak in zip(task_vectors, peaks, strict=True) if peak > 0]
        rows, columns = mean.shape
        deltas = (t.dense(torch.float64).div_(scale) for t in live)
        if rows < columns:
            problem = Quadratic.summed(map(_term, deltas), mean, start, torch.float64)
        else:
            problem = Quadratic.of_grams(map(_gram_term, deltas), mean, start)
        return cls(problem, mean, start, scale)

    def moved(self, step: Tensor) -> Tensor:
        """x_0 + step, in the scale of the deltas that came in."""
        return step.add_(self.mean, alpha=self.start).mul_(self.scale)


def filtered(task_vectors: Sequence[TaskVector], init: Init, quotient: Quotient, tolerance: float) -> TaskVector:
    """The merged task vector that a spectral filter reaches from the start; factored if all task vectors are.

    quotient maps the eigenvalues in A's numerical range, descending, to f / Lambda of the leading ones it keeps.
    tolerance: singular values of the stacked deltas below this share of the largest are rounding and keep the start.
    """

    def keep(eigenvalues: Tensor) -> Tensor:
        return quotient(eigenvalues[: numerical_rank(eigenvalues, tolerance)])

    def solve(deltas: Sequence[TaskVector]) -> Tensor | None:
        space = RowSpace.of(deltas, start_share(init, len(deltas)))
        if space is not None:
            in_rows = space.problem(torch.float64, target=lambda own: own)
            step = filter_by_eigenvectors(*in_rows, keep)
            del in_rows  # as large as all inputs
            return space.combined(step)
        interference = Interference.measure(deltas, init)
        if interference is None:
            return None
        problem = interference.problem
        return interference.moved(filter_by_eigenvectors(problem.slope, problem.matrix, keep))

    return in_joint_core(task_vectors, solve)


def require_filter(exp_time: float, tikhonov_alpha: float) -> None:
    """ValueError for constants of the spectral filters out of their range; only one of the two is used at a time."""
    require(0 < exp_time < math.inf, "exp_time", "positive", exp_time)
    require(0 < tikhonov_alpha < math.inf, "tikhonov_alpha", "positive", tikhonov_alpha)


def filter_quotient(eigenvalues: Tensor, kind: Filter, time: Time, exp_time: float, tikhonov_alpha: float) -> Tensor:
    """f / Lambda for descending positive eigenvalues: f = 1 - exp(-t l), l / (l + alpha), or 1.

    A relative time has t / l_1 in the place of t and alpha l_1 in that of alpha: how far the filter goes is then the
    same for spectra that differ by a factor, as those of experts with different effective ranks do.
    """
    unit = float(eigenvalues[0]) if time == "relative" and len(eigenvalues) else 1.0
    if kind == "exponential":
        return -torch.expm1(eigenvalues * (-exp_time / unit)) / eigenvalues
    return 1.0 / (eigenvalues + (tikhonov_alpha * unit if kind == "tikhonov" else 0.0))


def _term(delta: Tensor) -> Term:
    return Term(delta / math.sqrt(square_norm(delta)), delta, None)


def _gram_term(delta: Tensor) -> GramTerm:
    own = gram(delta.T).div_(square_norm(delta))
    return GramTerm(own, delta, own)
