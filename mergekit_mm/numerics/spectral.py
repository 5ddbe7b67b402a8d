"""Gram matrices, their leading eigenpairs, and truncation without ever inverting a singular value.

Working on the Gram matrix of the smaller side squares the condition number, which is harmless for methods in which a
direction enters with its squared singular value: what float32 loses there weighs nothing in the result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import top_eigenpairs_

_BLOCKS = 8  # row blocks of a symmetric product: 36 of 64 tiles are computed, 28 mirrored
_BLOCKS_FROM = 256  # rows; below, one product costs as much


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
    step = -(-size // _BLOCKS) if size >= _BLOCKS_FROM else max(1, size)
    for start in range(0, size, step):
        stop = min(start + step, size)
        total[start:stop, :stop].addmm_(x[start:stop], x[:stop].T)
        total[:start, start:stop] = total[start:stop, :start].T
    return total


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
        u = top_eigenpairs_(gram(x.to(solve_in)), rank)[1].to(x.dtype)
        return Truncation(u, u.T @ x)  # S V^T
    own = gram(x.T.to(solve_in)) if own is None else own.to(solve_in, copy=True)
    values, v = (part.to(x.dtype) for part in top_eigenpairs_(own, rank))
    return Truncation(x @ v, v.T, values.clamp_min(0).sqrt())
