"""How a unit is made, by whoever makes it: its tasks are run, and each tensor is written into its place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mergekit_mm.execution.files import WeightFiles
from mergekit_mm.execution.key import inputs_of
from mergekit_mm.execution.unchanged import Unchanged
from mergekit_mm.execution.units import Unit
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import devices, run_tasks


@dataclass(frozen=True)
class Made:
    """What is told of a unit that was made."""

    digests: Mapping[str, str]  # `<number of the output>/<tensor>` -> SHA-256
    scalings: Mapping[str, float]  # those that `scaling: auto` came to
    seconds: float


class Maker:
    """Makes units, on the first of the devices unless another is given."""

    def __init__(self, compiler: Compiler, scales: Sequence[float], files: Sequence[WeightFiles]) -> None:
        """scales, files: the strength of each output, and its files."""
        self.compiler, self.files = compiler, files
        self.devices = devices(compiler.options)
        self.inputs = Unchanged(inputs_of(compiler.plan))
        self._tasks = [compiler.to_model(scale) for scale in scales]

    def __call__(self, unit: Unit, device: torch.device | None = None) -> Made:
        start = time.monotonic()
        self.inputs.require()
        digests: dict[str, str] = {}
        compiler = self.compiler
        goals = {(number, name): tasks[name] for number, tasks in enumerate(self._tasks) for name in unit.names}
        for (number, name), tensor in run_tasks(goals, compiler.options, device or self.devices[0], compiler.given):
            digests[f"{number}/{name}"] = self.files[number].write(name, tensor)
            del tensor
        return Made(digests, compiler.found_scalings.take(), time.monotonic() - start)
