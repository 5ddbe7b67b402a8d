"""A merge planned down to what it changes of its base: a task vector per output tensor, not added to anything."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.architecture.disk import CheckpointError
from mergekit_mm.methods import method_named
from mergekit_mm.methods.apply import is_finite, mean_delta
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.planner import MultimodalPlanner
from mergekit_mm.planning.policies import is_own_method
from mergekit_mm.planning.reading import AdaptTensor, GatherMemoryTensors, LoadDelta, LoadTensor, without_adapter
from mergekit_mm.planning.tasks import MergeTensors

# mergekit's methods whose result is a weighted sum of the deltas, whatever these are
_SUMS = ("linear", "task_arithmetic")


class MergeDelta(MergeTensors):
    """What a merge method makes of the deltas of one tensor over the model `over`; factors stay factors where they can.

    The plugin's methods give task vectors by themselves. mergekit's are run over a base of zero; one that adds up
    weighted tensors is asked for its weights, by running it on unit vectors.
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
            if model != self.base_model
        }
        broken = [
            str(m) for m, d in deltas.items() if not (is_finite(d.left) and (d.right is None or is_finite(d.right)))
        ]
        if broken:
            raise CheckpointError(f"Tensor {self.output_weight.name} holds NaN or Inf in {', '.join(broken)}.")
        if is_own_method(self.method_name):
            return self._solved(list(deltas.values()))
        self._require_base_kept(list(deltas))
        if self.method_name in _SUMS and all(d.right is not None for d in deltas.values()):
            weights = self._run(dict(zip(deltas, torch.eye(len(deltas)), strict=True)))
            left = torch.cat([d.left * w for d, w in zip(deltas.values(), weights, strict=True)], dim=1)
            return TaskVector(left, right=torch.cat([d.right for d in deltas.values() if d.right is not None]))
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


def plan_deltas(planner: MultimodalPlanner) -> dict[str, Task[TaskVector]]:
    """Name in memory -> the task that gives what the merge changes of it; tensors that stay at the base are left out.

    Raises:
        CheckpointError: the merge changes its base in ways that are no deltas.
    """
    config, over = planner.config, without_adapter(planner.inputs.base)
    if config.tokenizer or config.tokenizer_source:
        raise CheckpointError("An adapter cannot change a vocabulary: leave the tokenizer section out.")
    planner.plan_tensors()
    if planner.layer_sources() is not None:
        raise CheckpointError(
            "An adapter cannot move layers: leave `slices` out, or let them keep every layer in place."
        )
    tasks = {name: _delta(planner, over, task) for name, task in planner.tensors.items()}
    return {name: task for name, task in tasks.items() if task is not None}


def _delta(planner: MultimodalPlanner, over: ModelReference, task: Task) -> Task[TaskVector] | None:
    if isinstance(task, LoadTensor):
        if task.model == over:
            return None
        raise CheckpointError(f"{task.tensor} is taken over from {task.model}; an adapter can only add to {over}.")
    if isinstance(task, AdaptTensor):
        return LoadDelta(model=task.model, tensor=task.tensor, base=task.base)
    assert isinstance(task, MergeTensors)
    gather = task.gather_tensors
    assert isinstance(gather, GatherMemoryTensors)
    names = dict(gather.weight_info.items())
    deltas = tuple(m for m in names if m.lora and without_adapter(m) == over)
    if len(deltas) == len([m for m in names if m != over]):
        names.pop(over, None)  # every delta is an adapter's: the base's values are not needed
    else:
        names.setdefault(over, names[task.base_model or next(iter(names))])
    fields = {name: getattr(task, name) for name in MergeTensors.model_fields}
    read = GatherMemoryTensors(weight_info=names, device=gather.device, label=gather.label, deltas=deltas)
    return MergeDelta(**{**fields, "gather_tensors": read, "over": over})
