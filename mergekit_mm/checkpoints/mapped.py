"""Values that are mapped from a file, and fetched from the disk before anything is made of them.

Where a disk fails, or a file has been cut short, the system ends the process that touches such values by a signal,
without a word. Here it is an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from mergekit_mm.errors import SystemRefusal, system_errors

_POPULATE_READ = 22  # This advice is known to Linux from 5.14 on.
_BLOCK = 1 << 20  # bytes

Get = Callable[[str], torch.Tensor]


def fetched(path: Path, key: str, get: Get, part: Any = ...) -> torch.Tensor:
    """A tensor of a file, or a part of it, whose values are in memory.

    get: gives the tensor of a key, which for a safetensors file is mapped. part: an index of the tensor.

    Raises:
        SystemRefusal: the values cannot be read; the message names the file.
    """
    whole = get(key).detach()  # a pickle may hold parameters
    found = whole[part]
    if path.suffix == ".safetensors" and found.numel() and not _populated(found):
        begin, _ = tensor_ranges(path)[key]
        _read_through(path, begin + found.data_ptr() - whole.data_ptr(), _extent(found))
    return found


@dataclass(frozen=True)
class Fetched:
    """A tensor of a file of which each part is fetched that it is asked for by an index; see `fetched`."""

    path: Path
    key: str
    get: Get

    def __getitem__(self, part: Any) -> torch.Tensor:
        return fetched(self.path, self.key, self.get, part)


def opened(path: Path) -> Any:
    """An open safetensors file, as a context, whose header has been read: also that is mapped.

    Raises:
        SystemRefusal: the header cannot be read.
        Exception: from safetensors, for a damaged file.
    """
    read_header(path)
    return safe_open(str(path), framework="pt")


def tensor_ranges(path: Path) -> Mapping[str, tuple[int, int]]:
    """Tensor -> (where its bytes begin in a safetensors file, how many they are).

    Raises:
        SystemRefusal: the header cannot be read.
    """
    header = read_header(path)
    entries = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"}
    return {name: (8 + len(header) + begin, end - begin) for name, (begin, end) in entries.items()}


def read_header(path: Path) -> bytes:
    """The header of a safetensors file, in JSON; what there is of it in a damaged file.

    Raises:
        SystemRefusal: it cannot be read.
    """
    with system_errors(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(min(length, os.fstat(file.fileno()).st_size))


def _extent(tensor: torch.Tensor) -> int:
    """The bytes from the first value of a tensor to its last."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((length - 1) * step for length, step in sides) + 1) * tensor.element_size()


def _populated(tensor: torch.Tensor) -> bool:
    """Ask the system to read what is mapped; returns False where it fails, and where no such request is known."""
    if sys.platform != "linux":
        return False
    begin = tensor.data_ptr()
    before = begin % os.sysconf("SC_PAGE_SIZE")
    place, length = ctypes.c_void_p(begin - before), ctypes.c_size_t(before + _extent(tensor))
    return ctypes.CDLL(None).madvise(place, length, _POPULATE_READ) == 0


def _read_through(path: Path, begin: int, length: int) -> None:
    """Read a range of a file, which then is in the system's cache, or tells why it cannot be read."""
    block = memoryview(bytearray(_BLOCK))
    with system_errors(path), path.open("rb", buffering=0) as file:
        file.seek(begin)
        while length:
            count = file.readinto(block[: min(length, _BLOCK)])
            if not count:
                raise SystemRefusal(f"{path} ends before its last tensor does: it has been cut short.")
            length -= count
