"""Whether the weights of a checkpoint are quantized, by its tensors and by its configs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mergekit_mm.checkpoints.disk import DiskTensor, dtype_name, read_json
from mergekit_mm.errors import MergeError

_CONFIG_KEYS = ("quantization_config", "compression_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")

# names of tensors that only quantized layers have
_PACKED = re.compile(
    r"(\.|_)(qweight|qzeros|weight_packed|weight_scale(_inv)?|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state(\.[^.]+)?|SCB|W_q|qdata)$|\.weight\._data$|\.codebooks$"
)
_NARROW = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
# Integer types into which kernels pack several values. No buffer of a model is a matrix of one of these types.
_WORDS = {torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64}
# Methods that transformers applies while it loads a model, so that a config may name them beside plain weights.
_ON_THE_FLY = frozenset(
    (
        "bitsandbytes",
        "bitsandbytes_4bit",
        "bitsandbytes_8bit",
        "fp8",
        "fbgemm_fp8",
        "mxfp4",
        "torchao",
        "quanto",
        "eetq",
    )
)


def require_plain(
    name: str, directory: Path, config: Mapping[str, Any], disk: Mapping[str, DiskTensor], modelled: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """A checkpoint's config without its entries about quantization, and notes, once its weights are seen to be plain.

    Plain weights may have a config with such entries: they were dequantized, or are to be quantized on loading.

    Args:
        name: the checkpoint as the user wrote it, for messages.
        directory: where the checkpoint is.
        disk: the checkpoint's tensors.
        modelled: the state dict of the model that the config describes; empty where the model is not known.

    Raises:
        MergeError: the weights are quantized. The message says by which tensor or entry.
    """
    entries = dict(_entries(config))
    entries |= {file: read_json(directory / file) for file in _FILES if (directory / file).is_file()}
    method = next((_method(entry) for entry in entries.values()), "")
    where = f"{method or 'unknown method'}, by {', '.join(entries)}" if entries else ""
    seen = [tensor for tensor in disk.values() if _is_quantized(tensor, modelled, bool(entries))]
    if seen:
        evidence = f"tensor {seen[0].name} has dtype {dtype_name(seen[0].dtype)}{', as have others' * (len(seen) > 1)}"
        is_leftover = all(tensor.dtype.is_floating_point and tensor.dtype not in _NARROW for tensor in seen)
        way_out = (
            " If its weights are dequantized, and not merely cast without these factors, remove them from it."
            if is_leftover
            else ""
        )
        raise MergeError(
            f"{name} is quantized ({where + '; ' if where else ''}{evidence}): merge the unquantized checkpoint "
            f"instead.{way_out}"
        )
    if entries and method not in _ON_THE_FLY:
        raise MergeError(
            f"{name} is quantized ({where}): merge the unquantized checkpoint instead. If its weights are plain, "
            f"remove {', '.join(entries)}."
        )
    if not entries:
        return dict(config), []
    note = (
        f"{name} speaks of quantization ({where}), but its weights are plain: they are merged as they are, and the "
        "output does not speak of it."
    )
    return without_quantization(config), [note]


def _entries(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, content) of the entries about quantization in a config, at any depth."""
    for key, value in config.items():
        if key in _CONFIG_KEYS and value:
            yield f"{path}{key} in config.json", value if isinstance(value, dict) else {"quant_method": value}
        elif isinstance(value, dict):
            yield from _entries(value, f"{path}{key}.")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config without its entries about quantization, at any depth."""
    kept = {key: value for key, value in config.items() if key not in _CONFIG_KEYS}
    return {
        key: without_quantization(value) if isinstance(value, dict) else deepcopy(value) for key, value in kept.items()
    }


def _method(entry: Mapping[str, Any]) -> str:
    """The name of the method in lower case; empty where the entry has none."""
    inner = entry.get("quantization")  # the key of hf_quant_config.json
    found = entry.get("quant_method") or entry.get("quant_algo") or entry.get("quant_type")
    return str(found or (_method(inner) if isinstance(inner, dict) else "") or "").lower()


def _is_quantized(tensor: DiskTensor, modelled: Mapping[str, Any], has_entry: bool) -> bool:
    """Whether a tensor belongs to a quantized layer.

    has_entry: whether a config of the checkpoint says that it is quantized.
    """
    if (known := modelled.get(tensor.name)) is not None:
        return bool(known.dtype.is_floating_point and (tensor.dtype in _NARROW or not tensor.dtype.is_floating_point))
    if tensor.dtype.is_floating_point and tensor.dtype not in _NARROW:
        return bool(_PACKED.search(tensor.name))
    if is_index(tensor.name) or tensor.dtype is torch.bool:
        return False
    is_matrix = len(tensor.shape) > 1
    is_weight = is_matrix and (tensor.name.endswith("weight") or tensor.dtype in _WORDS)
    narrow = is_matrix and tensor.dtype in _NARROW
    named = _PACKED.search(tensor.name) or re.search(r"\.g_idx$|_(blocks|scales)$", tensor.name)
    return bool(is_weight or named or (narrow and (has_entry or tensor.dtype.is_floating_point)))


def is_index(name: str) -> bool:
    """Whether a tensor, judged by its name, holds positions, indices, counts or a mask, which are integers anywhere."""
    return bool(
        re.search(
            r"(position_ids|num_batches_tracked|(index|indices|ids|mask|pos|offsets?|count(er)?|step|length|version|map))$",
            name,
        )
    )
