"""The interference that a merged delta leaves, at every strength at once.

WUDI's objective (arXiv 2503.08099), which OptMerge's is with whole task vectors as targets and proxies, is for x
(out, in) and the task vectors tau_i

    L(x) = sum_i || (x - tau_i) tau_i^T ||^2 / || tau_i ||^2 .

It is a quadratic, so that at the strength s of one merged delta x

    L(s x) = a s^2 - 2 b s + c .

c is the loss of the unmerged base, which has x = 0. The strength with the least loss is b / a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mergekit_mm.numerics.eigen import gram_root
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass(frozen=True)
class Interaction:
    """The loss of one merged delta over its strength, of one matrix or summed over several."""

    a: float = 0.0
    b: float = 0.0
    c: float = 0.0

    def __add__(self, other: Interaction) -> Interaction:
        return Interaction(self.a + other.a, self.b + other.b, self.c + other.c)

    def share_left(self, strength: float) -> float | None:
        """The loss at a strength over that of the unmerged base, which has 1; None if there was none to begin with."""
        if self.c <= 0:
            return None
        return max(0.0, (self.a * strength - 2 * self.b) * strength + self.c) / self.c

    @property
    def best_strength(self) -> float | None:
        """The strength of the least loss; None for a delta that changes nothing which the loss sees."""
        return self.b / self.a if self.a > 0 else None


def interactions(task_vectors: Sequence[TaskVector], merged: Sequence[TaskVector]) -> list[Interaction]:
    """The interaction of each merged delta (out, in) with the experts of one matrix, in float64.

    Adapters are projected on the rows that they have together, in which all that the loss sees of x lies; then the
    cost is that of a matrix (out, sum of the ranks). An expert that did not change the matrix has no part.
    """
    rights = [each.right.double() for each in task_vectors if each.right is not None]
    basis = torch.linalg.qr(torch.cat(rights).T).Q if len(rights) == len(task_vectors) else None
    candidates = [_in_basis(each, basis) for each in merged]
    sums = [[0.0, 0.0] for _ in candidates]
    constant = 0.0
    for task_vector in task_vectors:
        own = _in_basis(task_vector, basis)
        size = float(own.square().sum())
        if size == 0.0:
            continue
        rows = gram_root(own) / size**0.5  # rows^T rows = tau^T tau / || tau ||^2
        target = own @ rows.T
        constant += float(target.square().sum())
        for pair, candidate in zip(sums, candidates, strict=True):
            answer = candidate @ rows.T
            pair[0] += float(answer.square().sum())
            pair[1] += float((answer * target).sum())
    return [Interaction(a, b, constant) for a, b in sums]


def _in_basis(task_vector: TaskVector, basis: Tensor | None) -> Tensor:
    """The delta in float64 (out, in), or its rows in an orthonormal basis (in, r), (out, r)."""
    if basis is None:
        return task_vector.dense(torch.float64)
    if task_vector.right is not None:
        return task_vector.left.double() @ (task_vector.right.double() @ basis)
    return task_vector.dense(torch.float64) @ basis
