"""Tasks between merging and writing: choose a tensor, convert to the layout on disk, cast, and write files."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.io.tasks import TensorWriterTask
from mergekit.io.tensor_writer import TensorWriter
from pydantic import InstanceOf

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.tasks.loading import cast
from mergekit_mm.tasks.step import Step


class ConvertToDisk(Task[dict[str, torch.Tensor]]):
    """The merged tensors of one group, converted to the base's tensors on disk: name on disk -> tensor."""

    checkpoint: InstanceOf[Checkpoint]  # that of the base, whose layout on disk the output has
    tensor: str  # the name in memory of any tensor of the group
    merged: tuple[tuple[str, Task], ...]  # memory name -> the task that makes it

    def arguments(self) -> dict[str, Task]:
        return dict(self.merged)

    def group_label(self) -> str | None:
        return self.checkpoint.group_of[self.tensor].disk[0]

    def execute(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.checkpoint.group_of[self.tensor].to_disk(tensors)


class PickTensor(Step[torch.Tensor]):
    """One of several tensors that a task makes together, by the key that the task gives it: a name or a model."""

    group: Task
    key: str | ModelReference

    def arguments(self) -> dict[str, Task]:
        return {"group": self.group}

    def execute(self, group: dict[str | ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor:
        return group[self.key]


class ShardWriter(TensorWriter):
    """mergekit's writer of output files, with an error that names the file that cannot be written."""

    def _write_shard_task(self, shard_data: dict[str, torch.Tensor], shard_index: int, shard_path: str) -> None:
        try:
            with system_errors(shard_path):
                super()._write_shard_task(shard_data, shard_index, shard_path)
        except RuntimeError as error:
            if "inline_container" not in str(error):  # torch's writer of pickles drops the system's reason
                raise
            raise MergeError(f"{shard_path} cannot be written to its end, as on a full disk: {error}") from error


class WriteShards(TensorWriterTask):
    """Open the output's files; mergekit's task with a `ShardWriter`."""

    def execute(self, **_kwargs: object) -> ShardWriter:
        return ShardWriter(
            self.out_path,
            max_shard_size=self.max_shard_size,
            safe_serialization=self.safe_serialization,
            override_basename=self.override_basename,
            use_async=self.use_async,
            max_write_threads=self.write_threads,
        )


class CopyTensor(Step[torch.Tensor]):
    """A second tensor of the same values, for models that are stored with both of two tied tensors."""

    tensor: Task

    def arguments(self) -> dict[str, Task]:
        return {"tensor": self.tensor}

    def execute(self, tensor: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        return tensor.clone()  # safetensors refuses to write two tensors that share memory.


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
