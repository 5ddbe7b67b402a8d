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

from mergekit_mm.numerics.deltas import in_joint_core, mean_and_peaks, square_norm
from mergekit_mm.numerics.eigen import Spectrum
from mergekit_mm.numerics.polar import numerical_rank
from mergekit_mm.numerics.quadratic import GramTerm, Quadratic, Term
from mergekit_mm.numerics.spectral import gram
from mergekit_mm.numerics.task_vector import TaskVector

Init = Literal["mean", "sum", "zero"]
Filter = Literal["exponential", "tikhonov", "none"]
Time = Literal["absolute", "relative"]
Quotient = Callable[[Tensor], Tensor]

_BANDS_FROM = 2048  # columns; below, the memory that bands of eigenvectors save is not worth their time


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
        start = _share(init, len(task_vectors)) * len(task_vectors)
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

    def solve(deltas: Sequence[TaskVector]) -> Tensor | None:
        rows, columns = deltas[0].shape
        if rows < columns:
            norms = [math.sqrt(square_norm(t.dense(torch.float64))) for t in deltas]
            if rows * sum(norm > 0 for norm in norms) < columns:
                return _combination(deltas, norms, _share(init, len(deltas)), quotient, tolerance)
        interference = Interference.measure(deltas, init)
        if interference is None:
            return None
        problem = interference.problem
        return interference.moved(_filter(problem.slope, problem.matrix, quotient, tolerance))

    return in_joint_core(task_vectors, solve)


def _combination(
    task_vectors: Sequence[TaskVector], norms: Sequence[float], share: float, quotient: Quotient, tolerance: float
) -> Tensor | None:
    """`filtered` for matrices so wide that the rows of all experts are fewer than the columns; x_0 = share * sum tau_i.

    With R the rows of all tau_i / || tau_i || stacked, A = R^T R has the eigenvalues of G = R R^T, and x_0, B and the
    answer are combinations of the rows: everything but the last product is found from the blocks of G alone.
    """
    live = [(t, norm) for t, norm in zip(task_vectors, norms, strict=True) if norm > 0]
    if not live:
        return None
    rows = task_vectors[0].shape[0]
    products = _row_products(live)
    slope = products.new_zeros(rows, len(products))  # B - x_0 A = slope R
    for i, (_, norm) in enumerate(live):
        block = slice(i * rows, (i + 1) * rows)
        slope.sub_(products[block], alpha=share * norm)
        slope[:, block].add_(products[block, block], alpha=norm)
    combination = _filter(slope, products, quotient, tolerance)
    del products
    merged = combination.new_zeros(task_vectors[0].shape)
    for (task_vector, norm), part in zip(live, combination.split(rows, dim=1), strict=True):
        part.diagonal().add_(share * norm)
        merged.addmm_(part, task_vector.dense(torch.float64).div_(norm))
    return merged


def _row_products(live: Sequence[tuple[TaskVector, float]]) -> Tensor:
    """G = R R^T, R the deltas divided by their norms and stacked; in blocks, as R is larger than the inputs."""
    rows, count = live[0][0].shape[0], len(live)
    products = torch.empty(rows * count, rows * count, dtype=torch.float64, device=live[0][0].left.device)
    blocks = [list(band.split(rows, dim=1)) for band in products.split(rows)]
    for i, (task_vector, norm) in enumerate(live):
        delta = task_vector.dense(torch.float64).div_(norm)
        blocks[i][i].copy_(gram(delta))
        for j, (other, other_norm) in enumerate(live[:i]):
            torch.mm(delta, other.dense(torch.float64).div_(other_norm).T, out=blocks[i][j])
            blocks[j][i].copy_(blocks[i][j].T)
    return products


def _filter(slope: Tensor, matrix: Tensor, quotient: Quotient, tolerance: float) -> Tensor:
    """slope V q V^T for matrix = V Lambda V^T, which is used up. Of a large matrix V is never there as a whole."""
    spectrum = Spectrum(matrix)
    weights = quotient(spectrum.values[: numerical_rank(spectrum.values, tolerance)])
    band = len(matrix) // 4 if len(matrix) >= _BANDS_FROM else max(1, len(matrix))
    filtered = torch.zeros_like(slope)
    for start in range(0, len(weights), band):
        stop = min(start + band, len(weights))
        vectors = spectrum.pairs(start, stop)[1]
        filtered.addmm_((slope @ vectors).mul_(weights[start:stop]), vectors.T)
    return filtered


def filter_quotient(eigenvalues: Tensor, kind: Filter, time: Time, exp_time: float, tikhonov_alpha: float) -> Tensor:
    """f / Lambda for descending positive eigenvalues: f = 1 - exp(-t l), l / (l + alpha), or 1.

    A relative time has t / l_1 in the place of t and alpha l_1 in that of alpha: how far the filter goes is then the
    same for spectra that differ by a factor, as those of experts with different effective ranks do.
    """
    unit = float(eigenvalues[0]) if time == "relative" and len(eigenvalues) else 1.0
    if kind == "exponential":
        return -torch.expm1(eigenvalues * (-exp_time / unit)) / eigenvalues
    return 1.0 / (eigenvalues + (tikhonov_alpha * unit if kind == "tikhonov" else 0.0))


def _share(init: Init, count: int) -> float:
    """x_0 as a multiple of the sum of the task vectors."""
    return {"mean": 1.0 / count, "sum": 1.0, "zero": 0.0}[init]


def _term(delta: Tensor) -> Term:
    return Term(delta / math.sqrt(square_norm(delta)), delta, None)


def _gram_term(delta: Tensor) -> GramTerm:
    own = gram(delta.T).div_(square_norm(delta))
    return GramTerm(own, delta, own)
