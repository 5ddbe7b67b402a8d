"""Names on disk and names in memory, and the values behind them, with transformers' own conversions.

A checkpoint may use older names than the model's state dict, or store tensors split, fused, stacked or permuted.
transformers knows each conversion; here it is applied to the names and shapes of one checkpoint once, giving
groups of disk tensors that make memory tensors together, and each group can be run in both directions.
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
    """Tensors on disk which together are one or more tensors in memory.

    `disk` is in the order in which transformers collects it. A mere renaming has one name on either side.
    """

    disk: tuple[str, ...]
    memory: tuple[str, ...]
    conversion: Conversion | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(
        default_factory=dict
    )  # shapes on disk, for a group that was derived without any file

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


def group_names(meta_model: MetaModel, disk: Mapping[str, DiskTensor]) -> tuple[list[Group], list[str]]:
    """Group the tensors of one checkpoint by what they become in memory.

    Returns the groups and the names on disk that the model has no place for.

    Raises:
        MergeError: a conversion cannot be run, or not be undone, on the tensors that are there.
    """
    model = meta_model.model
    renamings, converters = _transforms(model)
    groups: list[Group] = []
    unknown: list[str] = []
    collected: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(disk, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, meta_model.tensors)
        if target not in meta_model.tensors and name in meta_model.tensors:
            target, pattern = name, None  # already a name in memory, which a renaming would spoil
        if target not in meta_model.tensors:
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


@dataclass(frozen=True, eq=False)
class Place:
    """Which tensor in memory a name means: that tensor, or a part of what one group of names is converted to."""

    memory: str  # the tensor in memory; for a part of a group, the first one that the group makes
    shape: tuple[int, ...]  # the shape of the named tensor or part
    group: Group | None = None
    member: str = ""  # the group's own name for the part


def find_places(meta_model: MetaModel, names: Iterable[str]) -> dict[str, Place]:
    """Where each of these names is in memory, in whichever of the layouts that load they are written.

    Names of single experts have a place also where transformers itself has no conversion for them. Names that mean
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
            target, pattern = name, None  # already a name in memory, which a renaming would spoil
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
    """All names that are converted to a tensor together; None if the conversion cannot be undone.

    The inverse of the conversion tells them, so that they need not be on the disk of any checkpoint.
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
    except Exception:  # whatever an operation makes of shapes that it was not written for
        return None
    names = sorted(parts, key=dot_natural_key)
    patterns = {name: pattern for name in names if (pattern := converter.rename_source_key(name)[1]) is not None}
    if len(patterns) < len(names):
        return None
    conversion = Conversion(converter, meta_model.model, target, patterns, {name: name for name in names})
    return Group(tuple(names), tuple(memory), conversion, {name: tuple(parts[name].shape) for name in names})


def expert_converters(model: PreTrainedModel, known: Sequence[WeightConverter]) -> list[WeightConverter]:
    """Conversions of single experts to their fused stacks, for models whose checkpoints never had them one by one.

    Megatron and the tools of inference engines write such names all the same. The gate comes before the up projection,
    as in all of transformers' stacks that are not interleaved.
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
