"""The output's config.json: the base's own, with only the entries that the merge changes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mergekit_mm.checkpoints.disk import DiskTensor

_DTYPE_KEYS = ("dtype", "torch_dtype")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers")
_VOCABULARY_KEYS = ("vocab_size", "vocab_size_per_layer_input")  # the second for the per-layer embeddings of Gemma 4
_KEYS_OF_INDICES = ("cross_attention_layers", "moe_layers", "mlp_only_layers")  # lists of indices of layers


def output_config(
    base: Mapping[str, Any],
    written: Mapping[str, DiskTensor],
    layers: Sequence[int] | None,
    vocab_size: int | None,
) -> dict[str, Any]:
    """The base's raw config with the written dtype and, where these change, the number of layers and the vocabulary.

    The written dtype is the one of most bytes in `written`.

    Args:
        written: the tensors on disk, by name.
        layers: for each layer of the output's language model, the index of the base's layer that it comes from; None
            if no layer is moved.
        vocab_size: rows of the output's embeddings; None if they are the base's.
    """
    config = deepcopy(dict(base))
    sizes: Counter[torch.dtype] = Counter()
    for tensor in written.values():
        if tensor.dtype.is_floating_point:
            sizes[tensor.dtype] += tensor.nbytes
    if sizes:
        _set_dtype(config, str(sizes.most_common(1)[0][0]).removeprefix("torch."))
    text = _text_config(config)
    if vocab_size is not None:
        text.setdefault("vocab_size", vocab_size)
        for part in (config, text):
            part |= {key: vocab_size for key in _VOCABULARY_KEYS if key in part}
    if layers is not None:
        _set_layers(text, layers)
    return config


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    """Set the dtype of a config in place."""
    if old := {config[key] for key in _DTYPE_KEYS if key in config}:
        _replace(config, old, dtype)
    elif dtype != "float32":  # A config without a dtype means float32.
        config["dtype"] = dtype


def _replace(config: dict[str, Any], old: set[Any], dtype: str) -> None:
    """Change the dtype in a config and in every sub-config that has the same one."""
    for key, value in config.items():
        if isinstance(value, dict):
            _replace(value, old, dtype)
        elif key in _DTYPE_KEYS and value in old:
            config[key] = dtype


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model, which may be the config itself."""
    multimodal = config.get("thinker_config", config.get("host", config))  # the first of Qwen-Omni; an omni model's
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(multimodal.get(key), dict):
            text: dict[str, Any] = multimodal[key]
            return text
    return config


def _set_layers(text: dict[str, Any], layers: Sequence[int]) -> None:
    """Change every entry on layers in the config of a language model, in place. layers: as of `output_config`."""
    old_count = next((text[key] for key in _LAYER_KEYS if key in text), None)
    for key in _LAYER_KEYS:
        if key in text:
            text[key] = len(layers)
    for key, value in text.items():
        if key in _KEYS_OF_INDICES and isinstance(value, list):
            text[key] = [new for new, index in enumerate(layers) if index in value]
        elif isinstance(value, list) and len(value) == old_count:  # one entry per layer, such as layer_types
            text[key] = [value[index] for index in layers]
    if isinstance(per_layer := text.get("per_layer_config"), dict):  # index of a layer -> entries for that layer alone
        by_index = {int(key): value for key, value in per_layer.items()}
        text["per_layer_config"] = {str(new): by_index[index] for new, index in enumerate(layers) if index in by_index}


def write_config(config: Mapping[str, Any], directory: Path) -> None:
    """Write a config as the config.json of a directory."""
    (directory / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
