"""The names of staging directories, and those that interrupted merges have left. Imports no host."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

LOCK = "lock"  # a file in a staging directory, which the merge at work has locked
_SUFFIX = ".unfinished"


def staging_directory(out: Path) -> Path:
    """The staging directory of an output: the one that is there, else a new one on the output's file system."""
    within, beside = out / f".{out.name}{_SUFFIX}", out.parent / f".{out.name}{_SUFFIX}"
    for directory in (within, beside):
        if directory.is_dir():
            return directory
    return within if out.exists() else beside


def leftovers(directory: Path) -> Iterator[Path]:
    """The staging directories in a directory and in those below it, of merges at work too."""
    for pattern in (f".*{_SUFFIX}", f".*{_SUFFIX}-*"):
        for place in (directory, *(path for path in directory.glob("*/") if not path.is_symlink())):
            yield from sorted(path for path in place.glob(pattern) if path.is_dir())


def is_at_work(directory: Path) -> bool:
    """Whether a merge is at work in a staging directory."""
    try:
        handle = os.open(directory / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock(handle)
    finally:
        os.close(handle)


def lock(handle: int) -> bool:
    """Lock a file for as long as it is open, if nobody else has; returns whether it is this process's now.

    Where the file system knows no locks, everybody is alone.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
    return True


def size_on_disk(directory: Path) -> int:
    """The bytes that the files below a directory take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
