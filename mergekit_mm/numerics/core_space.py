"""Core Space (arXiv 2509.17786): the small coordinates in which adapters are merged entry by entry.

With tau_i = b_i a_i the deltas of adapters, U the left singular vectors of [b_1 ... b_N] and V the right ones of the
stacked a_i,

    M_i = (U^T b_i) (a_i V),   tau_i = U M_i V^T .

Nothing is lost, and methods that commute with rotations give the same there. Methods that look at single entries (TIES,
DARE) do not: in the core an entry is a part of a direction that adapters have, and no longer of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.numerics.polar import ROUNDING
from mergekit_mm.numerics.task_vector import JointCore, TaskVector


def core_space(task_vectors: Sequence[TaskVector]) -> JointCore:
    """The adapters in bases of singular vectors, in float64; no (out, in) array is formed.

    Directions below 1e-5 of the longest are rounding and left out, as their vectors would be arbitrary. Signs of
    singular vectors are arbitrary too, but change all M_i alike.

    Raises:
        ValueError: a task vector is not factored.
    """
    pairs = [(t.left.double(), t.right.double()) for t in task_vectors if t.right is not None]
    if len(pairs) != len(task_vectors):
        raise ValueError("core_space needs every task vector in factored form")
    left = _basis(torch.cat([b for b, _ in pairs], dim=1))
    right = _basis(torch.cat([a for _, a in pairs]).T)
    return JointCore(left, right.T, tuple(TaskVector.of((left.T @ b) @ (a @ right)) for b, a in pairs))


def _basis(columns: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(columns, full_matrices=False)
    return u[:, s > ROUNDING * s[:1]]
