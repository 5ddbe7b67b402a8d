"""The journal of a merge: what is done, in a file that only grows and never speaks of data that is not on the disk."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_mm.errors import system_errors

Entry = Mapping[str, Any]  # one JSON object; what it speaks of is told by its keys

NAME = "journal.jsonl"


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal, the first of which is its key; empty if there is none.

    A kill can cut the last line off, and a crash of the machine can lose the end of the file. Reading ends at the first
    line that is not whole, and what comes after is cut off, so that the next entry begins a line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    entries: list[dict[str, Any]] = []
    whole = 0
    for line in content.splitlines(keepends=True):
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            break
        entries.append(entry)
        whole += len(line)
    if whole < len(content):
        os.truncate(path, whole)
    return entries


class Journal:
    """Appends entries to a journal, each after the files that it speaks of have reached the disk.

    A thread does the waiting, so that the next tensors are made meanwhile. As a context, it waits for that thread at
    its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._queue: queue.SimpleQueue[tuple[Entry, tuple[Path, ...]] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def append(self, entry: Entry, files: Iterable[Path] = ()) -> None:
        """Add an entry, soon. files: whose data has to be on the disk before.

        Raises:
            SystemRefusal: an earlier entry could not be written, or its files could not be brought to the disk.
        """
        self._raise()
        self._queue.put((entry, tuple(files)))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            while (first := self._queue.get()) is not None:
                waiting, ends = [first], False
                while not self._queue.empty():  # entries that came in the meantime share one wait for the disk
                    more = self._queue.get()
                    if more is None:
                        ends = True
                        break
                    waiting.append(more)
                append_entries(self.path, [entry for entry, _ in waiting], {f for _, files in waiting for f in files})
                if ends:
                    return
        except BaseException as error:  # told by the next call
            self._error = error


def append_entries(path: Path, entries: Iterable[Entry], files: Iterable[Path] = ()) -> None:
    """Add entries to a journal, after the data of some files is on the disk, and wait until they are on it too."""
    sync_files(files)
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode()
    with system_errors(path), path.open("ab") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_files(files: Iterable[Path]) -> None:
    """Wait until the data of some files is on the disk."""
    for file in files:
        _sync(file, os.O_WRONLY)


def sync_tree(directory: Path) -> None:
    """Wait until all files below a directory, and their names, are on the disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(Path(folder, name), os.O_RDONLY)
        _sync(Path(folder), os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    with system_errors(path):
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
