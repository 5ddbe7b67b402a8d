"""The descent of WUDI and OptMerge on one matrix's interference: its variants, and the cheapest way through each.

Per matrix, with tau_i the task vectors and k = int(rank_fraction min(out, in)), a fixed number of steps on

    L(x) = sum_i || (x - T_i) L_i^T ||^2 / || tau_i ||^2

from a start x_0. T_i is the target, L_i the proxy for the inputs that expert i has seen; both come from tau_i, whole or
reduced to rank k. SGD is solved as a filter on the spectrum of L, Adam runs as a loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.deltas import Init, in_joint_core, mean_and_peaks, square_norm, start_share, working_dtype
from mergekit_mm.numerics.eigen import top_eigenpairs_
from mergekit_mm.numerics.filters import heavy_ball_quotient, largest_eigenvalue, largest_eigenvalue_bound
from mergekit_mm.numerics.quadratic import GramTerm, Quadratic, Term
from mergekit_mm.numerics.rank_rules import fraction_rank
from mergekit_mm.numerics.row_space import RowSpace
from mergekit_mm.numerics.spectral import Truncation, gram, truncate
from mergekit_mm.numerics.task_vector import TaskVector

Optimizer = Literal["sgd", "adam"]
Proxy = Literal["truncated", "full", "centered"]
Target = Literal["truncated", "centered"]
Time = Literal["absolute", "relative"]

_DOUBLE_UP_TO = 1 << 18  # entries; below this float64 costs next to nothing
_LONG_FILTER = 2.0  # slope q(0) of the filter, which multiplies rounding: 0.58 for `lora`, 291 for `modality`
_LONGEST_IN_ROWS = 32.0  # for very wide matrices: slope times largest eigenvalue, whose root alone multiplies rounding
_AT_REST = 1e-12  # gradients below this are rounding, with the largest delta entry scaled to about 1


@dataclass(frozen=True)
class Descent:
    """Every constant of a descent. `momentum` is Adam's first beta too; `rank_fraction` None means 1 / N.

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
        """q(0): how far SGD goes, per unit of an eigenvalue."""
        return float(heavy_ball_quotient(torch.zeros(1), self.learning_rate, self.momentum, self.iterations))

    @property
    def amplifies_rounding(self) -> bool:
        """Whether float32 sums are too coarse: Adam normalises what little is left of them, a long filter grows it."""
        return self.optimizer == "adam" or not self.slope < _LONG_FILTER

    def rank(self, shape: Sequence[int], experts: int) -> int:
        """k: how many singular directions of a matrix of this shape are kept, rounded down."""
        return min(shape) // experts if self.rank_fraction is None else fraction_rank(self.rank_fraction, min(shape))


def descend(task_vectors: Sequence[TaskVector], settings: Descent) -> TaskVector:
    """The merged task vector of one matrix. From factors by SGD it is found in their joint core and stays factored."""
    first = task_vectors[0]
    rank = settings.rank(first.shape, len(task_vectors))
    dtype = _affordable(working_dtype(first.left.dtype), first.shape)
    if settings.optimizer == "adam":  # which does not commute with rotations
        return TaskVector(_solve_dense(task_vectors, settings, rank, dtype))
    return in_joint_core(task_vectors, lambda deltas: _solve_dense(deltas, settings, rank, dtype), dtype)


def _affordable(dtype: torch.dtype, shape: Sequence[int]) -> torch.dtype:
    return torch.float64 if math.prod(shape) <= _DOUBLE_UP_TO else dtype


def _solve_dense(task_vectors: Sequence[TaskVector], settings: Descent, rank: int, dtype: torch.dtype) -> Tensor:
    """The merged delta (out, in), from sums taken in `dtype` where that is enough, else in float64."""
    count, shape = len(task_vectors), task_vectors[0].shape
    dtype = _affordable(dtype, shape)
    if count == 1 and rank >= min(shape) and settings.init != "zero":
        return task_vectors[0].dense(dtype)  # a single whole target is its own optimum
    if settings.optimizer == "sgd" and settings.proxy == "full" and settings.target == "truncated" and rank:
        space = RowSpace.of(task_vectors, start_share(settings.init, count))
        if space is not None:
            return _descend_in_rows(space, settings, rank, dtype)
    return _descend(task_vectors, settings, rank, torch.float64 if settings.amplifies_rounding else dtype, dtype)


def _descend_in_rows(space: RowSpace, settings: Descent, rank: int, dtype: torch.dtype) -> Tensor:
    """The merged delta of very wide matrices with whole deltas as proxies; in float64 if the spectrum asks for it."""

    def target(own: Tensor) -> Tensor:
        if rank >= len(own):
            return own
        values, u = top_eigenpairs_(own, rank)
        return (u * values) @ u.T

    problem = Quadratic(*space.problem(dtype, target), by_rows=False)
    if dtype != torch.float64 and settings.amplifies_rounding:
        reach = 1.0 if settings.time == "relative" else largest_eigenvalue_bound(problem.matrix)
        if not settings.slope * reach < _LONGEST_IN_ROWS:
            del problem
            return _descend_in_rows(space, settings, rank, torch.float64)
    return space.combined(_sgd_step(problem, settings))


def _descend(
    task_vectors: Sequence[TaskVector], settings: Descent, rank: int, sums_in: torch.dtype, steps_in: torch.dtype
) -> Tensor:
    """The merged delta. Deltas are formed one at a time, twice: for the mean and for their terms."""
    mean, peaks = mean_and_peaks(task_vectors, sums_in)
    if rank == 0 or max(peaks) == 0:
        return mean
    # A power of two near the largest entry: squares cannot leave the range of float32, and no rounding is added.
    scale = 2.0 ** math.frexp(max(peaks))[1]
    mean /= scale
    live = [t for t, peak in zip(task_vectors, peaks, strict=True) if peak > 0]
    deltas = (t.dense(sums_in).div_(scale) for t in live)
    start = start_share(settings.init, len(task_vectors)) * len(task_vectors)
    shared = 1.0 if settings.target == "centered" else 0.0  # the targets' common part, the mean
    rows = min(mean.shape) if settings.proxy == "full" else min(rank, *mean.shape)
    problem = _assemble(deltas, mean, start - shared, settings, rank, rows * len(live), steps_in)
    if settings.optimizer == "sgd":
        step = _sgd_step(problem, settings)
    elif float(problem.slope.abs().max()) < _AT_REST:
        step = torch.zeros_like(mean)  # the start is the optimum, where Adam would blow rounding noise up to full steps
    else:
        betas = (settings.momentum, settings.adam_beta2)
        rate, epsilon = settings.learning_rate / scale, settings.adam_epsilon / scale  # Adam is not scale-free
        step = problem.adam_step(rate, betas, epsilon, settings.iterations, steps_in)
    return step.add_(mean, alpha=start).mul_(scale)


def _sgd_step(problem: Quadratic, settings: Descent) -> Tensor:
    rate = settings.learning_rate
    if settings.time == "relative":
        rate /= largest_eigenvalue(problem.hessian) or 1.0  # no curvature, no step at any rate
    return problem.sgd_step(rate, settings.momentum, settings.iterations)


def _assemble(
    deltas: Iterable[Tensor],
    mean: Tensor,
    share: float,
    settings: Descent,
    rank: int,
    rows: int,
    steps_in: torch.dtype,
) -> Quadratic:
    """The experts' quadratic around share * mean, in the cheapest form; `rows` are those of all proxies together."""
    adam = settings.optimizer == "adam"
    if settings.proxy == "full" and mean.shape[0] >= mean.shape[1]:
        return Quadratic.of_grams(map(partial(_gram_term, mean, settings, rank), deltas), mean, share)
    terms = map(partial(_term, mean, settings, rank), deltas)  # unlike a loop, map keeps no delta alive
    if rows * (2 if adam else 1) <= mean.shape[1]:  # Adam pays two products by the rows each step, or one by A
        return Quadratic.stacked(terms, rows, mean, share)
    return Quadratic.summed(terms, mean, share, matrix_in=steps_in if adam else mean.dtype)


def _term(mean: Tensor, settings: Descent, rank: int, delta: Tensor) -> Term:
    """Rows and target of one expert; a centered target is given without the mean, which all of them share."""
    target = _cut(delta, mean, settings.target, settings, rank)
    weight = 1.0 / math.sqrt(square_norm(delta))
    if settings.proxy == "full":  # the delta itself, its memory too unless it is also the target
        rows = delta.mul_(weight) if target.left is not delta else delta * weight
    elif settings.proxy == settings.target:
        rows = target.rows * weight
    else:
        rows = _cut(delta, mean, settings.proxy, settings, rank).rows * weight
    return Term(rows, target.left, target.right)


def _gram_term(mean: Tensor, settings: Descent, rank: int, delta: Tensor) -> GramTerm:
    """The same for a whole delta as proxy, out >= in: its Gram matrix also gives the directions of the target."""
    own = gram(delta.T)
    target = _cut(delta, mean, settings.target, settings, rank, own)
    weight = 1.0 / square_norm(delta)
    own.mul_(weight)
    if target.right is None:
        return GramTerm(own, target.left, own)
    if settings.target == "truncated" and target.lengths is not None:  # its right holds eigenvectors of own
        return GramTerm(own, target.left * target.lengths.square().mul_(weight), target.right)
    return GramTerm(own, target.left, target.right @ own)


def _cut(
    delta: Tensor, mean: Tensor, source: Target, settings: Descent, rank: int, own: Tensor | None = None
) -> Truncation:
    far = settings.amplifies_rounding or settings.time == "relative"
    solve_in = torch.float64 if far else None
    if source == "centered":
        return truncate(delta - mean, rank, solve_in)
    return truncate(delta, rank, solve_in, own)
