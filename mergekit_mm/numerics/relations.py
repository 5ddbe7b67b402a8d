"""How task vectors lie to each other: inner products, signs, spectra, and the subspaces that they span.

Adapters are looked at by their factors, O((out + in) r^2) for r the sum of their ranks, dense deltas in blocks of rows
and by the Gram matrix of their smaller side. All sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import Spectrum, gram
from mergekit_mm.numerics.polar import ROUNDING, normalised_
from mergekit_mm.numerics.task_vector import TaskVector

_AT_ONCE = 1 << 20  # entries of a delta that are widened together
ROWS_OF_SIGNS = 256  # rows of a matrix, evenly spaced, whose signs are compared


def inner_products(task_vectors: Sequence[TaskVector]) -> Tensor:
    """<tau_i, tau_j> (N, N) in float64, of N deltas of one shape, no stacks of factors; factors are not multiplied out.

    A factored delta beside dense ones is multiplied out a few rows at a time.
    """
    if all(each.is_factored for each in task_vectors):
        return _of_factors(task_vectors)
    own = [_with_rows(each) for each in task_vectors]
    total = torch.zeros(len(own), len(own), dtype=torch.float64, device=own[0].device)
    for rows in _blocks(own[0].shape):
        block = torch.stack([each.rows(rows).dense(torch.float64).flatten() for each in own])
        total += block @ block.T
    return total


def _of_factors(task_vectors: Sequence[TaskVector]) -> Tensor:
    """<b_i a_i, b_j a_j> = sum (b_i^T b_j) * (a_i a_j^T), from the Gram matrices of all factors at once."""
    ranks = [each.left.shape[1] for each in task_vectors]
    lefts = torch.cat([each.left.double() for each in task_vectors], dim=1)
    rights = torch.cat([each.right.double() for each in task_vectors if each.right is not None])
    both = (lefts.T @ lefts) * (rights @ rights.T)
    rows = both.split(ranks)
    return torch.stack([torch.stack([cell.sum() for cell in row.split(ranks, dim=1)]) for row in rows])


class Signs(NamedTuple):
    """Of pairs of deltas (N, N): the number of entries at which both are not zero, and of those with equal signs."""

    changed: Tensor
    equal: Tensor


def signs(task_vectors: Sequence[TaskVector]) -> Signs:
    """The signs of N deltas of one shape compared, on at most `ROWS_OF_SIGNS` rows, which stand for all of them."""
    own = [_with_rows(each) for each in task_vectors]
    count = own[0].shape[0]
    picked = torch.linspace(0, count - 1, min(ROWS_OF_SIGNS, count), device=own[0].device).round().long()
    found = torch.stack([each.rows(picked).dense(torch.float32).sign().flatten() for each in own]).double()
    share = len(picked) / count
    changed = found.abs() @ found.abs().T / share
    return Signs(changed, (changed + found @ found.T / share) / 2)


class Singular(NamedTuple):
    """values (r,): all singular values of a delta above rounding, descending; left (out, k), right (in, k): vectors."""

    values: Tensor
    left: Tensor
    right: Tensor


def singular(task_vector: TaskVector, count: int) -> Singular:
    """All singular values of a delta (out, in) in float64, and vectors of the `count` largest, fewer at a lower rank.

    Singular values below 1e-5 of the largest are rounding, and left out. Of factors the cost is that of two thin QR
    factorisations, of a dense delta that of one tridiagonal form of the Gram matrix of its smaller side.
    """
    if task_vector.right is not None:
        q_left, r_left = torch.linalg.qr(task_vector.left.double())
        q_right, r_right = torch.linalg.qr(task_vector.right.double().T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        s = _above_rounding(s)
        kept = min(count, len(s))
        return Singular(s, q_left @ u[:, :kept], q_right @ vh[:kept].T)
    x = task_vector.dense(torch.float64)
    is_wide = x.shape[0] <= x.shape[1]
    spectrum = Spectrum(gram(x if is_wide else x.T))
    s = _above_rounding(spectrum.values.clamp_min(0).sqrt())
    near = spectrum.pairs(0, min(count, len(s)))[1]
    far = normalised_(x.T @ near if is_wide else x @ near)[1]
    return Singular(s, near, far) if is_wide else Singular(s, far, near)


def _above_rounding(values: Tensor) -> Tensor:
    return values[values > ROUNDING * values[:1]]


class Overlap(NamedTuple):
    """share: how much of the smaller of two subspaces lies in the larger, 0 to 1. chance: what random ones have."""

    share: float
    chance: float


def overlap(one: Tensor, other: Tensor) -> Overlap | None:
    """Of two subspaces of R^n by orthonormal columns (n, k) and (n, l): || one^T other ||_F^2 / min(k, l).

    It is the mean squared cosine of their principal angles, and max(k, l) / n for random ones. None if one is empty.
    """
    smaller, larger = sorted((one.shape[1], other.shape[1]))
    if not smaller:
        return None
    return Overlap(float((one.T @ other).square().sum()) / smaller, larger / one.shape[0])


def _with_rows(task_vector: TaskVector) -> TaskVector:
    """A scalar as a vector of one entry; everything else unchanged."""
    if task_vector.left.ndim:
        return task_vector
    base = task_vector.base
    return TaskVector(task_vector.left.reshape(1), base=None if base is None else base.reshape(1))


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the first axis that hold about `_AT_ONCE` entries each."""
    rows = shape[0]
    entries = max(1, torch.Size(shape[1:]).numel())
    step = max(1, _AT_ONCE // entries)
    return (slice(start, start + step) for start in range(0, rows, step))
