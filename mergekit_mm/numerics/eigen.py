"""Eigenpairs of symmetric matrices: those that are asked for, at the cost of those.

torch's driver computes all of them or none. LAPACK's steps are taken here one by one: the reduction to a tridiagonal
matrix, the eigenpairs of any part of that, and the rotation of the eigenvectors back.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mergekit_mm.numerics.lapack import call

_SUBSET = 0.25  # share of the eigenpairs beyond which all of them cost less than one by one
_PANEL = 64  # columns that LAPACK treats together, for its scratch space


def eigenpairs_(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """All eigenvalues, descending, and their eigenvectors as columns, which take the place of `symmetric` (n, n)."""
    values, vectors = Spectrum(symmetric).pairs(0, len(symmetric))
    return values, symmetric.copy_(vectors.T).T


def top_eigenpairs_(symmetric: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, descending, and their eigenvectors as columns; `symmetric` (n, n) is used up."""
    return Spectrum(symmetric).pairs(0, count)


class Spectrum:
    """The eigendecomposition of a symmetric matrix (n, n), float32 or float64 and contiguous, which is used up.

    Its memory is that of the matrix, and of the eigenvectors of one call.
    """

    def __init__(self, symmetric: Tensor) -> None:
        self._matrix = symmetric
        self._in_steps = symmetric.device.type == "cpu" and len(symmetric) > 1
        if self._in_steps:  # -A = Q T Q^T, as LAPACK's order is ascending; the matrix holds Q from now on
            size = len(symmetric)
            self._diagonal, self._beside, self._reflectors = (symmetric.new_zeros(size) for _ in range(3))
            scratch = symmetric.new_empty(_PANEL * size)
            shape = (b"L", size, symmetric, size)
            _run("sytrd", *shape, self._diagonal, self._beside, self._reflectors, scratch, len(scratch))
            self._diagonal.neg_()
            self._beside.neg_()
            if not bool(torch.isfinite(self._diagonal + self._beside).all()):  # LAPACK might not notice
                raise ArithmeticError("a symmetric matrix has NaN or infinity in it")

    @cached_property
    def values(self) -> Tensor:
        """All eigenvalues (n,), descending."""
        if not self._in_steps:
            return self._decomposed[0]
        values = self._diagonal.clone()
        _run("sterf", len(values), values, self._beside.clone())
        return values.neg_()

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The eigenvalues from `start` to `stop` in descending order, and their eigenvectors as columns.

        Those of two calls are orthogonal to each other only as far as their eigenvalues differ.
        """
        size, count = len(self._matrix), stop - start
        if count == 0:  # LAPACK takes no empty range
            return self._matrix.new_empty(0), self._matrix.new_empty(size, 0)
        if not self._in_steps:
            values, vectors = self._decomposed
            return values[start:stop], vectors[:, start:stop]
        values, rows = self._of_tridiagonal(start, stop)
        scratch = rows.new_empty(_PANEL * (count + 2 * _PANEL))
        rotation = (b"L", b"L", b"N", size, count, self._matrix, size, self._reflectors)
        _run("ormtr", *rotation, rows, size, scratch, len(scratch))
        return values.neg(), rows.T

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self._matrix)
        return values.flip(0), vectors.flip(1)

    def _of_tridiagonal(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T, ascending, and their eigenvectors as rows (stop - start, n)."""
        size, dtype = len(self._matrix), self._matrix.dtype
        few = stop - start <= _SUBSET * size
        if few and dtype == torch.float32:
            return self._by_bisection(start, stop, dtype)
        first, last = (start, stop) if few else (0, size)
        found = self._by_representations(first, last)
        if found is None:
            first, found = start, self._by_bisection(start, stop, torch.float64)
        values, rows = (part[start - first : stop - first] for part in found)
        if len(rows) < last - first:
            rows = rows.clone()  # a view would keep all of them
        return values.to(dtype), rows.to(dtype)

    def _by_representations(self, start: int, stop: int) -> tuple[Tensor, Tensor] | None:
        """LAPACK's ?stemr: n operations a number. None where it gives up, as on eigenvalues that cluster badly.

        In float64 for any matrix: in float32 the eigenvectors would be orthogonal to three digits only.
        """
        diagonal, beside = self._diagonal.to(torch.float64, copy=True), self._beside.to(torch.float64, copy=True)
        size, count = len(diagonal), stop - start
        values, rows, scratch = diagonal.new_empty(size), diagonal.new_empty(count, size), diagonal.new_empty(18 * size)
        found, support, accurate, integers = (torch.ones(n, dtype=torch.int32) for n in (1, 2 * size, 1, 10 * size))
        wanted = (b"V", b"A" if count == size else b"I", size, diagonal, beside, 0.0, 0.0, start + 1, stop)
        into = (found, values, rows, size, count, support, accurate)
        failed = call("stemr", *wanted, *into, scratch, len(scratch), integers, len(integers))
        return None if failed or int(found) != count else (values[:count], rows)

    def _by_bisection(self, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """LAPACK's ?stebz and ?stein: up to n (stop - start) operations a number, and orthonormal in float32 too."""
        diagonal, beside = self._diagonal.to(dtype), self._beside.to(dtype)
        size, count = len(diagonal), stop - start
        values, rows, scratch = diagonal.new_empty(size), diagonal.new_empty(count, size), diagonal.new_empty(5 * size)
        found, parts, part, ends, integers, failed = (
            torch.zeros(n, dtype=torch.int32) for n in (1, 1, size, size, 3 * size, size)
        )
        wanted = (b"I", b"B", size, 0.0, 0.0, start + 1, stop, 0.0, diagonal, beside)
        _run("stebz", *wanted, found, parts, values, part, ends, scratch, integers)
        given = (size, diagonal, beside, count, values, part, ends)
        _run("stein", *given, rows, size, scratch, integers, failed)
        order = values[:count].argsort()  # they come part by part, where T falls into several
        return values[order], rows[order]


def _run(routine: str, *arguments: bytes | int | float | Tensor) -> None:
    if call(routine, *arguments):
        raise ArithmeticError(f"LAPACK's ?{routine} failed")
