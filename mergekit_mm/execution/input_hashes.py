"""The SHA-256 of every input file, for the model card, taken while the merge runs."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mergekit_mm.execution.journal import Journal
from mergekit_mm.plan.merge_plan import MergePlan

_BLOCK = 1 << 22  # bytes


class InputHashes:
    """A thread that hashes the inputs' weight files, as a context around the merge.

    It goes through all models side by side, in the order of their files, as the merge does: what one of the two has
    read, the other finds in the system's cache. Files in the hub's cache are called by their hashes.
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
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._thread = threading.Thread(target=self._run, name="input hashes", daemon=True)

    def __enter__(self) -> InputHashes:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def result(self, quiet: bool) -> dict[tuple[str, str], str]:
        """(model or adapter, file) -> SHA-256 in hexadecimal. Waits for what is not hashed yet, with a progress bar.

        Raises:
            OSError: a file cannot be read.
        """
        left = sum(path.stat().st_size for path in {*self._files.values()} - self._found.keys())
        with tqdm(total=left, desc="Hashing inputs", unit="B", unit_scale=True, disable=quiet or not left) as self._bar:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return {key: self._found[path] for key, path in self._files.items()}

    def _run(self) -> None:
        try:
            for path in _side_by_side(self._files):
                if path not in self._found and not self._stop.is_set():
                    self._hash(path)
        except Exception as error:  # told by `result`
            self._error = error

    def _hash(self, path: Path) -> None:
        target = os.path.basename(os.path.realpath(path))
        if re.fullmatch(r"[0-9a-f]{64}", target):
            self._found[path] = target
            return
        digest = self._blank.copy()
        with path.open("rb") as file:
            while (block := file.read(_BLOCK)) and not self._stop.is_set():
                digest.update(block)
                self._bar.update(len(block))
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
