"""What every task-vector method does around its mathematics: check inputs, take deltas, add the result to the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from mergekit.merge_methods import TensorEntry, TensorGroup
from torch import Tensor

from mergekit_mm.numerics.task_vector import TaskVector

Solver = Callable[[Sequence[TaskVector]], TaskVector]


def merge_task_vectors(group: TensorGroup, scaling: float, solve: Solver) -> Tensor:
    """base + scaling * solve(deltas), computed in float32 or wider and cast once to the inputs' dtype.

    Matrices go to `solve`; a 3-D tensor is a stack of matrices (the experts of a mixture-of-experts layer), each solved
    by itself; vectors, scalars and tensors of four or more axes get the mean of the deltas. A scaling of 0 returns the
    base bit for bit. ValueError, naming tensor and input: a missing base, NaN or Inf in an input, a diverged solution.
    """
    base = group.base
    if base is None:
        raise ValueError(f"Merging {_label(group)} needs a base model: set base_model in the configuration")
    if not math.isfinite(scaling):
        raise ValueError(f"scaling must be a finite number; got {scaling}")
    for entry in group.entries:
        _require_finite(entry, group)
    if scaling == 0.0 or base.tensor.numel() == 0:
        return base.tensor.clone()
    tuned = [entry.tensor for entry in group.non_base]
    with torch.no_grad():
        if base.tensor.ndim == 2:
            return _matrix(base.tensor, tuned, scaling, solve, group)
        if base.tensor.ndim == 3:
            slices = zip(base.tensor, *tuned, strict=True)
            return torch.stack([_matrix(b, list(experts), scaling, solve, group) for b, *experts in slices])
        return _add(base.tensor, mean_delta(base.tensor, tuned), scaling)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or the inputs' dtype if that is wider: bfloat16 steps are smaller than its rounding."""
    return torch.promote_types(dtype, torch.float32)


def mean_delta(base: Tensor, tuned: Sequence[Tensor]) -> Tensor:
    """The average of `tuned - base`, any shape, in the working dtype."""
    dtype = working_dtype(base.dtype)
    total = torch.zeros_like(base, dtype=dtype)
    for tensor in tuned:
        total += torch.sub(tensor.to(dtype), base.to(dtype))
    return total / len(tuned)


def _matrix(base: Tensor, tuned: list[Tensor], scaling: float, solve: Solver, group: TensorGroup) -> Tensor:
    delta = solve([TaskVector(tensor, base=base) for tensor in tuned]).dense(working_dtype(base.dtype))
    if not _is_finite(delta):
        raise ValueError(
            f"Merging {_label(group)} diverged: the merged delta holds NaN or Inf. "
            "Lower learning_rate, momentum or iterations"
        )
    return _add(base, delta, scaling)


def _add(base: Tensor, delta: Tensor, scaling: float) -> Tensor:
    return base.to(delta.dtype).add(delta, alpha=scaling).to(base.dtype)


def _require_finite(entry: TensorEntry, group: TensorGroup) -> None:
    if not _is_finite(entry.tensor):
        raise ValueError(
            f"{_label(group)} of input {entry.id} holds NaN or Inf; a task vector cannot be taken. "
            "Repair that checkpoint, or leave it out of the merge"
        )


def _is_finite(tensor: Tensor) -> bool:
    """One pass and no copy: NaN and Inf both survive in the extremes."""
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _label(group: TensorGroup) -> str:
    return f"tensor {group.metadata.name!r}" if group.metadata.name else "an unnamed tensor"
