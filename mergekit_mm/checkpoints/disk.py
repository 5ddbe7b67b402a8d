"""The tensors in the files of a checkpoint directory, read from the files' headers alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

from mergekit_mm.checkpoints.mapped import opened, read_header
from mergekit_mm.errors import MergeError, SystemRefusal
from mergekit_mm.numerics.low_rank import lora_delta, stacked_lora_delta, widened, with_row_lengths

# the header of a safetensors file names dtypes in its own short form
_SAFETENSORS_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}

_OTHER_FORMATS = {".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx"}

# keys under which trainers put a state dict into a larger file
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")


@dataclass(frozen=True)
class Stored:
    """The keys that one tensor is computed from, in a file that was saved with PEFT still around the model."""

    whole: str  # the tensor before the adapter is applied, or the tensor that replaces it
    a: str | None = None
    b: str | None = None
    bias: str | None = None  # the key of the term that lora_B adds to a bias
    magnitude: str | None = None  # the key of DoRA's row lengths
    scaling: float = 1.0
    transposed: bool = False
    matrices: int | None = None  # number of matrices, if the tensor is a stack with factors for each matrix

    def value(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The tensor with its adapter applied; in float32 or wider if it has factors.

        read: gives the stored tensor of a key.
        """
        tensor = read(self.whole)
        if self.bias is not None:
            return widened(tensor) + widened(read(self.bias)) * self.scaling
        if self.a is None or self.b is None:
            return tensor
        a, b = widened(read(self.a)), widened(read(self.b))
        if self.matrices is None:
            delta = lora_delta(a, b, self.scaling, self.transposed)
        else:
            delta = stacked_lora_delta(a, b, self.scaling, self.matrices, self.transposed)
        tuned = delta.added_to(widened(tensor))
        return tuned if self.magnitude is None else with_row_lengths(tuned, widened(read(self.magnitude)))


@dataclass(frozen=True)
class DiskTensor:
    """One tensor of a checkpoint as the header of its file describes it. No value has been read."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: Stored | None = None  # the keys of its values, if these are not in one tensor of this name

    @property
    def is_folded(self) -> bool:
        """Whether the values are computed from several tensors of the file, in float32 or wider."""
        return self.stored is not None and (self.stored.b is not None or self.stored.bias is not None)

    @property
    def key(self) -> str:
        """The name in the file of the values, before any factors are added."""
        return self.stored.whole if self.stored else self.name

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def read_config(directory: Path) -> dict[str, Any]:
    """The parsed `config.json` of a checkpoint directory. MergeError: there is none, or it is damaged."""
    file = directory / "config.json"
    if not file.is_file():
        below = sorted(found.parent.name for found in directory.glob("*/config.json"))
        adapters = sorted(found.parent.name for found in directory.glob("*/adapter_config.json"))
        hint = f" Name one of the models in it: {', '.join(below)}." if below else ""
        hint += f" Name one of the adapters in it: {', '.join(adapters)}." if adapters else ""
        raise MergeError(
            f"{directory} holds no config.json, so it is not a transformers checkpoint.{_if_adapter(directory) or hint}"
        )
    config = read_json(file)
    named, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(named, str | None):
        raise MergeError(f"{file} is damaged: its model_type is {named!r}.")
    if not isinstance(classes, list | None) or not all(isinstance(name, str) for name in classes or ()):
        raise MergeError(f"{file} is damaged: its architectures are {classes!r}.")
    return config


def _if_adapter(directory: Path) -> str:
    """How to name the adapter in a directory, with a blank before it; empty if there is none."""
    if (directory / "adapter_config.json").is_file():
        return f" It is an adapter: write the model it belongs to before it, as in BASE+{directory}."
    if any((directory / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
        return " It is an adapter whose adapter_config.json is missing."
    return ""


def _other_weights(directory: Path) -> str:
    """The weights in a directory that cannot be loaded, with a blank before the text; empty if there are none.

    transformers does not load shards without an index either: where the index is missing, shards may be missing too.
    """
    if adapter := _if_adapter(directory):
        return adapter
    shards = sorted(p.name for p in directory.glob("*-of-*") if re.fullmatch(r".*\.(safetensors|bin)", p.name))
    if shards:
        count = int(found[1]) if (found := re.search(r"-of-(\d+)\.", shards[0])) else len(shards)
        kind = "model.safetensors" if shards[0].endswith(".safetensors") else "pytorch_model.bin"
        advice = f"name it {kind}" if count == len(shards) == 1 else f"fetch {kind}.index.json from where they came"
        some = ", ".join(shards[:3]) + (", ..." if len(shards) > 3 else "")
        return f" It has {len(shards)} of {count} shards, {some}, without their index: {advice}."
    others = sorted(p.name for p in directory.iterdir() if p.suffix in _OTHER_FORMATS)
    return f" What it has is in another format or has another name: {', '.join(others[:3])}." if others else ""


def read_json(file: Path) -> dict[str, Any]:
    """The config in a JSON file. MergeError: it is damaged."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MergeError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise MergeError(f"{file} is damaged: it holds no config.")
    return config


def weight_files(directory: Path) -> frozenset[str]:
    """Names of the files that a checkpoint's weights are loaded from, an index included; empty if it has no weights.

    Raises:
        MergeError: the index is damaged.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if index.is_file():
            return frozenset({index.name, *_named_files(index)})
        if (directory / name).is_file():
            return frozenset({name})
    return frozenset()


def _named_files(index: Path) -> set[str]:
    """The files that an index names.

    Raises:
        MergeError: the index is damaged, or names a file that is not in its directory.
    """
    named = read_json(index).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise MergeError(f"{index} is damaged: its weight_map does not name the file of each tensor.")
    for file in set(named.values()):
        path = Path(file)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in file:
            raise MergeError(f"The index {index} names {file}, which is not in its directory.")
    return set(named.values())


def _weights_below(directory: Path) -> str:
    """The folder that holds the weights which a directory lacks; empty if it has weights, or no such folder."""
    if any((directory / name).is_file() for name in weight_files(directory)):
        return ""
    folders = (found.name for found in sorted(directory.iterdir()) if found.is_dir() and weight_files(found))
    return next((name for name in folders if not (directory / name / "config.json").is_file()), "")


def read_headers(directory: Path) -> dict[str, DiskTensor]:
    """Every tensor of a checkpoint directory, by its name on disk, without reading any values.

    Raises:
        MergeError: there are no weights, or two sets of them; a shard that the index names is missing or damaged; or
            the index and the shards disagree about a tensor or its place.
    """
    if below := _weights_below(directory):
        raise MergeError(
            f"{directory} holds no weights, but {below}/ in it does, as scripts that gather the shards of a training "
            f"leave them: move what is in {below}/ up into the directory of the model."
        )
    for file in sorted(weight_files(directory)):  # An index that leads elsewhere is refused.
        if (path := directory / file).suffix == ".safetensors" and path.is_file():
            read_header(path)
    try:
        index = ShardedTensorIndex.from_disk(str(directory))
    except Exception as error:
        if any((directory / name).exists() for name in ("model.safetensors", "pytorch_model.bin")):
            raise MergeError(f"The weights in {directory} cannot be read: {error}") from error
        raise MergeError(
            f"{directory} holds no weights: neither model.safetensors nor pytorch_model.bin, nor an index of shards."
            + _other_weights(directory)
        ) from error
    single = "model.safetensors" if index.is_safetensors else "pytorch_model.bin"
    if (directory / single).exists() and {shard.filename for shard in index.shards} != {single}:
        raise MergeError(
            f"{directory} holds {single} and the shards of an index. transformers loads the former and mergekit the "
            "latter: remove what is out of date."
        )
    found: list[DiskTensor] = []
    for shard in index.shards:
        path = directory / shard.filename
        if not path.is_file():
            raise MergeError(f"{directory} is incomplete: its index names {shard.filename}, which is not there.")
        try:
            found += file_headers(path, shard.filename)
        except SystemRefusal:
            raise
        except Exception as error:
            raise MergeError(f"{path} cannot be read: {error}") from error
    named, present = set(index.tensor_paths.items()), {(tensor.name, tensor.file) for tensor in found}
    if named != present:
        absent, unlisted = sorted(named - present), sorted(present - named)
        raise MergeError(
            f"The index of {directory} and its shards disagree: "
            f"{len(absent)} tensors are named but absent {absent[:3]}, "
            f"{len(unlisted)} are present but not named {unlisted[:3]}."
        )
    return {tensor.name: tensor for tensor in found}


def file_headers(path: Path, file: str) -> Iterator[DiskTensor]:
    """Every tensor of one file, safetensors or pickled, without reading any values.

    file: the name of the file in the tensors' descriptions.

    Raises:
        SystemRefusal: the system cannot read it.
        MergeError: a tensor has a dtype that cannot be merged, or a pickle holds more than tensors.
        Exception: from safetensors or pickle, for a damaged file.
    """
    if path.suffix == ".safetensors":
        with opened(path) as shard:
            for name in shard.keys():
                view = shard.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(view.get_dtype())
                if dtype is None:
                    raise MergeError(f"tensor {name} has dtype {view.get_dtype()}, which cannot be merged")
                yield DiskTensor(name, file, tuple(view.get_shape()), dtype)
        return
    state = torch.load(path, map_location="meta", weights_only=True)
    within, inner = state_dict_in(state)
    if within:
        raise MergeError(
            f"its {len(inner)} tensors are under the key {within!r}, as in a checkpoint of training, where "
            f"transformers finds none either. Save them alone: `torch.save(torch.load(file)[{within!r}], file)`"
        )
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise MergeError(f"{name} is a {type(tensor).__name__} and no tensor, as in a checkpoint of training")
        yield DiskTensor(name, file, tuple(tensor.shape), tensor.dtype)


def state_dict_in(held: Any) -> tuple[str, dict[str, torch.Tensor]]:
    """The state dict in the content of a pickle, and the key of the content that holds it; empty for the content."""
    if not isinstance(held, dict):
        return "", {}
    for key in _STATE_KEYS:
        if isinstance(held.get(key), dict) and (found := _tensors(held[key])):
            return key, found
    return "", _tensors(held)


def _tensors(held: dict[Any, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the header of a safetensors file: `BF16`, `F8_E4M3`."""
    names = {known: name for name, known in _SAFETENSORS_DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def unpickled(path: Path) -> Any:
    """The content of a file of torch.save, read by torch's restricted unpickler; tensors stay on disk where they can.

    Raises:
        Exception: from torch or pickle, for a file that holds more than tensors and plain containers.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format of torch before 1.6 cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)
