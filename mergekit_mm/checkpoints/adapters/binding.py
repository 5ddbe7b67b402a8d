"""An adapter among the inputs, bound to the model that it is put on: which tensor it changes, and how."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergekit.common import ModelReference
from torch import Tensor

from mergekit_mm.checkpoints.adapters.adapter import Adapter
from mergekit_mm.checkpoints.adapters.assembly import BareParameter, Parts
from mergekit_mm.checkpoints.adapters.base_names import is_trained_on, same_weights
from mergekit_mm.checkpoints.adapters.naming import Naming, find_names
from mergekit_mm.checkpoints.adapters.opening import open_adapter
from mergekit_mm.checkpoints.adapters.tied import settle_ties
from mergekit_mm.checkpoints.bare_parameters import number_of_matrices
from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.ignoring import IGNORE, Ignored
from mergekit_mm.checkpoints.listing import indented, some
from mergekit_mm.checkpoints.matching import OF_TRAINING, TRAINING_HEAD
from mergekit_mm.checkpoints.roles import Role
from mergekit_mm.checkpoints.weight_files import holds_weights
from mergekit_mm.errors import MergeError
from mergekit_mm.numerics.task_vector import TaskVector

ADAPTER_BASE, TRUST = "adapter_base", "trust"  # the parameter by which a user vouches for the base of an adapter
_EXPERT = r"\.experts\.\d+\."


@dataclass(frozen=True)
class Adaptation:
    """An adapter bound to a checkpoint. Tensors go by the checkpoint's names in memory."""

    adapter: Adapter
    names: Mapping[str, str] = field(repr=False)  # changed tensor -> the adapter's own name for it
    # changed tensor that the adapter has no single name for -> its parts
    assembled: Mapping[str, Parts | BareParameter] = field(repr=False)
    notes: tuple[str, ...] = ()  # assumptions that may surprise the user
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # why -> the adapter's names without a place

    def changes(self, tensor: str) -> bool:
        return tensor in self.names or tensor in self.assembled

    def needs_base(self, tensor: str) -> bool:
        """Whether the delta of a tensor can be computed only with the base's values."""
        if (parts := self.assembled.get(tensor)) is not None:
            return parts.needs_base
        return tensor in self.names and self.adapter.needs_base(self.names[tensor])

    def rank(self, tensor: str) -> int | None:
        """The rank of the factors of a tensor; 0 for an unchanged tensor, None where more than factors is added."""
        if (parts := self.assembled.get(tensor)) is not None:
            return parts.rank
        return self.adapter.rank(self.names[tensor]) if tensor in self.names else 0

    def replaces(self, tensor: str) -> bool:
        """Whether the adapter holds a tensor whole."""
        return tensor in self.names and self.adapter.replaces(self.names[tensor])

    def adds_factors(self, tensor: str) -> bool:
        """Whether the adapter has low-rank factors for a tensor."""
        return tensor in self.names and self.adapter.changes[self.names[tensor]].a is not None

    def replacement(self, tensor: str) -> Tensor:
        """A tensor that the adapter holds whole, in the dtype of its file."""
        return self.adapter.replacement(self.names[tensor])

    def task_vector(self, tensor: str, base: Tensor | None) -> TaskVector:
        """The change of a changed tensor; see `Adapter.task_vector`."""
        if (parts := self.assembled.get(tensor)) is not None:
            return parts.task_vector(base)
        return self.adapter.task_vector(self.names[tensor], base)


def bind_adapter(
    model: ModelReference,
    directory: Path,
    checkpoint: Checkpoint,
    trusted: bool = False,
    ignored: Ignored | None = None,
) -> Adaptation:
    """The adapter of `model`, with its tensors matched to those of the model that it is put on.

    Args:
        model: a model with an adapter, as the user wrote it.
        directory: where the adapter is.
        checkpoint: the model that the adapter is put on.
        trusted: whether the user vouches for the model, whatever base the adapter names.
        ignored: tensors of the adapter that are left out if the model has no place for them.

    Raises:
        MergeError: the adapter cannot be merged, belongs to another base, or changes tensors which the model lacks,
            ties to others, or has in other shapes.
    """
    adapter = open_adapter(str(model.lora), directory)
    notes = []
    verdict = is_trained_on(adapter.base, str(model.model.path), checkpoint)
    # beside the weights of a model, an adapter is put on these, whatever base it names
    beside = holds_weights(adapter.directory) and same_weights(checkpoint.directory, adapter.directory)
    if not verdict.same and not beside and not trusted:
        raise MergeError(
            f"{adapter.name} was trained on {adapter.base}, not on {model.model}; an adapter means nothing on another "
            f"model. If both are the same model under two names, or it shall be put on {model.model} all the same, "
            f"write `{ADAPTER_BASE}: {TRUST}` under the `parameters:` of this input, or at the top for all adapters. "
            f"To merge it over its own base, name {adapter.base}+{adapter.name}."
        )
    if not verdict.same and not beside:
        notes.append(f"{adapter.name} was trained on {adapter.base}; by `{ADAPTER_BASE}` it is put on {model.model}.")
    elif verdict.note:
        notes.append(f"{adapter.name} {verdict.note}")
    spare = dict.fromkeys((name for name in adapter.changes if TRAINING_HEAD.match(name)), OF_TRAINING)
    spare |= dict.fromkeys(ignored.among(adapter.changes) if ignored else (), f"named by `{IGNORE}`")
    naming = find_names(adapter, checkpoint, spare)
    left_out: dict[str, list[str]] = {}
    for name in (name for name in naming.lost if name in spare):
        left_out.setdefault(spare[name], []).append(name)
    naming.lost = [name for name in naming.lost if name not in spare]
    settle_ties(naming, adapter, checkpoint)
    if problems := _problems(naming, adapter, checkpoint):
        raise MergeError(f"{adapter.name} does not fit {model.model}:" + indented(problems, "    "))
    if naming.class_description:
        notes.append(
            f"{adapter.name} has the names of {naming.class_description}: they are matched with those of {model.model}."
        )
    return Adaptation(adapter, naming.names, naming.assembled, tuple(notes), left_out)


def describe_adapter(adaptation: Adaptation, checkpoint: Checkpoint) -> Iterator[str]:
    """Lines of text: what an adapter changes, by role, with ranks and scalings."""
    adapter = adaptation.adapter
    variant = "DoRA" if adapter.config.get("use_dora") else "LoRA" if adapter.config else "whole tensors"
    changed = [*adaptation.names, *adaptation.assembled]
    whose = f", trained on {adapter.base}" if adapter.base else ""
    yield f"{adapter.name}: {variant} of {len(changed)} tensors{whose}"
    for file in dict.fromkeys(map(str, adapter.trained.values())):
        yield f"  with {file}"
    for role in Role:
        names = [memory for memory in changed if checkpoint.tensors[memory].role is role]
        kinds = Counter(_kind(adaptation, memory) for memory in names)
        if names:
            yield f"  {role.value:<15} {len(names):>7}  " + ", ".join(f"{n} of {kind}" for kind, n in kinds.items())
    for why, left_out in adaptation.left_out.items():
        yield f"  not used: {', '.join(left_out)} ({why})"
    for note in adaptation.notes:
        yield f"  note: {note}"


def _kind(adaptation: Adaptation, memory: str) -> str:
    adapter, made = adaptation.adapter, adaptation.assembled.get(memory)
    if isinstance(made, BareParameter):
        rank = adapter.factor_shapes(made.own)[0][0] // number_of_matrices(made.shape)
        return f"rank {rank}, scaling {made.scaling:g}, without a module"
    changes = [adapter.changes[own] for own in (made.own.values() if made else [adaptation.names[memory]])]
    kinds = {
        f"rank {adapter.shapes[c.a][0]}, scaling {c.scaling:g}" if c.a else "whole" if c.replacement else "bias"
        for c in changes
    }
    return " or ".join(sorted(kinds)) + (f", in {len(changes)} of {len(made.group.disk)} parts" if made else "")


def _problems(naming: Naming, adapter: Adapter, checkpoint: Checkpoint) -> list[str]:
    fused = "; transformers keeps these experts in one tensor that does not come apart into them. Merge it with PEFT"
    way_out = f"; to leave it out, name it (`parameters: {{{IGNORE}: [...]}}`)"
    problems = [
        f"{name}: the model has no such tensor{fused if re.search(_EXPERT, name) else way_out}"
        for name in naming.lost
        if adapter.trained_in(name) is None
    ]
    for file in dict.fromkeys(file for name in naming.lost if (file := adapter.trained_in(name))):
        without = [name for name in naming.lost if adapter.trained_in(name) is file]
        problems.append(
            f"{file.path.name} holds {len(without)} tensors that the model has no place for ({some(without)}); if they "
            f"are no part of it, name them (`parameters: {{{IGNORE}: [...]}}`), or move that file away"
        )
    for memory in naming.memory if checkpoint.meta_model else ():
        assert checkpoint.meta_model is not None
        if (partners := sorted(checkpoint.meta_model.tied_to(memory))) and memory not in naming.settled:
            problems.append(
                f"{naming.names.get(memory, memory)}: the model ties it to {', '.join(partners)}, which would change "
                "with it; merge that adapter with PEFT and untie the two"
            )
        elif memory not in checkpoint.tensors:
            problems.append(f"{naming.names.get(memory, memory)}: the model's files hold no such tensor")
    return problems + naming.problems
