"""Models of the hub of which no more than headers and small files are read.

Such a model is laid out in a directory of its own: links to the small files, and for each safetensors file one that has
its header and its size, with a hole in the place of the values. Whatever looks at headers works there as it does in a
complete directory; what compares values has to ask `is_headers_only` first.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import SafetensorsFileMetadata, build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from mergekit.options import MergeOptions

from mergekit_mm.architecture.wrapping import is_alpha

# marks such a directory, and says where the model is in the cache, and for each file the hub's hash of it
_MARK = ".headers-only.json"


class HeaderOptions(MergeOptions, frozen=True):  # type: ignore[call-arg]
    """The options of a command that reads no values of models of the hub."""

    views: Path  # where these models are laid out


@contextmanager
def headers_only() -> Iterator[HeaderOptions]:
    """Options with which `locate` fetches headers and small files alone; what it lays out is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="mergekit-mm-") as directory:
        yield HeaderOptions(views=Path(directory))


def is_headers_only(directory: Path) -> bool:
    """Whether the weight files of a directory, or some of them, have headers but no values."""
    return (directory / _MARK).is_file()


def lasting_path(path: Path) -> Path:
    """Where a file or folder of a model is found later on: in the cache, if the model is laid out for its headers."""
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
    """The directory of a model whose `files` are not in the snapshot: its small files, and the headers of these.

    Raises:
        Exception: of the hub's library, where a header cannot be fetched.
    """
    # the form of the hub's cache, by which an adapter knows the name of its base
    view = views / f"models--{name.replace('/', '--')}" / "snapshots" / commit
    if is_headers_only(view):
        return view
    shutil.rmtree(view, ignore_errors=True)  # of an attempt that a broken connection ended
    for file in snapshot.rglob("*"):
        if file.is_file():
            link = view / file.relative_to(snapshot)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    for sibling in files:
        path = view / sibling.rfilename
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_header(path, _Remote(name, sibling.rfilename, commit), sibling.size or 0)
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs else f"git {s.blob_id}" for s in files}
    mark = {"snapshot": str(snapshot), "hashes": hashes}
    (view / _MARK).write_text(json.dumps(mark), encoding="utf-8")
    return view


def _mark(view: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((view / _MARK).read_text(encoding="utf-8"))
    return content


class _Remote:
    """One safetensors file of the hub."""

    def __init__(self, name: str, file: str, commit: str) -> None:
        self._place = (name, file)
        self._commit = commit

    def header(self) -> SafetensorsFileMetadata:
        return huggingface_hub.parse_safetensors_file_metadata(*self._place, revision=self._commit)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to before `stop`."""
        url = huggingface_hub.hf_hub_url(*self._place, revision=self._commit)
        headers = {**build_hf_headers(), "range": f"bytes={start}-{stop - 1}"}
        response = get_session().get(url, headers=headers, timeout=huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        content: bytes = response.content
        return content


def _write_header(path: Path, remote: _Remote, size: int) -> None:
    """Write a file of `size` bytes with a safetensors header and no values but the alphas of LoRA, which are single."""
    found = remote.header()
    held = {
        name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        for name, tensor in found.tensors.items()
    }
    metadata = {"__metadata__": found.metadata} if found.metadata else {}
    header = json.dumps({**metadata, **held}, ensure_ascii=False, separators=(",", ":")).encode()
    values = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
    begin = size - values
    header = header.ljust(begin - 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + values)
        for name, tensor in found.tensors.items():
            if is_alpha(name) and tensor.parameter_count == 1:
                start, stop = tensor.data_offsets
                file.seek(8 + len(header) + start)
                file.write(remote.read(begin + start, begin + stop))


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    told = same_on_hub(one, other)
    return filecmp.cmp(one, other, shallow=False) if told is None else told


def same_on_hub(one: Path, other: Path) -> bool | None:
    """Whether two files of one size hold the same bytes, by their hashes; None if both have their values here."""
    known = [_hash_on_hub(path) for path in (one, other)]
    if known == [None, None]:
        return None
    ours, theirs = (told or _hash(path) for told, path in zip(known, (one, other), strict=True))
    return ours == theirs


def _hash_on_hub(path: Path) -> str | None:
    if path.is_symlink():  # to a small file
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
