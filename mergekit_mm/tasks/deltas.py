"""From the inputs of one tensor to their task vectors, to the merged delta, to the base plus that delta.

The tasks of this module serve every method of this package, for dense experts, adapters, adapters of a fine-tune, each
strength of a sweep, and adapters as output; and weighted sums of adapters. mergekit's other methods make a tensor, from
which the base is subtracted where a delta is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mergekit.common import ImmutableMap, ModelReference
from mergekit.graph import Task
from pydantic import InstanceOf

from mergekit_mm.methods import method_named
from mergekit_mm.numerics.shared_bases import shared_core
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum, working_dtype
from mergekit_mm.tasks.core_space import MergeInCore
from mergekit_mm.tasks.drawing import stream_of
from mergekit_mm.tasks.found_scalings import FoundScalings
from mergekit_mm.tasks.inputs_check import is_kept, require_finite_result
from mergekit_mm.tasks.solutions import Solutions, read, write
from mergekit_mm.tasks.step import Step

_ROUNDING = 8 * torch.finfo(torch.float32).eps


class MergeDelta(Step[TaskVector | None]):
    """The merged delta of one tensor over the model `over`, of the tensor's shape; as factors if the method keeps them.

    None if `over`'s tensor is the result: it is empty, holds no floating numbers, or infinite bounds that all inputs
    share. If the merge's base is `over` with an adapter, the experts' deltas are taken over the two together, and the
    adapter's own delta is part of the result.

    Raises:
        MergeError: when run, for NaN or infinite values in an input.
    """

    tensors: Task  # gives a tensor or a task vector of each expert, and `over`'s tensor if one expert gives a tensor
    method: str
    experts: tuple[ModelReference, ...]
    base: ModelReference | None  # the base of the merge, which may be `over` with an adapter
    over: ModelReference
    parameters: ImmutableMap[str, Any] = ImmutableMap({})  # of a method of this package, without `scaling`
    weights: tuple[float, ...] = ()  # of the experts in a weighted sum; empty for a method of this package
    scaling: float = 1.0  # of the merged delta over the merge's base
    own: tuple[float, ...] = ()  # factors of the experts' own deltas, which are added to it; empty for none
    name: str
    shared_rank: int | None = None  # of the bases in whose coordinates the factors of a matrix are merged
    found: InstanceOf[FoundScalings] | None = None  # with `scaling: auto`: where the scaling is noted that is applied
    as_vector: bool = False  # whether it is the kernel of a convolution, which is no stack of matrices
    seed: int = 0

    def arguments(self) -> dict[str, Task]:
        return {"tensors": self.tensors}

    def uses_accelerator(self) -> bool:
        return True

    def execute(self, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object) -> TaskVector | None:
        if is_kept(tensors, list(tensors), self.over, self.name):
            return None
        base = tensors.get(self.over)
        assert not isinstance(base, TaskVector)
        deltas = {
            model: value if isinstance(value, TaskVector) else TaskVector(value, base=base)
            for model, value in tensors.items()
            if model in self.experts or (model == self.base and model != self.over)
        }
        with torch.no_grad(), stream_of(self.seed, self.name, list(tensors.values())):
            delta_of_base = deltas.pop(self.base, None) if self.base else None
            if delta_of_base is None:
                of_experts = [deltas[model] for model in self.experts]
                if not self.own:
                    return _times(self._merged(of_experts), self.scaling)
                if not self.scaling:
                    return weighted_sum(of_experts, self.own)
                return weighted_sum([self._merged(of_experts), *of_experts], [self.scaling, *self.own])
            over_base = [weighted_sum([deltas[model], delta_of_base], [1.0, -1.0]) for model in self.experts]
            merged, own = self._merged(over_base), self.own or (0.0,) * len(over_base)
            parts = [
                (self.scaling, merged),
                *((share, each) for share, each in zip(own, over_base, strict=True) if share),
            ]
            shares, summands = zip(*parts, strict=True)
            return weighted_sum([*summands, delta_of_base], [*shares, 1.0])

    def _merged(self, deltas: Sequence[TaskVector]) -> TaskVector:
        if self.shared_rank is not None and all(d.is_factored and d.left.ndim == 2 for d in deltas):
            shared = shared_core(deltas, self.shared_rank)
            if shared is not None:
                return shared.expand(self._made_of(shared.cores))
        return self._made_of(deltas)

    def _made_of(self, deltas: Sequence[TaskVector]) -> TaskVector:
        """What the method makes of task vectors, which may be the cores of adapters in bases that they share."""
        if self.weights:
            return weighted_sum(deltas, self.weights)
        parameters, method = dict(self.parameters.items()), method_named(self.method)
        merged = method.delta(deltas, f"tensor {self.name!r}", as_vector=self.as_vector, **parameters)
        if self.found is None:
            return merged
        scaling = method.automatic_scaling(merged, deltas)
        self.found.note(self.name, scaling)
        return _times(merged, scaling)


class Directions(Step[dict[str, torch.Tensor]]):
    """What a tensor of the output is a weighted sum of, as tensors to be stored, on the CPU.

    `base`: the base's tensor, in its dtype. `<n>`: the delta of expert n; in `dtype`, or as the factors `<n>.left` and
    `<n>.right` in float32. If there is a task that makes the merged delta, that delta times its scaling is `<N>`, after
    them, and `scaling` holds the factor.
    """

    base: Task
    tensors: Task  # those of the task that makes the merged delta
    experts: tuple[ModelReference, ...]
    merged: MergeDelta | None
    dtype: str

    def arguments(self) -> dict[str, Task]:
        given = {"base": self.base, "tensors": self.tensors}
        return {**given, "merged": self.merged} if self.merged else given

    def execute(
        self,
        base: torch.Tensor,
        tensors: dict[ModelReference, torch.Tensor | TaskVector],
        merged: TaskVector | None = None,
    ) -> dict[str, torch.Tensor]:
        found = (tensors[model] for model in self.experts)
        deltas = [one if isinstance(one, TaskVector) else TaskVector.between(one, base) for one in found]
        made = {"base": base}
        if self.merged is not None:
            task = self.merged
            deltas.append(TaskVector.of(torch.zeros_like(base)) if merged is None else merged)
            scaling = task.found.values.get(task.name, 1.0) if task.found else task.scaling
            made["scaling"] = torch.tensor(scaling, dtype=torch.float64)
        for number, delta in enumerate(deltas):
            if delta.right is None:
                made[str(number)] = delta.dense(torch.float32).to(getattr(torch, self.dtype))
            else:
                made |= {f"{number}.left": delta.left.float(), f"{number}.right": delta.right.float()}
        return {name: tensor.cpu().contiguous().clone() for name, tensor in made.items()}


class KeptDelta(Task[TaskVector | None]):
    """The result of `merged`, which is written to a file when it is made first, and read from it from then on."""

    merged: MergeDelta
    file: str
    is_there: bool  # whether the file was there when the task was made

    @classmethod
    def of(cls, merged: MergeDelta, solutions: Solutions) -> KeptDelta:
        """The task for a merged delta, with its file among the solutions."""
        what = {
            "method": merged.method,
            "models": [str(model) for model in (*merged.experts, merged.base, merged.over)],
            "parameters": sorted((name, str(value)) for name, value in merged.parameters.items()),
            "numbers": [merged.scaling, *merged.own],
            "found": merged.found is not None,
            "name": merged.name,
            "how": [merged.shared_rank, merged.as_vector, merged.seed],
        }
        file = solutions.file(what)
        return cls(merged=merged, file=str(file), is_there=file.is_file())

    @property
    def name(self) -> str:
        return self.merged.name

    @property
    def method(self) -> str:
        return self.merged.method

    def arguments(self) -> dict[str, Task]:
        return {} if self.is_there else {"merged": self.merged}

    def group_label(self) -> str | None:
        return self.merged.group_label()

    def execute(self, merged: TaskVector | None = None, **_kwargs: object) -> TaskVector | None:
        if self.is_there:
            return read(Path(self.file))
        write(Path(self.file), merged)
        return merged


class AddDelta(Step[torch.Tensor]):
    """base + scale * delta in float32 or wider; factors are not multiplied out first. Without a delta, the base.

    Raises:
        MergeError: when run, if the result has NaN or infinite values.
    """

    base: Task
    delta: MergeDelta | MergeInCore | KeptDelta
    scale: float

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "delta": self.delta}

    def uses_accelerator(self) -> bool:
        return True

    def execute(self, base: torch.Tensor, delta: TaskVector | None, **_kwargs: object) -> torch.Tensor:
        if delta is None:
            return base
        wide = base.to(working_dtype(base.dtype))
        if self.scale == 0.0:
            return wide
        merged = delta.added_to(wide, self.scale)
        require_finite_result(merged, self.delta.name, self.delta.method)
        return merged


class RescaleDelta(Step[torch.Tensor]):
    """base + scale * (merged - base) in float32 or wider: one strength of a sweep by a method that makes tensors."""

    base: Task
    merged: Task
    scale: float

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if self.scale == 1.0 or not merged.is_floating_point():
            return merged
        wide = base.to(working_dtype(merged.dtype))
        # Masks may hold infinities, whose difference is NaN: equal values are taken from the base.
        return torch.where(wide == merged, wide, torch.lerp(wide, merged.to(wide.dtype), self.scale))


class Difference(Step[TaskVector]):
    """merged - base in float32 or wider, for methods of mergekit that look at more than deltas.

    Zero if no value differs by more than rounding errors, which such methods leave even with equal inputs.
    """

    merged: Task
    base: Task

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> TaskVector:
        dtype = working_dtype(merged.dtype) if merged.is_floating_point() else torch.float32
        base, merged = base.to(dtype), merged.to(dtype)
        delta = torch.where(base == merged, 0.0, merged - base)
        is_rounding = delta.abs() <= _ROUNDING * base.abs()
        return TaskVector(torch.zeros_like(delta) if is_rounding.all() else delta)


class Changed(Step[torch.Tensor | None]):
    """A merged tensor, or None if it equals the base's in the merged tensor's dtype."""

    merged: Task
    base: Task

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> torch.Tensor | None:
        return None if torch.equal(base.to(merged), merged) else merged


def _times(delta: TaskVector, factor: float) -> TaskVector:
    if factor == 1.0:
        return delta
    if delta.right is None:
        return TaskVector(delta.dense(working_dtype(delta.left.dtype)) * factor)
    return TaskVector(delta.left * factor, right=delta.right)
