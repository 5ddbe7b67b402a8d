"""Which tensors of the inputs no task of a merge reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.ignoring import IGNORE
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.planner import MultimodalPlanner
from mergekit_mm.tasks.reading import AdaptTensor, LoadDelta, LoadTensor, without_adapter

_FEW = 7  # names that are listed one by one; of more, the first are


def unused_tensors(inputs: Inputs, planner: MultimodalPlanner) -> Iterator[str]:
    """Lines on what of each input a merge does not use, with the reason where there is more to say than its role."""
    ledger = planner.ledger
    explained: set[tuple[ModelReference, str]] = set()
    alike: dict[str, list[str]] = {}  # what is not used -> the inputs of which it is not
    for model, why, names in inputs.without_place():
        explained |= {(without_adapter(model), name) for name in names}
        told = ", ".join(names) if IGNORE in why or len(names) < _FEW else some(names)
        alike.setdefault(f"{told} ({why})", []).append(str(model.model))
    for model, adaptation in inputs.adaptations.items():
        for why, left_out in adaptation.left_out.items():
            alike.setdefault(f"{', '.join(left_out)} ({why})", []).append(str(model.lora))
    yield from ledger.left_out()
    read, adapted = _read(task for _, task, _ in planner.outputs)
    seen: set[ModelReference] = set()
    for model, checkpoint in inputs.checkpoints.items():
        plain = without_adapter(model)
        if plain not in seen:
            seen.add(plain)
            lost = Counter(
                info.role.value
                for name, info in checkpoint.tensors.items()
                if (plain, name) not in read | explained and not _is_twin(checkpoint, plain, name, read)
            )
            if lost and (not model.lora or any(place == plain for place, _ in read)):
                alike.setdefault(_counted(lost), []).append(str(plain))
        if model.lora:
            names = [*inputs.adaptations[model].names, *inputs.adaptations[model].assembled]
            roles = [checkpoint.tensors[name].role for name in names if (model, name) not in adapted]
            if lost := Counter(role.value for role in roles if (model, role) not in ledger.unused):
                alike.setdefault(f"its changes of {_counted(lost)}", []).append(str(model.lora))
    yield from (f"{', '.join(dict.fromkeys(models))}: {told}" for told, models in alike.items())


def _is_twin(checkpoint: Checkpoint, model: ModelReference, name: str, read: set[tuple[ModelReference, str]]) -> bool:
    """Whether a tensor is stored a second time under the name of one that it is tied to."""
    tied = checkpoint.meta_model.tied_to(name) if checkpoint.meta_model else []
    return any((model, other) in read for other in tied)


def _counted(roles: Counter[str]) -> str:
    return ", ".join(f"{roles[role.value]} tensors of {role.value}" for role in Role if role.value in roles)


def _read(
    tasks: Iterable[Task],
) -> tuple[set[tuple[ModelReference, str]], set[tuple[ModelReference, str]]]:
    """(model, name in memory) of every tensor that the tasks load, and of every one of which they read a change."""
    read: set[tuple[ModelReference, str]] = set()
    adapted: set[tuple[ModelReference, str]] = set()
    todo: list[Task] = list(tasks)
    known: dict[
        int, Task
        # Tasks by identity, since comparing by value would walk the whole graph below; held so that ids stay unique.
    ] = {}
    while todo:
        task = todo.pop()
        if id(task) in known:
            continue
        known[id(task)] = task
        if isinstance(task, LoadTensor):
            read.add((task.model, task.tensor))
            continue
        if isinstance(task, (LoadDelta, AdaptTensor)):
            adapted.add((task.model, task.tensor))
            read.add((task.base.model, task.tensor))
        todo += task.arguments().values()
    return read, adapted
