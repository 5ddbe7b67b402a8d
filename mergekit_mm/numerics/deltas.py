"""Steps that every solver takes on its task vectors: down to the joint core and back, one pass for mean and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal

import torch
from torch import Tensor

from mergekit_mm.numerics.task_vector import TaskVector, joint_core

Init = Literal["mean", "sum", "zero"]

_ROW_BLOCK = 256


def start_share(init: Init, count: int) -> float:
    """The start x_0 of a descent as a multiple of the sum of `count` task vectors."""
    return {"mean": 1.0 / count, "sum": 1.0, "zero": 0.0}[init]


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
    zeros = partial(torch.zeros, dtype=dtype, device=task_vectors[0].left.device)
    if not all(t.is_factored for t in task_vectors):
        merged = solve(task_vectors)
        return TaskVector(zeros(rows, columns) if merged is None else merged)
    joint = joint_core(task_vectors, dtype)
    empty = not (joint.left.shape[1] and joint.right.shape[0])
    core = None if empty else solve(joint.cores)
    if core is None:
        return TaskVector(zeros(rows, 0), right=zeros(0, columns))
    return joint.expand(TaskVector(core))


def working_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float32, or the widest of the inputs' dtypes if that is wider: bfloat16 steps are smaller than its rounding."""
    return reduce(torch.promote_types, dtypes, torch.float32)


def mean_delta(task_vectors: Sequence[TaskVector]) -> Tensor:
    """The average of the deltas, any shape, in the working dtype."""
    dtype = working_dtype(task_vectors[0].left.dtype)
    total = task_vectors[0].dense(dtype)
    for task_vector in task_vectors[1:]:
        total += task_vector.dense(dtype)
    return total / len(task_vectors)


def mean_and_peaks(task_vectors: Sequence[TaskVector], dtype: torch.dtype) -> tuple[Tensor, list[float]]:
    """The average delta (out, in), and each delta's largest absolute entry; one delta in memory at a time."""
    mean = torch.zeros(task_vectors[0].shape, dtype=dtype, device=task_vectors[0].left.device)
    peaks = []
    for task_vector in task_vectors:
        delta = task_vector.dense(dtype)
        low, high = torch.aminmax(delta)
        peaks.append(max(-float(low), float(high)))
        mean += delta
    return mean.div_(len(peaks)), peaks


def square_norm(delta: Tensor) -> float:
    """|| delta ||_F^2 to float32 rounding or better, without a second (out, in); norm() loses digits if it is large."""
    return sum(float(part.square().sum(1).to(torch.float64).sum()) for part in delta.split(_ROW_BLOCK))


def sum_of_deltas(task_vectors: Sequence[TaskVector]) -> Tensor:
    """The sum of the deltas (out, in) in float64; one delta in memory at a time."""
    total = task_vectors[0].dense(torch.float64)
    for task_vector in task_vectors[1:]:
        total += task_vector.dense(torch.float64)
    return total
