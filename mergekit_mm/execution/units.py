"""What is made in one go: tensors that belong together, put together until they are some seconds of work.

Units come from the plan alone, so that every process that has the plan has the same ones. They are not a part of what
an interrupted merge remembers: that speaks of tensors, and the rest may be divided otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from mergekit_mm.methods import is_own_method
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.tensor_plan import Average, Copy, Keep, Merge, TensorPlan

# Work is counted in bytes that are read and written. A matrix that a method of this package solves takes some seconds
# where reading it takes a tenth of one: 1.7 s for five experts of 1536 x 1536.
_SOLVING = 16
UNIT_WORK = 1 << 30  # of work: one to several seconds
_UNITS_PER_WORKER = 4  # at least, so that all workers end at about the same time


@dataclass(frozen=True)
class Unit:
    """Some output tensors, by their names on disk, and an estimate of what they take."""

    names: tuple[str, ...]
    work: float  # in bytes that are read and written, or as much arithmetic
    memory: int  # bytes at the peak

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more}"


def smallest_units(plan: MergePlan) -> list[Unit]:
    """The tensors of an output in groups that cannot be divided, in the order in which the base's files have them.

    Together are the tensors that are converted together, in the output or in an input; both copies of a tied tensor;
    and everything that is written of one planned tensor, as the factors of its owners.
    """
    groups = _Groups()
    for output in plan.outputs:
        for tensor in made_from(plan, output):
            groups.join(("output", output.name), ("tensor", tensor.name))
            for model, own in tensor.inputs.items():
                group = plan.inputs.checkpoints[model].group_of.get(own)
                if group is not None and group.conversion is not None and len(group.memory) > 1:
                    groups.join(("tensor", tensor.name), (model, group.memory[0]))
    together: dict[Hashable, list[OutputTensor]] = {}
    for output in plan.outputs:
        together.setdefault(groups.root(("output", output.name)), []).append(output)
    made = [(outputs[0].like.file, _unit(plan, outputs)) for outputs in together.values()]
    return [unit for _, unit in sorted(made, key=lambda entry: entry[0])]


def unit_of(plan: MergePlan, name: str) -> Unit:
    """The unit of one planned tensor, by its name in memory, for work that does not write the output's tensors."""
    return Unit((name,), *_estimate(plan, plan[name]))


def batches(units: Sequence[Unit], workers: int, nbytes: dict[str, int], largest: int) -> list[Unit]:
    """Units put together, in order, so that each is some seconds of work, and every worker gets several.

    Args:
        nbytes: output tensor -> its size. largest: the bytes of an output file, which no unit of several passes; 0 or
            less for no bound.
    """
    limit = float(UNIT_WORK)
    if workers > 1:
        limit = min(limit, sum(unit.work for unit in units) / (_UNITS_PER_WORKER * workers))
    found: list[list[Unit]] = []
    work = size = 0.0
    for unit in units:
        own_size = sum(nbytes[name] for name in unit.names)
        if not found or work + unit.work > limit or (size + own_size > largest > 0):
            found.append([])
            work = size = 0.0
        found[-1].append(unit)
        work += unit.work
        size += own_size
    return [
        Unit(
            tuple(name for unit in batch for name in unit.names),
            sum(unit.work for unit in batch),
            max(unit.memory for unit in batch),
        )
        for batch in found
    ]


def without(units: Iterable[Unit], done: Collection[str]) -> list[Unit]:
    """The units that are not wholly done. One of which a part is done is made again."""
    return [unit for unit in units if not all(name in done for name in unit.names)]


def made_from(plan: MergePlan, output: OutputTensor) -> list[TensorPlan]:
    """The planned tensors, none of them a copy, that an output tensor is made from."""
    names: Sequence[str] = [output.tensor]
    if output.piece is Piece.CONVERTED:
        names = plan.inputs.base_checkpoint.group_of[output.tensor].memory
    found = []
    for name in names:
        tensor = plan[name]
        while isinstance(tensor.action, Copy):
            tensor = plan[tensor.action.of]
        found.append(tensor)
    return found


def _unit(plan: MergePlan, outputs: Sequence[OutputTensor]) -> Unit:
    tensors = {tensor.name: tensor for output in outputs for tensor in made_from(plan, output)}
    work, memory = float(sum(plan.written_bytes(output.like) for output in outputs)), 0
    for tensor in tensors.values():
        own_work, own_memory = _estimate(plan, tensor)
        work += own_work
        memory += own_memory
    return Unit(tuple(output.name for output in outputs), work, memory)


def _estimate(plan: MergePlan, tensor: TensorPlan) -> tuple[float, int]:
    """(work, bytes at the peak) of one planned tensor. An input that is an adapter of another counts like a model."""
    info, action = tensor.info, tensor.shared_action
    numel = math.prod(info.shape)
    if isinstance(action, Keep):
        return numel * info.dtype.itemsize, 2 * numel * max(4, info.dtype.itemsize)
    is_own = isinstance(action, Merge) and is_own_method(action.method)
    solves = is_own and len(info.shape) > 1
    inputs = len(tensor.inputs) if isinstance(action, Average) else len(tensor.inputs) + (tensor.base is not None)
    work = numel * 4 * inputs * _SOLVING if solves else numel * info.dtype.itemsize * inputs
    return work, numel * 4 * (inputs + 3) * (2 if solves else 1)


class _Groups:
    """Things that were joined, by a forest in which the things of one group have one root."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def root(self, thing: Hashable) -> Hashable:
        while (parent := self._parent.setdefault(thing, thing)) != thing:
            self._parent[thing] = self._parent[parent]
            thing = parent
        return thing

    def join(self, one: Hashable, other: Hashable) -> None:
        self._parent[self.root(one)] = self.root(other)
