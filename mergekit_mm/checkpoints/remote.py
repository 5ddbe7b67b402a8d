"""Models of the hub of which no more than headers and small files are read.

Such a model is laid out in a directory of its own: with links to the small files, and for each safetensors file one
with the same header and size and a hole in place of the values. Code that looks at headers works there as it does in a
complete directory. Code that compares values has to ask `is_headers_only` first.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import math
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.hf_api import RepoSibling

# The documentation has these three here; the package re-exports them in a way that mypy does not take for public.
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from mergekit.options import MergeOptions

from mergekit_mm.checkpoints.wrapping import layer_of_alpha

# a file that marks such a directory; it holds the model's place in the cache, and the hub's hash of each file
_MARK = ".headers-only.json"
_FIRST = 100_001  # bytes of the first read, as in the hub's library: most headers are shorter
_MOST = 100_000_000  # bytes of the longest header that safetensors accepts


class HeaderOptions(MergeOptions, frozen=True):  # type: ignore[call-arg]  # mypy does not see pydantic behind mergekit
    """The options of a command that reads no values of models of the hub."""

    views: Path  # where these models are laid out


@contextmanager
def headers_only() -> Iterator[HeaderOptions]:
    """Options with which `locate` fetches headers and small files alone. Laid out models last until the block ends."""
    with tempfile.TemporaryDirectory(prefix="mergekit-mm-") as directory:
        yield HeaderOptions(views=Path(directory))


def is_headers_only(directory: Path) -> bool:
    """Whether the weight files of a directory, or some of them, have headers but no values."""
    return (directory / _MARK).is_file()


def lasting_path(path: Path) -> Path:
    """The path at which a file or folder of a model stays: that in the cache if the model is laid out for headers."""
    for directory in path.parents:
        if is_headers_only(directory):
            return Path(_mark(directory)["snapshot"]) / path.relative_to(directory)
    return path


def has_readable_header(file: str) -> bool:
    """Whether a file of a repository is one of weights whose header can be read alone.

    The adapter of a repository is a small file, which is read whole.
    """
    path = PurePosixPath(file)
    return path.suffix == ".safetensors" and file != "adapter_model.safetensors"


def lay_out(name: str, commit: str, files: list[RepoSibling], snapshot: Path, views: Path) -> Path:
    """Lay out a model: with the small files, which are in the snapshot, and the headers of `files`, which are not.

    Returns:
        The new directory below `views`.

    Raises:
        Exception: from the hub's library, where a header cannot be fetched.
    """
    # the path has the form of the hub's cache, from which the name of an adapter's base is read
    view = views / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    if is_headers_only(view):
        return view
    shutil.rmtree(view, ignore_errors=True)  # a broken connection may have ended an earlier attempt
    for file in snapshot.rglob("*"):
        if file.is_file():
            link = view / file.relative_to(snapshot)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    for sibling in files:
        path = view / sibling.rfilename
        path.parent.mkdir(parents=True, exist_ok=True)
        assert sibling.size is not None  # `files_metadata` was asked for
        _write_header(path, sibling.size, partial(_read, name, sibling.rfilename, commit))
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs else f"git {s.blob_id}" for s in files}
    mark = {"snapshot": str(snapshot), "hashes": hashes}
    (view / _MARK).write_text(json.dumps(mark), encoding="utf-8")
    return view


def _mark(view: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((view / _MARK).read_text(encoding="utf-8"))
    return content


def _write_header(path: Path, size: int, read: Callable[[int, int], bytes]) -> None:
    """Write a file of `size` bytes with the header of the safetensors file on the hub.

    Its only values are the alphas of LoRA, single numbers that scale the factors.
    """
    start = read(0, _FIRST)
    length = min(struct.unpack("<Q", start[:8])[0], _MOST)
    end = 8 + length
    header = start[8:end] if end <= len(start) else read(8, end)
    with path.open("wb") as file:
        file.write(start[:8] + header)
        file.truncate(size)
        for name, tensor in _single_values(header):
            if layer_of_alpha(name) is not None:
                first, last = (end + offset for offset in tensor["data_offsets"])
                file.seek(first)
                file.write(read(first, last))


def _single_values(header: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, entry) of the tensors with one value in a safetensors header.

    Nothing is raised for a damaged header, which has none: the reader of the file will refuse it.
    """
    try:
        held: dict[str, dict[str, Any]] = json.loads(header)
        yield from ((name, tensor) for name, tensor in held.items() if math.prod(tensor.get("shape", [0])) == 1)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def _read(name: str, file: str, commit: str, start: int, stop: int) -> bytes:
    """The bytes of a file on the hub from `start` to before `stop`, or to its end."""
    url = huggingface_hub.hf_hub_url(name, file, revision=commit)
    headers = {**build_hf_headers(), "range": f"bytes={start}-{stop - 1}"}
    response = get_session().get(url, headers=headers, timeout=huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT)
    hf_raise_for_status(response)
    content: bytes = response.content
    return content


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    by_hash = same_on_hub(one, other)
    return filecmp.cmp(one, other, shallow=False) if by_hash is None else by_hash


def same_on_hub(one: Path, other: Path) -> bool | None:
    """Whether two files of one size hold the same bytes, by the hub's hashes; None if both have their values here."""
    known = [_hash_on_hub(path) for path in (one, other)]
    if known == [None, None]:
        return None
    ours, theirs = (known_hash or _hash(path) for known_hash, path in zip(known, (one, other), strict=True))
    return ours == theirs


def _hash_on_hub(path: Path) -> str | None:
    if path.is_symlink():  # links lead to small files
        return None
    for directory in path.parents:
        if is_headers_only(directory):
            hashes: Mapping[str, str] = _mark(directory)["hashes"]
            return hashes.get(path.relative_to(directory).as_posix())
    return None


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
