"""Values of tensors in memory, for what writes no model of its own: computed here, as a merge computes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mergekit_mm.execution.progress import Progress
from mergekit_mm.execution.workers import one_thread
from mergekit_mm.tasks.compile import Compiler
from mergekit_mm.tasks.executors import Tasks, devices, run_tasks


def values(compiler: Compiler, tasks: Tasks) -> Iterator[tuple[str, Any]]:
    """Each name with the result of its task, one after the other in this process, on the first of the devices.

    Every library computes with one thread meanwhile, so that the bits are those of a merge by any number of workers.
    """
    options = compiler.options
    with one_thread(), Progress(options.quiet).bar("Computing", len(tasks)) as bar:
        for name, value in run_tasks(tasks, options, devices(options)[0], compiler.given):
            yield name, value
            bar.update(1)
