"""mergekit's executor, which here also moves task vectors between devices, not only tensors.

It brings the arguments of a task that uses the accelerator to the device that computes, and the results of every task
to the device that stores. A task finds all of its arguments on one device and need not ask for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from mergekit.common import get_torch_accelerator_count, get_torch_accelerator_type
from mergekit.graph import Executor, Task, TaskUniverse
from mergekit.options import MergeOptions

from mergekit_mm.numerics.task_vector import TaskVector

Tasks = Mapping[str, Task[Any]]  # name of a tensor -> the task that makes it or a value for it
Name = TypeVar("Name", bound=Hashable)


def devices(options: MergeOptions) -> list[torch.device]:
    """The devices that compute a merge: all accelerators of the machine, or the one that the options name."""
    if options.multi_gpu:
        kind = get_torch_accelerator_type()
        return [torch.device(kind, index) for index in range(get_torch_accelerator_count())]
    return [torch.device(options.device)]


def run_tasks(
    tasks: Mapping[Name, Task[Any]], options: MergeOptions, device: torch.device, given: Mapping[Task[Any], Any]
) -> Iterator[tuple[Name, Any]]:
    """Run tasks and those below them on one device; yields each name with its result, as soon as that is there.

    A task that has several names, as that of a layer that is repeated, is run once.

    given: results of tasks that need not be run.
    """
    names: dict[Task[Any], list[Name]] = {}
    for name, task in tasks.items():
        names.setdefault(task, []).append(name)
    universe = TaskUniverse()
    handles = [universe.add_task(task) for task in names]
    known = {handle: value for task, value in given.items() if (handle := universe.get_handle(task)) is not None}
    store = device if options.low_cpu_memory else torch.device("cpu")
    executor = TaskExecutor(handles, math_device=device, storage_device=store, cached_values=known)
    for task, value in executor.run(quiet=True):
        for name in names[task]:
            yield name, value


class TaskExecutor(Executor):
    """One task after the other, on one device."""

    def _move_tensors(self, value: Any, device: torch.device, non_blocking: bool | None = None) -> Any:
        if isinstance(value, TaskVector):
            return value.to(device)
        return super()._move_tensors(value, device, non_blocking)
