"""Full checkpoints that were saved with PEFT still around the model: names taken off, factors found and folded.

Such a checkpoint gets the names of the model itself. The values are computed when they are read (`disk.Stored`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from mergekit_mm.checkpoints.bare_parameters import (
    is_target,
    is_turned,
    module_and_depth,
    number_of_matrices,
    outermost_first,
)
from mergekit_mm.checkpoints.disk import DiskTensor, Stored
from mergekit_mm.checkpoints.lora_scaling import RANK_IN_CONFIG, StoredScalings
from mergekit_mm.checkpoints.meta_model import MetaModel
from mergekit_mm.checkpoints.wrapping import MERGE_WITH_PEFT, layer_of_alpha, part_of, unwrapped
from mergekit_mm.errors import MergeError

_REPLACED = re.compile(r"\.modules_to_save\.[^.]+\.")  # the trained copy of a module, the one that counts
_ORIGINAL = re.compile(r"\.original_module\.")  # the copy before the training
_BASE_LAYERS = re.compile(r"(\.base_layer)+\.(?=[^.]+$)")
_OF_LAYER = ("weight", "bias", "base_layer.weight", "base_layer.bias")
_EVERYWHERE = ("module.", "_forward_module.")  # prefixes of DistributedDataParallel and Lightning before every name


class Unwrapped(NamedTuple):
    """A checkpoint under the names of the model itself."""

    disk: Mapping[str, DiskTensor]
    config: dict[str, Any]
    notes: list[str]


def unwrap(
    name: str, directory: Path, config: dict[str, Any], disk: Mapping[str, DiskTensor], meta_model: MetaModel | None
) -> Unwrapped:
    """Take PEFT's names off a checkpoint and find what each tensor is computed from.

    A checkpoint without such names is returned as it is. So is one of remote code that holds several adapters, or one
    that its config names: its code switches them on and off, so that no single sum stands for them.

    Args:
        meta_model: the model of the config; None for remote code.

    Raises:
        MergeError: factors whose scaling nothing tells, of a kind that is no plain sum, or without a weight.
    """
    known: Collection[str] = meta_model.tensors if meta_model else ()
    names = _plain_names(disk, known)
    layers, adapters = _layers(names, known)
    if _is_switched(config, adapters):
        if known:
            listed = ", ".join(sorted(adapters))
            raise MergeError(f"{name} holds the factors of several adapters ({listed}). {MERGE_WITH_PEFT}")
        return Unwrapped(disk, config, [])
    wholes = _wholes(name, names, layers, known)
    if not layers and all(plain == whole for plain, whole in wholes.items()):
        return Unwrapped(disk, config, [])
    if layers and (directory / "adapter_config.json").is_file() and _adapter_weights(directory):
        raise MergeError(
            f"{name} holds the factors of an adapter inside its weights and {_adapter_weights(directory)} beside them: "
            "remove the one that is not meant."
        )
    folding = _Folding(name, disk, StoredScalings(name, directory, config, disk), wholes)
    parameters = _bare_parameters(layers, wholes, meta_model, folding.scalings.adapter_config)
    for path, layer in layers.items():
        if meta_model is not None and path in parameters:
            folding.fold_bare_parameter(path, layer, parameters[path], meta_model)
        else:
            folding.fold_layer(path, layer)
    wrapper = "PEFT" if layers or any("base_model.model." in key for key in disk) else "a trainer's wrapper"
    note = f"{name} was saved with {wrapper} around the model: its names are taken off"
    if layers:
        scalings = ", ".join(f"{scaling:g}" for scaling in sorted(folding.scalings.used))
        note += (
            f", and the LoRA factors of {len(layers)} layers are added to their weights (scaling {scalings}, by "
            f"{', '.join(sorted(folding.scalings.where))})"
        )
    # a rank left in the config would make the model's code wrap the plain model
    ranks = {key: 0 for key in RANK_IN_CONFIG.values() if config.get(key)}
    return Unwrapped(folding.result, {**config, **ranks}, [f"{note}."])


@dataclass
class _Layer:
    """The stored parts of the adapter of one layer, by their keys in the file."""

    parts: dict[str, str] = field(default_factory=dict)
    bias: str | None = None
    alpha: str | None = None

    @property
    def keys(self) -> set[str]:
        return {key for key in (*self.parts.values(), self.bias, self.alpha) if key is not None}

    @property
    def pair(self) -> tuple[str | None, str | None]:
        """The keys of A and B."""
        embedding = "lora_embedding_A" in self.parts or "lora_embedding_B" in self.parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        return self.parts.get(a), self.parts.get(b)


def _plain_names(disk: Mapping[str, DiskTensor], known: Collection[str]) -> dict[str, str]:
    """Key in the file -> the name without the wrappers of the whole model or of a part of it."""
    names = {key: key if key in known else unwrapped(key) for key in disk}
    while names and (prefix := _common_prefix(names.values())):
        names = {key: unwrapped(plain.removeprefix(prefix)) for key, plain in names.items()}
    return names


def _common_prefix(names: Collection[str]) -> str:
    """The prefix that a wrapper of the whole model has put before all names; empty if there is none."""
    return next((prefix for prefix in _EVERYWHERE if all(name.startswith(prefix) for name in names)), "")


def _layers(names: Mapping[str, str], known: Collection[str]) -> tuple[dict[str, _Layer], set[str]]:
    """The adapted layers by their paths, and the names of the adapters."""
    layers: dict[str, _Layer] = {}
    adapters: set[str] = set()
    for key, plain in names.items():
        if key in known or (found := part_of(plain)) is None:
            continue
        adapters.add(found.adapter)
        layer = layers.setdefault(found.module, _Layer())
        if found.is_bias:
            layer.bias = key
        else:
            layer.parts[found.part] = key
    for key, plain in names.items():
        if (path := layer_of_alpha(plain)) in layers:
            layers[path].alpha = key
    return layers, adapters


def _is_switched(config: Mapping[str, Any], adapters: Collection[str]) -> bool:
    """Whether the adapters are the model's own, as Phi-4-multimodal has `vision` and `speech` for one medium each."""
    return len(adapters) > 1 or any(isinstance(config.get(f"{adapter}_lora"), dict) for adapter in adapters)


def _wholes(
    name: str, names: Mapping[str, str], layers: Mapping[str, _Layer], known: Collection[str]
) -> dict[str, str]:
    """Name in the model -> key of the whole tensor that stands for it, before any factors."""
    factors = {key for layer in layers.values() for key in layer.keys}
    found: dict[str, str] = {}
    originals: dict[str, str] = {}
    for key, plain in names.items():
        if key in factors:
            continue
        if key not in known:
            wrapped = {plain[: m.start()] for m in re.finditer(r"\.(?=[^.]+)", plain)} & layers.keys()
            is_own = _BASE_LAYERS.sub(".", plain) in known
            if not is_own and any(plain.removeprefix(f"{module}.") not in _OF_LAYER for module in wrapped):
                raise MergeError(f"{name} holds {key}, which is not part of a plain LoRA adapter. {MERGE_WITH_PEFT}")
            if _ORIGINAL.search(plain):
                originals[_BASE_LAYERS.sub(".", _ORIGINAL.sub(".", plain))] = key
                continue
            plain = _BASE_LAYERS.sub(".", _REPLACED.sub(".", plain))
        if (other := found.setdefault(plain, key)) != key:
            raise MergeError(f"{name} holds {other} and {key}, which are both {plain} once PEFT's names are taken off.")
    return {**originals, **found}


def _bare_parameters(
    layers: Mapping[str, _Layer],
    wholes: Mapping[str, str],
    meta_model: MetaModel | None,
    adapter_config: Mapping[str, Any],
) -> dict[str, str]:
    """The parameters whose factors have the name of a module that is no layer: path of the factors -> parameter."""
    targets = adapter_config.get("target_parameters") or ()
    modules: dict[str, dict[int, str]] = {}
    for path in layers:
        module, depth = module_and_depth(path)
        if f"{path}.weight" not in wholes:
            modules.setdefault(module, {})[depth] = path
    found: dict[str, str] = {}
    for module, paths in modules.items() if meta_model is not None else ():
        assert meta_model is not None
        inside = [n for n in meta_model.tensors if n.rpartition(".")[0] == module and is_target(n, targets)]
        if sorted(paths) == list(range(len(inside))):
            ordered = outermost_first(meta_model, inside)
            found |= {path: ordered[depth] for depth, path in paths.items()}
    return found


class _Folding:
    """The tensors of a checkpoint, each of which may be computed from a whole tensor and the factors of an adapter."""

    def __init__(
        self, name: str, disk: Mapping[str, DiskTensor], scalings: StoredScalings, wholes: Mapping[str, str]
    ) -> None:
        self.name, self.disk, self.scalings = name, disk, scalings
        self.transposes = bool(scalings.adapter_config.get("fan_in_fan_out"))
        self.result = {plain: replace(disk[key], name=plain, stored=Stored(key)) for plain, key in wholes.items()}

    def fold_layer(self, module: str, layer: _Layer) -> None:
        """Enter that the weight of one layer, and its bias, are computed from several tensors."""
        a, b = self._pair(module, layer)
        weight = self.result.get(f"{module}.weight")
        if weight is None:
            raise MergeError(
                f"{self.name} holds LoRA factors of {module} ({a}), but not the weight that they are added to."
            )
        a_shape, b_shape = self.disk[a].shape, self.disk[b].shape
        scaling = self.scalings.of(module, a_shape, b_shape, layer.alpha)
        embedding = "lora_embedding_A" in layer.parts
        plain, turned = (b_shape[0], *a_shape[1:]), (*a_shape[1:], b_shape[0])
        transposed = embedding or self.transposes or (plain != weight.shape == turned)
        magnitude = layer.parts.get("lora_magnitude_vector")
        if magnitude is not None and (transposed or len(weight.shape) != 2):
            raise MergeError(f"{self.name} applies DoRA to {module}, which is no plain linear layer. {MERGE_WITH_PEFT}")
        if weight.shape != (turned if transposed else plain):
            raise self._misfit(module, a_shape, b_shape, weight)
        self._enter(weight, Stored(_key(weight), a, b, None, magnitude, scaling, transposed))
        if layer.bias is not None:
            bias = self.result.get(f"{module}.bias")
            if bias is None:
                raise MergeError(f"{self.name} holds {layer.bias}, but not the bias that it is added to.")
            self._enter(bias, Stored(_key(bias), bias=layer.bias, scaling=scaling))

    def fold_bare_parameter(self, path: str, layer: _Layer, parameter: str, meta_model: MetaModel) -> None:
        """The same of a parameter that has no module of its own, whose factors are at `path`."""
        a, b = self._pair(path, layer)
        weight = self.result.get(parameter)
        if weight is None:
            raise MergeError(f"{self.name} holds LoRA factors of {parameter} ({a}), but not the tensor itself.")
        if layer.keys != {a, b}:
            raise MergeError(f"{self.name} adds more than LoRA factors to {parameter}. {MERGE_WITH_PEFT}")
        a_shape, b_shape = self.disk[a].shape, self.disk[b].shape
        turned = is_turned(meta_model, parameter, b_shape[0], a_shape[1])
        if turned is None or weight.shape != tuple(meta_model.tensors[parameter].shape):
            raise self._misfit(parameter, a_shape, b_shape, weight)
        matrices = number_of_matrices(weight.shape)
        scaling = self.scalings.of(parameter, a_shape, b_shape, None, matrices)
        stacked = matrices if len(weight.shape) == 3 else None
        self._enter(weight, Stored(_key(weight), a, b, scaling=scaling, transposed=turned, matrices=stacked))

    def _pair(self, path: str, layer: _Layer) -> tuple[str, str]:
        a, b = layer.pair
        if a is None or b is None:
            raise MergeError(f"{self.name} is incomplete: of the LoRA factors of {path} it holds only {a or b}.")
        return a, b

    def _misfit(self, path: str, a: tuple[int, ...], b: tuple[int, ...], weight: DiskTensor) -> MergeError:
        return MergeError(f"{self.name}: the LoRA factors of {path} are {b} and {a}, its weight is {weight.shape}.")

    def _enter(self, tensor: DiskTensor, stored: Stored) -> None:
        self.result[tensor.name] = replace(tensor, stored=stored)


def _key(tensor: DiskTensor) -> str:
    assert tensor.stored is not None
    return tensor.stored.whole


def _adapter_weights(directory: Path) -> str:
    names = ("adapter_model.safetensors", "adapter_model.bin")
    return next((name for name in names if (directory / name).is_file()), "")
