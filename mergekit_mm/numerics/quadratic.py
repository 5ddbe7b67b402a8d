"""The quadratic that WUDI and OptMerge minimise for one matrix, and two ways of descending it.

    L(x) = sum_i w_i || (x - T_i) L_i^T ||^2,   gradient 2 (x A - B),
    A = sum_i w_i L_i^T L_i,   B = sum_i w_i T_i L_i^T L_i

for x (out, in). Everything is expressed in the step y = x - x_0, whose gradient is 2 (y A - D) with D = B - x_0 A.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.filters import apply_quotient, heavy_ball_quotient
from mergekit_mm.numerics.spectral import add_gram_, gram

_ADAM_ROWS = 256  # rows per block of the Adam loop: enough for a fast product, few enough to stay in the cache


class Term(NamedTuple):
    """One expert's part: rows = sqrt(w) L (r, in), and its target as factors, T = left @ right (right None: left)."""

    rows: Tensor
    left: Tensor
    right: Tensor | None

    def target_times_rows(self) -> Tensor:
        """P = T rows^T (out, r)."""
        return self.left @ self.rows.T if self.right is None else self.left @ (self.right @ self.rows.T)

    def add_to_slope_(self, slope: Tensor) -> None:
        """slope += T rows^T rows (out, in), through the thin factor of T where it has one."""
        if self.right is None:
            slope.addmm_(self.left @ self.rows.T, self.rows)
        else:
            slope.addmm_(self.left, (self.right @ self.rows.T) @ self.rows)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A and D in the smaller of two forms.

    by rows:  matrix = R (r, in) with A = R^T R, and slope (out, r) with D = slope @ R.
    else:     matrix = A (in, in), and slope = D (out, in).
    """

    slope: Tensor
    matrix: Tensor
    by_rows: bool

    @classmethod
    def assemble(cls, terms: Iterable[Term], row_count: int, start: Tensor) -> Quadratic:
        """Sum the experts' terms, consumed one at a time; `row_count` is the number of rows they bring together.

        start (out, in) is x_0 less whatever part all targets share and the terms leave out. The slope's rounding is
        multiplied by q(A), by rows only by q(A) sqrt(A): a method that goes far along small eigenvalues should bring
        float64 terms in the other form, and in both if A's spectrum is wide.
        """
        if row_count < start.shape[1]:
            return cls._stack(terms, row_count, start)
        hessian = start.new_zeros(start.shape[1], start.shape[1])
        slope = torch.zeros_like(start)
        for term in terms:
            add_gram_(hessian, term.rows.T)
            term.add_to_slope_(slope)
        return cls(slope.addmm_(start, hessian, alpha=-1.0), hessian, by_rows=False)

    @classmethod
    def _stack(cls, terms: Iterable[Term], row_count: int, start: Tensor) -> Quadratic:
        rows = start.new_empty(row_count, start.shape[1])
        slope = start.new_empty(start.shape[0], row_count)
        filled = 0
        for term in terms:
            stop = filled + term.rows.shape[0]
            rows[filled:stop] = term.rows
            slope[:, filled:stop] = term.target_times_rows()
            filled = stop
        return cls(slope.addmm_(start, rows.T, alpha=-1.0), rows, by_rows=True)

    @cached_property
    def hessian(self) -> Tensor:
        """A, or by rows the smaller R R^T, which has the same eigenvalues but for zeros. Kept: for memory, ask late."""
        return gram(self.matrix) if self.by_rows else self.matrix

    def sgd_step(self, learning_rate: float, momentum: float, iterations: int) -> Tensor:
        """y (out, in) after `iterations` steps of SGD with momentum from y = 0: the spectral filter y = D q(A).

        By rows it is slope q(R R^T) R, with the filter on the smaller matrix.
        """

        def quotient(eigenvalues: Tensor) -> Tensor:
            return heavy_ball_quotient(eigenvalues, learning_rate, momentum, iterations)

        step = apply_quotient(self.slope, self.hessian, quotient)
        return step @ self.matrix if self.by_rows else step

    def adam_step(
        self, learning_rate: float, betas: tuple[float, float], epsilon: float, iterations: int, dtype: torch.dtype
    ) -> Tensor:
        """y (out, in) after `iterations` steps of torch.optim.Adam's rule from y = 0, taken in `dtype`.

        Adam rescales every entry by itself, so no filter equals it; but rows never mix, so they run in blocks.
        """
        slope, matrix, by_rows = self.slope, self.matrix, self.by_rows
        if by_rows and 2 * matrix.shape[0] >= matrix.shape[1]:  # one product by A costs less than two by R
            slope, matrix, by_rows = slope @ matrix, gram(matrix.T), False
        operator = (2.0 * matrix).to(dtype)
        coordinates = matrix.T.to(dtype) if by_rows else None
        steps = []
        for block in slope.split(_ADAM_ROWS):
            target = (2.0 * (block @ matrix if by_rows else block)).to(dtype)
            steps.append(_adam(target, operator, coordinates, learning_rate, betas, epsilon, iterations))
        return torch.cat(steps)


def _adam(
    target: Tensor,
    operator: Tensor,
    coordinates: Tensor | None,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    iterations: int,
) -> Tensor:
    """Adam on the gradient `y @ operator - target`, or `(y @ coordinates) @ operator - target`."""
    y, first, second, scratch = (torch.zeros_like(target) for _ in range(4))
    for t in range(1, iterations + 1):
        gradient = torch.addmm(target, y if coordinates is None else y @ coordinates, operator, beta=-1.0)
        first.lerp_(gradient, 1.0 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1.0 - betas[1])
        # m / c1 / (sqrt(v / c2) + eps) with the bias corrections c1, c2 moved out of the entries into scalars
        correction = math.sqrt(1.0 - betas[1] ** t)
        torch.sqrt(second, out=scratch).add_(epsilon * correction)
        y.addcdiv_(first, scratch, value=-learning_rate * correction / (1.0 - betas[0] ** t))
    return y
