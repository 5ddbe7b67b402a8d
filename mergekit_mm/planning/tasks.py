"""The plugin's steps in mergekit's task graph between merging and writing: keep, rescale, lay out as on disk, cast."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task

from mergekit_mm.methods.apply import working_dtype
from mergekit_mm.planning.reading import SOURCES


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
    """The one cast at the end, to the dtype of the output file; integer buffers keep theirs."""

    tensor: Task
    dtype: str

    def arguments(self) -> dict[str, Task]:
        return {"tensor": self.tensor}

    def priority(self) -> int:
        return 500

    def group_label(self) -> str | None:
        return self.tensor.group_label()

    def execute(self, tensor: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        return tensor.to(dtype_from_name(self.dtype)) if tensor.is_floating_point() else tensor
