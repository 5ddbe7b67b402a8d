"""Whether the weights of a checkpoint are quantized: told by its tensors, or by what its configs say of them."""

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

# names that packing gives to tensors, and no layer of its own has
_PACKED = re.compile(
    r"(\.|_)(qweight|qzeros|weight_packed|weight_scale(_inv)?|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|quant_state(\.[^.]+)?|SCB|W_q|qdata)$|\.weight\._data$|\.codebooks$"
)
_NARROW = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu}
# Integer types into which kernels pack several values; no buffer of a model is a matrix of these.
_WORDS = {torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64}
# Methods that transformers applies while loading, so that such a config may stand beside plain weights.
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
    """A checkpoint's config without what it says of quantization, and notes, once its weights are seen to be plain.

    A config may say so of plain weights, of which it speaks no longer: dequantized, or to be quantized on loading.

    Args:
        modelled: the state dict of the model that the config describes; empty where that is not known.

    Raises:
        MergeError: the weights are quantized, saying where that was seen.
    """
    said = dict(_said(config)) | {file: read_json(directory / file) for file in _FILES if (directory / file).is_file()}
    method = next((_method(found) for found in said.values()), "")
    where = f"{method or 'unknown method'}, by {', '.join(said)}" if said else ""
    seen = [tensor for tensor in disk.values() if _tells(tensor, modelled, bool(said))]
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
    if said and method not in _ON_THE_FLY:
        raise MergeError(
            f"{name} is quantized ({where}): merge the unquantized checkpoint instead. If its weights are plain, "
            f"remove {', '.join(said)}."
        )
    if not said:
        return dict(config), []
    note = (
        f"{name} speaks of quantization ({where}), but its weights are plain: they are merged as they are, and the "
        "output does not speak of it."
    )
    return without_quantization(config), [note]


def _said(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a config speaks of quantization, at any depth: (how to name the place, what it says)."""
    for key, value in config.items():
        if key in _CONFIG_KEYS and value:
            yield f"{path}{key} in config.json", value if isinstance(value, dict) else {"quant_method": value}
        elif isinstance(value, dict):
            yield from _said(value, f"{path}{key}.")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that does not speak of quantization, at any depth."""
    kept = {key: value for key, value in config.items() if key not in _CONFIG_KEYS}
    return {
        key: without_quantization(value) if isinstance(value, dict) else deepcopy(value) for key, value in kept.items()
    }


def _method(said: Mapping[str, Any]) -> str:
    inner = said.get("quantization")  # the key of hf_quant_config.json
    found = said.get("quant_method") or said.get("quant_algo") or said.get("quant_type")
    return str(found or (_method(inner) if isinstance(inner, dict) else "") or "").lower()


def _tells(tensor: DiskTensor, modelled: Mapping[str, Any], said: bool) -> bool:
    """Whether a tensor is one of a quantized layer, in a checkpoint that does or does not say that it is quantized."""
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
    return bool(is_weight or named or (narrow and (said or tensor.dtype.is_floating_point)))


def is_index(name: str) -> bool:
    """Whether a tensor's name is that of a known kind of integers: positions, indices, counts and masks."""
    return bool(
        re.search(
            r"(position_ids|num_batches_tracked|(index|indices|ids|mask|pos|offsets?|count(er)?|step|length|version|map))$",
            name,
        )
    )
