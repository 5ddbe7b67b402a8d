"""The tensors of the inputs, and the changes of their adapters, that a merge does not use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from mergekit.common import ModelReference

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.ignoring import IGNORE
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.tensor_plan import Average, Keep, Route, TensorPlan

_FEW = 7  # up to fewer than these, names are all listed; of more, only the first ones

InputTensors = set[tuple[ModelReference, str]]  # (model, its own name for a tensor in memory)


def unused_tensors(inputs: Inputs, tensors: Iterable[TensorPlan], moves_rows: bool) -> Iterator[str]:
    """Lines on the tensors of each input that a merge does not use: by name with the reason, or counted by role."""
    tensors = list(tensors)
    explained: InputTensors = set()
    inputs_by_text: dict[str, list[str]] = {}  # Inputs with the same unused tensors share a line.
    for model, why, names in inputs.tensors_without_place():
        explained |= {(inputs.plain(model), name) for name in names}
        listed = ", ".join(names) if IGNORE in why or len(names) < _FEW else some(names)
        inputs_by_text.setdefault(f"{listed} ({why})", []).append(str(model.model))
    for model, adaptation in inputs.adaptations.items():
        for why, left_out in adaptation.left_out.items():
            inputs_by_text.setdefault(f"{', '.join(left_out)} ({why})", []).append(str(model.lora))
    unmerged = _unmerged_changes(inputs, tensors)
    for (model, role), count in unmerged.items():
        yield (
            f"{count} tensors of {role.value} that {model.lora} changes are left out: a policy "
            f"(`parameters: {role.value}: merge`) would merge them."
        )
    read, adapted = _read(inputs, tensors, moves_rows)
    seen: set[ModelReference] = set()
    for model, checkpoint in inputs.checkpoints.items():
        plain = inputs.plain(model)
        if plain not in seen:
            seen.add(plain)
            unused = Counter(
                info.role.value
                for name, info in checkpoint.tensors.items()
                if (plain, name) not in read | explained and not _is_tied_to_read(checkpoint, plain, name, read)
            )
            if unused and (not model.lora or any(other == plain for other, _ in read)):
                inputs_by_text.setdefault(_counted(unused), []).append(str(plain))
        if model.lora:
            names = [*inputs.adaptations[model].names, *inputs.adaptations[model].assembled]
            roles = [checkpoint.tensors[name].role for name in names if (model, name) not in adapted]
            if unused := Counter(role.value for role in roles if (model, role) not in unmerged):
                inputs_by_text.setdefault(f"its changes of {_counted(unused)}", []).append(str(model.lora))
    yield from (f"{', '.join(dict.fromkeys(models))}: {text}" for text, models in inputs_by_text.items())


def _unmerged_changes(inputs: Inputs, tensors: Iterable[TensorPlan]) -> Counter[tuple[ModelReference, Role]]:
    """(input, role) -> the number of tensors that the input's adapter changes but that are kept as in another input."""
    counts: Counter[tuple[ModelReference, Role]] = Counter()
    for tensor in tensors:
        if isinstance(kept := tensor.shared_action, Keep):
            counts.update(
                (model, tensor.info.role)
                for model, own in tensor.inputs.items()
                if model != kept.model and inputs.adapts(model, own)
            )
    return counts


def _is_tied_to_read(checkpoint: Checkpoint, model: ModelReference, name: str, read: InputTensors) -> bool:
    """Whether a tensor is tied to one that is read, of which it is a second copy on disk."""
    tied = checkpoint.meta_model.tied_to(name) if checkpoint.meta_model else []
    return any((model, other) in read for other in tied)


def _counted(roles: Counter[str]) -> str:
    return ", ".join(f"{roles[role.value]} tensors of {role.value}" for role in Role if role.value in roles)


def _read(inputs: Inputs, tensors: Iterable[TensorPlan], moves_rows: bool) -> tuple[InputTensors, InputTensors]:
    """The tensors that the merge reads from files of models, and the tensors for which it reads an adapter's change."""
    read: InputTensors = set()
    adapted: InputTensors = set()
    for tensor in tensors:
        for model, own in _sources(inputs, tensor, moves_rows).items():
            read.add((inputs.plain(model), own))
            if inputs.adapts(model, own):
                adapted.add((model, own))
    return read, adapted


def _sources(inputs: Inputs, tensor: TensorPlan, moves_rows: bool) -> dict[ModelReference, str]:
    """The inputs that are read to make a tensor of the output, with their own names for it."""
    rows_move = moves_rows and tensor.info.vocabulary_axis is not None
    models = dict(tensor.inputs)
    match tensor.shared_action:
        case Keep(kept) if not rows_move:
            models = {kept: tensor.inputs[kept]}
        case Average():
            models = {expert: tensor.inputs[expert] for expert in tensor.experts}
    if isinstance(tensor.action, Route):
        models |= {donor: tensor.inputs[donor] for _, donor in tensor.action.owners}
    return models | (inputs.row_donors(tensor.info.name) if rows_move else {})
