"""The SHA-256 of every input file, for the model card, taken while the merge runs."""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mergekit_mm.errors import system_errors
from mergekit_mm.execution.journal import Journal
from mergekit_mm.execution.machine import cores
from mergekit_mm.execution.progress import Bar, Progress
from mergekit_mm.plan.merge_plan import MergePlan

_BLOCK = 1 << 20  # bytes, which stay in the cache of a core until they are hashed
_MOST = 8  # threads, which is more than a disk reads for


class InputHashes:
    """Threads that hash the inputs' weight files, as a context around the merge.

    They go through all models side by side, in the order of their files, as the merge does: what one of the two has
    read, the other finds in the system's cache. They are as many as there are cores, as to hash five models takes about
    as long as to merge them by a sum: one thread, which workers leave a share of its core, would end long after them.
    Files in the hub's cache are called by their hashes.
    """

    def __init__(self, plan: MergePlan, done: Iterable[Mapping[str, Any]], journal: Journal) -> None:
        """done: the entries of the journal of an interrupted run, in which some files were hashed."""
        self._files = _weight_files(plan)
        known = {entry["input"]: entry["sha256"] for entry in done if "input" in entry}
        self._found = {path: known[str(path)] for path in self._files.values() if str(path) in known}
        self._journal, self._stop = journal, threading.Event()
        # Copied for each file: to make one takes a lock of OpenSSL, which a process that is forked meanwhile would
        # never see free again.
        self._blank = hashlib.sha256()
        self._error: Exception | None = None
        self._bar: Bar | None = None
        self._left: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for path in _side_by_side(self._files):
            if path not in self._found:
                self._left.put(path)
        count = min(cores(), self._left.qsize(), _MOST)
        self._threads = [threading.Thread(target=self._run, name="input hashes", daemon=True) for _ in range(count)]

    def __enter__(self) -> InputHashes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._wait()

    def _wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def result(self, tell: Progress) -> dict[tuple[str, str], str]:
        """(model or adapter, file) -> SHA-256 in hexadecimal. Waits for what is not hashed yet, with a progress bar.

        Raises:
            SystemRefusal: a file cannot be read.
        """
        left = {*self._files.values()} - self._found.keys()
        nbytes = sum(path.stat().st_size for path in left)
        if left:
            with tell.bar("Hashing inputs", len(left), unit="files", nbytes=nbytes) as self._bar:
                self._wait()
        if self._error is not None:
            raise self._error
        return {key: self._found[path] for key, path in self._files.items()}

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._hash(self._left.get_nowait())
        except queue.Empty:
            return
        except Exception as error:  # told by `result`
            self._error = error
            self._stop.set()

    def _hash(self, path: Path) -> None:
        target = os.path.basename(os.path.realpath(path))
        if re.fullmatch(r"[0-9a-f]{64}", target):
            self._found[path] = target
            return
        digest, block = self._blank.copy(), memoryview(bytearray(_BLOCK))
        with system_errors(path), path.open("rb", buffering=0) as file:
            while (length := file.readinto(block)) and not self._stop.is_set():
                digest.update(block[:length])
                if self._bar is not None:
                    self._bar.update(0, length)
        if not self._stop.is_set():
            self._found[path] = digest.hexdigest()
            self._journal.append({"input": str(path), "sha256": self._found[path]})


def _weight_files(plan: MergePlan) -> dict[tuple[str, str], Path]:
    """(model or adapter, file) -> path of every weight file of every input."""
    files = {
        (str(model.model), file): checkpoint.directory / file
        for model, checkpoint in plan.inputs.checkpoints.items()
        for file in checkpoint.files
    }
    for model, adaptation in plan.inputs.adaptations.items():
        files |= {(str(model.lora), file.name): file for file in adaptation.adapter.files}
    return files


def _side_by_side(files: Mapping[tuple[str, str], Path]) -> list[Path]:
    """The files, each once: the first of every model, and so on to the last of every model."""
    of_model: dict[str, list[Path]] = {}
    for (model, _), path in files.items():
        of_model.setdefault(model, []).append(path)
    placed = [(n / len(paths), path) for paths in of_model.values() for n, path in enumerate(paths)]
    return list(dict.fromkeys(path for _, path in sorted(placed, key=lambda entry: entry[0])))
