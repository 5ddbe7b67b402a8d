"""The plugin's own steps in mergekit's task graph: read in memory layout, merge with care, write in disk layout.

Tasks are compared and hashed by value, so they name a model and a tensor; what these names stand for is looked up
in `SOURCES`, as mergekit's own tasks look up their files in `LoaderCache`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.lazy_tensor_loader import LazyTensorLoader
from mergekit.io.tasks import GatherTensors
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.architecture.checkpoint import Checkpoint

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """An open input: its inventory and its files."""

    checkpoint: Checkpoint
    loader: LazyTensorLoader

    def read(self, name: str, device: str | None) -> torch.Tensor:
        """One tensor by its name on disk."""
        return self.loader.get_tensor(name, device=device or "cpu")


SOURCES: dict[ModelReference, Source] = {}


def open_sources(checkpoints: Mapping[ModelReference, Checkpoint], lazy_unpickle: bool) -> None:
    """Make these inputs, and no others, known to the tasks."""
    SOURCES.clear()
    for model, checkpoint in checkpoints.items():
        loader = LazyTensorLoader.from_disk(str(checkpoint.directory), lazy_unpickle=lazy_unpickle)
        SOURCES[model] = Source(checkpoint, loader)


class LoadGroup(Task[dict[str, torch.Tensor]]):
    """Read one group of disk tensors and convert it to memory tensors."""

    model: ModelReference
    tensor: str  # any memory name of the group
    label: str
    device: str | None = None

    def arguments(self) -> dict[str, Task]:
        return {}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.label

    def execute(self, **_kwargs: object) -> dict[str, torch.Tensor]:
        source = SOURCES[self.model]
        group = source.checkpoint.group_of[self.tensor]
        return group.to_memory({name: source.read(name, self.device) for name in group.disk})


class LoadTensor(Task[torch.Tensor]):
    """One memory tensor of one input; floating tensors are cast to `dtype`, integer buffers never.

    `label` is the name of the output on the base's disk, whatever this input calls the tensor: mergekit runs tasks
    in the order of their labels, so equal ones keep the inputs of one output together and memory bounded.
    """

    model: ModelReference
    tensor: str
    label: str
    dtype: str | None = None
    device: str | None = None

    def arguments(self) -> dict[str, Task]:
        group = SOURCES[self.model].checkpoint.group_of[self.tensor]
        if group.conversion is None:
            return {}
        return {"group": LoadGroup(model=self.model, tensor=group.memory[0], label=self.label, device=self.device)}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.label

    def execute(self, group: dict[str, torch.Tensor] | None = None, **_kwargs: object) -> torch.Tensor:
        if group is None:
            source = SOURCES[self.model]
            tensor = source.read(source.checkpoint.group_of[self.tensor].disk[0], self.device)
        else:
            tensor = group[self.tensor]
        dtype = dtype_from_name(self.dtype)
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


class GatherMemoryTensors(GatherTensors):
    """mergekit's collector of one tensor from several inputs, with each input's name being that in its memory."""

    label: str

    def arguments(self) -> dict[str, Task]:
        return {
            f"{model}:{weight.name}": LoadTensor(
                model=model, tensor=weight.name, label=self.label, dtype=self.dtype, device=self.device
            )
            for model, weight in self.weight_info.items()
        }

    def group_label(self) -> str | None:
        return self.label


class MergeTensors(ExecuteMergeMethodTask):
    """Run a merge method on one tensor, after the cases in which arithmetic would do harm."""

    as_vector: bool = False  # a kernel of a convolution is no stack of matrices

    def execute(self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor | None:
        held = [tensors[model] for model in self.model_order]
        keeper = self.base_model or self.model_order[0]
        name = self.output_weight.name
        if not all(t.is_floating_point() for t in held):
            if any(not torch.equal(t, held[0]) for t in held[1:]):
                LOG.warning("Buffer %s (%s) differs between the inputs; %s's is kept.", name, held[0].dtype, keeper)
            return tensors[keeper]
        broken = [model for model, t in zip(self.model_order, held, strict=True) if not torch.isfinite(t).all()]
        if broken:
            # an infinite bound that all share is meant; anything else would spread through the arithmetic
            if all(t.shape == held[0].shape and torch.equal(t, held[0]) for t in held):
                return tensors[keeper]
            raise ValueError(
                f"Tensor {name} holds NaN or infinite values in {', '.join(map(str, broken))}. Merging it would spread "
                "them: repair or leave out that input, or keep the tensor at the base by its role's policy."
            )
        if self.as_vector:
            shape = held[0].shape
            flat = super().execute({model: t.reshape(-1) for model, t in tensors.items()})
            return None if flat is None else flat.reshape(shape)
        return super().execute(tensors)


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
    """One tensor of a converted group."""

    group: ConvertToDisk
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
