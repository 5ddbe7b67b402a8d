"""The descent of OptMerge and WUDI on the interference in one matrix: its variants, and the cheapest way through each.

Per matrix, with tau_i the task vectors and k = int(rank_fraction min(out, in)), a descent takes a fixed number of steps

    on L(x) = sum_i || (x - T_i) L_i^T ||^2 / || tau_i ||^2

from a start x_0. T_i is the target, L_i the proxy for the inputs that expert i has seen; both come from tau_i, whole or
reduced to rank k (see `interference`). SGD is solved as a filter on the spectrum of L, Adam runs as a loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor

from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.eigen import gram, top_eigenpairs_
from mergekit_mm.numerics.filters import Time, heavy_ball_quotient, largest_eigenvalue, largest_eigenvalue_bound
from mergekit_mm.numerics.interference import (
    GramTerm,
    Init,
    Quadratic,
    RowQuadratic,
    RowSpace,
    Start,
    Term,
    mean_and_peaks,
    square_norm,
)
from mergekit_mm.numerics.low_rank import Truncation, truncate
from mergekit_mm.numerics.rank_rules import fraction_rank
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core, working_dtype

Optimizer = Literal["sgd", "adam"]
Proxy = Literal["truncated", "full", "centered"]
Target = Literal["truncated", "centered"]

_DOUBLE_UP_TO = 1 << 18  # entries of a matrix up to which float64 costs next to nothing
# Limits for sums in float32. The slope q(0) of a filter multiplies rounding; it is 0.58 for the preset `lora`, and 291
# for `modality`. In the coordinates of a row space only the root of slope times largest eigenvalue does.
_LONG_FILTER = 2.0
_LONGEST_IN_ROWS = 32.0
_ADAM_ROWS = 256  # rows per block of the Adam loop: enough for a fast product, few enough to stay in the cache
_AT_REST = 1e-12  # gradients below this are rounding, with the largest delta entry scaled to about 1


@dataclass(frozen=True)
class Descent:
    """Every constant of a descent.

    init: the start x_0, as the mean or the sum of the task vectors, or zero. rank_fraction: k as a share of
    min(out, in); None means 1 / N for N experts. proxy, target: which part of tau_i is L_i and T_i; the whole (`full`),
    its k leading directions (`truncated`), or those of tau_i - mean (`centered`; the target then gets the mean back).
    time: the learning rate as it is, or in units of one over the largest eigenvalue of A. momentum: Adam's first beta
    too.

    Raises:
        ValueError: a constant out of its range, named.
    """

    init: Init = "mean"
    rank_fraction: float | None = None
    iterations: int = 300
    learning_rate: float = 1e-4
    momentum: float = 0.9
    optimizer: Optimizer = "sgd"
    proxy: Proxy = "truncated"
    target: Target = "truncated"
    time: Time = "absolute"
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8

    def __post_init__(self) -> None:
        share, rate, epsilon = self.rank_fraction, self.learning_rate, self.adam_epsilon
        require(share is None or 0 < share <= 1, "rank_fraction", "in (0, 1]", share)
        require(self.iterations >= 0, "iterations", "0 or more", self.iterations)
        require(0 < rate < math.inf, "learning_rate", "positive", rate)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(0 <= self.adam_beta2 < 1, "adam_beta2", "in [0, 1)", self.adam_beta2)
        require(0 < epsilon < math.inf, "adam_epsilon", "positive", epsilon)
        fits = self.optimizer == "sgd" or self.time == "absolute"
        require(fits, "time", "absolute with the adam optimizer", self.time)

    @property
    def slope(self) -> float:
        """q(0), by which SGD moves along a direction of small eigenvalue, in units of D."""
        return float(heavy_ball_quotient(torch.zeros(1), self.learning_rate, self.momentum, self.iterations))

    @property
    def amplifies_rounding(self) -> bool:
        """Whether sums in float32 are too coarse: Adam makes steps of their rounding, a long filter multiplies it."""
        return self.optimizer == "adam" or not self.slope < _LONG_FILTER

    def rank(self, shape: Sequence[int], experts: int) -> int:
        """k: how many singular directions of a matrix of this shape are kept, rounded down."""
        return min(shape) // experts if self.rank_fraction is None else fraction_rank(self.rank_fraction, min(shape))


def descend(task_vectors: Sequence[TaskVector], settings: Descent) -> TaskVector:
    """The merged task vector (out, in) of one matrix, in float32 or float64.

    SGD on factored task vectors works in their joint core, and the result stays factored.
    """
    first = task_vectors[0]
    rank = settings.rank(first.shape, len(task_vectors))
    dtype = _affordable(working_dtype(first.left.dtype), first.shape)
    if settings.optimizer == "adam":  # its steps do not commute with rotations
        return TaskVector.of(_solve_dense(task_vectors, settings, rank, dtype))
    return in_joint_core(task_vectors, lambda deltas: _solve_dense(deltas, settings, rank, dtype), dtype)


def _affordable(dtype: torch.dtype, shape: Sequence[int]) -> torch.dtype:
    """float64 for a small matrix, else `dtype`."""
    return torch.float64 if math.prod(shape) <= _DOUBLE_UP_TO else dtype


def _solve_dense(task_vectors: Sequence[TaskVector], settings: Descent, rank: int, dtype: torch.dtype) -> Tensor:
    """The merged delta (out, in), from sums taken in `dtype` where that is enough, else in float64."""
    count, shape = len(task_vectors), task_vectors[0].shape
    dtype = _affordable(dtype, shape)
    if count == 1 and rank >= min(shape) and settings.init != "zero":
        return task_vectors[0].dense(dtype)  # a single whole target is its own optimum
    if settings.optimizer == "sgd" and settings.proxy == "full" and settings.target == "truncated" and rank:
        space = RowSpace.of(task_vectors, settings.init)
        if space is not None:
            return _descend_in_rows(space, settings, rank, dtype)
    return _descend(task_vectors, settings, rank, torch.float64 if settings.amplifies_rounding else dtype, dtype)


def _descend_in_rows(space: RowSpace, settings: Descent, rank: int, dtype: torch.dtype) -> Tensor:
    """The merged delta (out, in) of a very wide matrix, whole deltas as proxies; float64 if the spectrum needs it."""

    def target(own: Tensor) -> Tensor:
        if rank >= len(own):
            return own
        values, u = top_eigenpairs_(own, rank)
        return (u * values) @ u.T

    quadratic = space.quadratic(dtype, target)
    if dtype != torch.float64 and settings.amplifies_rounding:
        reach = 1.0 if settings.time == "relative" else largest_eigenvalue_bound(quadratic.hessian)
        if not settings.slope * reach < _LONGEST_IN_ROWS:
            del quadratic
            return _descend_in_rows(space, settings, rank, torch.float64)
    return space.reached(_sgd_step(quadratic, settings))


def _descend(
    task_vectors: Sequence[TaskVector], settings: Descent, rank: int, sums_in: torch.dtype, steps_in: torch.dtype
) -> Tensor:
    """The merged delta (out, in). Deltas are formed one at a time, twice: for the mean and for their terms."""
    if rank == 0:
        return mean_and_peaks(task_vectors, sums_in)[0]
    start = Start.measured(task_vectors, settings.init, sums_in)
    if start is None:
        return torch.zeros(task_vectors[0].shape, dtype=sums_in, device=task_vectors[0].device)
    quadratic = _quadratic(start, settings, rank, steps_in)
    if settings.optimizer == "sgd":
        return start.reached(_sgd_step(quadratic, settings))
    return start.reached(_adam_step(quadratic, settings, start.experts.scale, steps_in))


# --- the quadratic ----------------------------------------------------------------------------------------------------


def _quadratic(start: Start, settings: Descent, rank: int, steps_in: torch.dtype) -> Quadratic | RowQuadratic:
    """The experts' quadratic around the start, in the cheapest form. Adam gets A in the dtype `steps_in`."""
    adam, mean = settings.optimizer == "adam", start.mean
    parts = _Parts(settings, rank, mean)
    shared = 1.0 if settings.target == "centered" else 0.0  # such targets share the mean, which their terms leave out
    multiple = start.multiple - shared
    if settings.proxy == "full" and mean.shape[0] >= mean.shape[1]:
        return Quadratic.of_grams(map(parts.gram_term, start.deltas()), mean, multiple)
    terms = map(parts.term, start.deltas())  # unlike a loop, map keeps no delta alive
    own_rows = min(mean.shape) if settings.proxy == "full" else min(rank, *mean.shape)
    rows = own_rows * len(start.experts.task_vectors)
    if rows * (2 if adam else 1) <= mean.shape[1]:  # Adam pays two products by the rows each step, or one by A
        return RowQuadratic.stacked(terms, rows, mean, multiple)
    return Quadratic.summed(terms, mean, multiple, matrix_in=steps_in if adam else mean.dtype)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Target and proxy of an expert, from its delta (out, in): whole, or cut to `rank` directions."""

    settings: Descent
    rank: int
    mean: Tensor

    def term(self, delta: Tensor) -> Term:
        """Rows and target of one expert; a centered target is given without the mean, which all of them share."""
        proxy, target = self.settings.proxy, self._cut(delta, self.settings.target)
        weight = 1.0 / math.sqrt(square_norm(delta))
        if proxy == "full":  # the rows take the memory of the delta, unless it is also the target
            rows = delta.mul_(weight) if target.left is not delta else delta * weight
        elif proxy == self.settings.target:
            rows = target.rows * weight
        else:
            rows = self._cut(delta, proxy).rows * weight
        return Term(rows, target.left, target.right)

    def gram_term(self, delta: Tensor) -> GramTerm:
        """The same for a whole delta as proxy, out >= in: its Gram matrix also gives the directions of the target."""
        own = gram(delta.T)
        target = self._cut(delta, self.settings.target, own)
        weight = 1.0 / square_norm(delta)
        own.mul_(weight)
        if target.right is None:
            return GramTerm(own, target.left, own)
        if self.settings.target == "truncated" and target.lengths is not None:  # target.right holds eigenvectors of own
            return GramTerm(own, target.left * target.lengths.square().mul_(weight), target.right)
        return GramTerm(own, target.left, target.right @ own)

    def _cut(self, delta: Tensor, source: Target, own: Tensor | None = None) -> Truncation:
        """The leading directions of the delta, or of its distance from the mean; own is delta^T delta if known."""
        far = self.settings.amplifies_rounding or self.settings.time == "relative"
        solve_in = torch.float64 if far else None
        if source == "centered":
            return truncate(delta - self.mean, self.rank, solve_in)
        return truncate(delta, self.rank, solve_in, own)


# --- the steps --------------------------------------------------------------------------------------------------------


def _sgd_step(quadratic: Quadratic | RowQuadratic, settings: Descent) -> Tensor:
    """y after all steps of SGD with momentum from y = 0: the spectral filter y = D q(A). The quadratic is used up."""
    rate = settings.learning_rate
    if settings.time == "relative":
        rate /= largest_eigenvalue(quadratic.hessian) or 1.0  # no curvature, no step at any rate
    return quadratic.filtered(
        partial(heavy_ball_quotient, learning_rate=rate, momentum=settings.momentum, iterations=settings.iterations)
    )


def _adam_step(quadratic: Quadratic | RowQuadratic, settings: Descent, scale: float, dtype: torch.dtype) -> Tensor:
    """y (out, in) after all steps of torch.optim.Adam's rule from y = 0, taken in `dtype`.

    Adam rescales every entry by itself, so no filter equals it; but rows never mix, so they run in blocks. It is not
    scale-free: rate and epsilon are meant for deltas that were not divided by `scale`.
    """
    factors = quadratic.factors(dtype)
    rows, columns = quadratic.slope.shape[0], factors[-1].shape[1]
    if float(quadratic.slope.abs().max()) < _AT_REST:  # the start is the optimum: rounding would become full steps
        return quadratic.slope.new_zeros(rows, columns)
    step = torch.empty(rows, columns, dtype=dtype, device=quadratic.slope.device)
    for block, into in zip(quadratic.slope.split(_ADAM_ROWS), step.split(_ADAM_ROWS), strict=True):
        twice = (2.0 * quadratic.expanded(block)).to(dtype)
        into.copy_(_adam(twice, factors, settings, scale))
    return step


def _adam(twice: Tensor, factors: Sequence[Tensor], settings: Descent, scale: float) -> Tensor:
    """Adam's steps y (rows, in) on the gradient 2 y A - twice, for A the product of the factors."""
    rate, epsilon = settings.learning_rate / scale, settings.adam_epsilon / scale
    beta1, beta2 = settings.momentum, settings.adam_beta2
    y, first, second, scratch = (torch.zeros_like(twice) for _ in range(4))
    *inner, last = factors
    for t in range(1, settings.iterations + 1):
        gradient = torch.addmm(twice, reduce(torch.mm, inner, y), last, beta=-1.0, alpha=2.0)
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        # m / c1 / (sqrt(v / c2) + eps) with the bias corrections c1, c2 moved out of the entries into scalars
        correction = math.sqrt(1.0 - beta2**t)
        torch.sqrt(second, out=scratch).add_(epsilon * correction)
        y.addcdiv_(first, scratch, value=-rate * correction / (1.0 - beta1**t))
    return y
