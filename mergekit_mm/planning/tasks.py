"""The plugin's steps in mergekit's task graph between merging and writing: keep, rescale, lay out as on disk, cast."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.methods.apply import working_dtype
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.reading import SOURCES, cast

_ROUNDING = 8 * torch.finfo(torch.float32).eps


class RescaleDelta(Task[torch.Tensor]):
    """base + scale * (merged - base) in float32 or wider: one solution of a merge serves every strength of it."""

    base: Task
    merged: Task
    scale: float

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def group_label(self) -> str | None:
        return self.merged.group_label()

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if self.scale == 1.0 or not merged.is_floating_point():
            return merged
        wide = base.to(working_dtype(merged.dtype))
        # equal infinities, which masks hold, differ by nothing
        return torch.where(wide == merged, wide, torch.lerp(wide, merged.to(wide.dtype), self.scale))


class Difference(Task[TaskVector]):
    """What a merged tensor has over its base, for methods of mergekit that look at more than deltas.

    Where that is nowhere more than rounding, as such methods leave of equal inputs, it is nothing.
    """

    merged: Task
    base: Task

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def group_label(self) -> str | None:
        return self.merged.group_label()

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> TaskVector:
        dtype = working_dtype(merged.dtype) if merged.is_floating_point() else torch.float32
        base, merged = base.to(dtype), merged.to(dtype)
        delta = torch.where(base == merged, 0.0, merged - base)
        rounding = delta.abs() <= _ROUNDING * base.abs()
        return TaskVector(torch.zeros_like(delta) if rounding.all() else delta)


class KeepTensor(Task[torch.Tensor]):
    """One model's tensor out of several that were aligned with each other (by a tokenizer) first."""

    model: ModelReference
    tensors: Task

    def arguments(self) -> dict[str, Task]:
        return {"tensors": self.tensors}

    def group_label(self) -> str | None:
        return self.tensors.group_label()

    def execute(self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor:
        return tensors[self.model]


class ConvertToDisk(Task[dict[str, torch.Tensor]]):
    """Merged memory tensors of one group back to the base's tensors on disk."""

    model: ModelReference
    tensor: str  # any memory name of the group
    merged: tuple[tuple[str, Task], ...]  # memory name -> the task that makes it

    def arguments(self) -> dict[str, Task]:
        return dict(self.merged)

    def group_label(self) -> str | None:
        return SOURCES[self.model].checkpoint.group_of[self.tensor].disk[0]

    def execute(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return SOURCES[self.model].checkpoint.group_of[self.tensor].to_disk(tensors)


class PickTensor(Task[torch.Tensor]):
    """One tensor of several that a task makes together."""

    group: Task
    tensor: str

    def arguments(self) -> dict[str, Task]:
        return {"group": self.group}

    def group_label(self) -> str | None:
        return self.group.group_label()

    def execute(self, group: dict[str, torch.Tensor], **_kwargs: object) -> torch.Tensor:
        return group[self.tensor]


class CastTensor(Task[torch.Tensor]):
    """The one cast at the end, to the dtype of the output file."""

    tensor: Task
    dtype: str

    def arguments(self) -> dict[str, Task]:
        return {"tensor": self.tensor}

    def priority(self) -> int:
        return 500

    def group_label(self) -> str | None:
        return self.tensor.group_label()

    def execute(self, tensor: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        return cast(tensor, self.dtype, self.group_label() or "")
