"""The weight files of one output on disk: at their full size from the start, and filled range by range."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mergekit_mm.errors import MergeError, system_errors
from mergekit_mm.execution.layout import Layout

INDEX = "model.safetensors.index.json"
_BLOCK = 1 << 24  # bytes in one call of the system


class WeightFiles:
    """The files of a layout in a directory. Any process may write any tensor; each writes its own byte range."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        self.directory, self.layout = directory, layout

    def create(self) -> None:
        """Make the files at their full size, so that a disk without room for them shows now; values stay.

        Raises:
            MergeError: the disk has no room, or takes no file of such a size.
        """
        self.directory.mkdir(exist_ok=True)
        for file in self.layout.files:
            path = self.directory / file.name
            with system_errors(path), _opened(path, os.O_RDWR | os.O_CREAT) as handle:
                if os.fstat(handle).st_size != file.nbytes:
                    os.ftruncate(handle, 0)
                    _reserve(handle, file.nbytes)
                _write(handle, memoryview(file.header), 0)
        if self.layout.index is not None:
            text = json.dumps(self.layout.index, indent=2)
            (self.directory / INDEX).write_text(text, encoding="utf-8")

    def missing_bytes(self) -> int:
        """The bytes that `create` will ask the disk for."""
        return sum(
            file.nbytes
            for file in self.layout.files
            if not (path := self.directory / file.name).is_file() or path.stat().st_size != file.nbytes
        )

    def path_of(self, name: str) -> Path:
        """The file of a tensor, or of a part of one."""
        return self.directory / self.layout.written[name].file

    def write(self, name: str, tensor: torch.Tensor) -> str:
        """Write a tensor, or a part of one, into its range; returns the SHA-256 of its bytes.

        Raises:
            MergeError: the file cannot be written.
            RuntimeError: the tensor is of another shape or dtype than planned, which is a bug.
        """
        place = self.layout.written[name]
        if (tensor.shape, tensor.dtype) != (place.shape, place.dtype):
            raise RuntimeError(
                f"{name} was planned as {place.dtype} {place.shape}, and made as {tensor.dtype} {tuple(tensor.shape)}"
            )
        values = _bytes_of(tensor)
        with system_errors(self.path_of(name)), _opened(self.path_of(name), os.O_WRONLY) as handle:
            _write(handle, values, place.offset)
        return hashlib.sha256(values).hexdigest()

    def holds(self, name: str, digest: str) -> bool:
        """Whether the range of a tensor has these bytes, by their SHA-256."""
        if name not in self.layout.written:
            return False
        place, found = self.layout.written[name], hashlib.sha256()
        with system_errors(self.path_of(name)), _opened(self.path_of(name), os.O_RDONLY) as handle:
            end = place.offset + place.nbytes
            for begin in range(place.offset, end, _BLOCK):
                found.update(os.pread(handle, min(_BLOCK, end - begin), begin))
        return found.hexdigest() == digest


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, without a copy if it lies on the CPU in one piece."""
    on_cpu = tensor.detach().cpu().contiguous()
    return on_cpu.reshape(-1).view(torch.uint8).numpy().data


def _write(handle: int, values: memoryview, offset: int) -> None:
    done = 0
    while done < len(values):  # the system may write less than it is asked to
        done += os.pwrite(handle, values[done : done + _BLOCK], offset + done)


def _reserve(handle: int, nbytes: int) -> None:
    """Give a file its full size, with room on the disk where the system can promise it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, nbytes)
    else:  # macOS
        os.ftruncate(handle, nbytes)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def to_pickles(directory: Path, layout: Layout) -> None:
    """Turn the safetensors files of a layout into pickles of the same tensors (`--no-safe-serialization`), one by one.

    Raises:
        MergeError: a file cannot be written to its end.
    """
    from safetensors.torch import load_file

    def renamed(name: str) -> str:
        return name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")

    for file in layout.files:
        path = directory / renamed(file.name)
        try:
            with system_errors(path):
                torch.save(load_file(directory / file.name), path)
        except RuntimeError as error:
            if "inline_container" not in str(error):  # torch's writer of pickles drops the system's reason
                raise
            raise MergeError(f"{path} cannot be written to its end, as on a full disk: {error}") from error
        (directory / file.name).unlink()
    if layout.index is not None:
        weights = {name: renamed(file) for name, file in layout.index["weight_map"].items()}
        text = json.dumps({**layout.index, "weight_map": weights}, indent=2)
        (directory / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
        (directory / INDEX).unlink()
