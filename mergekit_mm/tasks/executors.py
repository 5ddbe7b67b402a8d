"""mergekit's executor, which here also moves task vectors between devices, not only tensors.

It brings the arguments of a task that uses the accelerator to the device that computes, and the results of every task
to the device that stores. A task finds all of its arguments on one device and need not ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from mergekit.common import get_torch_accelerator_count, get_torch_accelerator_type
from mergekit.graph import Executor, Task, TaskUniverse
from mergekit.options import MergeOptions

from mergekit_mm.numerics.task_vector import TaskVector

Tasks = Mapping[str, Task[Any]]  # name of a tensor -> the task that makes it or a value for it


def devices(options: MergeOptions) -> list[torch.device]:
    """The devices that compute a merge: all accelerators of the machine, or the one that the options name."""
    if options.multi_gpu:
        kind = get_torch_accelerator_type()
        return [torch.device(kind, index) for index in range(get_torch_accelerator_count())]
    return [torch.device(options.device)]


def run_tasks(
    targets: Iterable[Task[Any]], options: MergeOptions, device: torch.device, given: Mapping[Task[Any], Any]
) -> Iterator[tuple[Task[Any], Any]]:
    """Run tasks and those below them on one device; yields each target once, with its result, as soon as that is there.

    given: results of tasks that need not be run.
    """
    universe = TaskUniverse()
    handles = [universe.add_task(task) for task in dict.fromkeys(targets)]
    known = {handle: value for task, value in given.items() if (handle := universe.get_handle(task)) is not None}
    store = device if options.low_cpu_memory else torch.device("cpu")
    executor = TaskExecutor(handles, math_device=device, storage_device=store, cached_values=known)
    yield from executor.run(quiet=True)


def run(tasks: Tasks, options: MergeOptions) -> Iterator[tuple[str, Any]]:
    """Run tasks one after the other, on the first of the devices; yields each name with its result."""
    names = {task: name for name, task in tasks.items()}
    for task, value in run_tasks(names, options, devices(options)[0], {}):
        yield names[task], value


class TaskExecutor(Executor):
    """One task after the other, on one device."""

    def _move_tensors(self, value: Any, device: torch.device, non_blocking: bool | None = None) -> Any:
        if isinstance(value, TaskVector):
            return value.to(device)
        return super()._move_tensors(value, device, non_blocking)
