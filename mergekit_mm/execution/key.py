"""What the bytes of a merge depend on, in parts with names: an interrupted merge goes on if all are the same."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from mergekit import merge_methods
from mergekit.options import MergeOptions
from transformers import PreTrainedTokenizerBase

import mergekit_mm
from mergekit_mm.checkpoints.side_files.model_files import is_of_tokenizer
from mergekit_mm.checkpoints.weight_files import ADAPTER_CONFIG
from mergekit_mm.errors import system_errors
from mergekit_mm.methods import is_own_method, method_named
from mergekit_mm.plan.as_json import digest
from mergekit_mm.plan.merge_plan import MergePlan

Key = Mapping[str, Any]

# Options of mergekit that change neither a value nor a file of weights.
_WITHOUT_EFFECT = {
    *("quiet", "verbosity", "write_model_card", "copy_tokenizer", "trust_remote_code", "transformers_cache"),
    *("lora_merge_cache", "lazy_unpickle", "async_write", "write_threads", "num_threads", "clone_tensors"),
    *("low_cpu_memory", "read_to_gpu", "gpu_rich", "safe_serialization"),
}
_SOFTWARE = ("mergekit", "torch", "transformers", "numpy", "scipy", "safetensors")
_NUMERICS = ("checkpoints", "methods", "numerics", "tasks")  # the rooms whose code makes the values
_HEADER = 1 << 27  # At most so many bytes of a file are taken for its header.


def key_of(plan: MergePlan, options: MergeOptions, **more: Any) -> dict[str, Any]:
    """The key of a merge, in types that JSON has.

    more: what the command adds: strengths of a sweep, the rank of an adapter.
    """
    kept = options.model_dump()
    return {
        "config": plan.config.to_yaml(),
        "options": {name: value for name, value in kept.items() if name not in _WITHOUT_EFFECT} | more,
        "software": software(plan),
        "inputs": {str(path): _file(path) for path in sorted(inputs_of(plan))},
        "plan": digest(plan),
    }


def software(plan: MergePlan) -> dict[str, str]:
    """The versions of what computes, and the digest of the code of this package that does."""
    return {name: version_of(name) for name in _SOFTWARE} | {"mergekit-mm": _numerics(plan)}


def inputs_digest(plan: MergePlan) -> str:
    """A digest of the inputs that is the same on another machine: without the places and the times of files."""
    files = sorted([path.name, *_file(path)[0:3:2]] for path in inputs_of(plan))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def digest_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the tokens of a vocabulary and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def changes(old: Key, new: Key) -> list[str]:
    """What has changed between two keys, in words; empty if they are equal."""
    found = []
    if old.get("config") != new["config"]:
        found.append("the config")
    found += [f"the option {name}" for name in _differing(old.get("options"), new["options"])]
    found += [f"the version of {name}" for name in _differing(old.get("software"), new["software"])]
    found += [f"the input {name}" for name in _differing(old.get("inputs"), new["inputs"])]
    if not found and old != new:
        found.append("the plan")
    return found


def _differing(old: object, new: Mapping[str, Any]) -> list[str]:
    before = old if isinstance(old, dict) else {}
    return sorted(name for name in before.keys() | new.keys() if before.get(name) != new.get(name))


def _numerics(plan: MergePlan) -> str:
    """A digest of the code of this package that makes values, and of a merge method from elsewhere."""
    package = Path(mergekit_mm.__file__).parent
    files = [file for room in _NUMERICS for file in sorted((package / room).rglob("*.py"))]
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    if (source := _source_of(plan.config.merge_method)) is not None:
        found.update(Path(source).read_bytes())
    return found.hexdigest()


def _source_of(method: str) -> str | None:
    """The file in which a merge method is written, which may be the user's; None for a method made without a file."""
    host = merge_methods.get(method)
    made_by = method_named(method).solver if is_own_method(method) else getattr(host, "implementation", type(host))
    try:
        return inspect.getsourcefile(inspect.unwrap(made_by))
    except TypeError:
        return None


def inputs_of(plan: MergePlan) -> Iterator[Path]:
    """The files that values come from: weights, and what tells how they are to be read and where their rows are."""
    for checkpoint in plan.inputs.checkpoints.values():
        yield from (checkpoint.directory / file for file in checkpoint.files)
    for adaptation in plan.inputs.adaptations.values():
        yield from adaptation.adapter.files
    for directory in plan.inputs.directories:
        for path in directory.iterdir():
            if path.name in ("config.json", ADAPTER_CONFIG) or (is_of_tokenizer(path.name) and path.is_file()):
                yield path


def _file(path: Path) -> list[Any]:
    """What tells a file of weights from another without reading it; of a small file, its content."""
    with system_errors(path), path.open("rb") as file:
        if path.suffix == ".safetensors":
            length = file.read(8)
            head = length + file.read(min(int.from_bytes(length, "little"), _HEADER))
        elif path.suffix in (".json", ".txt", ".model", ".jinja"):
            return [hashlib.sha256(file.read()).hexdigest()]
        else:
            head = file.read(1 << 16)
        state = os.fstat(file.fileno())
    return [state.st_size, state.st_mtime_ns, hashlib.sha256(head).hexdigest()]
