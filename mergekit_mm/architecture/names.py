"""Names on disk and names in memory, and the values behind them, with transformers' own conversions.

A checkpoint may use older names than the model's state dict, or store tensors split, fused, stacked or permuted.
transformers knows each conversion; here it is applied to the names and shapes of one checkpoint once, giving
groups of disk tensors that make memory tensors together, and each group can be run in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from mergekit_mm.architecture.disk import DiskTensor
from mergekit_mm.architecture.skeleton import Skeleton
from mergekit_mm.errors import MergeError


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors on disk which together are one or more tensors in memory.

    `disk` is in the order in which transformers collects it. A mere renaming has one name on either side.
    """

    disk: tuple[str, ...]
    memory: tuple[str, ...]
    conversion: Conversion | None = None

    def to_memory(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Disk tensors by name -> memory tensors by name. Values are moved, never cast."""
        if self.conversion is None:
            return {self.memory[0]: tensors[self.disk[0]]}
        return self.conversion.forward([(name, tensors[name]) for name in self.disk])

    def to_disk(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inverse of `to_memory`."""
        if self.conversion is None:
            return {self.disk[0]: tensors[self.memory[0]]}
        return self.conversion.backward([(name, tensors[name]) for name in self.memory])


@dataclass(frozen=True, eq=False)
class Conversion:
    """One transformers `WeightConverter` bound to the tensors of one layer."""

    converter: WeightConverter
    model: PreTrainedModel
    target: str  # the first memory name; transformers derives the others from it
    patterns: Mapping[str, str]  # disk name -> the source pattern that it matched
    stems: Mapping[str, str]  # name as the inverse conversion gives it -> disk name

    def forward(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        converter = deepcopy(self.converter)
        for name, tensor in tensors:
            converter.add_tensor(self.target, name, self.patterns[name], tensor)
        return _convert(converter, self.target, self.model)

    def backward(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        inverse = self.converter.reverse_transform()
        target = ""
        for name, tensor in tensors:
            renamed, pattern = inverse.rename_source_key(name)
            target = target or renamed
            inverse.add_tensor(renamed, name, pattern, tensor)
        return {self.stems[name]: tensor for name, tensor in _convert(inverse, target, self.model).items()}


def _convert(converter: WeightConverter, target: str, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    made = converter.convert(target, model=model, config=model.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def group_names(skeleton: Skeleton, disk: Mapping[str, DiskTensor]) -> tuple[list[Group], list[str]]:
    """Group the tensors of one checkpoint by what they become in memory.

    Returns the groups and the names on disk that the model has no place for.

    Raises:
        MergeError: a conversion cannot be run, or not be undone, on the tensors that are there.
    """
    model = skeleton.model
    renamings, converters = _transforms(model)
    groups: list[Group] = []
    unknown: list[str] = []
    collected: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(disk, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, skeleton.tensors)
        if target not in skeleton.tensors and name in skeleton.tensors:
            target, pattern = name, None  # already a name in memory, which a renaming would spoil
        if target not in skeleton.tensors:
            unknown.append(name)
        elif pattern is None:
            groups.append(Group((name,), (target,)))
        else:
            collected.setdefault(target, []).append((name, pattern))
    for target, members in collected.items():
        stems = {stem: name for name, _ in members for stem in _stems(name, renamings, model.base_model_prefix)}
        # sub-models may share a pattern, so ask which converter took this name
        converter = next(c for stem in stems for c in converters if c.rename_source_key(stem)[1] is not None)
        conversion = Conversion(converter, model, target, dict(members), stems)
        groups.append(_converted_group(conversion, disk))
    return groups, unknown


def memory_names(skeleton: Skeleton, names: Iterable[str]) -> dict[str, str]:
    """Which tensor in memory each of these names means, in whichever of the layouts that load they are written.

    Names that mean none, or only a part of one (stored converted), are left out.
    """
    model = skeleton.model
    renamings, converters = _transforms(model)
    found = {}
    for name in names:
        if name in skeleton.tensors:
            found[name] = name
            continue
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, skeleton.tensors)
        if target in skeleton.tensors and pattern is None:
            found[name] = target
    return found


def _transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """transformers' renamings and conversions of a model; some keep state, so each checkpoint needs its own."""
    found = get_model_conversion_mapping(model)
    renamings = [t for t in found if isinstance(t, WeightRenaming)]
    return renamings, [t for t in found if isinstance(t, WeightConverter)]


def _stems(name: str, renamings: Sequence[WeightRenaming], prefix: str) -> tuple[str, ...]:
    """A disk name after the renamings, as it is and with the model's own prefix taken off or put on: both load."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"


def _converted_group(conversion: Conversion, disk: Mapping[str, DiskTensor]) -> Group:
    """Run a conversion there and back on shapes alone, which names its outputs and proves that it can be undone."""
    names = tuple(conversion.patterns)
    shapes = {name: torch.empty(disk[name].shape, dtype=disk[name].dtype, device="meta") for name in names}
    try:
        memory = conversion.forward(list(shapes.items()))
        group = Group(names, tuple(memory), conversion)
        back = group.to_disk(memory)
    except Exception as error:
        raise MergeError(
            f"transformers' conversion of {names[0]} (and {len(names) - 1} more) to {conversion.target} "
            f"cannot be run on these tensors: {type(error).__name__}: {error}"
        ) from error
    if {n: t.shape for n, t in back.items()} != {n: t.shape for n, t in shapes.items()}:
        raise MergeError(
            f"transformers' conversion of {names[0]} (and {len(names) - 1} more) to {conversion.target} "
            "cannot be undone: the names or shapes that come back differ."
        )
    return group
