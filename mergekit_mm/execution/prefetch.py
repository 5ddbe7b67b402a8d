"""Input tensors asked for before they are needed, so that the disks read while tensors are made."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mergekit_mm.checkpoints.expert_stacks import is_one_on_disk, part_of
from mergekit_mm.checkpoints.mapped import tensor_ranges
from mergekit_mm.execution.units import Unit, made_from
from mergekit_mm.plan.merge_plan import MergePlan


class Prefetch:
    """Asks the system to read the inputs of units into its cache, which all processes of the machine share."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._outputs = {output.name: output for output in plan.made}
        self._ranges: dict[Path, Mapping[str, tuple[int, int]]] = {}

    def read(self, unit: Unit) -> None:
        """Ask for all that a unit is made from. What cannot be asked for is read when it is needed, as ever."""
        for path, ranges in self._places(unit).items():
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                continue
            try:
                for begin, length in ranges:
                    os.posix_fadvise(handle, begin, length, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    def _places(self, unit: Unit) -> dict[Path, list[tuple[int, int]]]:
        found: dict[Path, list[tuple[int, int]]] = {}
        tensors = {tensor.name: tensor for name in unit.names for tensor in made_from(self._plan, self._outputs[name])}
        for tensor in tensors.values():
            for model, own in tensor.inputs.items():
                checkpoint = self._plan.inputs.checkpoints[model]
                part = tensor.part
                group = checkpoint.group_of[own] if part is None else part_of(checkpoint, own, part)
                for stored in (checkpoint.disk[name] for name in group.disk):
                    path = checkpoint.directory / stored.file
                    if path.suffix == ".safetensors" and (place := self._ranges_of(path).get(stored.key)):
                        if part is not None and is_one_on_disk(checkpoint, own):
                            row = place[1] // stored.shape[0]
                            place = place[0] + part[0] * row, (part[1] - part[0]) * row
                        found.setdefault(path, []).append(place)
        return {path: sorted(set(ranges)) for path, ranges in found.items()}

    def _ranges_of(self, path: Path) -> Mapping[str, tuple[int, int]]:
        if path not in self._ranges:
            self._ranges[path] = tensor_ranges(path)
        return self._ranges[path]


@contextmanager
def reading_ahead(plan: MergePlan, units: Iterable[Unit]) -> Iterator[Iterator[Unit]]:
    """The same units; whenever one of them is taken, the inputs of the next one are asked for, by a thread."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        yield iter(units)
        return
    prefetch = Prefetch(plan)
    with ThreadPoolExecutor(1) as thread:

        def announced() -> Iterator[Unit]:
            waiting = iter(units)
            unit = next(waiting, None)
            while unit is not None:
                following = next(waiting, None)
                if following is not None:
                    thread.submit(prefetch.read, following)
                yield unit
                unit = following

        try:
            yield announced()
        finally:
            thread.shutdown(cancel_futures=True)
