"""The side files of a directory: the files beside the weights that a copy of the model takes along.

The inventory says of every file and folder whether it is copied, left out silently (another format, a leftover of
training) or left out with its name in a note. `checkpoints.weight_files` looks at the tensors in files of weights that
no model is loaded from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

from mergekit_mm.checkpoints.disk import read_json
from mergekit_mm.checkpoints.file_patterns import (
    FOLDERS_OF_OTHER_FORMATS,
    LEFTOVER_FOLDERS,
    OTHER_FORMATS,
    is_leftover,
    matches,
)
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.errors import MergeError

# a merge writes these itself; hidden files belong to the repository of the model
_WRITTEN_ANEW = ("config.json", "README.md", "mergekit_config.yml", ".*")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.ckpt")
_OWN_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "*.index.json", "adapter_*")
# a folder with one of these beside a model's or an adapter's config is a checkpoint of training
_OF_TRAINING = ("trainer_state.json", "training_args.bin", "optimizer*", "scheduler.pt", "rng_state*", "global_step*")


class _Fate(Enum):
    """What a merge does with a file or folder."""

    COPIED = auto()
    LEFT = auto()  # left out silently: it is known to be no part of the model
    NAMED = auto()  # left out and named in a note


@dataclass(frozen=True, eq=False)
class Inventory:
    """The side files of one directory."""

    files: dict[str, Path]  # path below the directory, with forward slashes -> file
    uncopied: dict[str, str]  # file or folder that is not copied and is no known leftover of training -> reason

    @cached_property
    def folders(self) -> dict[str, int]:
        """The folders that hold files, with the bytes of these."""
        sizes: dict[str, int] = {}
        for name, path in self.files.items():
            folder, slash, _ = name.partition("/")
            if slash:
                sizes[folder] = sizes.get(folder, 0) + path.stat().st_size
        return sizes


def take_inventory(directory: Path, weights: Collection[str] = (), inputs: Collection[Path] = ()) -> Inventory:
    """The side files of a model's directory and of its folders. Links are followed, but in no circles.

    Args:
        weights: names of the files that hold the tensors of the checkpoint.
        inputs: directories of the other inputs of the merge, which are not copied.
    """
    config = _config(directory)
    places = {path.resolve() for path in inputs}
    files: dict[str, Path] = {}
    uncopied: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            fate, reason = _folder_fate(path, config.get("model_type"), places)
            if fate is _Fate.COPIED:
                files |= _walk(path, f"{path.name}/", (directory.resolve(),))
        else:
            fate, reason = _file_fate(path, weights)
            if fate is _Fate.COPIED:
                files[path.name] = path
        if fate is _Fate.NAMED:
            uncopied[f"{path.name}{'/' if path.is_dir() else ''}"] = reason
    return Inventory(files, uncopied)


def describe_inventory(inventory: Inventory) -> str:
    """A line of text with the files that a merge over this model would copy."""
    single = [name for name in inventory.files if "/" not in name]
    folders = [f"{name}/ ({size_of(size)})" for name, size in inventory.folders.items()]
    return f"  copied by a merge over it: {', '.join([*single, *folders]) or 'nothing'}"


def _file_fate(path: Path, weights: Collection[str]) -> tuple[_Fate, str]:
    name = path.name
    if name in weights or matches(name, (*_WRITTEN_ANEW, *_OWN_WEIGHTS, *OTHER_FORMATS)) or is_leftover(name):
        return _Fate.LEFT, ""
    if not path.is_file():
        return _Fate.NAMED, "a link to nothing"
    if matches(name, _WEIGHTS):
        return _Fate.NAMED, "no tensors of the checkpoint"
    return _Fate.COPIED, ""


def _folder_fate(path: Path, model_type: object, inputs: Collection[Path]) -> tuple[_Fate, str]:
    place = path.resolve()
    if place in inputs:
        return _Fate.LEFT, ""
    if any(place in each.parents for each in inputs):
        return _Fate.NAMED, "holds an input of the merge"
    if _is_left(path) or matches(path.name, FOLDERS_OF_OTHER_FORMATS):
        return _Fate.LEFT, ""
    if (path / "mergekit_config.yml").exists():
        return _Fate.NAMED, "the output of a merge"
    own = _config(path)
    if model_type is not None and own.get("model_type") == model_type:
        return _Fate.NAMED, "another model of this architecture"
    held = [file.name for file in path.iterdir()]
    if held and all(fnmatch(name, "*.gguf") for name in held):
        return _Fate.LEFT, ""
    return _Fate.COPIED, ""


def _is_left(folder: Path) -> bool:
    """Whether training has left a folder, at whatever depth."""
    if matches(folder.name, LEFTOVER_FOLDERS):
        return True
    held = [file.name for file in folder.iterdir()]
    is_model = "config.json" in held or "adapter_config.json" in held
    return is_model and any(matches(name, _OF_TRAINING) for name in held)


def _walk(folder: Path, prefix: str, around: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """(path below the model's directory, file) of all files in a folder but leftovers of training."""
    place = folder.resolve()
    if place in around:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if not _is_left(path):
                yield from _walk(path, f"{prefix}{path.name}/", (*around, place))
        elif path.is_file() and not is_leftover(path.name) and not path.name.startswith("."):
            yield f"{prefix}{path.name}", path


def _config(directory: Path) -> dict[str, object]:
    """The config of the model in a directory; empty if there is none, or it cannot be read."""
    file = directory / "config.json"
    try:
        return dict(read_json(file)) if file.is_file() else {}
    except (MergeError, OSError):
        return {}
