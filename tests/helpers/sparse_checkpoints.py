"""Checkpoints of any size that take no space: real configs, real tensor names and shapes, no values.

A safetensors file is a header and a run of bytes; the bytes are left as a hole in the file, which reads as zeros.
So a 72B model can be planned, and its merge checked for shapes and names, on a laptop.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers.core_model_loading import revert_weight_conversion

from mergekit_mm.checkpoints.meta_model import meta_model_of

_SHORT = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}


def write_sparse(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    """Write a safetensors file with these names, shapes and dtypes, and a hole where the values would be."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _SHORT[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def sparse_checkpoint(directory: Path, config: Mapping[str, object], dtype: torch.dtype = torch.bfloat16) -> Path:
    """A checkpoint of a transformers config, named as `save_pretrained` names it, without values."""
    directory.mkdir(parents=True)
    text = json.dumps(config)
    (directory / "config.json").write_text(text)
    _write_shards(directory, _on_disk(text, dtype))
    return directory


@functools.cache
def _on_disk(config: str, dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a model's tensors by their names in a checkpoint. Large models take seconds."""
    meta_model = meta_model_of(json.loads(config))
    assert meta_model is not None, "transformers does not know this model type"
    state = {name: t for name, t in meta_model.tensors.items() if name not in meta_model.aliases}
    disk = revert_weight_conversion(meta_model.model, dict(state))
    return {n: (tuple(t.shape), dtype if t.is_floating_point() else t.dtype) for n, t in disk.items()}


def _write_shards(
    directory: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], limit: int = 4 << 30
) -> None:
    """Shards with an index, as on the hub: one larger file could not be mapped on a small machine."""
    shards: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{}]
    filled = 0
    for name, (shape, dtype) in tensors.items():
        size = torch.Size(shape).numel() * dtype.itemsize
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = (shape, dtype)
        filled += size
    if len(shards) == 1:
        return write_sparse(directory / "model.safetensors", shards[0])
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, content in zip(files, shards, strict=True):
        write_sparse(directory / file, content)
    weight_map = {name: file for file, content in zip(files, shards, strict=True) for name in content}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return None
