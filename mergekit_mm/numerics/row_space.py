"""Very wide matrices: the experts' rows together are fewer than the columns, and serve as coordinates.

With R the rows of all tau_i / || tau_i || stacked (N out, in), the quadratic whose proxies are whole deltas has
A = R^T R, with the eigenvalues of G = R R^T. The start x_0 = share * sum tau_i, the slope B - x_0 A and so the answer
are combinations of the rows: all but the last product is found from the blocks of G. R is never there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_mm.numerics.deltas import square_norm
from mergekit_mm.numerics.spectral import gram
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The experts that changed a matrix, their norms in units of `scale`, and x_0 as a share of their sum."""

    task_vectors: Sequence[TaskVector]
    norms: Sequence[float]
    scale: float
    share: float

    @classmethod
    def of(cls, task_vectors: Sequence[TaskVector], share: float) -> RowSpace | None:
        """None unless some expert changed the matrix and all rows are fewer than the columns."""
        rows, columns = task_vectors[0].shape
        if rows >= columns:
            return None
        norms = [math.sqrt(square_norm(t.dense(torch.float64))) for t in task_vectors]
        live = [i for i, norm in enumerate(norms) if norm > 0]
        if not live or rows * len(live) >= columns:
            return None
        scale = 2.0 ** math.frexp(max(norms))[1]  # a power of two: no rounding is added
        return cls([task_vectors[i] for i in live], [norms[i] / scale for i in live], scale, share)

    def problem(self, dtype: torch.dtype, target: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The slope (out, N out), B - x_0 A = slope R, and G (N out, N out), in `dtype`.

        target maps the own Gram matrix of an expert's rows, tau tau^T / || tau ||^2 (out, out) in float64, to
        T tau^T / || tau ||^2 for the expert's target T.
        """
        rows, count = self.task_vectors[0].shape[0], len(self.norms)
        products = torch.empty(rows * count, rows * count, dtype=dtype, device=self.task_vectors[0].left.device)
        slope = products.new_empty(rows, rows * count)
        blocks = [list(band.split(rows, dim=1)) for band in products.split(rows)]
        for i, (norm, own_slope) in enumerate(zip(self.norms, slope.split(rows, dim=1), strict=True)):
            own = gram(self._rows(i, torch.float64))
            blocks[i][i].copy_(own)
            own_slope.copy_(target(own).mul_(norm))
            delta = self._rows(i, dtype)
            for j in range(i):
                torch.mm(delta, self._rows(j, dtype).T, out=blocks[i][j])
                blocks[j][i].copy_(blocks[i][j].T)
        for norm, band in zip(self.norms, products.split(rows), strict=True):
            slope.sub_(band, alpha=self.share * norm)
        return slope, products

    def combined(self, step: Tensor) -> Tensor:
        """x_0 + step R (out, in), in the scale of the task vectors; step (out, N out) is used up."""
        merged = step.new_zeros(self.task_vectors[0].shape)
        for i, (norm, part) in enumerate(zip(self.norms, step.split(step.shape[0], dim=1), strict=True)):
            part.diagonal().add_(self.share * norm)
            merged.addmm_(part, self._rows(i, step.dtype))
        return merged.mul_(self.scale)

    def _rows(self, i: int, dtype: torch.dtype) -> Tensor:
        return self.task_vectors[i].dense(dtype).div_(self.norms[i] * self.scale)
