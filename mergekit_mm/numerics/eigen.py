"""Gram matrices, and eigenpairs of symmetric matrices: those that are asked for, at the cost of those.

Working on the Gram matrix of the smaller side squares the condition number. That is harmless for methods in which a
direction enters with its squared singular value, as what rounding loses there weighs nothing in the result.

torch's driver computes all eigenpairs or none. Here LAPACK's three steps are taken one by one, through scipy: the
reduction to a tridiagonal matrix, the eigenpairs of any part of that matrix, and the rotation of the eigenvectors back.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TILES = 8  # tiles along each side of a symmetric product, of which 36 are computed and 28 mirrored
_TILES_FROM = 256  # rows from which tiles pay; a smaller product costs as much in one piece
_SUBSET = 0.25  # share of the eigenpairs beyond which computing all costs less than computing these one by one
_PANEL = 64  # columns that LAPACK treats together; its workspace is a multiple of them
_ROTATED_TOGETHER = 512  # eigenvectors rotated back by one call, which works on a copy of them


def gram(x: Tensor) -> Tensor:
    """`x @ x.T` for x (rows, columns), at little more than half the cost of the full product."""
    return add_gram_(x.new_zeros(x.shape[0], x.shape[0]), x)


def add_gram_(total: Tensor, x: Tensor) -> Tensor:
    """`total += x @ x.T` in place, for a symmetric total (rows, rows): tiles below the diagonal, then their mirror."""
    size = x.shape[0]
    step = -(-size // _TILES) if size >= _TILES_FROM else max(1, size)
    for start in range(0, size, step):
        stop = min(start + step, size)
        total[start:stop, :stop].addmm_(x[start:stop], x[:stop].T)
        total[:start, start:stop] = total[start:stop, :start].T
    return total


def gram_root(x: Tensor) -> Tensor:
    """Rows (min(out, in), in) with rows^T rows = x^T x: x itself, or R of its QR factorisation when x is tall."""
    return x if x.shape[0] <= x.shape[1] else torch.linalg.qr(x, mode="r").R


def eigenpairs_(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues, descending, and their eigenvectors as columns, which take the place of `symmetric` (n, n)."""
    values, vectors = Spectrum(symmetric).pairs(0, len(symmetric))
    return values, symmetric.copy_(vectors.T).T


def top_eigenpairs_(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, descending, and their eigenvectors as columns; `symmetric` (n, n) is used up."""
    return Spectrum(symmetric).pairs(0, count)


class Spectrum:
    """The eigendecomposition of a symmetric matrix (n, n), float32 or float64 and contiguous, which is used up.

    It needs the memory of the matrix, and of the eigenvectors of one call. On a GPU torch computes all pairs at once.

    Raises:
        ValueError: another dtype, or a matrix that is not contiguous.
        ArithmeticError: NaN or infinity in the matrix.
    """

    def __init__(self, symmetric: Tensor) -> None:
        fits = symmetric.dtype in (torch.float32, torch.float64) and symmetric.is_contiguous()
        if not fits:  # LAPACK would work on a copy, and the caller would be left with the matrix unchanged
            raise ValueError(
                f"An eigendecomposition takes contiguous float32 or float64, not {symmetric.dtype} with strides "
                f"{symmetric.stride()}"
            )
        self._matrix = symmetric
        self._in_steps = symmetric.device.type == "cpu" and len(symmetric) > 1
        if self._in_steps:
            # A = Q T Q^T. The rows of a tensor are the columns of LAPACK's matrix, and a symmetric matrix is its own
            # transpose. The reflectors whose product is Q replace the matrix below its subdiagonal.
            size = len(symmetric)
            self._reflectors, diagonal, beside, self._scales = _call(
                "sytrd", symmetric.numpy().T, lower=1, lwork=_PANEL * size, overwrite_a=1
            )
            if not np.isfinite(diagonal.sum() + beside.sum()):  # LAPACK itself might not notice
                raise ArithmeticError("a symmetric matrix has NaN or infinity in it")
            # LAPACK starts at the smallest eigenvalue. For descending order it is given -T.
            self._diagonal, self._beside = -diagonal, -beside

    @cached_property
    def values(self) -> Tensor:
        """All eigenvalues (n,), descending."""
        if not self._in_steps:
            return self._decomposed[0]
        return torch.from_numpy(-_tridiagonal(self._diagonal, self._beside, "sterf", eigvals_only=True))

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The eigenvalues from `start` to `stop` in descending order, and their eigenvectors as columns.

        Eigenvectors of two calls are orthogonal to each other only as far as their eigenvalues differ.
        """
        if stop == start:  # LAPACK takes no empty range
            return self._matrix.new_empty(0), self._matrix.new_empty(len(self._matrix), 0)
        if not self._in_steps:
            values, vectors = self._decomposed
            return values[start:stop], vectors[:, start:stop]
        values, vectors = self._of_tridiagonal(start, stop)
        self._rotate_back_(vectors)
        return torch.from_numpy(-values), torch.from_numpy(vectors.T).T

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._matrix)
        return values.flip(0), vectors.flip(1)

    def _of_tridiagonal(self, start: int, stop: int) -> tuple[Any, Any]:
        """Eigenvalues of -T, ascending, and their eigenvectors as columns (n, stop - start), in the matrix's dtype."""
        dtype = self._diagonal.dtype
        if stop - start <= _SUBSET * len(self._diagonal):
            # scipy's ?stemr allocates room for all n eigenvectors even where a few are asked for
            return self._by_bisection(start, stop, dtype)
        found = self._by_representations()
        if found is None:
            return tuple(part.astype(dtype, copy=False) for part in self._by_bisection(start, stop, np.float64))
        values, vectors = (part[..., start:stop] for part in found)
        return values.astype(dtype), vectors.astype(dtype, order="F", copy=vectors.shape[1] < len(vectors))

    def _by_representations(self) -> tuple[Any, Any] | None:
        """All pairs by LAPACK's ?stemr, in O(n^2). None where it gives up on badly clustered eigenvalues.

        It runs in float64 for any matrix, as in float32 the eigenvectors would be orthogonal to three digits only.
        """
        try:
            return _tridiagonal(self._diagonal.astype(np.float64), self._beside.astype(np.float64), "stemr")
        except np.linalg.LinAlgError:
            return None

    def _by_bisection(self, start: int, stop: int, dtype: Any) -> tuple[Any, Any]:
        """Pairs by LAPACK's ?stebz and ?stein, in up to O(n (stop - start)^2); orthonormal in float32 too."""
        diagonal, beside = self._diagonal.astype(dtype), self._beside.astype(dtype)
        values, vectors = _tridiagonal(diagonal, beside, "stebz", select="i", select_range=(start, stop - 1))
        return values, np.asfortranarray(vectors)

    def _rotate_back_(self, vectors: Any) -> None:
        """Multiply eigenvectors of T (n, count) by Q, in place."""
        size = len(vectors)
        # The reflectors begin one row below the diagonal, where ?ormqr expects them at the diagonal. Read from its
        # second number on, the same memory is a matrix that has them there.
        below = self._reflectors.ravel(order="K")[1 : 1 + size * (size - 1)].reshape((size, size - 1), order="F")
        for start in range(0, vectors.shape[1], _ROTATED_TOGETHER):
            block = vectors[1:, start : start + _ROTATED_TOGETHER]
            workspace = _PANEL * (block.shape[1] + 2 * _PANEL)
            block[:] = _call("ormqr", "L", "N", below, self._scales, block, lwork=workspace)[0]


def _tridiagonal(diagonal: Any, beside: Any, driver: str, **selection: Any) -> Any:
    from scipy.linalg import eigh_tridiagonal  # local: scipy.linalg takes 0.1 s to import, and not every merge needs it

    return eigh_tridiagonal(diagonal, beside, lapack_driver=driver, check_finite=False, **selection)


def _call(routine: str, *arguments: Any, **options: Any) -> Any:
    """Run a routine of LAPACK by scipy, named without its letter of precision; returns its results without `info`."""
    from scipy.linalg import get_lapack_funcs

    (function,) = get_lapack_funcs((routine,), [each for each in arguments if isinstance(each, np.ndarray)])
    *found, info = function(*arguments, **options)
    if info:
        raise ArithmeticError(f"LAPACK's ?{routine} failed")
    return found
