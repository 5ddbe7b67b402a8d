"""A task vector: what fine-tuning changed in one weight matrix, materialised only when a solver asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROW_BLOCK = 256


@dataclass(frozen=True, eq=False)
class TaskVector:
    """The delta of one matrix, dense or as a product of two thin factors.

    dense:    `left - base`, or `left` itself when there is no base; both (out, in), any floating dtypes.
              The difference is taken on request, so N experts never need N float32 copies at once.
    factored: `left @ right`, (out, r) times (r, in): an adapter's `scale * B` and `A`.

    The delta of a stack of matrices, such as the experts of a mixture, has an axis more in front in either form; the
    methods get its matrices one by one (`matrices`).
    """

    left: Tensor
    right: Tensor | None = None
    base: Tensor | None = None

    def __post_init__(self) -> None:
        if self.right is not None and self.base is not None:
            raise ValueError("a factored task vector is a delta already; it takes no base")
        if self.right is not None and self.left.shape[-1] != self.right.shape[-2]:
            raise ValueError(f"factors do not chain: {tuple(self.left.shape)} times {tuple(self.right.shape)}")
        if self.base is not None and self.left.shape != self.base.shape:
            raise ValueError(f"tuned weight {tuple(self.left.shape)} and base {tuple(self.base.shape)} differ in shape")

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), whichever form is stored; (matrices, out, in) of a stack."""
        if self.right is None:
            return tuple(self.left.shape)
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def is_factored(self) -> bool:
        return self.right is not None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that are stored."""
        return tuple(part for part in (self.left, self.right, self.base) if part is not None)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The delta as a new (out, in) tensor of `dtype`; each operand is widened before the one operation on it."""
        if self.right is not None:
            return self.left.to(dtype) @ self.right.to(dtype)
        delta = self.left.to(dtype, copy=True)
        if self.base is not None:  # in blocks of rows, so that the base is never widened as a whole
            for own, base in zip(_row_blocks(delta), _row_blocks(self.base), strict=True):
                own.sub_(base.to(dtype))
        return delta

    def added_to(self, weight: Tensor, scaling: float = 1.0) -> Tensor:
        """`weight + scaling * delta` in the weight's dtype; factors are never written out."""
        if self.right is not None:
            add = torch.addmm if self.left.ndim == 2 else torch.baddbmm
            return add(weight, self.left.to(weight.dtype), self.right.to(weight.dtype), alpha=scaling)
        delta = self.left.to(weight.dtype) if self.base is None else self.dense(weight.dtype)
        return weight.add(delta, alpha=scaling)

    def matrices(self) -> Iterator[TaskVector]:
        """The deltas of the matrices of a stack, in the form in which the stack is stored."""
        for index, left in enumerate(self.left):
            right, base = (None if part is None else part[index] for part in (self.right, self.base))
            yield TaskVector(left, right, base)

    def to(self, device: torch.device | str) -> TaskVector:
        """The same task vector with all its parts on `device`."""
        right = None if self.right is None else self.right.to(device)
        return TaskVector(self.left.to(device), right, None if self.base is None else self.base.to(device))


def stacked(matrices: Iterable[TaskVector], count: int, dtype: torch.dtype) -> TaskVector:
    """The delta (count, out, in) of a stack from those of its `count` matrices, which are consumed one at a time.

    Factored, with ranks filled up by zeros to the largest, if all of them are; else dense, in `dtype`.
    """
    factored: list[TaskVector] = []
    dense: Tensor | None = None
    for index, matrix in enumerate(matrices):
        if dense is None and matrix.is_factored:
            factored.append(matrix)
            continue
        if dense is None:
            dense = torch.empty(count, *matrix.shape, dtype=dtype, device=matrix.left.device)
            for into, earlier in zip(dense, factored, strict=False):
                into.copy_(earlier.dense(dtype))
        dense[index].copy_(matrix.dense(dtype))
    if dense is not None:
        return TaskVector(dense)
    rank = max(matrix.left.shape[1] for matrix in factored)
    rights = [matrix.right for matrix in factored if matrix.right is not None]
    left = torch.stack([pad(matrix.left, (0, rank - matrix.left.shape[1])) for matrix in factored])
    return TaskVector(left, right=torch.stack([pad(right, (0, 0, 0, rank - len(right))) for right in rights]))


def _row_blocks(x: Tensor) -> tuple[Tensor, ...]:
    return torch.atleast_1d(x).split(_ROW_BLOCK)


@dataclass(frozen=True, eq=False)
class JointCore:
    """All factored deltas in one pair of orthonormal bases: `delta_i = left @ cores[i] @ right`.

    left (out, a), right (b, in), cores (a, b) each, with a and b at most the sum of the ranks. A method that commutes
    with rotations can work on the cores alone, and its answer stays a low-rank task vector.
    """

    left: Tensor
    right: Tensor
    cores: tuple[TaskVector, ...]

    def expand(self, core: TaskVector) -> TaskVector:
        """The task vector whose coordinates are `core`; still factored."""
        return TaskVector(self.left @ core.dense(self.left.dtype), right=self.right)


def joint_core(task_vectors: Sequence[TaskVector], dtype: torch.dtype) -> JointCore:
    """Two thin QR factorisations, O((out + in) r^2) for r = sum of the ranks; no (out, in) array is formed."""
    rights = [t.right.to(dtype) for t in task_vectors if t.right is not None]
    if len(rights) != len(task_vectors):
        raise ValueError("joint_core needs every task vector in factored form")
    ranks = [r.shape[0] for r in rights]
    left, left_coordinates = torch.linalg.qr(torch.cat([t.left.to(dtype) for t in task_vectors], dim=1))
    right, right_coordinates = torch.linalg.qr(torch.cat(rights).T)
    pairs = zip(left_coordinates.split(ranks, dim=1), right_coordinates.split(ranks, dim=1), strict=True)
    return JointCore(left, right.T, tuple(TaskVector(b @ a.T) for b, a in pairs))
