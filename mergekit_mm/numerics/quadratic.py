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

from mergekit_mm.numerics.filters import apply_quotient_, heavy_ball_quotient
from mergekit_mm.numerics.spectral import add_gram_, gram

_ADAM_ROWS = 256  # rows per block of the Adam loop: enough for a fast product, few enough to stay in the cache


class Term(NamedTuple):
    """One expert's part: rows = sqrt(w) L (r, in), and its target as factors, T = left @ right (right None: left)."""

    rows: Tensor
    left: Tensor
    right: Tensor | None

    def slope(self, start: Tensor, share: float) -> Tensor:
        """(T - share * start) rows^T (out, r)."""
        own = self.left @ self.rows.T if self.right is None else self.left @ (self.right @ self.rows.T)
        return own.addmm_(start, self.rows.T, alpha=-share)


class GramTerm(NamedTuple):
    """The part of an expert whose proxy is its whole delta: own = w L^T L (in, in), and left @ right = T own."""

    own: Tensor
    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A and D in the smaller of two forms.

    by rows:  matrix = R (r, in) with A = R^T R, and slope (out, r) with D = slope @ R.
    else:     matrix = A (in, in), and slope = D (out, in).

    The three ways to sum the experts' terms consume them one at a time. x_0 is share * start (out, in), less whatever
    part all targets share and the terms leave out. The slope's rounding is multiplied by q(A), by rows only by
    q(A) sqrt(A): a method that goes far along small eigenvalues should bring float64 terms in the other form, and in
    both if A's spectrum is wide.
    """

    slope: Tensor
    matrix: Tensor
    by_rows: bool

    @classmethod
    def stacked(cls, terms: Iterable[Term], row_count: int, start: Tensor, share: float) -> Quadratic:
        """By rows; `row_count` is the number of rows that the terms bring together."""
        rows = start.new_empty(row_count, start.shape[1])
        slope = start.new_empty(start.shape[0], row_count)
        filled = 0
        for term in terms:
            stop = filled + term.rows.shape[0]
            rows[filled:stop] = term.rows
            slope[:, filled:stop] = term.slope(start, share)
            filled = stop
            del term  # before the next one is made
        return cls(slope, rows, by_rows=True)

    @classmethod
    def summed(cls, terms: Iterable[Term], start: Tensor, share: float, matrix_in: torch.dtype) -> Quadratic:
        """A in the dtype `matrix_in`, and D, which is summed without A, in that of the terms."""
        matrix = start.new_zeros(start.shape[1], start.shape[1], dtype=matrix_in)
        slope = torch.zeros_like(start)
        for term in terms:
            slope.addmm_(term.slope(start, share), term.rows)
            add_gram_(matrix, term.rows.to(matrix_in).T)
            del term
        return cls(slope, matrix, by_rows=False)

    @classmethod
    def of_grams(cls, terms: Iterable[GramTerm], start: Tensor, share: float) -> Quadratic:
        """The cheapest where out >= in: each expert's Gram matrix serves both sums, and its target's truncation."""
        matrix = start.new_zeros(start.shape[1], start.shape[1])
        slope = torch.zeros_like(start)
        for term in terms:
            matrix += term.own
            slope.addmm_(term.left, term.right)
            del term
        return cls(slope.addmm_(start, matrix, alpha=-share), matrix, by_rows=False)

    @cached_property
    def hessian(self) -> Tensor:
        """A, or by rows the smaller R R^T, which has the same eigenvalues but for zeros. Kept: for memory, ask late."""
        return gram(self.matrix) if self.by_rows else self.matrix

    def sgd_step(self, learning_rate: float, momentum: float, iterations: int) -> Tensor:
        """y (out, in) after `iterations` steps of SGD with momentum from y = 0: the spectral filter y = D q(A).

        By rows it is slope q(R R^T) R, with the filter on the smaller matrix. The problem is used up.
        """

        def quotient(eigenvalues: Tensor) -> Tensor:
            return heavy_ball_quotient(eigenvalues, learning_rate, momentum, iterations)

        step = apply_quotient_(self.slope, self.hessian, quotient)
        return step @ self.matrix if self.by_rows else step

    def adam_step(
        self, learning_rate: float, betas: tuple[float, float], epsilon: float, iterations: int, dtype: torch.dtype
    ) -> Tensor:
        """y (out, in) after `iterations` steps of torch.optim.Adam's rule from y = 0, taken in `dtype`.

        Adam rescales every entry by itself, so no filter equals it; but rows never mix, so they run in blocks.
        """
        operator = self.matrix.to(dtype)
        coordinates = operator.T if self.by_rows else None
        step = torch.empty(self.slope.shape[0], self.matrix.shape[1], dtype=dtype, device=operator.device)
        for block, into in zip(self.slope.split(_ADAM_ROWS), step.split(_ADAM_ROWS), strict=True):
            target = (2.0 * (block @ self.matrix if self.by_rows else block)).to(dtype)
            into.copy_(_adam(target, operator, coordinates, learning_rate, betas, epsilon, iterations))
        return step


def _adam(
    target: Tensor,
    operator: Tensor,
    coordinates: Tensor | None,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    iterations: int,
) -> Tensor:
    """Adam on the gradient `2 y @ operator - target`, or `2 (y @ coordinates) @ operator - target`."""
    y, first, second, scratch = (torch.zeros_like(target) for _ in range(4))
    for t in range(1, iterations + 1):
        gradient = torch.addmm(target, y if coordinates is None else y @ coordinates, operator, beta=-1.0, alpha=2.0)
        first.lerp_(gradient, 1.0 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1.0 - betas[1])
        # m / c1 / (sqrt(v / c2) + eps) with the bias corrections c1, c2 moved out of the entries into scalars
        correction = math.sqrt(1.0 - betas[1] ** t)
        torch.sqrt(second, out=scratch).add_(epsilon * correction)
        y.addcdiv_(first, scratch, value=-learning_rate * correction / (1.0 - betas[0] ** t))
    return y
