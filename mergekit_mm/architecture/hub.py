"""Where a model is: a local directory, or one that is fetched from the hub with all that a merge and its user need."""

from __future__ import annotations

import glob
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from mergekit.common import ModelPath
from mergekit.options import MergeOptions

from mergekit_mm.errors import MergeError
from mergekit_mm.side_files.inventory import is_never_read

_WHOLE = ("model.safetensors", "model.safetensors.index.json")


def local_path(name: str) -> Path:
    """The path that a name would have on this machine; `~` is the user's home, and of others that exist."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # a home of nobody's, which is a name as good as any other
        return Path(name)


def locate(model: ModelPath, options: MergeOptions) -> Path:
    """The local directory of a model or adapter, downloaded with all its side files if it is on the hub.

    Raises:
        MergeError: it cannot be found.
    """
    path = local_path(model.path)
    if path.is_dir():
        return path
    try:
        return _fetch(model, options.transformers_cache)
    except Exception as error:
        no_id = isinstance(error, HFValidationError)  # its advice is for callers of the hub's library
        why = "the id of a model on the hub." if no_id else f"a model that can be fetched from the hub: {error}"
        where = "" if path.is_absolute() else f" Relative paths start in {Path.cwd()}."
        raise MergeError(f"{model} is neither a local directory nor {why}{where}") from error


def _fetch(model: ModelPath, cache: str | None) -> Path:
    """Download a model; where the hub does not answer, what an earlier download left is taken, as transformers does."""
    try:
        files = huggingface_hub.list_repo_files(model.path, revision=model.revision)
    except Exception as error:
        if isinstance(error, (HFValidationError, HfHubHTTPError)):
            raise
        try:
            found = huggingface_hub.snapshot_download(
                model.path, revision=model.revision, cache_dir=cache, local_files_only=True
            )
        except LocalEntryNotFoundError:
            raise error from None
        return Path(found)
    # beside whole safetensors, pickles are the same weights once more; beside an adapter they are parts of it
    whole = not {*_WHOLE}.isdisjoint(files)
    ignore = [f for f in files if is_never_read(f) or (whole and "/" not in f and f.endswith((".bin", ".pth")))]
    patterns = [glob.escape(file) for file in ignore]
    return Path(
        huggingface_hub.snapshot_download(
            model.path, revision=model.revision, cache_dir=cache, ignore_patterns=patterns
        )
    )
