"""Adapters among the inputs: opened, held against the model they are put on, and bound to its tensors."""

from __future__ import annotations

import filecmp
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergekit.common import ModelReference
from torch import Tensor

from mergekit_mm.architecture.checkpoint import Checkpoint
from mergekit_mm.architecture.disk import weight_files
from mergekit_mm.architecture.hub import local_path
from mergekit_mm.architecture.inventory import holds_weights
from mergekit_mm.architecture.listing import indented, some
from mergekit_mm.architecture.names import memory_names
from mergekit_mm.architecture.roles import Role
from mergekit_mm.errors import MergeError
from mergekit_mm.lora.adapter import Adapter, open_adapter
from mergekit_mm.numerics.task_vector import TaskVector


@dataclass(frozen=True)
class Adaptation:
    """An adapter bound to the checkpoint it adapts, whose tensors go by their names in memory."""

    adapter: Adapter
    names: Mapping[str, str] = field(repr=False)  # of what it changes: name in memory -> the adapter's own

    def needs_base(self, tensor: str) -> bool:
        """Whether what it changes of a tensor can only be told from the base's values."""
        return tensor in self.names and self.adapter.needs_base(self.names[tensor])

    def rank(self, tensor: str) -> int | None:
        """The rank of what it adds to a tensor; 0 if it leaves it alone, None if it does more than add."""
        return self.adapter.rank(self.names[tensor]) if tensor in self.names else 0

    def replaces(self, tensor: str) -> bool:
        """Whether it holds a tensor whole."""
        return tensor in self.names and self.adapter.replaces(self.names[tensor])

    def adds_factors(self, tensor: str) -> bool:
        """Whether it has low-rank factors for a tensor."""
        return tensor in self.names and self.adapter.changes[self.names[tensor]].a is not None

    def replacement(self, tensor: str) -> Tensor:
        """What it holds whole of a tensor, in the dtype of its file."""
        return self.adapter.replacement(self.names[tensor])

    def task_vector(self, tensor: str, base: Tensor | None) -> TaskVector:
        """What it changes of a tensor, which it does change; `base` as of `Adapter.task_vector`."""
        return self.adapter.task_vector(self.names[tensor], base)


def bind_adapter(model: ModelReference, directory: Path, checkpoint: Checkpoint) -> Adaptation:
    """The adapter of `model`, found in `directory`, with its tensors matched to those of the model it is put on.

    Raises:
        MergeError: no adapter that can be merged, one of another base, or one that changes tensors which the
            model lacks, holds tied to others, or holds in other shapes.
    """
    adapter = open_adapter(str(model.lora), directory)
    if not is_base(adapter, str(model.model.path), checkpoint):
        raise MergeError(
            f"{adapter.name} was trained on {adapter.base}, not on {model.model}; an adapter means nothing on another "
            "model. If both are the same model under two names, write this one into base_model_name_or_path of its "
            "adapter_config.json."
        )
    names = _memory_names(adapter, checkpoint)
    _require_one_each(adapter, names)
    if problems := _problems(adapter, names, checkpoint):
        raise MergeError(f"{adapter.name} does not fit {model.model}:" + indented(problems, "    "))
    return Adaptation(adapter, {memory: own for own, memory in names.items() if memory in checkpoint.tensors})


def describe_adapter(adaptation: Adaptation, checkpoint: Checkpoint) -> Iterator[str]:
    """Lines of text: what an adapter changes, by role, with ranks and scalings."""
    adapter = adaptation.adapter
    variant = "DoRA" if adapter.config.get("use_dora") else "LoRA" if adapter.config else "whole tensors"
    whose = f", trained on {adapter.base}" if adapter.base else ""
    yield f"{adapter.name}: {variant} of {len(adaptation.names)} tensors{whose}"
    for file in dict.fromkeys(map(str, adapter.trained.values())):
        yield f"  with {file}"
    for role in Role:
        names = [own for memory, own in adaptation.names.items() if checkpoint.tensors[memory].role is role]
        changes = [adapter.changes[own] for own in names]
        kinds = Counter(
            f"rank {adapter.shapes[c.a][0]}, scaling {c.scaling:g}" if c.a else "whole" if c.replacement else "bias"
            for c in changes
        )
        if names:
            yield f"  {role.value:<15} {len(names):>7}  " + ", ".join(f"{n} of {kind}" for kind, n in kinds.items())


def _memory_names(adapter: Adapter, checkpoint: Checkpoint) -> dict[str, str]:
    """The adapter's own name of each tensor -> its name in memory."""
    found = _known_names(adapter.changes, checkpoint)
    for name in adapter.changes:
        if name not in found and adapter.trained_in(name):
            # a trainer may have saved them from inside or from outside of the part that has the prefix
            spelled = _known_names([f"model.{name}", name.removeprefix("model.")], checkpoint)
            if spelled:
                found[name] = next(iter(spelled.values()))
    return found


def _known_names(names: Iterable[str], checkpoint: Checkpoint) -> dict[str, str]:
    if checkpoint.skeleton is None:
        return {name: name for name in names if name in checkpoint.tensors}
    return memory_names(checkpoint.skeleton, names)


def _require_one_each(adapter: Adapter, names: Mapping[str, str]) -> None:
    """Refuse an adapter that says two different things of one tensor, under two names."""
    first: dict[str, str] = {}
    for own, memory in names.items():
        other = first.setdefault(memory, own)
        keys = [adapter.changes[name].replacement for name in (other, own)]
        if other != own and not (keys[0] and keys[1] and adapter.same_values(keys[0], keys[1])):
            raise MergeError(f"{adapter.name} holds {other} and {own}, which are both {memory}: one has to go.")


def _problems(adapter: Adapter, names: dict[str, str], checkpoint: Checkpoint) -> list[str]:
    lost = [name for name in adapter.changes if name not in names]
    problems = [f"{name}: the model has no such tensor" for name in lost if adapter.trained_in(name) is None]
    for file in dict.fromkeys(file for name in lost if (file := adapter.trained_in(name))):
        without = [name for name in lost if adapter.trained_in(name) is file]
        problems.append(
            f"{file.path.name} holds {len(without)} tensors that the model has no place for ({some(without)}); if they "
            "are no part of it, move that file away"
        )
    for own, memory in names.items():
        partners = sorted(checkpoint.skeleton.tied_to(memory)) if checkpoint.skeleton else []
        if partners:
            problems.append(
                f"{own}: the model ties it to {', '.join(partners)}, which would change with it; "
                "merge that adapter with PEFT and untie the two"
            )
        elif memory in checkpoint.tensors:
            expected = checkpoint.tensors[memory].shape
            if (found := adapter.shape(own, expected)) != expected:
                rows = checkpoint.tensors[memory].vocabulary_axis is not None and found[1:] == expected[1:]
                hint = "; resize the model's embeddings as in training, and save it, to name it as the base"
                problems.append(f"{own}: the adapter is for {found}, the model has {expected}{hint if rows else ''}")
    return problems


def is_base(adapter: Adapter, given: str, checkpoint: Checkpoint) -> bool:
    """Whether the model that an adapter names is the one it is put on: the same name, place, or files."""
    said = adapter.base
    if said is None or said == given:
        return True
    here, there = checkpoint.directory, local_path(said)
    # beside the weights of a model, an adapter is put on these, whatever else it names
    if holds_weights(adapter.directory) and same_weights(here, adapter.directory):
        return True
    if (there / "config.json").is_file():
        return there.resolve() == here.resolve() or same_weights(here, there)
    # not on this machine: then the name must be that of the model, or the one under which its config knows itself
    last = said.rstrip("/").rpartition("/")[2].lower()
    known = (given, str(checkpoint.config.get("_name_or_path") or ""), *here.parts)
    return any(last == name.rstrip("/").replace("--", "/").rpartition("/")[2].lower() for name in known)


def same_weights(here: Path, there: Path) -> bool:
    """Whether two directories hold the same weight files; sizes first, bytes only if these agree."""
    if here.resolve() == there.resolve():
        return True
    names = weight_files(here)
    if names != weight_files(there) or not all((place / name).is_file() for place in (here, there) for name in names):
        return False
    sizes = [[(place / name).stat().st_size for name in sorted(names)] for place in (here, there)]
    return sizes[0] == sizes[1] and all(filecmp.cmp(here / name, there / name, shallow=False) for name in names)
