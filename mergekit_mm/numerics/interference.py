"""The experts' interference in one matrix: the quadratic that WUDI and OptMerge lower, from task vectors to A and D.

For x (out, in), with T_i the target of expert i and L_i the proxy for the inputs that it has seen, both made of its
task vector tau_i, and w_i = 1 / || tau_i ||^2,

    L(x) = sum_i w_i || (x - T_i) L_i^T ||^2,   gradient 2 (x A - B),
    A = sum_i w_i L_i^T L_i,   B = sum_i w_i T_i L_i^T L_i .

Everything is expressed in the step y = x - x_0 from a start x_0, whose gradient is 2 (y A - D) with D = B - x_0 A.
There are three forms, and the cheapest one depends on the shape:
  - `Quadratic`: A (in, in) and D (out, in) themselves;
  - `RowQuadratic`: A = R^T R and D = S R, where the rows R (r, in) of all proxies together are fewer than the columns;
  - `RowSpace`: the same for whole deltas as proxies, where R has so many rows that it is never written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import add_gram_, gram
from mergekit_mm.numerics.filters import Quotient, apply_quotient_
from mergekit_mm.numerics.task_vector import TaskVector, row_blocks

Init = Literal["mean", "sum", "zero"]
Weights = Literal["norm", "equal"]  # w_i = 1 / || tau_i ||^2, or 1


def start_share(init: Init, count: int) -> float:
    """The start x_0 as a multiple of the sum of `count` task vectors."""
    return {"mean": 1.0 / count, "sum": 1.0, "zero": 0.0}[init]


# --- experts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Experts:
    """The experts that changed a matrix, in units of `scale`. The others have weight 0 in L; in a mean they count.

    sizes: one for each expert in units of `scale`, which is a power of two near the largest: squares of deltas cannot
    leave the range of float32, and no rounding is added.
    """

    task_vectors: Sequence[TaskVector]
    sizes: Sequence[float]
    scale: float

    @classmethod
    def of(cls, task_vectors: Sequence[TaskVector], sizes: Sequence[float]) -> Experts | None:
        """None when no expert changed the matrix. sizes: a norm of each delta, 0 for zero."""
        live = [i for i, size in enumerate(sizes) if size > 0]
        if not live:
            return None
        scale = 2.0 ** math.frexp(max(sizes))[1]
        return cls([task_vectors[i] for i in live], [sizes[i] / scale for i in live], scale)

    def deltas(self, dtype: torch.dtype) -> Iterator[Tensor]:
        """The deltas (out, in) in turn, each a tensor of its own that may be used up; only one is in memory."""
        return (task_vector.dense(dtype).div_(self.scale) for task_vector in self.task_vectors)


@dataclass(frozen=True, eq=False)
class Start:
    """The start x_0 = multiple * mean in one matrix, and the experts around it, all in units of the experts' scale."""

    experts: Experts
    mean: Tensor
    multiple: float

    @classmethod
    def measured(cls, task_vectors: Sequence[TaskVector], init: Init, dtype: torch.dtype) -> Start | None:
        """None when no expert changed the matrix. The mean (out, in) is taken in `dtype`."""
        mean, peaks = mean_and_peaks(task_vectors, dtype)
        experts = Experts.of(task_vectors, peaks)
        if experts is None:
            return None
        return cls(experts, mean.div_(experts.scale), start_share(init, len(task_vectors)) * len(task_vectors))

    def deltas(self) -> Iterator[Tensor]:
        """The deltas in turn, in the dtype of the mean; see `Experts.deltas`."""
        return self.experts.deltas(self.mean.dtype)

    def reached(self, step: Tensor) -> Tensor:
        """x_0 + step (out, in), in the units of the task vectors that came in. `step` is used up."""
        return step.add_(self.mean, alpha=self.multiple).mul_(self.experts.scale)


def mean_and_peaks(task_vectors: Sequence[TaskVector], dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    """The average delta (out, in), and each delta's largest absolute entry; one delta in memory at a time."""
    mean = torch.zeros(task_vectors[0].shape, dtype=dtype, device=task_vectors[0].device)
    peaks = []
    for task_vector in task_vectors:
        delta = task_vector.dense(dtype)
        low, high = torch.aminmax(delta)
        peaks.append(max(-float(low), float(high)))
        mean += delta
    return mean.div_(len(peaks)), peaks


def square_norm(delta: Tensor) -> float:
    """|| delta ||_F^2 to float32 rounding or better, without a copy of the delta; norm() loses digits on large ones."""
    return sum(float(part.square().sum(1).to(torch.float64).sum()) for part in row_blocks(delta))


class Term(NamedTuple):
    """What one expert brings: rows = sqrt(w) L (r, in), and its target T = left @ right (out, in); right None: left."""

    rows: Tensor
    left: Tensor
    right: Tensor | None

    @classmethod
    def whole(cls, delta: Tensor, weights: Weights) -> Term:
        """Of an expert whose target and proxy are its whole delta (out, in)."""
        rows = delta / math.sqrt(square_norm(delta)) if weights == "norm" else delta
        return cls(rows, delta, None)

    def slope(self, mean: Tensor, multiple: float) -> Tensor:
        """(T - x_0) rows^T (out, r), for x_0 = multiple * mean (out, in)."""
        own = self.left @ self.rows.T if self.right is None else self.left @ (self.right @ self.rows.T)
        return own.addmm_(mean, self.rows.T, alpha=-multiple)


class GramTerm(NamedTuple):
    """The same of an expert whose proxy is its whole delta: own = w L^T L (in, in), and left @ right = T own."""

    own: Tensor
    left: Tensor
    right: Tensor

    @classmethod
    def whole(cls, delta: Tensor, weights: Weights) -> GramTerm:
        """Of an expert whose target is its whole delta (out, in) too."""
        own = gram(delta.T)
        if weights == "norm":
            own.div_(square_norm(delta))
        return cls(own, delta, own)


# --- the quadratic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Quadratic:
    """slope = D (out, in) and matrix = A (in, in).

    Both sums consume their terms one at a time. They are taken around x_0 = multiple * mean; where all targets share a
    part that the terms leave out, it is left out of x_0 too. The slope's rounding is multiplied by q(A), so a method
    that goes far along small eigenvalues should bring terms in float64.
    """

    slope: Tensor
    matrix: Tensor

    @classmethod
    def summed(cls, terms: Iterable[Term], mean: Tensor, multiple: float, matrix_in: torch.dtype) -> Quadratic:
        """A in the dtype `matrix_in`, and D, which is summed without A, in that of the terms."""
        matrix = mean.new_zeros(mean.shape[1], mean.shape[1], dtype=matrix_in)
        slope = torch.zeros_like(mean)
        for term in terms:
            slope.addmm_(term.slope(mean, multiple), term.rows)
            add_gram_(matrix, term.rows.to(matrix_in).T)
            del term  # before the next one is made
        return cls(slope, matrix)

    @classmethod
    def of_grams(cls, terms: Iterable[GramTerm], mean: Tensor, multiple: float) -> Quadratic:
        """The cheapest where out >= in: each expert's Gram matrix serves both sums, and its target's truncation."""
        matrix = mean.new_zeros(mean.shape[1], mean.shape[1])
        slope = torch.zeros_like(mean)
        for term in terms:
            matrix += term.own
            slope.addmm_(term.left, term.right)
            del term  # before the next one is made
        return cls(slope.addmm_(mean, matrix, alpha=-multiple), matrix)

    @property
    def hessian(self) -> Tensor:
        """A itself (in, in); L's Hessian is twice that for each row of x."""
        return self.matrix

    def filtered(self, quotient: Quotient) -> Tensor:
        """The step D q(A) (out, in). The quadratic is used up."""
        return apply_quotient_(self.slope, self.matrix, quotient)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Matrices whose product is A, in `dtype`."""
        return (self.matrix.to(dtype),)

    def expanded(self, slope: Tensor) -> Tensor:
        """The rows of D (n, in) that some rows of the slope stand for."""
        return slope


@dataclass(frozen=True, eq=False)
class RowQuadratic:
    """slope = S (out, r) and rows = R (r, in), where A = R^T R and D = S R, for fewer rows than columns.

    The slope's rounding is multiplied by q(A) sqrt(A) only. If A's spectrum is wide, terms should be float64 here too.
    """

    slope: Tensor
    rows: Tensor

    @classmethod
    def stacked(cls, terms: Iterable[Term], row_count: int, mean: Tensor, multiple: float) -> RowQuadratic:
        """From terms that bring `row_count` rows together, around x_0 as in `Quadratic`; one is consumed at a time."""
        rows = mean.new_empty(row_count, mean.shape[1])
        slope = mean.new_empty(mean.shape[0], row_count)
        filled = 0
        for term in terms:
            stop = filled + term.rows.shape[0]
            rows[filled:stop] = term.rows
            slope[:, filled:stop] = term.slope(mean, multiple)
            filled = stop
            del term  # before the next one is made
        return cls(slope, rows)

    @cached_property
    def hessian(self) -> Tensor:
        """R R^T (r, r), which has the eigenvalues of A but for zeros."""
        return gram(self.rows)

    def filtered(self, quotient: Quotient) -> Tensor:
        """The step D q(A) = S q(R R^T) R (out, in), with the filter on the smaller matrix. All is used up."""
        return apply_quotient_(self.slope, self.hessian, quotient) @ self.rows

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Matrices whose product is A, in `dtype`."""
        rows = self.rows.to(dtype)
        return rows.T, rows

    def expanded(self, slope: Tensor) -> Tensor:
        """The rows of D (n, in) that some rows of the slope (n, r) stand for."""
        return slope @ self.rows


@dataclass(frozen=True, eq=False)
class RowSpace:
    """A very wide matrix, in coordinates of the experts' rows, which together are fewer than the columns.

    With R the rows of all sqrt(w_i) tau_i stacked (N out, in), proxies that are whole deltas have A = R^T R, with the
    eigenvalues of G = R R^T. The start x_0 = share * sum tau_i, the slope D and so the answer are combinations of the
    rows: all but the last product is found from the blocks of G. R is never written out as a whole.

    The experts' sizes are 1 / sqrt(w_i): their Frobenius norms, or for equal weights the largest of these.
    """

    experts: Experts
    share: float

    @classmethod
    def of(cls, task_vectors: Sequence[TaskVector], init: Init, weights: Weights = "norm") -> RowSpace | None:
        """None unless some expert changed the matrix and all rows are fewer than the columns."""
        rows, columns = task_vectors[0].shape
        if rows >= columns:
            return None
        norms = [math.sqrt(square_norm(t.dense(torch.float64))) for t in task_vectors]
        sizes = norms if weights == "norm" else [max(norms) if norm > 0 else 0.0 for norm in norms]
        experts = Experts.of(task_vectors, sizes)
        if experts is None or rows * len(experts.sizes) >= columns:
            return None
        return cls(experts, start_share(init, len(task_vectors)))

    def quadratic(self, dtype: torch.dtype, target: Callable[[Tensor], Tensor]) -> Quadratic:
        """The quadratic of the coordinates z (out, N out) of a step y = z R, in `dtype`.

        Its matrix is G (N out, N out), and its slope (out, N out) is the one with D = slope R.

        target maps the own Gram matrix of an expert's rows, w tau tau^T (out, out) in float64, to w T tau^T for the
        expert's target T.
        """
        sizes = self.experts.sizes
        rows, count = self.experts.task_vectors[0].shape[0], len(sizes)
        products = torch.empty(rows * count, rows * count, dtype=dtype, device=self.experts.task_vectors[0].device)
        slope = products.new_empty(rows, rows * count)
        blocks = [list(band.split(rows, dim=1)) for band in products.split(rows)]
        for i, (size, own_slope) in enumerate(zip(sizes, slope.split(rows, dim=1), strict=True)):
            own = gram(self._rows(i, torch.float64))
            blocks[i][i].copy_(own)
            own_slope.copy_(target(own).mul_(size))
            delta = self._rows(i, dtype)
            for j in range(i):
                torch.mm(delta, self._rows(j, dtype).T, out=blocks[i][j])
                blocks[j][i].copy_(blocks[i][j].T)
        for size, band in zip(sizes, products.split(rows), strict=True):
            slope.sub_(band, alpha=self.share * size)
        return Quadratic(slope, products)

    def reached(self, step: Tensor) -> Tensor:
        """x_0 + step R (out, in), in the units of the task vectors; step (out, N out) is used up."""
        merged = step.new_zeros(self.experts.task_vectors[0].shape)
        for i, (size, part) in enumerate(zip(self.experts.sizes, step.split(step.shape[0], dim=1), strict=True)):
            part.diagonal().add_(self.share * size)
            merged.addmm_(part, self._rows(i, step.dtype))
        return merged.mul_(self.experts.scale)

    def _rows(self, i: int, dtype: torch.dtype) -> Tensor:
        """sqrt(w_i) tau_i (out, in)."""
        return self.experts.task_vectors[i].dense(dtype).div_(self.experts.sizes[i] * self.experts.scale)
