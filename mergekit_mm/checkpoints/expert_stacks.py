"""Stacks of expert matrices, taken apart along the axis of experts.

In memory the experts of a mixture are tensors of three axes. On disk they are that too, with their matrices perhaps
transposed, or each expert has tensors of its own, of which transformers makes the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.transformers_private import Transpose
from mergekit_mm.checkpoints.weight_names import Group

Part = tuple[int, int]  # the first expert of a part of a stack, and the one after its last


def is_one_on_disk(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a stack, by its name in memory, is one tensor on disk too, the first axis of which is that of experts."""
    return len(checkpoint.group_of[name].disk) == 1


def part_of(checkpoint: Checkpoint, name: str, part: Part) -> Group:
    """The tensors on disk that a part of a stack is made from, and how. `name` is the stack's in memory.

    Of a stack that is one tensor on disk, the group is one of the same part of that tensor.
    """
    group = checkpoint.group_of[name]
    if group.conversion is None:
        return group
    if len(group.disk) == 1:
        kind = _Turned if _is_turned(checkpoint, group) else Group
        return kind(group.disk, group.memory)
    return _some_experts(group, part)


def experts_of(group: Group) -> dict[str, int]:
    """The number of the expert that each tensor on disk is of, for a group in which each expert has its own."""
    return {name: number for names in _members(group).values() for number, name in enumerate(names)}


def comes_apart(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a part of a stack, by its name in memory, can be made from that part of what is on disk."""
    group = checkpoint.group_of[name]
    if group.conversion is None:
        return True
    if len(group.memory) > 1:
        return False
    if len(group.disk) == 1:
        return _is_turned(checkpoint, group) is not None
    return _is_stacked(group, checkpoint.tensors[name].shape[0])


@dataclass(frozen=True, eq=False)
class _Turned(Group):
    """A stack whose matrices are transposed on disk."""

    def to_memory(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {self.memory[0]: tensors[self.disk[0]].mT.contiguous()}

    def to_disk(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {self.disk[0]: tensors[self.memory[0]].mT.contiguous()}


def _is_turned(checkpoint: Checkpoint, group: Group) -> bool | None:
    """Whether the conversion of one stored stack transposes its matrices; None if it does anything else but nothing.

    transformers may decide so by the shape of the whole stack, so that it cannot be asked about a part.
    """
    assert group.conversion is not None
    stored = checkpoint.disk[group.disk[0]]
    operations = group.conversion.converter.operations
    if len(stored.shape) != 3 or len(operations) != 1 or not isinstance(operations[0], Transpose):
        return None
    if {operations[0].dim0, operations[0].dim1} != {1, 2}:
        return None
    experts, rows, columns = stored.shape
    given = torch.empty(stored.shape, dtype=stored.dtype, device="meta")
    made = group.to_memory({stored.name: given})[group.memory[0]]
    return made is not given if rows == columns else made.shape == (experts, columns, rows)


def _is_stacked(group: Group, experts: int) -> bool:
    """Whether the stack of some experts is that part of the stack of all, and can be undone.

    The conversion is run there and back on small numbered tensors.
    """
    if any(len(names) != experts for names in _members(group).values()):
        return False
    numbered = {name: torch.arange(4.0).reshape(2, 2) + 4 * index for index, name in enumerate(group.disk)}
    begin, end = experts // 2, experts
    try:
        whole, some = group.to_memory(numbered)[group.memory[0]], _some_experts(group, (begin, end))
        made = some.to_memory({name: numbered[name] for name in some.disk})
        back = some.to_disk(made)
    except Exception:  # operations may raise anything for shapes that they were not written for
        return False
    return (
        whole.ndim == 3
        and torch.equal(made[group.memory[0]], whole[begin:end])
        and back.keys() == {*some.disk}
        and all(torch.equal(back[name], numbered[name]) for name in back)
    )


def _some_experts(group: Group, part: Part) -> Group:
    """The group of the experts of a part, of one in which each expert has tensors of its own."""
    assert group.conversion is not None
    conversion, members, (begin, end) = group.conversion, _members(group), part
    kept = {name for names in members.values() for name in names[begin:end]}
    number = experts_of(group)
    # The inverse of the conversion counts the experts of the part from 0.
    stems = {
        stem: members[conversion.patterns[name]][begin + number[name]]
        for stem, name in conversion.stems.items()
        if number[name] < end - begin
    }
    patterns = {name: pattern for name, pattern in conversion.patterns.items() if name in kept}
    disk = tuple(name for name in group.disk if name in kept)
    return Group(disk, group.memory, replace(conversion, patterns=patterns, stems=stems))


def _members(group: Group) -> Mapping[str, list[str]]:
    """The pattern of a conversion -> the tensors on disk that it collects, in the order of their experts."""
    assert group.conversion is not None
    found: dict[str, list[str]] = {}
    for name in group.disk:
        found.setdefault(group.conversion.patterns[name], []).append(name)
    return found
