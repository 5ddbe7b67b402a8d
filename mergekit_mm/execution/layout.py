"""The files of a model before any of its values is known: headers, and the byte range of every tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version as version_of
from typing import Any

import torch

from mergekit_mm.checkpoints.disk import DiskTensor, dtype_name
from mergekit_mm.checkpoints.expert_stacks import Part
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.outputs import OutputTensor
from mergekit_mm.plan.tensor_plan import Copy

_ALIGNMENT = 8  # The format wants a header whose length is a multiple of it.
# The dtypes in the order in which safetensors writes tensors: the widest first, so that each is aligned.
_ORDER = [
    "U64",
    "I64",
    "F64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E8M0",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
]


@dataclass(frozen=True)
class Place:
    """Where a tensor is written."""

    file: str
    offset: int  # in bytes, from the beginning of the file
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensor: str  # The name of the tensor; a part of a stack has that of the whole.

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def part(self, part: Part) -> Place:
        """The place of some of the experts of a stack."""
        begin, end = part
        offset = self.offset + begin * (self.nbytes // self.shape[0])
        return replace(self, offset=offset, shape=(end - begin, *self.shape[1:]))


@dataclass(frozen=True)
class PlannedFile:
    """A safetensors file of known size. `header` is all that comes before the values."""

    name: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """The weight files of one model."""

    files: tuple[PlannedFile, ...]
    places: Mapping[str, Place]  # The keys are names on disk, in the order of writing.
    written: Mapping[str, Place]  # the same for what is written at once: parts, in place of stacks that are divided

    @property
    def nbytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    @cached_property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Tensor -> what is written of it at once: its parts, or the whole."""
        found: dict[str, list[str]] = {}
        for name, place in self.written.items():
            found.setdefault(place.tensor, []).append(name)
        return found

    @cached_property
    def index(self) -> Mapping[str, Any] | None:
        """The content of the index; None for a model of one file, which needs none."""
        if len(self.files) == 1:
            return None
        size = sum(place.nbytes for place in self.places.values())
        return {
            "metadata": {"total_size": size, "mergekit_version": version_of("mergekit")},
            "weight_map": {name: place.file for name, place in self.places.items()},
        }


def lay_out(tensors: Iterable[DiskTensor], shard_size: int, made: Iterable[OutputTensor]) -> Layout:
    """The files of a model: tensors in the given order, and a new file where one would pass `shard_size` bytes.

    So mergekit divides a model. Its option means bytes, and 0 or less that there is one file.

    made: the outputs as they are made, with the parts of stacks that are divided.
    """
    shards: list[list[DiskTensor]] = []
    filled = 0
    for tensor in tensors:
        if not shards or (filled + tensor.nbytes > shard_size > 0 and shards[-1]):
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    files: list[PlannedFile] = []
    places: dict[str, Place] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, offsets = _header(shard)
        files.append(PlannedFile(name, header, len(header) + sum(tensor.nbytes for tensor in shard)))
        places |= {
            tensor.name: Place(name, len(header) + offsets[tensor.name], tensor.shape, tensor.dtype, tensor.name)
            for tensor in shard
        }
    parts = {o.name: places[o.whole].part(o.part) for o in made if o.whole and o.part}
    divided = {place.tensor for place in parts.values()}
    return Layout(tuple(files), places, {n: place for n, place in places.items() if n not in divided} | parts)


def _header(tensors: Sequence[DiskTensor]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a safetensors file, byte for byte as the library writes it; and where each tensor begins.

    The places are counted from the end of the header.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    begin = 0
    for tensor in sorted(tensors, key=lambda tensor: (_ORDER.index(dtype_name(tensor.dtype)), tensor.name)):
        end = begin + tensor.nbytes
        shape = list(tensor.shape)
        entries[tensor.name] = {"dtype": dtype_name(tensor.dtype), "shape": shape, "data_offsets": [begin, end]}
        offsets[tensor.name], begin = begin, end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, offsets


def in_order(plan: MergePlan, tensors: Mapping[str, DiskTensor]) -> list[DiskTensor]:
    """The tensors of an output in the order in which they are written: that of the base's names on disk.

    A second copy follows its original, and a repeated layer the one that it repeats.

    tensors: those of `planned_tensors`.
    """

    def label(name: str) -> str:
        tensor = plan[name]
        while isinstance(tensor.action, Copy):
            tensor = plan[tensor.action.of]
        group = plan.inputs.base_checkpoint.group_of.get(tensor.info.name)
        return group.disk[0] if group else tensor.info.name

    labels = {output.name: label(output.tensor) for output in plan.outputs}
    return sorted(tensors.values(), key=lambda tensor: labels[tensor.name])
