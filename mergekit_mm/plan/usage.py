"""Which tensors of the inputs a merge does not use."""

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

_FEW = 7  # names that are listed one by one; of more, the first are

Places = set[tuple[ModelReference, str]]  # model, its own name for a tensor in memory


def unused_tensors(inputs: Inputs, tensors: Iterable[TensorPlan], moves_rows: bool) -> Iterator[str]:
    """Lines on what of each input a merge does not use, with the reason where there is more to say than its role."""
    tensors = list(tensors)
    explained: Places = set()
    alike: dict[str, list[str]] = {}  # what is not used -> the inputs of which it is not
    for model, why, names in inputs.without_place():
        explained |= {(inputs.plain(model), name) for name in names}
        told = ", ".join(names) if IGNORE in why or len(names) < _FEW else some(names)
        alike.setdefault(f"{told} ({why})", []).append(str(model.model))
    for model, adaptation in inputs.adaptations.items():
        for why, left_out in adaptation.left_out.items():
            alike.setdefault(f"{', '.join(left_out)} ({why})", []).append(str(model.lora))
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
            if lost := Counter(role.value for role in roles if (model, role) not in unmerged):
                alike.setdefault(f"its changes of {_counted(lost)}", []).append(str(model.lora))
    yield from (f"{', '.join(dict.fromkeys(models))}: {told}" for told, models in alike.items())


def _unmerged_changes(inputs: Inputs, tensors: Iterable[TensorPlan]) -> Counter[tuple[ModelReference, Role]]:
    """(input, role) -> how many tensors its adapter changes that are kept as another input has them."""
    found: Counter[tuple[ModelReference, Role]] = Counter()
    for tensor in tensors:
        if isinstance(kept := tensor.shared_action, Keep):
            found.update(
                (model, tensor.info.role)
                for model, own in tensor.inputs.items()
                if model != kept.model and inputs.adapts(model, own)
            )
    return found


def _is_twin(checkpoint: Checkpoint, model: ModelReference, name: str, read: Places) -> bool:
    """Whether a tensor is stored a second time under the name of one that it is tied to."""
    tied = checkpoint.meta_model.tied_to(name) if checkpoint.meta_model else []
    return any((model, other) in read for other in tied)


def _counted(roles: Counter[str]) -> str:
    return ", ".join(f"{roles[role.value]} tensors of {role.value}" for role in Role if role.value in roles)


def _read(inputs: Inputs, tensors: Iterable[TensorPlan], moves_rows: bool) -> tuple[Places, Places]:
    """Every tensor of a model's files that the merge reads, and every one of which it reads an adapter's change."""
    read: Places = set()
    adapted: Places = set()
    for tensor in tensors:
        for model, own in _sources(inputs, tensor, moves_rows).items():
            read.add((inputs.plain(model), own))
            if inputs.adapts(model, own):
                adapted.add((model, own))
    return read, adapted


def _sources(inputs: Inputs, tensor: TensorPlan, moves_rows: bool) -> dict[ModelReference, str]:
    """The inputs whose tensor is read to make one of the output, with their own names for it."""
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
