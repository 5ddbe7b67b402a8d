"""The plugin's reading steps in mergekit's task graph: tensors in memory layout, adapters as what they change.

Tasks are compared and hashed by value, so they name a model and a tensor; what these names stand for is looked up
in `SOURCES`, as mergekit's own tasks look up their files in `LoaderCache`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.lazy_tensor_loader import LazyTensorLoader
from mergekit.io.tasks import GatherTensors

from mergekit_mm.checkpoints.adapters.binding import Adaptation
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.errors import MergeError
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.numerics.low_rank import widened
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.tasks.step import Step


@dataclass(frozen=True)
class Source:
    """An open input: its inventory, its files, and the adapter on top of them."""

    checkpoint: Checkpoint
    loader: LazyTensorLoader
    adaptation: Adaptation | None
    plain: ModelReference  # the model without the adapter, under the first name that its directory was given

    def read(self, name: str, device: str | None) -> torch.Tensor:
        """One tensor by its name on disk, without the adapter; in float32 or wider if it is computed from factors.

        Raises:
            MergeError: its file is not what it was when the merge was planned, or not for mergekit's reader.
        """
        tensor = self.checkpoint.disk[name]
        if tensor.stored is None:
            return self._read(name, tensor.file, device)
        return tensor.stored.value(lambda key: self._read(key, tensor.file, device))

    def _read(self, key: str, file: str, device: str | None) -> torch.Tensor:
        try:
            return self.loader.get_tensor(key, device=device or "cpu").detach()  # pickles may hold parameters
        except Exception as error:
            raise MergeError(f"{key} cannot be read from {self.checkpoint.directory / file}: {error}") from error

    def widens(self, tensor: str) -> bool:
        """Whether a tensor, by its name in memory, comes in float32 or wider, whatever its file has."""
        return self.adapts(tensor) or self.checkpoint.is_folded(tensor)

    def adapts(self, tensor: str) -> bool:
        return self.adaptation is not None and self.adaptation.changes(tensor)


SOURCES: dict[ModelReference, Source] = {}


@contextmanager
def open_sources(
    checkpoints: Mapping[ModelReference, Checkpoint],
    adaptations: Mapping[ModelReference, Adaptation],
    lazy_unpickle: bool,
) -> Iterator[None]:
    """While open, these inputs, and no others, are known to the tasks; what an adapter leaves alone is its base's."""
    SOURCES.clear()
    loaders: dict[str, LazyTensorLoader] = {}
    names: dict[Path, ModelReference] = {}
    for model, checkpoint in checkpoints.items():
        path = str(checkpoint.directory)
        loader = loaders.setdefault(path, LazyTensorLoader.from_disk(path, lazy_unpickle=lazy_unpickle))
        alone = model.model_copy(update={"lora": None})
        plain = names.setdefault(checkpoint.directory.resolve(), alone)
        SOURCES[model] = Source(checkpoint, loader, adaptations.get(model), plain)
        SOURCES.setdefault(plain, Source(checkpoint, loader, None, plain))
    try:
        yield
    finally:
        SOURCES.clear()


def without_adapter(model: ModelReference) -> ModelReference:
    return SOURCES[model].plain if model.lora else model


def load(model: ModelReference, tensor: str, label: str, dtype: str | None, device: str | None) -> Task[torch.Tensor]:
    """The task that gives one memory tensor of one input, with its adapter applied if that changes it.

    An adapted tensor comes in float32 unless `dtype` is given: rounded to 16 bits, much of the delta would be lost.
    """
    plain = without_adapter(model)
    if not SOURCES[model].adapts(tensor):
        return LoadTensor(model=plain, tensor=tensor, label=label, dtype=dtype, device=device)
    base = LoadTensor(model=plain, tensor=tensor, label=label, device=device)
    return AdaptTensor(model=model, tensor=tensor, base=base, dtype=dtype)


def read_tensor(model: ModelReference, tensor: str) -> torch.Tensor:
    """One memory tensor of one input without its adapter, read at once."""
    task = LoadTensor(model=without_adapter(model), tensor=tensor, label=tensor)
    return task.execute(**{name: group.execute() for name, group in task.arguments().items()})


def load_delta(model: ModelReference, tensor: str, label: str, device: str | None) -> Task[TaskVector]:
    """The task that gives what an adapter changes of its own base, as factors where it holds factors."""
    base = LoadTensor(model=without_adapter(model), tensor=tensor, label=label, device=device)
    return LoadDelta(model=model, tensor=tensor, base=base)


def cast(tensor: torch.Tensor, dtype: str | None, name: str) -> torch.Tensor:
    """A floating tensor in another dtype; integer buffers, and all if there is none, stay what they are.

    Raises:
        MergeError: float16 cannot hold a value. It ends at 65504, bfloat16 does not.
    """
    wanted = dtype_from_name(dtype)
    if wanted is None or not tensor.is_floating_point():
        return tensor
    result = tensor.to(wanted)
    if wanted is torch.float16 is not tensor.dtype and not is_finite(result) and is_finite(tensor):
        raise MergeError(
            f"{name} has values up to {float(tensor.abs().max()):.3g}, more than float16 can hold: write bfloat16 or "
            "float32 as `dtype` or `out_dtype`."
        )
    return result


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
        tensors = {name: source.read(name, self.device) for name in group.disk}
        if source.checkpoint.is_folded(self.tensor):  # some of them may be wider than the others
            tensors = {name: widened(t) if t.is_floating_point() else t for name, t in tensors.items()}
        return group.to_memory(tensors)


class LoadTensor(Task[torch.Tensor]):
    """One memory tensor of one checkpoint; floating tensors are cast to `dtype`, integer buffers never.

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
        return cast(tensor, self.dtype, self.tensor)


class LoadDelta(Task[TaskVector]):
    """What an adapter changes of one tensor of its base: nothing at all is a task vector of rank 0."""

    model: ModelReference
    tensor: str
    base: LoadTensor

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base} if _adaptation(self.model).needs_base(self.tensor) else {}

    def priority(self) -> int:
        return -1000

    def group_label(self) -> str | None:
        return self.base.group_label()

    def execute(self, base: torch.Tensor | None = None, **_kwargs: object) -> TaskVector:
        if SOURCES[self.model].adapts(self.tensor):
            return _change(self.model, self.tensor, base)
        shape = SOURCES[self.model].checkpoint.tensors[self.tensor].shape
        if len(shape) not in (2, 3):
            return TaskVector(torch.zeros(shape))
        left = torch.zeros(*shape[:-1], 0)
        return TaskVector(left, right=torch.zeros(*shape[:-2], 0, shape[-1]))


class AdaptTensor(Step[torch.Tensor]):
    """One tensor of a base with its adapter applied, in float32 or wider unless `dtype` asks otherwise."""

    model: ModelReference
    tensor: str
    base: LoadTensor
    dtype: str | None = None

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base}

    def priority(self) -> int:
        return -1000

    def execute(self, base: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if not base.is_floating_point():  # a counter or the like, which is saved with its module
            return _adaptation(self.model).replacement(self.tensor).to(base)
        delta = _change(self.model, self.tensor, base)
        wide = torch.promote_types(base.dtype, torch.float32)
        tuned = delta.left.to(wide) if delta.base is not None else delta.added_to(base.to(wide))
        return cast(tuned, self.dtype, self.tensor)


def _change(model: ModelReference, tensor: str, base: torch.Tensor | None) -> TaskVector:
    """What an adapter changes of a tensor, put together on the CPU, where adapters are read; on the base's device."""
    adaptation = _adaptation(model)
    if base is None:
        return adaptation.task_vector(tensor, None)
    needed = base.to("cpu") if adaptation.needs_base(tensor) else None
    return adaptation.task_vector(tensor, needed).to(base.device)


def _adaptation(model: ModelReference) -> Adaptation:
    found = SOURCES[model].adaptation
    assert found is not None
    return found


class GatherMemoryTensors(GatherTensors):
    """mergekit's collector of one tensor from several inputs, with each input's name being that in its memory.

    The models in `deltas` are adapters of the merge's base, and give a task vector instead of a tensor.
    """

    label: str
    deltas: tuple[ModelReference, ...] = ()

    def arguments(self) -> dict[str, Task]:
        return {
            f"{model}:{weight.name}": load_delta(model, weight.name, self.label, self.device)
            if model in self.deltas
            else load(model, weight.name, self.label, self.dtype, self.device)
            for model, weight in self.weight_info.items()
        }

    def group_label(self) -> str | None:
        return self.label
