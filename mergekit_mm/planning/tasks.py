"""The plugin's steps in mergekit's task graph after reading: merge with care, write in disk layout."""

from __future__ import annotations

import logging
import zlib

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.methods import method_named
from mergekit_mm.methods.apply import is_finite, working_dtype
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.reading import SOURCES

LOG = logging.getLogger(__name__)


class MergeTensors(ExecuteMergeMethodTask):
    """Run a merge method on one tensor, after the cases in which arithmetic would do harm.

    A method that draws (DARE, DELLA) draws from a stream of each tensor's own, so that its result depends on the seed,
    the tensor's name and its inputs, not on paths, the order of the work, the sharding or what else is merged.
    """

    seed: int = 0

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object
    ) -> torch.Tensor | None:
        keeper = self.base_model or self.model_order[0]
        kept, name = tensors[keeper], self.output_weight.name
        assert isinstance(kept, torch.Tensor)
        plain = [t for model in self.model_order if isinstance(t := tensors[model], torch.Tensor)]
        if not all(t.is_floating_point() for t in plain):
            if any(not torch.equal(t, kept) for t in plain):
                LOG.warning("Buffer %s (%s) differs between the inputs; %s's is kept.", name, kept.dtype, keeper)
            return kept
        broken = [str(model) for model in self.model_order if not _is_finite(tensors[model])]
        if broken:
            # an infinite bound that all share is meant; anything else would spread through the arithmetic
            if all(t.shape == kept.shape and torch.equal(t, kept) for t in plain):
                return kept
            raise ValueError(
                f"Tensor {name} holds NaN or infinite values in {', '.join(broken)}. Merging it would spread "
                "them: repair or leave out that input, or keep the tensor at the base by its role's policy."
            )
        return self._merged(tensors)

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor | None:
        devices = {t.device for t in tensors.values() if isinstance(t, torch.Tensor) and t.device.type == "cuda"}
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._stream(tensors))
            merged: torch.Tensor | None = super().execute(tensors)
        return merged

    def _stream(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> int:
        """Seed, name and the first values of each input: experts that are merged one by one get masks of their own."""
        state = zlib.crc32(f"{self.seed} {self.output_weight.name}".encode())
        for model in self.model_order:
            if isinstance(tensor := tensors[model], torch.Tensor):
                first = tensor.reshape(-1)[:256].to("cpu", torch.float32).contiguous()
                state = zlib.crc32(first.numpy().tobytes(), state)
        return state


class MergeTaskVectors(MergeTensors):
    """Run one of the plugin's methods, in float32 or wider; adapters stay the factors they are."""

    as_vector: bool = False  # a kernel of a convolution is no stack of matrices

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor:
        method = method_named(self.method_name)
        base = tensors[self.base_model]
        assert isinstance(base, torch.Tensor)
        shape = base.shape
        base = base.to(working_dtype(base.dtype))
        task_vectors = [
            t if isinstance(t, TaskVector) else TaskVector(t, base=base)
            for model in self.model_order
            if model != self.base_model and (t := tensors[model]) is not None
        ]
        if self.as_vector:
            base = base.reshape(-1)
            task_vectors = [TaskVector(t.dense(base.dtype).reshape(-1)) for t in task_vectors]
        label = f"tensor {self.output_weight.name!r}"
        return method.merge(base, task_vectors, label, **dict(self.parameters.items())).reshape(shape)


def _is_finite(value: torch.Tensor | TaskVector) -> bool:
    if isinstance(value, TaskVector):
        return is_finite(value.left) and (value.right is None or is_finite(value.right))
    return is_finite(value)


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
