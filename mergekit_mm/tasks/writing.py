"""Tasks between merging and writing: choose a tensor, convert to the layout on disk, cast."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from pydantic import InstanceOf

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.expert_stacks import Part, part_of
from mergekit_mm.tasks.loading import cast
from mergekit_mm.tasks.step import Step


class ConvertToDisk(Task[dict[str, torch.Tensor]]):
    """The merged tensors of one group, converted to the base's tensors on disk: name on disk -> tensor."""

    checkpoint: InstanceOf[Checkpoint]  # that of the base, whose layout on disk the output has
    tensor: str  # the name in memory of any tensor of the group
    merged: tuple[tuple[str, Task], ...]  # memory name -> the task that makes it
    part: Part | None = None  # the experts of a stack that are converted; None for all

    def arguments(self) -> dict[str, Task]:
        return dict(self.merged)

    def group_label(self) -> str | None:
        return self.checkpoint.group_of[self.tensor].disk[0]

    def execute(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        whole = self.checkpoint.group_of[self.tensor]
        group = whole if self.part is None else part_of(self.checkpoint, self.tensor, self.part)
        return group.to_disk(tensors)


class PickTensor(Step[torch.Tensor]):
    """One of several tensors that a task makes together, by the key that the task gives it: a name or a model."""

    group: Task
    key: str | ModelReference

    def arguments(self) -> dict[str, Task]:
        return {"group": self.group}

    def execute(self, group: dict[str | ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor:
        return group[self.key]


class CastTensor(Step[torch.Tensor]):
    """The one cast at the end, to the dtype of the output file."""

    tensor: Task
    dtype: str

    def arguments(self) -> dict[str, Task]:
        return {"tensor": self.tensor}

    def priority(self) -> int:
        return 500

    def execute(self, tensor: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        return cast(tensor, self.dtype, self.group_label() or "")
