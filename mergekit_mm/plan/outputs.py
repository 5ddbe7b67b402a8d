"""Under which names merged tensors are written: those of the base on disk, or an omni model's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.checkpoints.checkpoint import Checkpoint, TensorInfo
from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.weight_names import Group
from mergekit_mm.errors import MergeError
from mergekit_mm.plan.modules import RoleModule
from mergekit_mm.tasks.writing import ConvertToDisk, PickTensor


class Output(NamedTuple):
    """One tensor of the output: its name on disk, what makes it, and the input's tensor that it is like."""

    name: str
    task: Task
    like: DiskTensor


def as_base(
    model: ModelReference,
    base: Checkpoint,
    made: Mapping[str, Task],
    modules: Mapping[str, RoleModule],
    like: Mapping[str, TensorInfo],
    moved: bool,
) -> Iterator[Output]:
    """The layout of the base `model` has on disk, and layers beyond its own under names like theirs.

    made: name in memory -> task. like: that name -> the base's tensor that it is, or is like; by default that of the
    same name. moved: whether slices move, repeat or leave out layers; a layer of another kind may then stand where the
    base has one.

    Raises:
        MergeError: a tensor of the base that nothing makes, or a layer that has no name.
    """
    left = dict(made)

    def source(name: str) -> Group:
        return base.group_of[like[name].name if name in like else name]

    for group in base.groups:
        tasks = {name: made[name] for name in group.memory if name in made}
        if len(tasks) < len(group.memory):
            stack = modules[base.tensors[group.memory[0]].role.module].stack
            if moved and not tasks and stack and all(name.startswith(stack) for name in group.memory):
                continue
            raise MergeError(f"Nothing in this merge makes {', '.join(group.memory)} of {model}.")
        for name in tasks:
            left.pop(name, None)
        if group.conversion is None:
            yield Output(group.disk[0], tasks[group.memory[0]], base.disk[source(group.memory[0]).disk[0]])
            continue
        back = ConvertToDisk(model=model, tensor=group.memory[0], merged=tuple(tasks.items()))
        for name, origin in zip(group.disk, source(group.memory[0]).disk, strict=True):
            yield Output(name, PickTensor(group=back, key=name), base.disk[origin])
    for name, task in left.items():
        yield Output(_name_beyond(name, base, modules), task, base.disk[source(name).disk[0]])


def as_omni(made: Mapping[str, Task], like: Mapping[str, TensorInfo]) -> Iterator[Output]:
    """Every tensor under its name in memory; `like`: that name -> the tensor it is, or is like."""
    for name, task in made.items():
        yield Output(name, task, DiskTensor(name, "", like[name].shape, like[name].dtype))


def _name_beyond(name: str, base: Checkpoint, modules: Mapping[str, RoleModule]) -> str:
    """The name on disk of a layer that the base does not have, from one that it has."""
    module = next(m for m in modules.values() if m.stack and name.startswith(m.stack))
    index, _, suffix = name[len(module.stack) :].partition(".")
    for known in range(len(module.layers)):
        group = base.group_of.get(module.name_at(known, suffix))
        if group is not None and group.conversion is None:
            disk, count = re.subn(rf"(?<=\.){known}(?=\.)", index, group.disk[0], count=1)
            if count == 1:
                return disk
    raise MergeError(f"Layer {index} of {module.stack[:-1]} has no name on disk: {suffix} is stored converted.")
