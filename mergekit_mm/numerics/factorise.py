"""A merged task vector as two factors of a given rank, for an adapter."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import top_eigenpairs_
from mergekit_mm.numerics.spectral import gram
from mergekit_mm.numerics.task_vector import TaskVector


class Factors(NamedTuple):
    """b (out, r) @ a (r, in) in float32, and the share of the squared norm of the delta that it keeps."""

    b: Tensor
    a: Tensor
    energy: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def to(self, device: torch.device | str) -> Factors:
        """The same factors on `device`."""
        return Factors(self.b.to(device), self.a.to(device), self.energy)


def factorise(task_vector: TaskVector, rank: int | None) -> Factors | None:
    """The best factors of rank <= `rank`; None for a delta of zero.

    From factors the singular values come out of their joint core in float64, and directions that are zero to float32
    are left out; without `rank` the result is then exact. A dense delta goes through the Gram matrix of its smaller
    side and keeps `rank` directions, or all of them. Both factors get half of the singular values, so that neither
    leaves the range of 16 bits before the other.
    """
    if task_vector.right is None:
        return _from_dense(task_vector.dense(torch.float64), rank)
    q_left, r_left = torch.linalg.qr(task_vector.left.double())
    q_right, r_right = torch.linalg.qr(task_vector.right.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    found = int((s > s.max() * torch.finfo(torch.float32).eps).sum()) if s.numel() else 0
    kept = found if rank is None else min(found, rank)
    if kept == 0 or not float(s[0]):
        return None
    root = s[:kept].sqrt()
    energy = float(s[:kept].square().sum() / s.square().sum())
    return Factors(_single(q_left @ (u[:, :kept] * root)), _single((root[:, None] * vh[:kept]) @ q_right.T), energy)


def _from_dense(delta: Tensor, rank: int | None) -> Factors | None:
    if delta.shape[0] > delta.shape[1]:
        turned = _from_dense(delta.T, rank)
        return turned and Factors(turned.a.T.contiguous(), turned.b.T.contiguous(), turned.energy)
    total = float(delta.square().sum())
    size = delta.shape[0]
    if total == 0.0:
        return None
    squares, u = top_eigenpairs_(gram(delta), size if rank is None else min(rank, size))
    found = int((squares > squares[0] * torch.finfo(torch.float32).eps ** 2).sum())
    squares, u = squares[:found], u[:, :found]
    root = squares.sqrt().sqrt()
    return Factors(_single(u * root), _single((u.T @ delta) / root[:, None]), float(squares.sum()) / total)


def _single(x: Tensor) -> Tensor:
    return x.to(torch.float32).contiguous()
