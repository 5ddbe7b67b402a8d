"""What is made in one go: tensors that belong together, put together until they are some seconds of work.

Units come from the plan alone, so that every process that has the plan has the same ones. They are not a part of what
an interrupted merge remembers: that speaks of tensors, and the rest may be divided otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from mergekit.common import ModelReference

from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.costs import NOMINAL, operations
from mergekit_mm.methods.declarations import makes_factors_of_factors
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.parts import tensor_of
from mergekit_mm.plan.tensor_plan import Average, Copy, Keep, Merge, TensorPlan

UNIT_SECONDS = 1.5  # of work, on a machine of the nominal speed
_PER_BYTE = 1.5e-9  # seconds in which a core reads or writes a byte, converts it, and hashes it
_UNITS_PER_WORKER = 4  # at least, so that all workers end at about the same time


@dataclass(frozen=True)
class Takes:
    """About what some work takes.

    read, written: bytes. operations: of floating-point arithmetic. memory: bytes at the peak. least: bytes that no
    method does without: the largest result in float32, and rounded to 16 bits. Inputs are not among them, since they
    are mapped from their files.
    """

    read: int = 0
    written: int = 0
    operations: float = 0.0
    memory: int = 0
    least: int = 0

    def __add__(self, other: Takes) -> Takes:
        """What both take together, with what each has in memory there at the same time."""
        return Takes(
            self.read + other.read,
            self.written + other.written,
            self.operations + other.operations,
            self.memory + other.memory,
            max(self.least, other.least),
        )

    def then(self, other: Takes) -> Takes:
        """What the two take one after the other."""
        return replace(self + other, memory=max(self.memory, other.memory))

    def seconds(self, speed: float = NOMINAL) -> float:
        """Of one core. speed: operations a second."""
        return self.operations / speed + (self.read + self.written) * _PER_BYTE


@dataclass(frozen=True)
class Unit:
    """Some output tensors, by their names on disk, or parts of them, and an estimate of what they take."""

    names: tuple[str, ...]
    takes: Takes

    @property
    def work(self) -> float:
        """Seconds of one core of the nominal speed."""
        return self.takes.seconds()

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return self.takes.memory

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        return f"{self.names[0]}{more}"


def smallest_units(plan: MergePlan) -> list[Unit]:
    """The tensors of an output in groups that cannot be divided, in the order in which the base's files have them.

    Together are the tensors that are converted together, in the output or in an input; both copies of a tied tensor;
    and everything that is written of one planned tensor, as the factors of its owners; or of one part of a stack.
    """
    groups = _Groups()
    for output in plan.made:
        for tensor in made_from(plan, output):
            groups.join(("output", output.name), ("tensor", tensor.name))
            for model, own in tensor.inputs.items():
                group = plan.inputs.checkpoints[model].group_of.get(own)
                if group is not None and group.conversion is not None and len(group.memory) > 1:
                    groups.join(("tensor", tensor.name), (model, group.memory[0]))
    together: dict[Hashable, list[OutputTensor]] = {}
    for output in plan.made:
        together.setdefault(groups.root(("output", output.name)), []).append(output)
    made = [(outputs[0].like.file, _unit(plan, outputs)) for outputs in together.values()]
    return [unit for _, unit in sorted(made, key=lambda entry: entry[0])]


def unit_of(plan: MergePlan, name: str) -> Unit:
    """The unit of one planned tensor, by its name in memory, for work that does not write the output's tensors."""
    return Unit((name,), takes_of(plan, plan[name]))


def batches(units: Sequence[Unit], workers: int, nbytes: dict[str, int], largest: int) -> list[Unit]:
    """Units put together, in order, so that each is some seconds of work, and every worker gets several.

    Args:
        nbytes: output tensor -> its size. largest: the bytes of an output file, which no unit of several passes; 0 or
            less for no bound.
    """
    limit = UNIT_SECONDS
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
    return [Unit(tuple(name for unit in batch for name in unit.names), one_after_the_other(batch)) for batch in found]


def one_after_the_other(units: Iterable[Unit]) -> Takes:
    """What units take that are made one after the other."""
    return functools.reduce(Takes.then, (unit.takes for unit in units), Takes())


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
        tensor = tensor_of(plan, output, name)
        while isinstance(tensor.action, Copy):
            tensor = plan[tensor.action.of]
        found.append(tensor)
    return found


def _unit(plan: MergePlan, outputs: Sequence[OutputTensor]) -> Unit:
    tensors = {tensor.name: tensor for output in outputs for tensor in made_from(plan, output)}
    written = sum(plan.written_bytes(output.like) for output in outputs)
    takes = sum((takes_of(plan, tensor) for tensor in tensors.values()), Takes(written=written))
    return Unit(tuple(output.name for output in outputs), takes)


def takes_of(plan: MergePlan, tensor: TensorPlan) -> Takes:
    """What one planned tensor takes, but for writing it."""
    info, action = tensor.info, tensor.shared_action
    values = math.prod(info.shape)
    if isinstance(action, Keep):
        size = values * info.dtype.itemsize
        return Takes(read=size, memory=2 * values * max(4, info.dtype.itemsize))
    models = tensor.experts if isinstance(action, Average) else tensor.inputs
    read, ranks = _read(plan, tensor, models)
    method = action.method if isinstance(action, Merge) else "linear"
    is_own, experts = is_own_method(method), len(tensor.experts)
    if ranks is not None and makes_factors_of_factors(method, tensor.parameters):
        arithmetic = operations(method, tensor.parameters, info.shape, experts, ranks)
        return Takes(read=read, operations=arithmetic, memory=3 * 4 * values + 3 * read, least=6 * values)
    arithmetic = operations(method, tensor.parameters, info.shape, experts)
    memory = 4 * values * (len(tensor.inputs) + 3) * (2 if is_own and len(info.shape) > 1 else 1)
    return Takes(read=read, operations=arithmetic, memory=memory, least=6 * values)


def _read(plan: MergePlan, tensor: TensorPlan, models: Iterable[ModelReference]) -> tuple[int, list[int] | None]:
    """(bytes that are read, the ranks of the experts' adapters on the base), None if some is more than an adapter."""
    inputs, shape = plan.inputs, tensor.info.shape
    values = math.prod(shape)
    both_sides = values // (shape[-2] * shape[-1]) * (shape[-2] + shape[-1]) if values and len(shape) > 1 else values
    whole: dict[tuple[ModelReference, str], int] = {}  # models are read once, whatever adapters are put on them
    factors, ranks, are_factors = 0, list[int](), True
    for model in models:
        own = tensor.inputs[model]
        whole[inputs.plain(model), own] = values * inputs.checkpoints[model].tensors[own].dtype.itemsize
        rank = inputs.adapter_rank(model, own)
        factors += 4 * (values if rank is None else rank * both_sides)
        if model != tensor.base:
            are_factors &= rank is not None and bool(model.lora) and inputs.plain(model) == tensor.base
            ranks.append(rank or 0)
    return sum(whole.values()) + factors, ranks if are_factors and ranks else None


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
