"""What a merge will take, told before it is begun: bytes, arithmetic by method and shape, memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mergekit_mm.checkpoints.checkpoint import Checkpoint
from mergekit_mm.checkpoints.listing import size_of
from mergekit_mm.errors import SystemRefusal
from mergekit_mm.execution.machine import PER_PROCESS, choose_workers, free_memory
from mergekit_mm.execution.units import Unit, made_from, one_after_the_other, smallest_units, takes_of
from mergekit_mm.execution.workers import one_thread
from mergekit_mm.plan.inputs import Inputs
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.plan.tensor_plan import Merge

_SIDE, _TIMES = 512, 12  # A product of matrices of this side is timed so often; the fastest counts.
_READ = 1 << 26  # bytes that are read to time the disk
_SHAPES = 5  # lines on single shapes


@dataclass(frozen=True)
class Speed:
    """operations: of a core in a second. read: bytes from the disk in a second; None where no file is at hand."""

    operations: float
    read: float | None


def measured_speed(plan: MergePlan) -> Speed:
    """The speed of this machine: of a product of two float32 matrices, and of the first bytes of the largest input."""
    a, best = torch.full((_SIDE, _SIDE), 0.5), math.inf
    with one_thread():
        for _ in range(_TIMES):
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
    return Speed(2 * _SIDE**3 / best, _reading_speed(plan))


def _reading_speed(plan: MergePlan) -> float | None:
    files = [each.directory / file for each in plan.inputs.checkpoints.values() for file in each.files]
    there = {path: path.stat().st_size for path in files if path.is_file()}
    if not there:  # only headers are at hand
        return None
    with max(there, key=lambda path: there[path]).open("rb", buffering=0) as file:
        start, found = time.perf_counter(), 0
        while found < _READ and (block := file.read(1 << 22)):
            found += len(block)
    return found / max(time.perf_counter() - start, 1e-9)


def estimate(
    plan: MergePlan, units: Sequence[Unit], workers: int, on_cpu: bool, speed: Speed, copies: int = 1
) -> list[str]:
    """Lines on what units of a plan will take.

    copies: the number of outputs, of a sweep.
    """
    takes = one_after_the_other(units)
    written = takes.written * copies
    lines = [f"takes: {size_of(takes.read)} to read, {size_of(written)} to write"]
    if not on_cpu:
        return lines
    lines[0] += f"; {workers} worker{'s' * (workers > 1)} with {size_of(takes.memory + PER_PROCESS)} of memory each"
    seconds = takes.seconds(speed.operations) / workers
    if speed.read:
        seconds = max(seconds, (takes.read + written) / speed.read)
    lines[0] += f"; about {in_words(seconds)}"
    return [*lines, *(f"  {line}" for line in _by_shape(plan, units, speed))]


def plan_in_words(plan: MergePlan, workers: int | None) -> str:
    """The words of a plan, with what the whole of it will take on the CPU of this machine.

    workers: None for as many as a merge would choose.
    """
    units = smallest_units(plan)
    count = workers or choose_workers(units, pickled_bytes(plan.inputs))[0]
    return plan.in_words(estimate(plan, units, count, True, measured_speed(plan)))


def pickled_bytes(inputs: Inputs) -> int:
    """Bytes that every worker holds besides: pickles are read whole, and of each model the one in use stays."""
    sizes = [
        max((path.stat().st_size for path in _pickles(checkpoint) if path.is_file()), default=0)
        for checkpoint in {c.directory: c for c in inputs.checkpoints.values()}.values()
    ]
    return sum(sizes)


def _pickles(checkpoint: Checkpoint) -> Iterator[Path]:
    return (checkpoint.directory / file for file in checkpoint.files if not file.endswith(".safetensors"))


def _by_shape(plan: MergePlan, units: Iterable[Unit], speed: Speed) -> Iterator[str]:
    """A line on each method and shape that arithmetic is spent on, those first that take the most of it."""
    outputs = {output.name: output for output in plan.made}
    tensors = {
        tensor.name: tensor for unit in units for name in unit.names for tensor in made_from(plan, outputs[name])
    }
    found: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for tensor in tensors.values():
        action = tensor.shared_action
        if isinstance(action, Merge) and len(tensor.info.shape) > 1:
            operations = takes_of(plan, tensor).operations
            found.setdefault((action.method, tensor.info.shape), []).append(operations)
    most = sorted(found.items(), key=lambda entry: -sum(entry[1]))
    for (method, shape), each in most[:_SHAPES]:
        count, seconds = len(each), sum(each) / speed.operations
        name = " x ".join(map(str, shape))
        yield f"{method} of {count} x ({name}): {sum(each):.2g} operations, about {in_words(seconds)} of one core"
    if rest := [sum(each) for _, each in most[_SHAPES:]]:
        yield f"{len(rest)} other shapes: about {in_words(sum(rest) / speed.operations)} of one core"


def require_memory(units: Sequence[Unit]) -> None:
    """Check that the largest unit fits into the memory that is free, if it holds but what no method does without.

    Raises:
        SystemRefusal: it does not; the message names the unit, and has both sizes.
    """
    free = free_memory()
    if not units or free is None:
        return
    largest = max(units, key=lambda unit: unit.takes.least)
    if (needed := largest.takes.least) > free:
        raise SystemRefusal(
            f"{largest} takes at least {size_of(needed)} of memory, of which {size_of(free)} are free. Free some, or "
            "merge on a machine that has more."
        )


def in_words(seconds: float) -> str:
    """A time as people say it: `3 s`, `12 min`, `5.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
