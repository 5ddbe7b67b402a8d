"""The names under which the planned tensors are written: those of the base on disk, or an omni model's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.expert_stacks import Part
from mergekit_mm.checkpoints.weight_names import Group
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.modules import Module
from mergekit_mm.plan.tensor_plan import TensorPlan


class Piece(Enum):
    """The part of a planned tensor that is written under a name."""

    WHOLE = "whole"
    CONVERTED = "converted"  # one of the tensors on disk that a group of tensors in memory is converted to
    OWNER = "owner"  # the tensor through which the tokens of one owner go (DAMC)
    BASIS = "basis"  # the right factor that all owners share (DAMC)
    FACTOR = "factor"  # the left factor of one owner (DAMC)


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output on disk."""

    name: str
    like: DiskTensor  # an input's tensor on disk of the same shape and dtype
    tensor: str  # name in memory of the planned tensor that it is made from; for a converted group, the first of them
    piece: Piece = Piece.WHOLE
    owner: str = ""  # the owner of a piece, `host` or the name of a guest; empty for the other pieces
    part: Part | None = None  # the experts of the part of a stack that it is made with; None if that is made as a whole
    whole: str = ""  # the tensor on disk that it is a part of; empty for a whole tensor


def outputs_like_base(
    base: Checkpoint, tensors: Mapping[str, TensorPlan], modules: Mapping[str, Module], moved: bool
) -> Iterator[OutputTensor]:
    """The layout of the base on disk; layers beyond the base's own get names like theirs.

    tensors: every planned tensor by its name in memory. moved: whether slices move, repeat or leave out layers; a layer
    of another kind may then stand where the base has one.

    Raises:
        MergeError: no planned tensor is that of a tensor of the base, or a layer cannot be named.
    """
    beyond_base = dict.fromkeys(tensors)

    def original_group(name: str) -> Group:
        """The base's group with the tensor of this name, or with the original of a repeated one."""
        return base.group_of[tensors[name].info.name]

    for group in base.groups:
        planned = [name for name in group.memory if name in tensors]
        if len(planned) < len(group.memory):
            stack = modules[base.tensors[group.memory[0]].role.module].stack
            if moved and not planned and stack and all(name.startswith(stack) for name in group.memory):
                continue
            raise MergeError(f"Nothing in this merge makes {', '.join(group.memory)} of {base.name}.")
        for name in planned:
            beyond_base.pop(name, None)
        first = group.memory[0]
        piece = Piece.WHOLE if group.conversion is None else Piece.CONVERTED
        for name, original in zip(group.disk, original_group(first).disk, strict=True):
            yield OutputTensor(name, base.disk[original], first, piece)
    for name in beyond_base:
        yield OutputTensor(_name_beyond(name, base, modules), base.disk[original_group(name).disk[0]], name)


def outputs_in_memory(tensors: Sequence[TensorPlan], rows: int) -> Iterator[OutputTensor]:
    """The layout of an omni model, which has every tensor under its name in memory.

    rows: of the tensors that token ids index.
    """
    for tensor in tensors:
        info = tensor.info
        shape = info.shape if info.vocabulary_axis is None else (rows, *info.shape[1:])
        yield OutputTensor(tensor.name, DiskTensor(tensor.name, "", shape, info.dtype), tensor.name)


def _name_beyond(name: str, base: Checkpoint, modules: Mapping[str, Module]) -> str:
    """The name on disk of a tensor in a layer that the base does not have, made from that of a layer that it has."""
    module = next(m for m in modules.values() if m.stack and name.startswith(m.stack))
    index, _, suffix = name[len(module.stack) :].partition(".")
    for base_index in range(len(module.layers)):
        group = base.group_of.get(module.name_at(base_index, suffix))
        if group is not None and group.conversion is None:
            disk, count = re.subn(rf"(?<=\.){base_index}(?=\.)", index, group.disk[0], count=1)
            if count == 1:
                return disk
    raise MergeError(f"Layer {index} of {module.stack[:-1]} has no name on disk: {suffix} is stored converted.")
