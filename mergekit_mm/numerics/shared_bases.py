"""Compress, then merge (CtM, arXiv 2606.03723): adapters in the bases of one rank that hold most of all of them.

With tau_i the deltas of adapters and a rank r, orthonormal U (out, r) and V (in, r) are sought that keep the most of

    sum_i || U^T t_i V ||_F^2 ,   t_i = beta tau_i + (1 - beta) mean_j || tau_j || tau_i / || tau_i || ,

targets in which small adapters count nearly as much as large ones. The start is the best U and the best V by themselves
(HOSVD); then each is the best for the other in turn (HOOI). What is merged are the cores U^T tau_i V (r, r), so that
whatever a method makes of them has the rank r: U M V^T is the merged delta.

Everything happens in the joint core of the adapters, in float64. Source: the released code of
https://github.com/ZhengbaoHe/compress-then-merge, where beta is searched in {0, 0.25, 0.5, 0.75}; it is 0.25 here.
Deviation: an adapter that does not change the matrix has no part in the mean of the norms, in the place of 0 / 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.numerics.task_vector import JointCore, TaskVector, joint_core

_BETA = 0.25
_TURNS = 100  # at most; each keeps no less than the one before
_SETTLED = 1e-12  # share of what is kept, by which a last turn may gain


def shared_core(task_vectors: Sequence[TaskVector], rank: int) -> JointCore | None:
    """The deltas (out, in) of adapters projected on their best shared bases of `rank`, with cores (rank, rank).

    None if there is nothing to share: all of them fit whole, or only one of them changes the matrix.

    Raises:
        ValueError: a task vector is not factored.
    """
    joint = joint_core(task_vectors, torch.float64)
    if rank >= min(joint.left.shape[1], joint.right.shape[0]):
        return None
    cores = torch.stack([core.dense(torch.float64) for core in joint.cores])
    if int(cores.flatten(1).any(dim=1).sum()) < 2:
        return None
    u, v = _bases(_targets(cores), rank)
    return JointCore(joint.left @ u, v.T @ joint.right, tuple(TaskVector.of(u.T @ core @ v) for core in cores))


def _targets(cores: Tensor) -> Tensor:
    """t_i (N, a, b); a delta of zero stays zero, and has no part in the mean."""
    norms = torch.linalg.vector_norm(cores, dim=(1, 2))
    changed = norms > 0
    factors = _BETA + (1.0 - _BETA) * norms.sum() / changed.sum().clamp_min(1) / torch.where(changed, norms, 1.0)
    return cores * factors[:, None, None]


def _bases(targets: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (a, r) and V (b, r) for targets (N, a, b)."""
    u, v = _leading(targets, rank), _leading(targets.mT, rank)
    kept = 0.0
    for _ in range(_TURNS):
        u = _leading(targets @ v, rank)
        v = _leading(targets.mT @ u, rank)
        now = float((u.T @ targets @ v).square().sum())
        if now - kept <= _SETTLED * now:
            break
        kept = now
    return u, v


def _leading(several: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors of matrices (N, rows, columns) side by side, as columns."""
    return torch.linalg.eigh((several @ several.mT).sum(0)).eigenvectors[:, -rank:]
