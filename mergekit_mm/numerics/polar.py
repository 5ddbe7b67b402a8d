"""Singular triplets and polar factors in float64, from the Gram matrix of the smaller side, aware of the rank.

Methods that level the spectrum let the smallest singular direction count as much as the largest. A Gram matrix squares
the condition number, so it has to be in float64: then it is more accurate here than a float32 singular value
decomposition, and cheaper. Directions below a tolerance are rounding, not data: they are left out instead of being
raised to full weight, so a polar factor is a partial isometry, zero outside the numerical range.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mergekit_mm.numerics.eigen import eigenpairs_, gram, top_eigenpairs_

# Share of the largest singular value below which a singular value is rounding: float32 leaves that much in a small
# delta that was stored on top of a base.
ROUNDING = 1e-5
# The same share for a matrix whose columns are unit vectors: below it some of them depend on each other.
COINCIDING = 1e-6


class Triplets(NamedTuple):
    """Singular triplets: u (out, r) and v (in, r) with orthonormal columns, s (r,) positive and descending."""

    u: Tensor
    s: Tensor
    v: Tensor


def numerical_rank(eigenvalues: Tensor, tolerance: float) -> int:
    """How many eigenvalues (n,) of a Gram matrix, descending, are above rounding.

    tolerance: a share of the largest singular value; singular values are the roots of the eigenvalues.
    """
    if eigenvalues.numel() == 0:
        return 0
    return int((eigenvalues > max(float(eigenvalues[0]), 0.0) * tolerance**2).sum())


def leading_triplets(x: Tensor, count: int, tolerance: float, scale: float = 0.0) -> Triplets:
    """The `count` leading singular triplets of x (out, in) in float64, fewer where its numerical rank is lower.

    A direction is kept if its singular value exceeds `tolerance` times the larger of `scale` and the first one.
    """
    wide = x.shape[0] <= x.shape[1]
    near = leading_range(gram(x if wide else x.T), count, tolerance, scale)
    s, far = normalised_(x.T @ near if wide else x @ near)
    return Triplets(near, s, far) if wide else Triplets(far, s, near)


def leading_range(symmetric: Tensor, count: int, tolerance: float, scale: float = 0.0) -> Tensor:
    """The leading eigenvectors of a Gram matrix that `leading_triplets` would keep, as columns."""
    values, vectors = top_eigenpairs_(symmetric, min(count, symmetric.shape[0]))
    floor = max([scale**2, *values[:1].tolist()]) * tolerance**2
    return vectors[:, : min(count, int((values > floor).sum()))]


def normalised_(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (r,) and directions (out, r) of the columns `x @ v` (out, r), which are used up.

    For singular vectors v they are the singular values and U. The roots of the eigenvalues would be less accurate.
    """
    s = columns.norm(dim=0)
    return s, columns.div_(s)


def inverse_root_(symmetric: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """G^(-1/2) on the numerical range of a Gram matrix G (n, n), 0 outside; and the singular values kept, descending.

    `symmetric` is G, and is used up. With G = x^T x, `x @ G^(-1/2)` is the polar factor U V^T of x.
    """
    values, vectors = eigenpairs_(symmetric)
    rank = numerical_rank(values, tolerance)
    s = values[:rank].sqrt()
    return gram(vectors[:, :rank].mul_(s.rsqrt())), s


def polar(x: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """The polar factor U V^T of x (out, in), over its numerical range only; and its singular values there."""
    if x.shape[0] <= x.shape[1]:
        root, s = inverse_root_(gram(x), tolerance)
        return root @ x, s
    root, s = inverse_root_(gram(x.T), tolerance)
    return x @ root, s
