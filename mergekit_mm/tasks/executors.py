"""mergekit's executors, which here also move task vectors between devices, not only tensors.

An executor brings the arguments of a task that uses the accelerator to the device that computes, and the results of
every task to the device that stores. A task finds all of its arguments on one device and need not ask for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import torch
from mergekit.graph import Executor, Task, TaskHandle
from mergekit.multigpu_executor import MultiGPUExecutor
from mergekit.options import MergeOptions
from mergekit.tokenizer import TokenizerInfo
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from mergekit_mm import console
from mergekit_mm.numerics.task_vector import TaskVector


def executor_for(targets: list[Task[Any]], options: MergeOptions) -> Executor | MultiGPUExecutor:
    """The executor that the options of a merge ask for; its `run` yields the targets with their results."""
    if options.multi_gpu:
        return DevicesExecutor(targets, storage_device=None if options.low_cpu_memory else torch.device("cpu"))
    store = options.device if options.low_cpu_memory else "cpu"
    return TaskExecutor(targets, math_device=options.device, storage_device=store)


Tasks = Mapping[str, Task[Any]]  # name of a tensor -> the task that makes it or a value for it


def run(tasks: Tasks, options: MergeOptions) -> Iterator[tuple[str, Any]]:
    """Run tasks by the executor that the options ask for; yields each name with its result as soon as it is there."""
    names: dict[Task[Any], list[str]] = {}  # a layer that is repeated has the tasks of its original
    for name, task in tasks.items():
        names.setdefault(task, []).append(name)
    for task, value in executor_for(list(names), options).run(quiet=options.quiet):
        for name in names[task]:
            yield name, value


def write_models(targets: Sequence[Task[Any]], options: MergeOptions) -> PreTrainedTokenizerBase | None:
    """Run tasks that write models; returns the new tokenizer if one of the tasks makes it, else None."""
    tokenizer = None
    for _task, value in executor_for(list(dict.fromkeys(targets)), options).run(quiet=options.quiet):
        if isinstance(value, TokenizerInfo):
            tokenizer = value.tokenizer
    return tokenizer


class TaskExecutor(Executor):
    """One task after the other, on one device."""

    def _move_tensors(self, value: Any, device: torch.device, non_blocking: bool | None = None) -> Any:
        if isinstance(value, TaskVector):
            return value.to(device)
        return super()._move_tensors(value, device, non_blocking)


class DevicesExecutor(MultiGPUExecutor):
    """The tasks distributed over all GPUs, with one thread for each GPU. mergekit decides which tasks go together.

    Two things differ from mergekit's own loop. Each thread returns its results at its end; mergekit's loop collects
    them in another thread, and loses the results that are on their way when the last task ends. And a tensor that a
    task makes is on the CPU unless the task says otherwise, as with one device.
    """

    def run(self, quiet: bool = False) -> Iterator[tuple[Task[Any], Any]]:
        """Execute all tasks; yields the targets and their results."""
        main = self.storage_device or torch.device("cpu")
        stop = threading.Event()
        with (
            console.bar(total=len(self.serial_schedule.tasks), disable=quiet, desc="Executing graph") as bar,
            ThreadPoolExecutor(max_workers=max(1, len(self.gpu_assignments))) as threads,
        ):
            values = self._executed(self.leading_main_handles, main, {}, bar, stop)
            parts = [
                threads.submit(self._executed, [*self.per_gpu_tasks, *tasks], device, values, bar, stop)
                for device, tasks in self.gpu_assignments.items()
            ]
            try:
                for part in as_completed(parts):
                    values = {**values, **part.result()}
            except BaseException:
                stop.set()  # The other threads end after their current task.
                raise
            values = {**values, **self._executed(self.trailing_main_handles, main, values, bar, stop)}
        for task in self.targets:
            yield task.task(), values[task]

    def _executed(
        self,
        tasks: Sequence[TaskHandle],
        device: torch.device,
        earlier: Mapping[TaskHandle, Any],
        bar: tqdm[Any],
        stop: threading.Event,
    ) -> dict[TaskHandle, Any]:
        """Results of the given tasks that are targets, or that other threads need.

        earlier: results of tasks that have been executed before.
        """
        needed = {*self.targets, *self.trailing_dependencies, *self.leading_main_handles}
        store = self.storage_device or device
        executor = TaskExecutor(list(tasks), math_device=device, storage_device=store, cached_values=dict(earlier))
        results = {}
        for task, value in executor._run(quiet=True):
            bar.update()
            if task in needed:
                results[task] = value
            if stop.is_set():
                break
        return results
