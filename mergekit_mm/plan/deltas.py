"""A merge planned down to what it changes of its base: a task vector per output tensor, not added to anything."""

from __future__ import annotations

from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.errors import MergeError
from mergekit_mm.methods import is_own_method
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.plan.planner import MultimodalPlanner
from mergekit_mm.tasks.deltas import SUMS, AddDelta, Difference, MergeDelta
from mergekit_mm.tasks.merging import MergeTensors
from mergekit_mm.tasks.reading import AdaptTensor, GatherMemoryTensors, LoadDelta, LoadTensor, without_adapter


def plan_deltas(planner: MultimodalPlanner) -> dict[str, Task[TaskVector]]:
    """Name in memory -> the task that gives what the merge changes of it; tensors that stay at the base are left out.

    Raises:
        MergeError: the merge changes its base in ways that are no deltas.
    """
    if planner.inputs.composition:
        raise MergeError("These inputs make an omni model, and no adapter can hold towers: write it by mergekit-yaml.")
    config, over = planner.config, without_adapter(planner.inputs.base)
    if config.tokenizer or config.tokenizer_source:
        raise MergeError("An adapter cannot change a vocabulary: leave the tokenizer section out.")
    planner.plan_tensors()
    if planner.layer_sources() is not None:
        raise MergeError("An adapter cannot move layers: leave `slices` out, or let them keep every layer in place.")
    tasks = {name: _delta(over, name, task) for name, task in planner.tensors.items()}
    return {name: task for name, task in tasks.items() if task is not None}


def _delta(over: ModelReference, name: str, task: Task) -> Task[TaskVector] | None:
    if isinstance(task, LoadTensor) and task.model == over:
        return None
    if isinstance(task, AdaptTensor) and task.base.model == over:
        return LoadDelta(model=task.model, tensor=task.tensor, base=task.base)
    if isinstance(task, AddDelta):
        return task.delta
    # The tensor is another model's, taken over by a module or by a method that takes one model.
    foreign = isinstance(task, (LoadTensor, AdaptTensor))
    if foreign or (task.method_name not in SUMS and not is_own_method(task.method_name)):
        return Difference(merged=task, base=LoadTensor(model=over, tensor=name, label=task.group_label() or ""))
    assert isinstance(task, MergeTensors)
    gather = task.gather_tensors
    assert isinstance(gather, GatherMemoryTensors)
    names = dict(gather.weight_info.items())
    deltas = tuple(m for m in names if m.lora and without_adapter(m) == over)
    if len(deltas) < len([m for m in names if m != over]) or (over in names and over != task.base_model):
        names.setdefault(over, names[task.base_model or next(iter(names))])
    else:
        names.pop(over, None)  # every delta is an adapter's: the base's values are not needed
    fields = {name: getattr(task, name) for name in MergeTensors.model_fields}
    read = GatherMemoryTensors(weight_info=names, device=gather.device, label=gather.label, deltas=deltas)
    return MergeDelta(**{**fields, "gather_tensors": read, "over": over})
