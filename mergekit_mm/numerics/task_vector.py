"""Task vectors: what fine-tuning changed in one weight tensor, written out only when a solver asks for it.

Beside the class: sums and means of several task vectors, stacks of them, and their joint core, in which methods that
commute with rotations work on factors without writing them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class TaskVector:
    """The delta of one tensor, in one of three forms, each with a constructor of its own.

    of(delta):            the delta itself, of any shape: `left`.
    between(tuned, base): `left - base`, of any shape and any floating dtypes. The difference is taken on request, so
                          that N experts never need N float32 copies at once.
    low_rank(b, a):       `left @ right`, (out, r) times (r, in): an adapter's `scale * B` and `A`.

    Methods work on matrices (out, in). The delta of a stack of matrices, such as the experts of a mixture-of-experts
    layer, has one more axis in front in every form; `matrices` takes it apart.
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

    @classmethod
    def of(cls, delta: Tensor) -> TaskVector:
        """From the delta itself."""
        return cls(delta)

    @classmethod
    def between(cls, tuned: Tensor, base: Tensor) -> TaskVector:
        """The delta `tuned - base` of two tensors of one shape; ValueError if the shapes differ."""
        return cls(tuned, base=base)

    @classmethod
    def low_rank(cls, b: Tensor, a: Tensor) -> TaskVector:
        """The delta `b @ a` of two factors, (out, r) and (r, in); ValueError if they do not chain."""
        return cls(b, right=a)

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in), whichever form is stored; (matrices, out, in) of a stack."""
        if self.right is None:
            return tuple(self.left.shape)
        return (*self.left.shape[:-1], self.right.shape[-1])

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def is_factored(self) -> bool:
        return self.right is not None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors that are stored."""
        return tuple(part for part in (self.left, self.right, self.base) if part is not None)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The delta as a new tensor (out, in) of `dtype`; each operand is widened before the one operation on it."""
        if self.right is not None:
            return self.left.to(dtype) @ self.right.to(dtype)
        delta = self.left.to(dtype, copy=True)
        if self.base is not None:  # in blocks of rows, so that the base is never widened as a whole
            for own, base in zip(row_blocks(delta), row_blocks(self.base), strict=True):
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

    def rows(self, rows: slice | Tensor) -> TaskVector:
        """The delta of some rows, by their places along the first axis, of a matrix or of a delta without factors."""
        return TaskVector(self.left[rows], self.right, None if self.base is None else self.base[rows])

    def to(self, device: torch.device | str) -> TaskVector:
        """The same task vector with all its parts on `device`."""
        right = None if self.right is None else self.right.to(device)
        return TaskVector(self.left.to(device), right, None if self.base is None else self.base.to(device))


def row_blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Views of a few hundred rows each, for passes over a large tensor (rows, ...) without a second one of its size."""
    return torch.atleast_1d(x).split(_ROWS_AT_ONCE)


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float32, or the widest of the given dtypes if that is wider.

    The steps of a merge can be smaller than the rounding of bfloat16.
    """
    return reduce(torch.promote_types, dtypes, torch.float32)


def square_norm_of(task_vector: TaskVector) -> float:
    """|| delta ||_F^2 of a delta of any shape, in float64; factors are not multiplied out."""
    if task_vector.right is not None:
        left, right = task_vector.left.double(), task_vector.right.double()
        return max(0.0, float(((left.mT @ left) * (right @ right.mT)).sum()))
    if task_vector.left.ndim == 3:  # so that no stack is widened as a whole
        return sum(square_norm_of(matrix) for matrix in task_vector.matrices())
    blocks = row_blocks(task_vector.left)
    bases = (None,) * len(blocks) if task_vector.base is None else row_blocks(task_vector.base)
    deltas = (TaskVector(own, base=base).dense(torch.float64) for own, base in zip(blocks, bases, strict=True))
    return sum(float(delta.square().sum()) for delta in deltas)


def mean_delta(task_vectors: Sequence[TaskVector]) -> Tensor:
    """The average of the deltas, of any shape, in the working dtype."""
    return _summed(task_vectors, working_dtype(task_vectors[0].left.dtype)) / len(task_vectors)


def sum_of_deltas(task_vectors: Sequence[TaskVector]) -> Tensor:
    """The sum of the deltas (out, in) in float64."""
    return _summed(task_vectors, torch.float64)


def _summed(task_vectors: Sequence[TaskVector], dtype: torch.dtype) -> Tensor:
    """Holds one delta in memory beside the sum."""
    total = task_vectors[0].dense(dtype)
    for task_vector in task_vectors[1:]:
        total += task_vector.dense(dtype)
    return total


def weighted_sum(deltas: Sequence[TaskVector], weights: Sequence[float]) -> TaskVector:
    """The weighted sum of deltas: as factors if all deltas are factors; else as one tensor in the working dtype."""
    rights = [d.right for d in deltas if d.right is not None]
    if len(rights) == len(deltas):
        left = torch.cat([d.left * w for d, w in zip(deltas, weights, strict=True)], dim=-1)
        return TaskVector(left, right=torch.cat(rights, dim=-2))
    dtype = working_dtype(*(part.dtype for delta in deltas for part in delta.parts))
    total = torch.zeros(deltas[0].shape, dtype=dtype, device=deltas[0].left.device)
    for delta, weight in zip(deltas, weights, strict=True):
        total = delta.added_to(total, weight)
    return TaskVector(total)


def stacked(matrices: Iterable[TaskVector], count: int, dtype: torch.dtype) -> TaskVector:
    """The delta (count, out, in) of a stack from those of its `count` matrices, which are consumed one at a time.

    It is factored if all of them are, with their ranks filled up by zeros to the largest; else dense, in `dtype`.
    """
    factored: list[TaskVector] = []
    dense: Tensor | None = None
    for index, matrix in enumerate(matrices):
        if dense is None and matrix.is_factored:
            factored.append(matrix)
            continue
        if dense is None:
            dense = torch.empty(count, *matrix.shape, dtype=dtype, device=matrix.device)
            for into, earlier in zip(dense, factored, strict=False):
                into.copy_(earlier.dense(dtype))
        dense[index].copy_(matrix.dense(dtype))
    if dense is not None:
        return TaskVector.of(dense)
    rank = max(matrix.left.shape[1] for matrix in factored)
    rights = [matrix.right for matrix in factored if matrix.right is not None]
    b = torch.stack([pad(matrix.left, (0, rank - matrix.left.shape[1])) for matrix in factored])
    return TaskVector.low_rank(b, torch.stack([pad(right, (0, 0, 0, rank - len(right))) for right in rights]))


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
        """The task vector (out, in) whose coordinates are `core` (a, b); still factored."""
        return TaskVector.low_rank(self.left @ core.dense(self.left.dtype), self.right)


def joint_core(task_vectors: Sequence[TaskVector], dtype: torch.dtype) -> JointCore:
    """Two thin QR factorisations, O((out + in) r^2) for r = sum of the ranks; no (out, in) array is formed.

    Raises:
        ValueError: a task vector is not factored.
    """
    rights = [t.right.to(dtype) for t in task_vectors if t.right is not None]
    if len(rights) != len(task_vectors):
        raise ValueError("joint_core needs every task vector in factored form")
    ranks = [r.shape[0] for r in rights]
    left, left_coordinates = torch.linalg.qr(torch.cat([t.left.to(dtype) for t in task_vectors], dim=1))
    right, right_coordinates = torch.linalg.qr(torch.cat(rights).T)
    pairs = zip(left_coordinates.split(ranks, dim=1), right_coordinates.split(ranks, dim=1), strict=True)
    return JointCore(left, right.T, tuple(TaskVector.of(b @ a.T) for b, a in pairs))


def in_joint_core(
    task_vectors: Sequence[TaskVector],
    solve: Callable[[Sequence[TaskVector]], Tensor | None],
    dtype: torch.dtype = torch.float64,
) -> TaskVector:
    """The merged task vector of a `solve` that commutes with rotations: from factors it works on their small cores.

    solve gets task vectors that are cheap to densify and returns the merged delta in their coordinates, in `dtype`, or
    None for zero. From factored input the answer is factored, of at most the summed ranks; no (out, in) array is made.
    """
    rows, columns = task_vectors[0].shape
    zeros = partial(torch.zeros, dtype=dtype, device=task_vectors[0].device)
    if not all(t.is_factored for t in task_vectors):
        merged = solve(task_vectors)
        return TaskVector.of(zeros(rows, columns) if merged is None else merged)
    joint = joint_core(task_vectors, dtype)
    is_empty = not (joint.left.shape[1] and joint.right.shape[0])
    core = None if is_empty else solve(joint.cores)
    if core is None:
        return TaskVector.low_rank(zeros(rows, 0), zeros(0, columns))
    return joint.expand(TaskVector.of(core))
