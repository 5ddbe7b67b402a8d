"""Checkpoints that were saved with PEFT still around the model: its names taken off, its factors found and folded.

A trainer that saves the state dict of a model under PEFT writes `base_model.model.` before names, and for one layer
`q_proj.base_layer.weight`, `q_proj.lora_A.default.weight` and `q_proj.lora_B.default.weight` instead of
`q_proj.weight`. Here such a checkpoint gets the names of the model itself; the values are computed when they are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from peft.utils.other import get_pattern_key
from safetensors import safe_open

from mergekit_mm.checkpoints.disk import DiskTensor, Stored, read_json, unpickled
from mergekit_mm.errors import MergeError

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(\.(?P<adapter>(?!(weight|bias)$)[^.]+))?(?P<end>\.weight|\.bias)?"
)
_ALPHA = re.compile(r"(.+)\.(?:lora_)?alpha(?:\.[^.]+)?")
_FACTOR = re.compile(r"lora_(embedding_)?[AB](\.|$)", re.IGNORECASE)
_REPLACED = re.compile(r"\.modules_to_save\.[^.]+\.")  # the trained copy of a module, the one that counts
_ORIGINAL = re.compile(r"\.original_module\.")  # the copy before the training
_BASE_LAYER = re.compile(r"\.base_layer\.(?=[^.]+$)")
_OF_LAYER = ("weight", "bias", "base_layer.weight", "base_layer.bias")
# Parts of paths that PEFT, torch.compile, FSDP and gradient checkpointing insert at the modules that they wrap.
_WRAPPERS = re.compile(
    r"(?<![^.])(base_model\.model|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_checkpoint_module)\."
)
_EVERYWHERE = ("module.", "_forward_module.")  # prefixes of DistributedDataParallel and Lightning before every name

# InternVL's own code wraps a part of the model when its config gives a rank, with an alpha of twice that
_RANK_IN_CONFIG = {"language_model.": "use_llm_lora", "vision_model.": "use_backbone_lora"}
_PEFT_DEFAULT = 8  # PEFT's own value of both r and lora_alpha, for an adapter_config.json that leaves them out
_LORA_CONFIGS = ("lora_config", "lora", "peft_config", "adapter_config", "lora_adapter_metadata")
_ADVICE = "Merge it with PEFT (merge_and_unload), save the model and name that directory instead."


class Part(NamedTuple):
    """What a name under PEFT says of one stored tensor of an adapter."""

    module: str  # the path of the layer that is adapted
    part: str  # lora_A, lora_B, lora_embedding_A, lora_embedding_B or lora_magnitude_vector
    adapter: str  # the name of the adapter; empty where names do not have it, as in the files that PEFT writes
    is_bias: bool


def part_of(name: str) -> Part | None:
    """Read a name like `q_proj.lora_A.default.weight`; None for a name that is none of LoRA's."""
    found = _PART.fullmatch(name)
    return found and Part(found["module"], found["part"], found["adapter"] or "", found["end"] == ".bias")


def is_factor(name: str) -> bool:
    """Whether a tensor is one factor of a product, so that averages of it mean nothing; as far as its name tells."""
    return _FACTOR.search(name) is not None


def is_alpha(name: str) -> bool:
    """Whether a tensor may be the alpha of a layer's factors, by which these are scaled; as far as its name tells."""
    return _ALPHA.fullmatch(name) is not None


def unwrapped(name: str) -> str:
    """A name without what PEFT and the wrappers of trainers put before the part of a model that they wrap."""
    return _WRAPPERS.sub("", name)


def lora_scaling(
    name: str,
    config: Mapping[str, Any],
    module: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    where: str,
    matrices: int = 1,
) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation, by PEFT's own matching of patterns to modules.

    config: with the keys of an adapter_config.json, read from `where`; a, b: the shapes of the factors of `module`,
    which may be a bare parameter; they have a rank for each of the `matrices` of a stack.

    Raises:
        MergeError: the config is damaged, or of another rank than the factors.
    """
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), module), config.get("r", _PEFT_DEFAULT))
        alpha = alphas.get(get_pattern_key(alphas.keys(), module), config.get("lora_alpha", _PEFT_DEFAULT))
    except (AttributeError, re.error) as error:
        raise MergeError(f"{name}: rank_pattern or alpha_pattern of {where} is damaged: {error}") from None
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise MergeError(f"{name}: {where} gives {module} the rank {rank} and the alpha {alpha}.")
    if a[0] != rank * matrices or b[1] != rank * matrices:
        stack = f" for each of {matrices} matrices" if matrices > 1 else ""
        raise MergeError(
            f"{name}: the factors of {module} are {b} and {a}, which is not the rank {rank}{stack} that "
            f"{where} (r, rank_pattern) gives it."
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


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
        embedding = "lora_embedding_A" in self.parts or "lora_embedding_B" in self.parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        return self.parts.get(a), self.parts.get(b)


class Unwrapped(NamedTuple):
    """A checkpoint under the names of the model itself."""

    disk: Mapping[str, DiskTensor]
    config: dict[str, Any]
    notes: list[str]


def unwrap(
    name: str, directory: Path, config: dict[str, Any], disk: Mapping[str, DiskTensor], known: Collection[str]
) -> Unwrapped:
    """Take PEFT's names off a checkpoint and find what each tensor is computed from.

    A checkpoint without such names is returned as it is. So is one of remote code that holds several adapters, or one
    that its config names: its code switches them on and off, so that no single sum stands for them.

    Args:
        known: names that the model of the config has itself; empty where that is not known.

    Raises:
        MergeError: factors whose scaling nothing tells, of a kind that is no plain sum, or without a weight.
    """
    names = _plain_names(disk, known)
    layers, adapters = _layers(name, names, known)
    if _is_switched(config, adapters):
        if known:
            raise MergeError(f"{name} holds the factors of several adapters ({', '.join(sorted(adapters))}). {_ADVICE}")
        return Unwrapped(disk, config, [])
    wholes = _wholes(name, names, layers, known)
    if not layers and all(plain == whole for plain, whole in wholes.items()):
        return Unwrapped(disk, config, [])
    if layers and (directory / "adapter_config.json").is_file() and _adapter_weights(directory):
        raise MergeError(
            f"{name} holds the factors of an adapter inside its weights and {_adapter_weights(directory)} beside them: "
            "remove the one that is not meant."
        )
    result = {plain: replace(disk[key], name=plain, stored=Stored(key)) for plain, key in wholes.items()}
    scalings = _Scalings(name, directory, config, disk)
    for module, layer in layers.items():
        _fold(name, module, layer, result, disk, scalings)
    wrapper = "PEFT" if layers or any("base_model.model." in key for key in disk) else "a trainer's wrapper"
    notes = [
        f"{name} was saved with {wrapper} around the model: its names are taken off"
        + (
            f", and the LoRA factors of {len(layers)} layers are added to their weights (scaling "
            f"{', '.join(f'{s:g}' for s in sorted(scalings.used))}, by {', '.join(sorted(scalings.where))})."
            if layers
            else "."
        )
    ]
    ranks = {
        key: 0 for key in _RANK_IN_CONFIG.values() if config.get(key)
    }  # a rank left in the config would make the model's code wrap the plain model
    return Unwrapped(result, {**config, **ranks}, notes)


def _plain_names(disk: Mapping[str, DiskTensor], known: Collection[str]) -> dict[str, str]:
    """Key in the file -> the name without what wraps the whole model or a part of it."""
    names = {key: key if key in known else unwrapped(key) for key in disk}
    while names and (prefix := _common_prefix(names.values())):
        names = {key: unwrapped(plain.removeprefix(prefix)) for key, plain in names.items()}
    return names


def _common_prefix(names: Collection[str]) -> str:
    """What a wrapper of the whole model has put before all names; empty if there is nothing like that."""
    return next((prefix for prefix in _EVERYWHERE if all(name.startswith(prefix) for name in names)), "")


def _layers(name: str, names: Mapping[str, str], known: Collection[str]) -> tuple[dict[str, _Layer], set[str]]:
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
        if (told := _ALPHA.fullmatch(plain)) and told[1] in layers:
            layers[told[1]].alpha = key
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
            if any(plain.removeprefix(f"{module}.") not in _OF_LAYER for module in wrapped):
                raise MergeError(f"{name} holds {key}, which is not part of a plain LoRA adapter. {_ADVICE}")
            if _ORIGINAL.search(plain):
                originals[_BASE_LAYER.sub(".", _ORIGINAL.sub(".", plain))] = key
                continue
            plain = _BASE_LAYER.sub(".", _REPLACED.sub(".", plain))
        if (other := found.setdefault(plain, key)) != key:
            raise MergeError(f"{name} holds {other} and {key}, which are both {plain} once PEFT's names are taken off.")
    return {**originals, **found}


def _fold(
    name: str,
    module: str,
    layer: _Layer,
    result: dict[str, DiskTensor],
    disk: Mapping[str, DiskTensor],
    scalings: _Scalings,
) -> None:
    """Enter into `result` that the weight of one layer, and its bias, are computed from several tensors."""
    a, b = layer.pair
    if a is None or b is None:
        raise MergeError(f"{name} is incomplete: of the LoRA factors of {module} it holds only {a or b}.")
    weight = result.get(f"{module}.weight")
    if weight is None:
        raise MergeError(f"{name} holds LoRA factors of {module} ({a}), but not the weight that they are added to.")
    scaling = scalings.of(module, layer)
    embedding = "lora_embedding_A" in layer.parts
    a_shape, b_shape = disk[a].shape, disk[b].shape
    plain, turned = (b_shape[0], *a_shape[1:]), (*a_shape[1:], b_shape[0])
    transposed = embedding or scalings.transposes or (plain != weight.shape == turned)
    magnitude = layer.parts.get("lora_magnitude_vector")
    if magnitude is not None and (transposed or len(weight.shape) != 2):
        raise MergeError(f"{name} applies DoRA to {module}, which is no plain linear layer. {_ADVICE}")
    if weight.shape != (turned if transposed else plain):
        raise MergeError(
            f"{name}: the LoRA factors of {module} are {b_shape} and {a_shape}, its weight is {weight.shape}."
        )
    stored = Stored(_key(weight), a, b, None, magnitude, scaling, transposed)
    result[weight.name] = replace(weight, stored=stored)
    if layer.bias is not None:
        bias = result.get(f"{module}.bias")
        if bias is None:
            raise MergeError(f"{name} holds {layer.bias}, but not the bias that it is added to.")
        result[bias.name] = replace(bias, stored=Stored(_key(bias), bias=layer.bias, scaling=scaling))


def _key(tensor: DiskTensor) -> str:
    assert tensor.stored is not None
    return tensor.stored.whole


class _Scalings:
    """By what the factors of a checkpoint are multiplied, as an adapter_config.json, its files or its config say."""

    def __init__(self, name: str, directory: Path, config: Mapping[str, Any], disk: Mapping[str, DiskTensor]) -> None:
        self.name, self.directory, self.config, self.disk = name, directory, config, disk
        file = directory / "adapter_config.json"
        self._beside = read_json(file) if file.is_file() else {}
        self._found = [("adapter_config.json", self._beside)] if "lora_alpha" in self._beside else []
        self._found += [(file, said) for file, said in self._of_files() if "lora_alpha" in said]
        self._found += [("config.json", said) for said in _of_config(config) if "lora_alpha" in said]
        self.used: set[float] = set()
        self.where: set[str] = set()

    @property
    def transposes(self) -> bool:
        return bool(self._beside.get("fan_in_fan_out"))

    def of(self, module: str, layer: _Layer) -> float:
        """The scaling of the factors of one layer. MergeError: nothing tells it."""
        a, b = (self.disk[key].shape for key in layer.pair if key is not None)
        where, scaling = self._told(module, a, b, layer.alpha)
        self.where.add(where)
        self.used.add(scaling)
        return scaling

    def _told(self, module: str, a: tuple[int, ...], b: tuple[int, ...], alpha: str | None) -> tuple[str, float]:
        if alpha is not None:
            return "alpha in the weights", self._number(alpha) / a[0]
        for where, said in self._found:
            return where, lora_scaling(self.name, {"r": a[0], **said}, module, a, b, where)
        for part, key in _RANK_IN_CONFIG.items():
            if module.startswith(part) and (rank := self.config.get(key)):
                said = {"r": rank, "lora_alpha": 2 * rank}
                return f"{key} in config.json", lora_scaling(self.name, said, module, a, b, "config.json")
        raise MergeError(
            f"{self.name} holds unmerged LoRA factors (of {module} and others), and nothing tells what they are "
            "multiplied by: put the adapter_config.json of the training (r, lora_alpha) into that directory. "
            f"Or: {_ADVICE[0].lower()}{_ADVICE[1:]}"
        )

    def _number(self, key: str) -> float:
        """The value of a stored tensor of one element."""
        path = self.directory / self.disk[key].file
        if path.suffix != ".safetensors":
            return float(unpickled(path)[key])
        with safe_open(str(path), framework="pt") as file:
            return float(file.get_tensor(key))

    def _of_files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the metadata of safetensors files say of LoRA."""
        for file in sorted({tensor.file for key, tensor in self.disk.items() if is_factor(key)}):
            if not file.endswith(".safetensors"):
                continue
            with safe_open(str(self.directory / file), framework="pt") as opened:
                metadata = opened.metadata() or {}
            said = {}
            for key, text in metadata.items():
                try:
                    said[key] = json.loads(text)
                except ValueError:
                    said[key] = text
            yield from ((file, found) for found in _of_config(said))


def _of_config(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings of LoRA in a config, at its top or under a name for them, with the keys of an adapter_config.json."""
    for found in (config, *(config.get(key) for key in _LORA_CONFIGS)):
        if not isinstance(found, Mapping):
            continue
        found = found["default"] if isinstance(found.get("default"), Mapping) else found
        said = {key: value for key, value in found.items() if key in ("r", "lora_alpha", "use_rslora")}
        said |= {key: value for key, value in found.items() if key in ("rank_pattern", "alpha_pattern")}
        rank = next((found[key] for key in ("lora_r", "lora_rank") if key in found), None)
        alpha = next((found[key] for key in ("alpha",) if key in found and found is not config), None)
        said |= {"r": rank} if rank is not None else {}
        said |= {"lora_alpha": alpha} if alpha is not None and "lora_alpha" not in said else {}
        yield said


def _adapter_weights(directory: Path) -> str:
    names = ("adapter_model.safetensors", "adapter_model.bin")
    return next((name for name in names if (directory / name).is_file()), "")
