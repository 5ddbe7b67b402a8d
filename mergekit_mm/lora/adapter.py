"""A LoRA adapter on disk, as what it changes of which tensor; values are read one tensor at a time.

Names are those of the model that was trained: `<module path>.weight`, without PEFT's prefix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor

from mergekit_mm.architecture.disk import file_headers, read_json
from mergekit_mm.errors import MergeError
from mergekit_mm.numerics.task_vector import TaskVector

_PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|^module\.")
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?P<end>(\.default)?(\.weight)?|\.bias)"
)
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?)\.(?=[^.]+$)")

# features of PEFT whose adapters are more than base + scaling * B A, or change the base they are applied to
_REFUSED = {
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "layer_replication": "layer replication",
    "trainable_token_indices": "trainable tokens",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
}
_BASE_CHANGING = re.compile(r"pissa|olora|loftq|corda|lora_ga")
_ADVICE = "Merge it into its base with PEFT (merge_and_unload), save the model and name that directory instead."


@dataclass
class Change:
    """What an adapter does to one tensor: the keys of its file that say so."""

    a: str | None = None
    b: str | None = None
    bias: str | None = None  # what lora_B adds to the bias
    magnitude: str | None = None
    replacement: str | None = None
    scaling: float = 1.0
    is_embedding: bool = False
    is_bare: bool = False  # of a parameter without a module of its own, whose name and scaling the model has to tell


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter directory. Only the header of its file has been read."""

    name: str  # as the user wrote it
    file: Path  # its weights
    config: Mapping[str, Any]
    changes: Mapping[str, Change] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)  # by key of the file

    @property
    def base(self) -> str | None:
        """The model that the adapter says it was trained on."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def directory(self) -> Path:
        return self.file.parent

    @cached_property
    def _tensors(self) -> Mapping[str, Tensor]:
        return torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)  # only for .bin

    def _read(self, key: str) -> Tensor:
        if self.file.suffix != ".safetensors":
            return self._tensors[key]
        with safe_open(str(self.file), framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
            return tensor

    def needs_base(self, name: str) -> bool:
        """Whether the delta of a tensor can only be told from the base's values."""
        change = self.changes[name]
        return change.magnitude is not None or change.replacement is not None

    def rank(self, name: str) -> int | None:
        """The rank of what is added to a matrix; None for a tensor of which more is changed, or that is no matrix."""
        change = self.changes[name]
        if self.needs_base(name) or change.is_bare or change.a is None or len(self.shapes[change.a]) != 2:
            return None
        return self.shapes[change.a][0]

    def shape(self, name: str, base_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a changed tensor must have, where the adapter tells; `base_shape` where it does not."""
        change = self.changes[name]
        key = change.replacement or change.bias
        if key is not None:
            return self.shapes[key]
        if change.a is None or change.b is None:
            return base_shape
        a, b = self.shapes[change.a], self.shapes[change.b]
        if change.is_embedding or self.config.get("fan_in_fan_out"):
            return (a[1], b[0])
        return (b[0], *a[1:])

    def task_vector(self, name: str, base: Tensor | None) -> TaskVector:
        """What the adapter changes of a tensor: factors (out, r) and (r, in) with the scaling in the left one.

        Convolutions, biases and whole tensors come dense. `base` (the tensor that was adapted) is read where
        `needs_base` says so. float32 or wider.
        """
        change = self.changes[name]
        if change.bias is not None:
            return TaskVector(self._wide(change.bias) * change.scaling)
        factors = self._factors(change) if change.a is not None else None
        if not self.needs_base(name):
            assert factors is not None
            return factors
        assert base is not None
        wide = base.to(torch.promote_types(base.dtype, torch.float32))
        tuned = self._wide(change.replacement) if change.replacement else wide
        if factors is not None:
            if change.replacement and torch.equal(tuned.to(wide), wide):
                return factors  # PEFT saves the embeddings that it adapts whole, changed or not
            tuned = tuned + factors.dense(tuned.dtype)
        if change.magnitude is not None:
            # DoRA: the direction is the adapted weight's, the length of each row is learnt
            magnitude = self._wide(change.magnitude).reshape(-1, 1)
            tuned = tuned * (magnitude / torch.linalg.vector_norm(tuned, dim=1, keepdim=True))
        return TaskVector(tuned, base=base)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """B and A of a tensor as they are in the file, without the scaling, in float32 or wider."""
        change = self.changes[name]
        assert change.a is not None
        assert change.b is not None
        return self._wide(change.b), self._wide(change.a)

    def factor_shapes(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of A and B of a tensor."""
        change = self.changes[name]
        assert change.a is not None
        assert change.b is not None
        return self.shapes[change.a], self.shapes[change.b]

    def _factors(self, change: Change) -> TaskVector:
        assert change.a is not None
        assert change.b is not None
        a, b = self._wide(change.a), self._wide(change.b)
        if a.ndim > 2:  # a convolution: B is 1 x 1, so the product over the rank is a matrix product
            kernel = (b.flatten(1) @ a.flatten(1)).mul_(change.scaling)
            return TaskVector(kernel.reshape(b.shape[0], *a.shape[1:]))
        if change.is_embedding or self.config.get("fan_in_fan_out"):
            return TaskVector(a.T * change.scaling, right=b.T)
        return TaskVector(b * change.scaling, right=a)

    def _wide(self, key: str) -> Tensor:
        tensor = self._read(key)
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def open_adapter(name: str, directory: Path) -> Adapter:
    """Read what an adapter changes, from its config and the header of its file.

    Raises:
        MergeError: not a LoRA adapter, of a variant that is not plain LoRA or DoRA, incomplete or inconsistent.
    """
    file = directory / "adapter_config.json"
    if not file.is_file():
        named = sorted(found.parent.name for found in directory.glob("*/adapter_config.json"))
        hint = f" It is a folder of adapters, {', '.join(named)}: name one of them." if named else ""
        raise MergeError(f"{name} holds no adapter_config.json, so it is not a PEFT adapter.{hint}")
    config = read_json(file)
    _require_plain(name, config)
    changes: dict[str, Change] = {}
    weights = _weights(directory, name)
    try:
        shapes = {tensor.name: tensor.shape for tensor in file_headers(weights, weights.name)}
    except Exception as error:  # of safetensors, of pickle, or of what a damaged file makes of them
        raise MergeError(f"{weights} cannot be read: {error}") from error
    for key in shapes:
        _sort(name, key, changes)
    for tensor, change in changes.items():
        if (change.a is None) != (change.b is None):
            raise MergeError(f"{name} is incomplete: of {tensor} it holds only {change.a or change.b}.")
        if change.a is not None and change.b is not None:
            change.is_bare = _is_bare(config, tensor, change, shapes)
            if not change.is_bare:
                path = tensor.removesuffix(".weight")
                change.scaling = scaling(name, config, path, shapes[change.a], shapes[change.b])
        elif change.bias is not None:
            weight = changes.get(tensor.removesuffix(".bias") + ".weight")
            change.scaling = weight.scaling if weight else 1.0
        if change.magnitude is not None and (change.is_embedding or change.a is None or len(shapes[change.a]) > 2):
            raise MergeError(f"{name} applies DoRA to {tensor}, which is no linear layer. {_ADVICE}")
    if not changes:
        raise MergeError(f"{name} holds no tensors.")
    return Adapter(name, weights, config, changes, shapes)


def _require_plain(name: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise MergeError(f"{name} is a PEFT adapter of type {kind or 'unknown'}, not LORA. {_ADVICE}")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise MergeError(f"{name} uses {what}, which is more than a low-rank sum. {_ADVICE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _BASE_CHANGING.search(start):
        raise MergeError(
            f"{name} was started by {start}, which changes the base it is applied to. Save it once more with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain adapter of the original base."
        )
    if config.get("fan_in_fan_out") and config.get("use_dora"):
        raise MergeError(f"{name} applies DoRA to transposed layers. {_ADVICE}")


def _sort(name: str, key: str, changes: dict[str, Change]) -> None:
    """File one key of an adapter under the tensor that it changes."""
    path = _trained_name(key)
    if found := _PART.fullmatch(path):
        module, part = found["module"], found["part"]
        if found["end"] == ".bias":
            changes.setdefault(f"{module}.bias", Change()).bias = key
            return
        change = changes.setdefault(f"{module}.weight", Change())
        if part == "lora_magnitude_vector":
            change.magnitude = key
        elif part.endswith("A"):
            change.a = key
        else:
            change.b = key
        change.is_embedding |= "embedding" in part
        return
    if "lora_" in path or "token_adapter" in path or "trainable_tokens" in path:
        raise MergeError(f"{name} holds {key}, which is not part of a plain LoRA adapter. {_ADVICE}")
    changes.setdefault(_WRAPPED.sub(".", path), Change()).replacement = key


def _trained_name(key: str) -> str:
    """The name of a tensor in the model that was trained, without what PEFT and the wrappers of trainers put in."""
    path = _WRAPPERS.sub("", key)
    while path.startswith(_PREFIX):
        path = path.removeprefix(_PREFIX)
    return path


def _is_bare(config: Mapping[str, Any], tensor: str, change: Change, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether factors are of a bare parameter. PEFT names the module that has it, or, of several, a wrapper in that."""
    targets = config.get("target_parameters") or ()
    if not targets or change.is_embedding or len(shapes[change.a or ""]) != 2:
        return False
    module = tensor.removesuffix(".weight")
    if module.endswith(".base_layer"):
        return True
    named = {target.rpartition(".") for target in targets}
    weights = [holder for holder, _, parameter in named if parameter == "weight"]
    if any(module == holder or module.endswith(f".{holder}") or not holder for holder in weights):
        return False  # it has the same name either way
    return not _targets_module(config, module)


def _targets_module(config: Mapping[str, Any], module: str) -> bool:
    """Whether `target_modules` names a module, as PEFT matches it."""
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def scaling(
    name: str, config: Mapping[str, Any], path: str, a: tuple[int, ...], b: tuple[int, ...], matrices: int = 1
) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation, by PEFT's own matching of patterns to modules.

    name: of the adapter, for messages. path: of the module or bare parameter. a, b: the shapes of its factors, which
    have a rank for each of the `matrices` of a stack.

    Raises:
        MergeError: no rank and alpha, or factors of another rank.
    """
    try:
        ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
        rank = ranks.get(get_pattern_key(ranks.keys(), path), config.get("r"))
        alpha = alphas.get(get_pattern_key(alphas.keys(), path), config.get("lora_alpha"))
    except (AttributeError, re.error) as error:
        raise MergeError(f"{name}: rank_pattern or alpha_pattern of adapter_config.json is damaged: {error}") from None
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)):
        raise MergeError(f"{name}: adapter_config.json gives {path} the rank {rank} and the alpha {alpha}.")
    if a[0] != rank * matrices or b[1] != rank * matrices:
        stack = f" for each of {matrices} matrices" if matrices > 1 else ""
        raise MergeError(
            f"{name}: the factors of {path} are {b} and {a}, which is not the rank {rank}{stack} that "
            "adapter_config.json (r, rank_pattern) gives it."
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _weights(directory: Path, name: str) -> Path:
    for file in ("adapter_model.safetensors", "adapter_model.bin"):
        if (directory / file).is_file():
            return directory / file
    raise MergeError(f"{name} holds neither adapter_model.safetensors nor adapter_model.bin.")
