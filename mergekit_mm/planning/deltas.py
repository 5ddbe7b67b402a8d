"""A merge planned down to what it changes of its base: a task vector per output tensor, not added to anything."""

from __future__ import annotations

from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.architecture.disk import CheckpointError
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.planning.merging import AddDelta, MergeDelta, MergeTensors
from mergekit_mm.planning.planner import MultimodalPlanner
from mergekit_mm.planning.reading import AdaptTensor, GatherMemoryTensors, LoadDelta, LoadTensor, without_adapter


def plan_deltas(planner: MultimodalPlanner) -> dict[str, Task[TaskVector]]:
    """Name in memory -> the task that gives what the merge changes of it; tensors that stay at the base are left out.

    Raises:
        CheckpointError: the merge changes its base in ways that are no deltas.
    """
    if planner.inputs.composition:
        raise CheckpointError(
            "These inputs make an omni model, which no adapter of one of them can hold: merge to a model."
        )
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
    if isinstance(task, AddDelta):
        return task.delta
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
