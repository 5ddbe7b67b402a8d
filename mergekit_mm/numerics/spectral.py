"""Gram matrices, their leading eigenpairs, and truncation without ever inverting a singular value.

Working on the Gram matrix of the smaller side squares the condition number, which is harmless for methods in which a
direction enters with its squared singular value: what float32 loses there weighs nothing in the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_BLOCKS = 8  # row blocks of a symmetric product: 36 of 64 tiles are computed, 28 mirrored
_SUBSET_FROM = 256  # below this size a subset of eigenpairs costs as much as all of them


class Truncation(NamedTuple):
    """T, the best rank-k approximation of a matrix (out, in): left (out, k) @ right (k, in).

    lengths (k,): of the rows of S V^T, where right is V^T; None where right is S V^T itself. A rank that keeps
    everything gives left = the matrix, right = None.
    """

    left: Tensor
    right: Tensor | None
    lengths: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """S V^T (k, in), or with fewer operations other rows with rows^T rows = T^T T."""
        if self.right is None:
            return gram_root(self.left)
        return self.right if self.lengths is None else self.lengths.unsqueeze(1) * self.right


def gram(x: Tensor) -> Tensor:
    """`x @ x.T` for x (rows, columns), at little more than half the cost of the full product."""
    return add_gram_(x.new_zeros(x.shape[0], x.shape[0]), x)


def add_gram_(total: Tensor, x: Tensor) -> Tensor:
    """`total += x @ x.T` in place, for a symmetric total (rows, rows): tiles below the diagonal, then their mirror."""
    size = x.shape[0]
    step = -(-size // _BLOCKS) if size >= _SUBSET_FROM else max(1, size)
    for start in range(0, size, step):
        stop = min(start + step, size)
        total[start:stop, :stop].addmm_(x[start:stop], x[:stop].T)
        total[:start, start:stop] = total[start:stop, :start].T
    return total


def top_eigenpairs(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, descending, and their eigenvectors as columns (size, count).

    A subset takes half the time of a full decomposition at count = size / 5.
    """
    size = symmetric.shape[0]
    if size >= _SUBSET_FROM and 2 * count <= size:
        found = _syevr(symmetric, subset_by_index=[size - count, size - 1])
        if found is not None:
            return found[0].flip(0), found[1].flip(1)
    values, vectors = torch.linalg.eigh(symmetric)
    return values.flip(0)[:count], vectors.flip(1)[:, :count]


def eigenpairs_(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues, descending, and their eigenvectors as columns, which take the place of `symmetric` (n, n).

    LAPACK's ?syevr takes two thirds of the time of torch's ?syevd. Where it fails, torch's is used.
    """
    symmetric.neg_()  # LAPACK's order is ascending, and turning the vectors round would take a copy
    diagonal = symmetric.diagonal().clone()
    found = _syevr(symmetric.T, overwrite_a=True)
    if found is None:  # LAPACK wrote on one triangle and the diagonal: the other triangle still has the matrix
        lower = symmetric.tril(-1)
        symmetric.copy_(lower + lower.T + diagonal.diag())
        found = torch.linalg.eigh(symmetric)
    values, vectors = found
    return values.neg_(), symmetric.copy_(vectors)


def _syevr(symmetric: Tensor, **options: Any) -> tuple[Tensor, Tensor] | None:
    """LAPACK's ?syevr, ascending; torch exposes no such driver, scipy does and comes with mergekit.

    None without scipy, off the CPU, or where it fails, as it may on a badly clustered spectrum.
    """
    if symmetric.device.type != "cpu" or not symmetric.numel():
        return None
    try:
        from scipy.linalg import LinAlgError, eigh
    except ImportError:
        return None
    try:
        values, vectors = eigh(symmetric.numpy(), driver="evr", check_finite=False, **options)
    except LinAlgError:
        return None
    return torch.from_numpy(values), torch.from_numpy(vectors)


def gram_root(x: Tensor) -> Tensor:
    """Rows (min(out, in), in) with rows^T rows = x^T x: x itself, or R of its QR factorisation when x is tall."""
    return x if x.shape[0] <= x.shape[1] else torch.linalg.qr(x, mode="r").R


def truncate(x: Tensor, rank: int, solve_in: torch.dtype | None = None, own: Tensor | None = None) -> Truncation:
    """The best rank-`rank` approximation of x (out, in), from the Gram matrix of its smaller side.

    solve_in: a wider dtype for the Gram matrix and its eigenpairs, up to twice as dear: between close singular values
    rounding turns the directions by many times its own size. own: x^T x if it is known, for out >= in.
    """
    solve_in = solve_in or x.dtype
    if rank >= min(x.shape):
        return Truncation(x, None)
    if own is None and x.shape[0] <= x.shape[1]:
        u = top_eigenpairs(gram(x.to(solve_in)), rank)[1].to(x.dtype)
        return Truncation(u, u.T @ x)  # S V^T
    own = gram(x.T.to(solve_in)) if own is None else own
    values, v = (part.to(x.dtype) for part in top_eigenpairs(own.to(solve_in), rank))
    return Truncation(x @ v, v.T, values.clamp_min(0).sqrt())
