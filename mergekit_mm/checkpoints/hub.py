"""Where a model is: in a local directory, or on the hub, from where the files that a merge or its user needs come."""

from __future__ import annotations

import glob
import logging
from collections.abc import Collection, Iterable
from pathlib import Path

import huggingface_hub
from huggingface_hub import ModelInfo
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from mergekit.common import ModelPath
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.file_patterns import is_never_read
from mergekit_mm.checkpoints.remote import HeaderOptions, has_readable_header, lay_out
from mergekit_mm.errors import MergeError

LOG = logging.getLogger(__name__)

_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_WHOLE = ("model.safetensors", "model.safetensors.index.json")


def local_path(name: str) -> Path:
    """The path that a name would have on this machine, with `~` and `~user` as homes of users."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # there is no such user, so that `~user` is a name like any other
        return Path(name)


def locate(model: ModelPath, options: MergeOptions) -> Path:
    """The local directory of a model or adapter, downloaded with all its side files if it is on the hub.

    With `HeaderOptions`, only the headers of weights on the hub are fetched (see `remote`).

    Raises:
        MergeError: it has no name, cannot be found, or cannot be fetched.
    """
    if not model.path.strip():
        raise MergeError("A model has an empty name: write the path of its directory, or its id on the hub.")
    path = local_path(model.path)
    if path.is_dir():
        return path
    try:
        found = huggingface_hub.model_info(model.path, revision=model.revision, files_metadata=True)
    except RevisionNotFoundError as error:
        raise MergeError(
            f"The hub's {model.path} has no revision {model.revision}: name a branch, a tag or a commit that it has."
        ) from error
    except GatedRepoError as error:
        raise MergeError(_gated(model)) from error
    except Exception as error:
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code < 500
        if refused or isinstance(error, HFValidationError):
            raise MergeError(_no_model(model, path, error)) from error
        return _downloaded_before(model, options.transformers_cache, path, error)
    try:
        return _fetch(model, options, found)
    except GatedRepoError as error:
        raise MergeError(_gated(model)) from error
    except Exception as error:
        raise MergeError(
            f"The download of {model} broke off: {_in_a_line(error)} Run the command again: what was downloaded "
            "already is kept."
        ) from error


def _gated(model: ModelPath) -> str:
    page = f"{huggingface_hub.constants.ENDPOINT}/{model.path}"
    return f"{model} is gated on the hub: ask for access at {page}, then {_LOGIN}."


def _no_model(model: ModelPath, path: Path, error: Exception) -> str:
    """The refusal of a name that no model has."""
    if isinstance(error, HFValidationError):  # The error's own advice is for callers of the hub's library.
        why = "the id of a model on the hub."
    elif isinstance(error, RepositoryNotFoundError):
        why = f"a public model on the hub. If it is a private one, {_LOGIN}."
    else:
        why = f"a model that can be fetched from the hub: {_in_a_line(error)}"
    where = "" if path.is_absolute() else f" Relative paths start in {Path.cwd()}."
    return f"{model} is neither a local directory nor {why}{where}"


def _in_a_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).removesuffix(".") + "."


def _fetch(model: ModelPath, options: MergeOptions, found: ModelInfo) -> Path:
    """Download the files of a model that are needed, or with `HeaderOptions` the headers of its weights."""
    siblings = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    cache = options.transformers_cache

    def is_cached(file: str) -> bool:
        path = huggingface_hub.try_to_load_from_cache(model.path, file, cache_dir=cache, revision=found.sha)
        return isinstance(path, str)

    headers: list[str] = []
    if isinstance(options, HeaderOptions):
        if _has_safetensors(siblings):
            headers = [file for file in siblings if has_readable_header(file) and not is_never_read(file)]
        elif any(file.startswith("pytorch_model") and not is_cached(file) for file in siblings):
            LOG.warning(f"{model} has pickled weights, whose headers cannot be read alone: it is downloaded whole.")
    snapshot = Path(
        huggingface_hub.snapshot_download(
            model.path,
            revision=model.revision,
            cache_dir=cache,
            ignore_patterns=[glob.escape(file) for file in (*_left_out(siblings), *headers)],
        )
    )
    absent = [siblings[file] for file in headers if not (snapshot / file).is_file()]
    if not absent:
        return snapshot
    assert isinstance(options, HeaderOptions)
    return lay_out(model.path, snapshot.name, absent, snapshot, options.views)


def _has_safetensors(files: Collection[str]) -> bool:
    """Whether a repository, by the names of its files, has the weights of a whole model as safetensors."""
    return not {*_WHOLE}.isdisjoint(files)


def _left_out(files: Collection[str]) -> list[str]:
    """The files of a repository that no merge reads."""
    # beside whole safetensors, pickles are the same weights once more; beside an adapter they are parts of it
    whole = _has_safetensors(files)
    return [f for f in files if is_never_read(f) or (whole and "/" not in f and f.endswith((".bin", ".pth")))]


def _downloaded_before(model: ModelPath, cache: str | None, path: Path, error: Exception) -> Path:
    """A model in the cache of earlier downloads, where the hub does not answer. transformers takes it from there too.

    Raises:
        MergeError: the cache holds nothing of the model, or only a part.
    """

    def cached(ignored: Iterable[str] = ()) -> Path:
        patterns = [glob.escape(file) for file in ignored]
        found = huggingface_hub.snapshot_download(
            model.path, revision=model.revision, cache_dir=cache, ignore_patterns=patterns, local_files_only=True
        )
        return Path(found)

    try:
        return cached()
    except LocalEntryNotFoundError as refusal:
        if getattr(refusal, "snapshot_path", None) is None:  # the cache holds nothing of the model
            raise MergeError(_no_model(model, path, error)) from error
    # the missing files may be ones that no merge reads
    files = huggingface_hub.get_cached_repo_tree(model.path, revision=model.revision, cache_dir=cache)
    try:
        return cached(_left_out([file.path for file in files]))
    except LocalEntryNotFoundError as refusal:
        raise MergeError(
            f"Only a part of {model} is in the cache, as a check or an interrupted download leaves it, and the hub "
            f"cannot be reached: {_in_a_line(error)} Run this once with a network."
        ) from refusal
