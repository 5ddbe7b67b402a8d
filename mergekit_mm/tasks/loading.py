"""Tasks that read one tensor of one input, in the layout of memory, or an adapter's change of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mergekit.architecture import WeightInfo
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.io.tasks import GatherTensors
from pydantic import InstanceOf

from mergekit_mm.checkpoints.expert_stacks import Part
from mergekit_mm.errors import MergeError
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.tasks.sources import Adapter, Source, Sources
from mergekit_mm.tasks.step import Step


class LoadGroup(Task[dict[str, torch.Tensor]]):
    """A group of tensors on disk, converted to tensors in memory: name in memory -> tensor, in the stored dtype."""

    source: InstanceOf[Source]
    tensor: str  # the name in memory of any tensor of the group
    label: str  # as of `LoadTensor`
    device: str | None = None
    part: Part | None = None  # the experts that are read of a stack; None for the whole

    def arguments(self) -> dict[str, Task]:
        return {}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.label

    def execute(self, **_kwargs: object) -> dict[str, torch.Tensor]:
        return self.source.group(self.tensor, self.device, self.part)


class LoadTensor(Task[torch.Tensor]):
    """One tensor of one model in the layout of memory; floating tensors are cast to `dtype`, integer buffers never.

    `label` is the base's name on disk for the output tensor, whatever name this input has for it. mergekit runs tasks
    in the order of their labels: an equal label keeps the inputs of one output tensor together, which bounds memory.
    """

    source: InstanceOf[Source]
    tensor: str
    label: str
    dtype: str | None = None
    device: str | None = None
    part: Part | None = None  # the experts that are read of a stack; None for the whole

    def arguments(self) -> dict[str, Task]:
        group = self.source.checkpoint.group_of[self.tensor]
        if group.conversion is None:
            return {}
        first, source = group.memory[0], self.source
        return {"group": LoadGroup(source=source, tensor=first, label=self.label, device=self.device, part=self.part)}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.label

    def execute(self, group: dict[str, torch.Tensor] | None = None, **_kwargs: object) -> torch.Tensor:
        tensors = self.source.group(self.tensor, self.device, self.part) if group is None else group
        return cast(tensors[self.tensor], self.dtype, self.tensor)


class LoadDelta(Task[TaskVector]):
    """An adapter's change of one tensor of its model, of the tensor's shape; rank 0 if it does not change it."""

    adapter: InstanceOf[Adapter]
    tensor: str
    base: LoadTensor

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base} if self.adapter.adaptation.needs_base(self.tensor) else {}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.base.group_label()

    def execute(self, base: torch.Tensor | None = None, **_kwargs: object) -> TaskVector:
        if self.adapter.adaptation.changes(self.tensor):
            return _change(self.adapter, self.tensor, base)
        shape = self.base.source.checkpoint.tensors[self.tensor].shape
        if len(shape) not in (2, 3):
            return TaskVector(torch.zeros(shape))
        left = torch.zeros(*shape[:-1], 0)
        return TaskVector(left, right=torch.zeros(*shape[:-2], 0, shape[-1]))


class AdaptTensor(Step[torch.Tensor]):
    """One tensor of a model with an adapter applied, in float32 or wider unless `dtype` asks otherwise."""

    adapter: InstanceOf[Adapter]
    tensor: str
    base: LoadTensor
    dtype: str | None = None

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base}

    def priority(self) -> int:
        return -1000

    def execute(self, base: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if not base.is_floating_point():  # An adapter that holds a whole module has its counters and the like, too.
            return self.adapter.adaptation.replacement(self.tensor).to(base)
        delta = _change(self.adapter, self.tensor, base)
        dtype = torch.promote_types(base.dtype, torch.float32)
        adapted = delta.left.to(dtype) if delta.base is not None else delta.added_to(base.to(dtype))
        return cast(adapted, self.dtype, self.tensor)


def _change(adapter: Adapter, tensor: str, base: torch.Tensor | None) -> TaskVector:
    """An adapter's change of a tensor. It is computed on the CPU, where adapters are read, and moved to `base`."""
    if base is None:
        return adapter.adaptation.task_vector(tensor, None)
    base_on_cpu = base.to("cpu") if adapter.adaptation.needs_base(tensor) else None
    return adapter.adaptation.task_vector(tensor, base_on_cpu).to(base.device)


class GatherInputs(GatherTensors):
    """The tensors of several inputs together: mergekit's `GatherTensors`, but over tasks of this package.

    A task may give a task vector in place of a tensor. The field `weight_info` is not read; mergekit's own tasks take
    only its class, which has the field.
    """

    label: str
    inputs: tuple[tuple[ModelReference, Task], ...]

    def arguments(self) -> dict[str, Task]:
        return {str(model): task for model, task in self.inputs}

    def group_label(self) -> str | None:
        return self.label

    def execute(self, **values: torch.Tensor | TaskVector) -> dict[ModelReference, torch.Tensor | TaskVector]:
        return {model: values[str(model)] for model, _ in self.inputs}


class Reader:
    """Makes the tasks that read the inputs of one merge."""

    def __init__(self, sources: Sources, device: str | None) -> None:
        self.sources, self.device = sources, device

    def plain(
        self, model: ModelReference, tensor: str, label: str, dtype: str | None = None, part: Part | None = None
    ) -> LoadTensor:
        """The task that gives one tensor of an input without its adapter, or a part of a stack."""
        source = self.sources.models[model]
        return LoadTensor(source=source, tensor=tensor, label=label, dtype=dtype, device=self.device, part=part)

    def tensor(
        self, model: ModelReference, tensor: str, label: str, dtype: str | None = None, part: Part | None = None
    ) -> Task[torch.Tensor]:
        """The task that gives one tensor of an input, with its adapter applied if that changes it.

        An adapted tensor comes in float32 unless `dtype` is given: rounded to 16 bits, much of the delta would be lost.
        """
        adapter = self.sources.adapters.get(model)
        if adapter is None or not adapter.adaptation.changes(tensor):
            return self.plain(model, tensor, label, dtype, part)
        assert part is None, "a stack with an adapter is made as a whole"
        return AdaptTensor(adapter=adapter, tensor=tensor, base=self.plain(model, tensor, label), dtype=dtype)

    def delta(self, model: ModelReference, tensor: str, label: str) -> LoadDelta:
        """The task that gives the change of a tensor by an input's adapter, as factors if the adapter holds factors."""
        base = self.plain(model, tensor, label)
        return LoadDelta(adapter=self.sources.adapters[model], tensor=tensor, base=base)

    def gather(
        self, names: Mapping[ModelReference, str], tasks: Mapping[ModelReference, Task], label: str, axis: int | None
    ) -> GatherInputs:
        """The task that gives the results of `tasks` together.

        names: the inputs' own names for the tensor. axis: the axis that token ids index, if there is one.
        """
        weights = {model: WeightInfo(name=name, vocabulary_axis=axis) for model, name in names.items()}
        return GatherInputs(weight_info=weights, label=label, inputs=tuple(tasks.items()))


def cast(tensor: torch.Tensor, dtype: str | None, name: str) -> torch.Tensor:
    """A floating tensor in another dtype. Integer tensors, and all tensors if `dtype` is None, stay unchanged.

    Raises:
        MergeError: a value is larger than 65504, the largest that float16 can hold.
    """
    target: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    if target is None or not tensor.is_floating_point():
        return tensor
    result = tensor.to(target)
    if target is torch.float16 is not tensor.dtype and not is_finite(result) and is_finite(tensor):
        raise MergeError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, more than float16 can hold: write bfloat16 or "
            "float32 as `dtype` or `out_dtype`."
        )
    return result
