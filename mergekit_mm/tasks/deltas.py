"""What a merge changes of a base: made as a delta, taken from a merged tensor, added to the base, rescaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.numerics.task_vector import TaskVector, mean_delta, working_dtype
from mergekit_mm.tasks.merging import MergeTensors, require_finite
from mergekit_mm.tasks.step import Step

# mergekit's methods whose result is a weighted sum of the deltas, whatever these are
SUMS = ("linear", "task_arithmetic")
_ROUNDING = 8 * torch.finfo(torch.float32).eps


class MergeDelta(MergeTensors):
    """What a merge method makes of the deltas of one tensor over the model `over`; factors stay factors where they can.

    For the plugin's methods, which give task vectors by themselves, and those of mergekit that add up weighted tensors:
    they are run over a base of zero, and asked for their weights by running them on unit vectors. Where the merge's
    base is `over` with an adapter, deltas are taken over both, and that adapter's is part of the result.
    """

    over: ModelReference

    def execute(  # type: ignore[override]  # a task vector instead of a tensor
        self, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object
    ) -> TaskVector:
        base = tensors.get(self.over)
        assert not isinstance(base, TaskVector)
        deltas = {
            model: value if isinstance(value := tensors[model], TaskVector) else TaskVector(value, base=base)
            for model in self.model_order
            if model != self.over or model != self.base_model
        }
        broken = [str(m) for m, delta in deltas.items() if not is_finite(delta)]
        if broken:
            raise MergeError(f"Tensor {self.output_weight.name} holds NaN or Inf in {', '.join(broken)}.")
        adapted = deltas.pop(self.base_model, None) if self.base_model else None
        with self._stream(tensors):
            if adapted is None:
                return self._of(deltas)
            over_adapted = {model: _sum([delta, adapted], [1.0, -1.0]) for model, delta in deltas.items()}
            return _sum([self._of(over_adapted), adapted], [1.0, 1.0])

    def _of(self, deltas: dict[ModelReference, TaskVector]) -> TaskVector:
        """The merged delta, without that of the base."""
        if is_own_method(self.method_name):
            return self._solved(list(deltas.values()))
        self._require_base_kept(list(deltas))
        if self.method_name in SUMS and all(d.is_factored for d in deltas.values()):
            weights = self._run(dict(zip(deltas, torch.eye(len(deltas)), strict=True)))
            return _sum(list(deltas.values()), weights.tolist())
        return TaskVector(self._run({model: d.dense(torch.float32) for model, d in deltas.items()}))

    def _solved(self, deltas: list[TaskVector]) -> TaskVector:
        parameters = dict(self.parameters.items())
        scaling = parameters.pop("scaling")
        if len(deltas[0].shape) != 2:
            return TaskVector(mean_delta(deltas) * scaling)
        merged = method_named(self.method_name).solve(deltas, **parameters)
        if merged.right is None:
            return TaskVector(merged.dense(torch.float32) * scaling)
        return TaskVector(merged.left * scaling, right=merged.right)

    def _run(self, values: dict[ModelReference, torch.Tensor], of_base: float = 0.0) -> torch.Tensor:
        """mergekit's method on tensors of any shape, over a constant base."""
        if self.base_model is not None:
            values = {**values, self.base_model: torch.full_like(next(iter(values.values())), of_base)}
        merged = self._merged(dict(values))
        assert merged is not None
        return merged

    def _require_base_kept(self, experts: list[ModelReference]) -> None:
        """A sum whose weights are not one in all scales the base itself."""
        if self.method_name != "linear":
            return
        total = float(self._run({model: torch.ones(1) for model in experts}, of_base=1.0))
        if abs(total - 1.0) > 1e-6:
            raise MergeError(
                f"The weights of this linear merge add up to {total:g}, which scales the base itself; no adapter can. "
                "Let them add up to 1, or leave `normalize` on."
            )


class AddDelta(Step[torch.Tensor]):
    """base + delta in float32 or wider; factors are not written out first."""

    base: Task
    delta: MergeDelta

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "delta": self.delta}

    def uses_accelerator(self) -> bool:
        return True

    def execute(self, base: torch.Tensor, delta: TaskVector, **_kwargs: object) -> torch.Tensor:
        merged = delta.added_to(base.to(working_dtype(base.dtype)))
        require_finite(merged, self.delta.output_weight.name, self.delta.method_name)
        return merged


class RescaleDelta(Step[torch.Tensor]):
    """base + scale * (merged - base) in float32 or wider: one solution of a merge serves every strength of it."""

    base: Task
    merged: Task
    scale: float

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> torch.Tensor:
        if self.scale == 1.0 or not merged.is_floating_point():
            return merged
        wide = base.to(working_dtype(merged.dtype))
        # equal infinities, which masks hold, differ by nothing
        return torch.where(wide == merged, wide, torch.lerp(wide, merged.to(wide.dtype), self.scale))


class Difference(Step[TaskVector]):
    """What a merged tensor has over its base, for methods of mergekit that look at more than deltas.

    Where that is nowhere more than rounding, as such methods leave of equal inputs, it is nothing.
    """

    merged: Task
    base: Task

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> TaskVector:
        dtype = working_dtype(merged.dtype) if merged.is_floating_point() else torch.float32
        base, merged = base.to(dtype), merged.to(dtype)
        delta = torch.where(base == merged, 0.0, merged - base)
        rounding = delta.abs() <= _ROUNDING * base.abs()
        return TaskVector(torch.zeros_like(delta) if rounding.all() else delta)


class Changed(Step[torch.Tensor | None]):
    """A merged tensor, or None where it is the base's own."""

    merged: Task
    base: Task

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "merged": self.merged}

    def execute(self, base: torch.Tensor, merged: torch.Tensor, **_kwargs: object) -> torch.Tensor | None:
        return None if torch.equal(base.to(merged), merged) else merged


def _sum(deltas: Sequence[TaskVector], weights: Sequence[float]) -> TaskVector:
    """The weighted sum of deltas, as factors if all of them are."""
    rights = [d.right for d in deltas if d.right is not None]
    if len(rights) == len(deltas):
        left = torch.cat([d.left * w for d, w in zip(deltas, weights, strict=True)], dim=-1)
        return TaskVector(left, right=torch.cat(rights, dim=-2))
    total = torch.zeros(deltas[0].shape, device=deltas[0].left.device)
    for delta, weight in zip(deltas, weights, strict=True):
        total = delta.added_to(total, weight)
    return TaskVector(total)
