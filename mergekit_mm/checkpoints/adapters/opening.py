"""Opening an adapter: what each key of its files means, and the refusal of what is more than base + scaling * B A.

Trainers save the tensors that they train whole beside the adapter, under many names: the projector of LLaVA in
`non_lora_trainables.bin`, a tower in `vit.safetensors`. Every file with tensors in the directory of an adapter belongs
to the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_mm.checkpoints.adapters.adapter import Adapter, Change
from mergekit_mm.checkpoints.disk import file_headers, read_json
from mergekit_mm.checkpoints.listing import some
from mergekit_mm.checkpoints.lora_scaling import lora_scaling
from mergekit_mm.checkpoints.quantization import is_index
from mergekit_mm.checkpoints.weight_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    WeightFile,
    holds_model,
    weights_beside,
)
from mergekit_mm.checkpoints.wrapping import part_of, unwrapped
from mergekit_mm.errors import MergeError

_WRAPPED = re.compile(r"\.modules_to_save(\.default)?(?=\.)|\.base_layer(?=\.[^.]+$)")
_ORIGINAL = ".original_module."  # the copy of a module from before the training, which PEFT keeps

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


def open_adapter(name: str, directory: Path) -> Adapter:
    """Read what an adapter changes, from its config and the headers of its files.

    A directory with nothing but tensors that were trained whole, such as LLaVA's first stage leaves, is an adapter too.

    Raises:
        MergeError: not a LoRA adapter, of a variant that is not plain LoRA or DoRA, incomplete or inconsistent; or a
            file beside it cannot be read.
    """
    own: Path | None = None
    config: Mapping[str, Any] = {}
    changes: dict[str, Change] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # beside the weights of a whole model, no loader reads more than the adapter
    files = [] if holds_model(directory) else weights_beside(directory, ADAPTER_WEIGHTS)
    if (directory / ADAPTER_CONFIG).is_file():
        config = read_json(directory / ADAPTER_CONFIG)
        _require_plain(name, config)
        own = _weights(directory, name)
        changes, shapes = _changes(name, config, own)
    elif not files:
        named = sorted(found.parent.name for found in directory.glob("*/adapter_config.json"))
        hint = f" It is a folder of adapters, {', '.join(named)}: name one of them." if named else ""
        raise MergeError(f"{name} holds no adapter_config.json, so it is not a PEFT adapter.{hint}")
    trained: dict[str, WeightFile] = {}
    copies: list[tuple[str, str, str]] = []  # (tensor, its key, key of a second copy)
    for file in files:
        _add_trained(name, file, changes, shapes, trained, copies)
    if not changes:
        raise MergeError(f"{name} holds no tensors.")
    _require_values(name, shapes)
    adapter = Adapter(name, directory, config, changes, shapes, own, trained)
    for tensor, key, copy in copies:
        if not adapter.same_values(key, copy):
            raise MergeError(f"{name} holds two values of {tensor}, {key} and {copy}: move one of the files away.")
    return adapter


def _changes(
    name: str, config: Mapping[str, Any], weights: Path
) -> tuple[dict[str, Change], dict[str, tuple[int, ...]]]:
    """The changes in the adapter's own file by the tensors they change, and the shapes in that file by their keys."""
    changes: dict[str, Change] = {}
    try:
        shapes = {tensor.name: tensor.shape for tensor in file_headers(weights, weights.name)}
    except Exception as error:  # safetensors and pickle raise errors of any type for damaged files
        raise MergeError(f"{weights} cannot be read: {error}") from error
    _require_values(name, shapes)
    own = _adapter_name(name, shapes)
    for key in shapes:
        _sort(name, key, own, changes)
    for tensor, change in changes.items():
        if (change.a is None) != (change.b is None):
            raise MergeError(f"{name} is incomplete: of {tensor} it holds only {change.a or change.b}.")
        if change.a is not None and change.b is not None:
            change.is_bare = _is_bare(config, tensor, change, shapes)
            if not change.is_bare:
                module = tensor.removesuffix(".weight")
                a, b = shapes[change.a], shapes[change.b]
                change.scaling = lora_scaling(name, config, module, a, b, ADAPTER_CONFIG)
        if change.magnitude is not None and (change.is_embedding or change.a is None or len(shapes[change.a]) > 2):
            raise MergeError(f"{name} applies DoRA to {tensor}, which is no linear layer. {_ADVICE}")
    for tensor, change in changes.items():  # a bias has the scaling of its weight, so that weights come first
        if change.bias is not None and (weight := changes.get(tensor.removesuffix(".bias") + ".weight")):
            change.scaling = weight.scaling
    return changes, shapes


def _add_trained(
    name: str,
    file: WeightFile,
    changes: dict[str, Change],
    shapes: dict[str, tuple[int, ...]],
    trained: dict[str, WeightFile],
    copies: list[tuple[str, str, str]],
) -> None:
    """Enter the tensors of a file beside an adapter as whole replacements.

    Raises:
        MergeError: the file cannot be read without running code of its own, or holds parts of another adapter.
    """
    if file.unreadable:
        raise MergeError(
            f"{name} holds {file}. If it is a part of what was trained, save it once more as safetensors; if not, "
            "move it away."
        )
    for tensor in file.tensors.values():
        if (is_index(tensor.name) and not tensor.dtype.is_floating_point) or _ORIGINAL in tensor.name:
            continue
        path = _trained_name(tensor.name)
        if part_of(path) is not None or "lora_" in path:
            raise MergeError(
                f"{name} holds {file}, which are parts of another adapter than {ADAPTER_WEIGHTS[0]}: move that file "
                "away, or into a directory of its own."
            )
        key = f"{file.path.name}:{tensor.name}"
        own = _WRAPPED.sub("", path)
        change = changes.setdefault(own, Change())
        if change.a is not None and own == path:
            raise MergeError(
                f"{name} holds factors of {own}, and {file.path.name} the whole of it, as a model has it into which "
                "the adapter is merged: move that file away, or name the merged model alone."
            )
        if change.replacement is not None:
            copies.append((own, change.replacement, key))
        change.replacement = change.replacement or key
        shapes[key], trained[key] = tensor.shape, file


def _require_values(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """MergeError where tensors are empty."""
    if empty := [key for key, shape in shapes.items() if 0 in shape]:
        raise MergeError(
            f"{name} holds {len(empty)} tensors without any values ({some(empty)}), as DeepSpeed ZeRO-3 leaves them "
            "where weights are saved before they are gathered: save them once more, after that."
        )


def _require_plain(name: str, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise MergeError(f"{name} is a PEFT adapter of type {kind or 'unknown'}, not LORA. {_ADVICE}")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise MergeError(f"{name} uses {what}, which is more than a low-rank sum. {_ADVICE}")
    if not isinstance(base := config.get("base_model_name_or_path"), (str, type(None))):
        raise MergeError(f"{name}: {ADAPTER_CONFIG} gives {base!r} as the base, which is no name of a model.")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and _BASE_CHANGING.search(start):
        raise MergeError(
            f"{name} was started by {start}, which changes the base it is applied to. Save it once more with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain adapter of the original base."
        )
    if config.get("fan_in_fan_out") and config.get("use_dora"):
        raise MergeError(f"{name} applies DoRA to transposed layers. {_ADVICE}")


def _adapter_name(name: str, keys: Iterable[str]) -> str:
    """The name that an adapter has in the keys of its file, where a trainer left it in; else PEFT's own, `default`.

    Raises:
        MergeError: the file holds several adapters.
    """
    parts = (part_of(_trained_name(key)) for key in keys)
    names = sorted({part.adapter for part in parts if part is not None and part.adapter})
    if len(names) > 1:
        raise MergeError(
            f"{name} holds {len(names)} adapters in one file ({', '.join(names)}), of which {ADAPTER_CONFIG} describes "
            f"one. Load the model with them in PEFT, `save_pretrained(folder)`, and name one of the directories in "
            "that folder."
        )
    return names[0] if names else "default"


def _sort(name: str, key: str, adapter: str, changes: dict[str, Change]) -> None:
    """File one key of an adapter, which may have the adapter's name in it, under the tensor that it changes."""
    path = _trained_name(key).replace(f".modules_to_save.{adapter}.", ".modules_to_save.")
    found = part_of(path)
    if found is not None:
        if found.is_bias:
            changes.setdefault(f"{found.module}.bias", Change()).bias = key
            return
        change = changes.setdefault(f"{found.module}.weight", Change())
        if found.part == "lora_magnitude_vector":
            change.magnitude = key
        elif found.part.endswith("A"):
            change.a = key
        else:
            change.b = key
        change.is_embedding |= "embedding" in found.part
        return
    if "lora_" in path or "token_adapter" in path or "trainable_tokens" in path:
        raise MergeError(f"{name} holds {key}, which is not part of a plain LoRA adapter. {_ADVICE}")
    if _ORIGINAL not in path:
        changes.setdefault(_WRAPPED.sub("", path), Change()).replacement = key


def _trained_name(key: str) -> str:
    """The name of a tensor in the model that was trained, without the parts that PEFT and trainers add."""
    return unwrapped(unwrapped(key).removeprefix("module."))


def _is_bare(config: Mapping[str, Any], tensor: str, change: Change, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether factors belong to a parameter without a module of its own.

    PEFT names such factors after the module that holds the parameter; if it adapts several parameters of one module,
    after its own wrappers around that module.
    """
    targets = config.get("target_parameters") or ()
    if not targets or change.is_embedding or len(shapes[change.a or ""]) != 2:
        return False
    module = tensor.removesuffix(".weight")
    if module.endswith(".base_layer"):
        return True
    named = {target.rpartition(".") for target in targets}
    weights = [holder for holder, _, parameter in named if parameter == "weight"]
    if any(module == holder or module.endswith(f".{holder}") or not holder for holder in weights):
        return False  # a parameter called `weight` has the same name as the weight of a module
    return not _targets_module(config, module)


def _targets_module(config: Mapping[str, Any], module: str) -> bool:
    """Whether `target_modules` names a module, as PEFT matches it."""
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _weights(directory: Path, name: str) -> Path:
    for file in ADAPTER_WEIGHTS:
        if (directory / file).is_file():
            return directory / file
    raise MergeError(f"{name} holds neither adapter_model.safetensors nor adapter_model.bin.")
