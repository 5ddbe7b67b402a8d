"""The merging steps of the plugin in mergekit's task graph: a method over the tensors, or the deltas, of one output."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.architecture.disk import CheckpointError
from mergekit_mm.methods import method_named
from mergekit_mm.methods.apply import is_finite, mean_delta, working_dtype
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.policies import is_own_method

LOG = logging.getLogger(__name__)

# mergekit's methods whose result is a weighted sum of the deltas, whatever these are
SUMS = ("linear", "task_arithmetic")


class MergeTensors(ExecuteMergeMethodTask):
    """Run a merge method on one tensor, after the cases in which arithmetic would do harm.

    A method that draws (DARE, DELLA) draws from a stream of each tensor's own, so that its result depends on the seed,
    the tensor's name and its inputs, not on paths, the order of the work, the sharding or what else is merged.
    """

    gather_tensors: Task  # mergekit's own collectors of tensors, or ours
    seed: int = 0

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object
    ) -> torch.Tensor | None:
        keeper = self.base_model if self.base_model in self.model_order else self.model_order[0]
        kept, name = tensors[keeper], self.output_weight.name
        assert isinstance(kept, torch.Tensor)
        plain = [t for model in self.model_order if isinstance(t := tensors[model], torch.Tensor)]
        if not all(t.is_floating_point() for t in plain):
            if any(not torch.equal(t, kept) for t in plain):
                LOG.warning("Buffer %s (%s) differs between the inputs; %s's is kept.", name, kept.dtype, keeper)
            return kept
        broken = [str(model) for model in self.model_order if not _is_finite(tensors[model])]
        if broken:
            # an infinite bound that all share is meant; anything else would spread through the arithmetic
            if len(plain) == len(tensors) and all(t.shape == kept.shape and torch.equal(t, kept) for t in plain):
                return kept
            raise ValueError(
                f"Tensor {name} holds NaN or infinite values in {', '.join(broken)}. Merging it would spread "
                "them: repair or leave out that input, or keep the tensor at the base by its role's policy."
            )
        merged = self._merged(tensors)
        if merged is not None:
            _require_finite(merged, name, self.method_name)
        return merged

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor | None:
        devices = {t.device for t in tensors.values() if isinstance(t, torch.Tensor) and t.device.type == "cuda"}
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._stream(tensors))
            merged: torch.Tensor | None = super().execute(tensors)
        return merged

    def _stream(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> int:
        """Seed, name and the first values of each input: experts that are merged one by one get masks of their own."""
        state = zlib.crc32(f"{self.seed} {self.output_weight.name}".encode())
        for model in self.model_order:
            if isinstance(tensor := tensors[model], torch.Tensor):
                first = tensor.reshape(-1)[:256].to("cpu", torch.float32).contiguous()
                state = zlib.crc32(first.numpy().tobytes(), state)
        return state


class MergeTaskVectors(MergeTensors):
    """Run one of the plugin's methods, in float32 or wider; adapters stay the factors they are."""

    as_vector: bool = False  # a kernel of a convolution is no stack of matrices

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor:
        method = method_named(self.method_name)
        base = tensors[self.base_model]
        assert isinstance(base, torch.Tensor)
        shape = base.shape
        base = base.to(working_dtype(base.dtype))
        task_vectors = [
            t if isinstance(t, TaskVector) else TaskVector(t, base=base)
            for model in self.model_order
            if model != self.base_model and (t := tensors[model]) is not None
        ]
        if self.as_vector:
            base = base.reshape(-1)
            task_vectors = [TaskVector(t.dense(base.dtype).reshape(-1)) for t in task_vectors]
        label = f"tensor {self.output_weight.name!r}"
        return method.merge(base, task_vectors, label, **dict(self.parameters.items())).reshape(shape)


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
        broken = [str(m) for m, delta in deltas.items() if not _is_finite(delta)]
        if broken:
            raise CheckpointError(f"Tensor {self.output_weight.name} holds NaN or Inf in {', '.join(broken)}.")
        adapted = deltas.pop(self.base_model, None) if self.base_model else None
        if adapted is None:
            return self._of(deltas)
        return _sum([self._of({m: _sum([d, adapted], [1.0, -1.0]) for m, d in deltas.items()}), adapted], [1.0, 1.0])

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
            raise CheckpointError(
                f"The weights of this linear merge add up to {total:g}, which scales the base itself; no adapter can. "
                "Let them add up to 1, or leave `normalize` on."
            )


class AddDelta(Task[torch.Tensor]):
    """base + delta in float32 or wider; factors are not written out first."""

    base: Task
    delta: MergeDelta

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "delta": self.delta}

    def group_label(self) -> str | None:
        return self.delta.group_label()

    def uses_accelerator(self) -> bool:
        return True

    def execute(self, base: torch.Tensor, delta: TaskVector, **_kwargs: object) -> torch.Tensor:
        merged = delta.added_to(base.to(working_dtype(base.dtype)))
        _require_finite(merged, self.delta.output_weight.name, self.delta.method_name)
        return merged


def _sum(deltas: Sequence[TaskVector], weights: Sequence[float]) -> TaskVector:
    """The weighted sum of deltas, as factors if all of them are."""
    rights = [d.right for d in deltas if d.right is not None]
    if len(rights) == len(deltas):
        left = torch.cat([d.left * w for d, w in zip(deltas, weights, strict=True)], dim=1)
        return TaskVector(left, right=torch.cat(rights))
    total = torch.zeros(deltas[0].shape, device=deltas[0].left.device)
    for delta, weight in zip(deltas, weights, strict=True):
        total = delta.added_to(total, weight)
    return TaskVector(total)


def _require_finite(merged: torch.Tensor, name: str, method: str) -> None:
    """ValueError for NaN or Inf that a merge has made of finite inputs."""
    if not is_finite(merged):
        raise ValueError(
            f"Merging tensor {name} by {method} gives NaN or Inf in {merged.dtype}: look at the weights, or merge in a "
            "wider `dtype`."
        )


def _is_finite(value: torch.Tensor | TaskVector) -> bool:
    if isinstance(value, TaskVector):
        return all(is_finite(part) for part in (value.left, value.right, value.base) if part is not None)
    return is_finite(value)
