"""Stacks of experts that are made in parts: by several workers, and with a part in memory at a time.

A stack is divided where each expert's matrix is made by itself, so that the parts have the bytes of the whole. The
parts follow from the plan alone: they are the same for any number of workers, and for whoever goes on with a merge.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.expert_stacks import Part, comes_apart, experts_of, is_one_on_disk
from mergekit_mm.methods import is_own_method
from mergekit_mm.methods.apply import AUTO
from mergekit_mm.methods.declarations import WEIGHTED_SUMS
from mergekit_mm.plan.outputs import OutputTensor, Piece
from mergekit_mm.plan.tensor_plan import Copy, Keep, Merge, Route, TensorPlan

if TYPE_CHECKING:
    from mergekit_mm.plan.merge_plan import MergePlan

_MOST = 32  # parts of a stack: each takes a millisecond or two besides
_LEAST = 1 << 18  # values in a part
_ALIGNED = 64  # Sums of 16 bits round otherwise at the end of a run of values, unless its length is a multiple of this.


def in_parts(plan: MergePlan) -> Iterator[OutputTensor]:
    """The outputs of a plan as they are made: each by itself, or in parts in place of the whole."""
    copied = {tensor.action.of for tensor in plan.tensors if isinstance(tensor.action, Copy)}
    found: dict[Hashable, bool] = {}

    def divides(model: ModelReference, name: str) -> bool:
        checkpoint = plan.inputs.checkpoints[model]
        group = checkpoint.group_of[name]
        patterns = frozenset() if group.conversion is None else frozenset(group.conversion.patterns.values())
        # The layers of a model are stored alike, so that one of them tells for all.
        kind = (model, patterns, len(group.disk), checkpoint.disk[group.disk[0]].shape, checkpoint.tensors[name].shape)
        if kind not in found:
            found[kind] = comes_apart(checkpoint, name)
        return found[kind]

    def divided(output: OutputTensor) -> _Divided:
        """How the stack that an output is made from is divided. It is asked once for all outputs of that stack."""
        tensor, layout = plan[output.tensor], plan.inputs.base_checkpoint
        ranges = _ranges(tensor.info.shape)
        if len(ranges) < 2 or tensor.name in copied or not _is_made_by_matrix(tensor):
            return _Divided()
        if not all(_is_plain(plan, model, name) and divides(model, name) for model, name in _read(tensor)):
            return _Divided()
        if output.piece is Piece.WHOLE:
            return _Divided(ranges)
        if not divides(plan.inputs.base, output.tensor):
            return _Divided()
        is_one = is_one_on_disk(layout, output.tensor)
        return _Divided(ranges, {} if is_one else experts_of(layout.group_of[output.tensor]))

    known: dict[str, _Divided] = {}
    for output in plan.outputs:
        if output.piece not in (Piece.WHOLE, Piece.CONVERTED):
            yield output
            continue
        if output.tensor not in known:
            known[output.tensor] = divided(output)
        ranges, expert = known[output.tensor].ranges, known[output.tensor].experts.get(output.name)
        if not ranges:
            yield output
        elif expert is None:
            yield from (_part_of(output, part) for part in ranges)
        else:
            yield replace(output, part=next(part for part in ranges if part[0] <= expert < part[1]))


@dataclass(frozen=True)
class _Divided:
    """How a stack is divided.

    ranges: its parts; none if it is made as a whole. experts: of tensors on disk that are an expert's, its number.
    """

    ranges: Sequence[Part] = ()
    experts: Mapping[str, int] = field(default_factory=dict)


def tensor_of(plan: MergePlan, output: OutputTensor, name: str) -> TensorPlan:
    """The planned tensor of a name in memory; that of the part, if the output is made in parts."""
    return plan[name] if output.part is None else plan[name].in_part(output.part)


def _ranges(shape: tuple[int, ...]) -> list[Part]:
    """The parts of a stack of this shape, about equal; empty for what is no stack, or not to be divided."""
    if len(shape) != 3 or math.prod(shape[1:]) % _ALIGNED:
        return []
    count = min(shape[0], _MOST, math.prod(shape) // _LEAST)
    return [(number * shape[0] // count, (number + 1) * shape[0] // count) for number in range(count)]


def _is_made_by_matrix(tensor: TensorPlan) -> bool:
    """Whether each matrix of a stack is made by itself: of a value for the whole, as `scaling: auto`, there is none."""
    info, action = tensor.info, tensor.action
    if info.is_convolution or info.vocabulary_axis is not None or not info.dtype.is_floating_point:
        return False
    if isinstance(action, Merge):
        by_matrix = is_own_method(action.method) and tensor.parameters.get("scaling") != AUTO
        has_base = tensor.base is None or tensor.base in tensor.inputs
        return has_base and not action.in_core and (by_matrix or action.method in WEIGHTED_SUMS)
    return not isinstance(action, (Copy, Route))


def _read(tensor: TensorPlan) -> list[tuple[ModelReference, str]]:
    """The inputs that a tensor is made from, with its name there."""
    models = [tensor.action.model] if isinstance(tensor.action, Keep) else tensor.inputs
    return [(model, tensor.inputs[model]) for model in models]


def _is_plain(plan: MergePlan, model: ModelReference, name: str) -> bool:
    """Whether an input gives a tensor as it is stored, without an adapter's factors."""
    return not model.lora and not plan.inputs.checkpoints[model].is_folded(name)


def _part_of(output: OutputTensor, part: Part) -> OutputTensor:
    like = replace(output.like, shape=(part[1] - part[0], *output.like.shape[1:]))
    return replace(output, name=f"{output.name}[{part[0]}:{part[1]}]", like=like, part=part, whole=output.name)
