"""Values by name that are no weights of a model, as an adapter is made from: kept in files until all are there.

Their sizes are not known before, so that there is no place for them in advance. The values of a unit go into one file
in the staging directory, and the journal has its hash.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mergekit_mm.execution.journal import Journal
from mergekit_mm.execution.key import inputs_of
from mergekit_mm.execution.models import workers_for
from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.settings import Settings
from mergekit_mm.execution.staging import Staging
from mergekit_mm.execution.unchanged import Unchanged
from mergekit_mm.execution.units import Unit, batches, unit_of
from mergekit_mm.execution.workers import done_by_processes, done_here
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import Tasks, devices, run_tasks

Values = Mapping[str, torch.Tensor]  # what is kept of one result
Pack = Callable[[str, Any], Values | None]  # from the name and the result of a task; None if there is nothing to keep

_FOLDER = "results"
_BETWEEN = "\n"  # between the name of a result and that of a value, in the names of a file


@dataclass(frozen=True)
class _Made:
    """What a worker tells of a unit."""

    names: tuple[str, ...]
    file: str
    sha256: str
    scalings: Mapping[str, float]
    seconds: float


class Results:
    """Runs tasks in units, and keeps what comes of them."""

    def __init__(
        self, compiler: Compiler, staging: Staging, journal: Journal, settings: Settings, tell: Progress
    ) -> None:
        self._compiler, self._journal, self._settings, self._tell = compiler, journal, settings, tell
        self._folder = staging.directory / _FOLDER
        self._folder.mkdir(exist_ok=True)
        self._done = [entry for entry in staging.done if "results" in entry]
        self._inputs = Unchanged(inputs_of(compiler.plan))
        self.scalings: dict[str, float] = {}  # what `scaling: auto` came to

    def of(self, kind: str, tasks: Tasks, pack: Pack) -> Iterator[tuple[str, Values]]:
        """(name, values) of every task of which something is kept, in the order of `tasks`.

        kind: tells these results from others of the same names.
        """
        files: dict[str, Path] = {}
        for entry in self._done:
            path = self._folder / str(entry["file"])
            if entry["results"] == kind and path.is_file() and _digest(path) == entry["sha256"]:
                files |= dict.fromkeys(entry["names"], path)
                self.scalings |= entry.get("scalings", {})
        if files:
            self._tell(f"continuing: {len(files)} of {len(tasks)} {kind} are done")
        plan = self._compiler.plan
        left = [unit_of(plan, name) for name in tasks if name not in files]
        with self._tell.bar(kind, len(tasks), len(tasks) - len(left)) as bar:
            for made in self._made(kind, tasks, pack, left):
                path = self._folder / made.file
                files |= dict.fromkeys(made.names, path)
                self.scalings |= made.scalings
                more = {"scalings": made.scalings} if made.scalings else {}
                entry = {"results": kind, "names": made.names, "file": made.file, "sha256": made.sha256}
                self._journal.append({**entry, **more, "seconds": round(made.seconds, 3)}, [path])
                bar.update(len(made.names))
        self._inputs.require()
        yield from _read(files, tasks)

    def _made(self, kind: str, tasks: Tasks, pack: Pack, left: Sequence[Unit]) -> Iterator[_Made]:
        if not left:
            return
        options = self._compiler.options
        device = devices(options)[0]
        count = workers_for(left, self._compiler, self._settings, self._tell) if device.type == "cpu" else 1

        def make(unit: Unit) -> _Made:
            start = time.monotonic()
            self._inputs.require()
            kept: dict[str, torch.Tensor] = {}
            wanted = {name: tasks[name] for name in unit.names}
            for name, result in run_tasks(wanted, options, device, self._compiler.given):
                values = pack(name, result) or {}
                for key, value in values.items():
                    kept[f"{name}{_BETWEEN}{key}"] = value.cpu().contiguous().clone()
            file = f"{kind}-{hashlib.sha256(unit.names[0].encode()).hexdigest()[:16]}.safetensors"
            save_file(kept, self._folder / f"{file}.unfinished")
            os.replace(self._folder / f"{file}.unfinished", self._folder / file)
            found = self._compiler.found_scalings.take()
            return _Made(unit.names, file, _digest(self._folder / file), found, time.monotonic() - start)

        units = batches(left, count, dict.fromkeys(tasks, 0), 0)
        made = done_by_processes(units, make, count, self._tell) if count > 1 else done_here(units, make)
        yield from (result for _, result in made)


def _read(files: Mapping[str, Path], order: Tasks) -> Iterator[tuple[str, Values]]:
    opened: dict[Path, dict[str, dict[str, torch.Tensor]]] = {}
    for path in dict.fromkeys(files.values()):
        for full, value in load_file(path).items():
            name, _, key = full.partition(_BETWEEN)
            opened.setdefault(path, {}).setdefault(name, {})[key] = value
    for name in order:
        if values := opened.get(files[name], {}).get(name):
            yield name, values


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()
