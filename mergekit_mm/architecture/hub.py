"""Where a model is: a local directory, or one that is fetched from the hub with all that a merge and its user need."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from mergekit.common import ModelPath
from mergekit.options import MergeOptions

from mergekit_mm.architecture.disk import CheckpointError

# everything a checkpoint needs to be merged and to be used afterwards; weights in other formats are left out
_NOT_DOWNLOADED = [
    "*.gguf",
    "*.onnx",
    "*.msgpack",
    "*.h5",
    "*.pth",
    "original/*",
    "onnx/*",
    "consolidated*",
    "optimizer*",
]


def locate(model: ModelPath, options: MergeOptions) -> Path:
    """The local directory of a model or adapter, downloaded with all its side files if it is on the hub.

    Raises:
        CheckpointError: it cannot be found.
    """
    path = Path(model.path).expanduser()
    if path.is_dir():
        return path
    try:
        files = huggingface_hub.list_repo_files(model.path, revision=model.revision)
    except Exception:
        files = []  # offline, or there is no such model, as the next call will tell
    try:
        ignore = [*_NOT_DOWNLOADED, *(["*.bin"] if any(f.endswith(".safetensors") for f in files) else [])]
        return Path(
            huggingface_hub.snapshot_download(
                model.path,
                revision=model.revision,
                cache_dir=options.transformers_cache,
                ignore_patterns=ignore,
            )
        )
    except Exception as error:
        raise CheckpointError(
            f"{model} is neither a local directory nor a model that can be fetched from the hub: {error}"
        ) from error
