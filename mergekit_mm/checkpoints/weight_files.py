"""The files of weights in a directory: those of a model, those of an adapter, and the tensors of all others.

`side_files.inventory` is about the files that are copied; what is in a file is looked at here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mergekit_mm.checkpoints.disk import DiskTensor, file_headers, state_dict_in, weight_files
from mergekit_mm.checkpoints.file_patterns import OTHER_FORMATS, TRAINING_STATE, matches
from mergekit_mm.checkpoints.listing import some

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in the order in which PEFT looks for them

_WITH_TENSORS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OTHER_FORMATS = (*OTHER_FORMATS, "*.npz", "*.mlpackage")
# pickled copies of weights that are there as safetensors too
_PICKLED_TWINS = ("pytorch_model.bin", "pytorch_model-*-of-*.bin")
_OF_THE_MODEL = ("spk_dict.pt",)  # files that a model's class reads by itself: Qwen2.5-Omni's voices


@dataclass(frozen=True, eq=False)
class WeightFile:
    """A file of weights from which no model is loaded by its name. Only its header has been read."""

    path: Path
    tensors: Mapping[str, DiskTensor]
    within: str = ""  # the key of the state dict in a larger pickle; empty if the file is the state dict
    unreadable: str = ""  # why the file cannot be read; empty if it can

    def __str__(self) -> str:
        if self.unreadable:
            return f"{self.path.name} (cannot be read: {self.unreadable})"
        return f"{self.path.name} ({len(self.tensors)} tensors: {some(self.tensors)})"


def holds_weights(directory: Path) -> bool:
    """Whether a directory holds weights under the names by which transformers finds those of a whole model."""
    return bool(weight_files(directory))


def holds_model(directory: Path) -> bool:
    """Whether a directory is a model by itself. Weights without a config are a part of one, such as an adapter's."""
    return holds_weights(directory) and (directory / "config.json").is_file()


def holds_adapter(directory: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (directory / ADAPTER_CONFIG).is_file() and any((directory / name).is_file() for name in ADAPTER_WEIGHTS)


def weights_beside(directory: Path, used: Collection[str]) -> list[WeightFile]:
    """The files with tensors in a directory that are neither `used` nor the state of a training. used: file names."""
    found = []
    for path in _files(directory, used):
        if path.suffix in _WITH_TENSORS and not matches(path.name, (*TRAINING_STATE, *_OTHER_FORMATS, *_OF_THE_MODEL)):
            file = _opened(path)
            if file.tensors or file.unreadable:
                found.append(file)
    return found


def unused_weight_files(directory: Path, used: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """(description, file names) of the weights in a directory beside the `used` files, which are given by name."""
    twins = [path.name for path in _files(directory, used) if matches(path.name, _OTHER_FORMATS)]
    if any(name.endswith(".safetensors") and name not in ADAPTER_WEIGHTS for name in used):
        twins += [path.name for path in _files(directory, used) if matches(path.name, _PICKLED_TWINS)]
    for file in weights_beside(directory, {*used, *twins}):
        yield str(file), [file.path.name]
    if twins:
        yield f"{some(twins)} (weights in other formats)", twins
    if left := [path.name for path in _files(directory, {*used, *twins}) if matches(path.name, TRAINING_STATE)]:
        yield f"{some(left)} (the state of a training)", left


def _files(directory: Path, used: Collection[str]) -> list[Path]:
    return [path for path in sorted(directory.iterdir()) if path.is_file() and path.name not in used]


def _opened(path: Path) -> WeightFile:
    try:
        if path.suffix == ".safetensors":
            return WeightFile(path, {tensor.name: tensor for tensor in file_headers(path, path.name)})
        held = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # safetensors and pickle raise errors of any type for damaged files
        return WeightFile(path, {}, unreadable=str(error).strip().splitlines()[0].rstrip(".:"))
    within, state = state_dict_in(held)
    tensors = {name: DiskTensor(name, path.name, tuple(t.shape), t.dtype) for name, t in state.items()}
    return WeightFile(path, tensors, within)
