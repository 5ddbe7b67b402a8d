"""Names on disk and names in memory, and the conversion of values between the two, by transformers' own rules.

A checkpoint may use older names than the model's state dict, or store tensors split, fused, stacked or permuted.
transformers knows the conversion of each. Here the conversions are applied to the names and shapes of one checkpoint,
which gives groups of disk tensors that become memory tensors together. Each group can be converted in both directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from mergekit_mm.checkpoints.disk import DiskTensor
from mergekit_mm.checkpoints.meta_model import MetaModel
from mergekit_mm.checkpoints.transformers_private import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    get_model_conversion_mapping,
    rename_source_key,
)
from mergekit_mm.errors import MergeError


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors on disk that together become one or more tensors in memory.

    `disk` is in the order in which transformers collects the tensors. A mere renaming has one name on either side.
    """

    disk: tuple[str, ...]
    memory: tuple[str, ...]
    conversion: Conversion | None = None
    # name on disk -> shape, of a group that was derived without any file
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

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
    target: str  # the first memory name, from which transformers derives the others
    patterns: Mapping[str, str]  # disk name -> the source pattern that matches it
    stems: Mapping[str, str]  # name that the inverse conversion gives -> disk name

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


def group_names(meta_model: MetaModel, disk: Mapping[str, DiskTensor]) -> tuple[list[Group], list[str]]:
    """Group the tensors of one checkpoint by the tensors that they become in memory.

    Returns the groups and the names on disk that the model has no place for.

    Raises:
        MergeError: a conversion cannot be run on the tensors of the checkpoint, or cannot be undone.
    """
    model = meta_model.model
    renamings, converters = _transforms(model)
    groups: list[Group] = []
    unknown: list[str] = []
    collected: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(disk, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, meta_model.tensors)
        if target not in meta_model.tensors and name in meta_model.tensors:
            target, pattern = name, None  # a renaming would spoil a name that is one in memory already
        if target not in meta_model.tensors:
            unknown.append(name)
        elif pattern is None:
            groups.append(Group((name,), (target,)))
        else:
            collected.setdefault(target, []).append((name, pattern))
    for target, members in collected.items():
        stems = {stem: name for name, _ in members for stem in _stems(name, renamings, model.base_model_prefix)}
        # sub-models may share a pattern, so that the pattern does not tell the converter
        converter = next(c for stem in stems for c in converters if c.rename_source_key(stem)[1] is not None)
        conversion = Conversion(converter, model, target, dict(members), stems)
        groups.append(_converted_group(conversion, disk))
    return groups, unknown


@dataclass(frozen=True, eq=False)
class Place:
    """The tensor in memory that a name means: the whole tensor, or a part of it that one group of names becomes."""

    memory: str  # the tensor in memory; for a part of a group, the first one that the group makes
    shape: tuple[int, ...]  # the shape of the named tensor or part
    group: Group | None = None
    member: str = ""  # the group's own name for the part


def find_places(meta_model: MetaModel, names: Iterable[str]) -> dict[str, Place]:
    """The place in memory of each of these names, which may be those of any layout that transformers loads.

    Names of single experts have a place even where transformers itself has no conversion for them. Names that mean
    nothing in this model are left out.
    """
    model = meta_model.model
    renamings, converters = _transforms(model)
    converters = [*converters, *expert_converters(model, converters)]
    found: dict[str, Place] = {}
    groups: dict[str, Group | None] = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, meta_model.tensors)
        if name in meta_model.tensors:
            target, pattern = name, None  # a renaming would spoil a name that is one in memory already
        if target not in meta_model.tensors:
            continue
        if pattern is None:
            found[name] = Place(target, tuple(meta_model.tensors[target].shape))
            continue
        stems = _stems(name, renamings, model.base_model_prefix)
        if target not in groups:
            converter = next(c for stem in stems for c in converters if c.rename_source_key(stem)[1] is not None)
            groups[target] = _whole_group(meta_model, converter, target)
        if (group := groups[target]) is not None and (member := next((s for s in stems if s in group.shapes), None)):
            found[name] = Place(group.memory[0], group.shapes[member], group, member)
    return found


def _whole_group(meta_model: MetaModel, converter: WeightConverter, target: str) -> Group | None:
    """All names that become a tensor together by one conversion; None if the conversion cannot be undone.

    The names come from the inverse of the conversion, so that they need not be in any checkpoint.
    """
    first = converter.target_patterns[0]
    memory = [target.replace(first, other, 1) for other in converter.target_patterns]
    if any(name not in meta_model.tensors for name in memory):
        return None
    inverse, made_from = converter.reverse_transform(), ""
    try:
        for name in memory:
            renamed, pattern = inverse.rename_source_key(name)
            made_from = made_from or renamed
            inverse.add_tensor(renamed, name, pattern, meta_model.tensors[name])
        parts = _convert(inverse, made_from, meta_model.model)
    except Exception:  # operations may raise anything for shapes that they were not written for
        return None
    names = sorted(parts, key=dot_natural_key)
    patterns = {name: pattern for name in names if (pattern := converter.rename_source_key(name)[1]) is not None}
    if len(patterns) < len(names):
        return None
    conversion = Conversion(converter, meta_model.model, target, patterns, {name: name for name in names})
    return Group(tuple(names), tuple(memory), conversion, {name: tuple(parts[name].shape) for name in names})


def expert_converters(model: PreTrainedModel, known: Sequence[WeightConverter]) -> list[WeightConverter]:
    """Conversions of single experts to their fused stacks, for models without such a conversion in transformers.

    Megatron and the tools of inference engines write names of single experts for all models. The gate comes before the
    up projection, as in all of transformers' stacks that are not interleaved.
    """
    merged = {
        target for converter in known if len(converter.source_patterns) > 1 for target in converter.target_patterns
    }
    found: dict[str, WeightConverter] = {}
    for path, module in model.named_modules():
        stacks = {name: p for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
        container = ".".join(path.split(".")[-2:])
        interleaved = getattr(module, "is_concatenated", True) is False
        if not {"gate_up_proj", "down_proj"} <= stacks.keys() or interleaved or container in found:
            continue
        if any(f"{container}.gate_up_proj".endswith(target) for target in merged):
            continue
        (_, rows, columns), down = stacks["gate_up_proj"].shape, stacks["down_proj"].shape
        turned = [Transpose(1, 2)] if (rows, columns) == (down[2], 2 * down[1]) else []
        gate, up, out = (f"{container}.*.{part}_proj.weight" for part in ("gate", "up", "down"))
        found[container] = WeightConverter(
            [gate, up], f"{container}.gate_up_proj", [MergeModulelist(0), Concatenate(1), *turned]
        )
        found[f"{container} down"] = WeightConverter(out, f"{container}.down_proj", [MergeModulelist(0), *turned])
    return list(found.values())


def _transforms(model: PreTrainedModel) -> tuple[list[WeightRenaming], list[WeightConverter]]:
    """transformers' renamings and conversions of a model. Some keep state, so that each checkpoint needs new ones."""
    found = get_model_conversion_mapping(model)
    renamings = [t for t in found if isinstance(t, WeightRenaming)]
    return renamings, [t for t in found if isinstance(t, WeightConverter)]


def _stems(name: str, renamings: Sequence[WeightRenaming], prefix: str) -> tuple[str, ...]:
    """A disk name after the renamings; the same without and with the model's own prefix, as both are loaded."""
    for renaming in renamings:
        name, _ = renaming.rename_source_key(name)
    return name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}"


def _converted_group(conversion: Conversion, disk: Mapping[str, DiskTensor]) -> Group:
    """Run a conversion there and back on shapes alone, to see the names of its outputs and that it can be undone."""
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
