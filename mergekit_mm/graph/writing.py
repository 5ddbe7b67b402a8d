"""Between merging and writing: one tensor of several, laid out as on disk, cast."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task

from mergekit_mm.graph.reading import SOURCES
from mergekit_mm.graph.step import Step
from mergekit_mm.methods.apply import is_finite


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


class PickTensor(Step[torch.Tensor]):
    """One tensor of several that a task makes together, by its name or its model's."""

    group: Task
    key: str | ModelReference

    def arguments(self) -> dict[str, Task]:
        return {"group": self.group}

    def execute(self, group: dict[str | ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor:
        return group[self.key]


class CastTensor(Step[torch.Tensor]):
    """The one cast at the end, to the dtype of the output file; integer buffers keep theirs.

    ValueError where float16 cannot hold a value: it ends at 65504, bfloat16 does not.
    """

    tensor: Task
    dtype: str

    def arguments(self) -> dict[str, Task]:
        return {"tensor": self.tensor}

    def priority(self) -> int:
        return 500

    def execute(self, tensor: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        cast = tensor.to(dtype_from_name(self.dtype))
        if cast.dtype is torch.float16 is not tensor.dtype and not is_finite(cast) and is_finite(tensor):
            raise ValueError(
                f"{self.group_label()} has values up to {float(tensor.abs().max()):.3g}, more than float16 can hold: "
                "write `out_dtype: bfloat16` or float32."
            )
        return cast
