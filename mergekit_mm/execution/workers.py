"""Units done one after the other in this process, by several processes, or by a thread for each GPU.

The result is the same: every unit is made by one thread of every library, by the same code, whoever makes it.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import queue
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

import scipy.linalg  # noqa: F401  # It brings a BLAS of its own, which has to be there before threads are limited.
import torch
from threadpoolctl import threadpool_limits

from mergekit_mm.errors import SystemRefusal
from mergekit_mm.execution.units import Unit

Run = Callable[[Unit], Any]  # makes a unit; the result is small, and can be pickled
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def done_here(units: Iterable[Unit], run: Run) -> Iterator[tuple[Unit, Any]]:
    """Each unit with its result, made in this process."""
    with one_thread():
        for unit in units:
            yield unit, run(unit)


def done_by_devices(
    units: Iterable[Unit], run: Callable[[Unit, torch.device], Any], devices: Sequence[torch.device]
) -> Iterator[tuple[Unit, Any]]:
    """Each unit with its result, as soon as one of the devices has made it."""
    free: queue.SimpleQueue[torch.device] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def on_some_device(unit: Unit) -> Any:
        device = free.get()
        try:
            return run(unit, device)
        finally:
            free.put(device)

    with one_thread(), ThreadPoolExecutor(len(devices)) as threads:
        waiting = {threads.submit(on_some_device, unit): unit for unit in units}
        try:
            for made in as_completed(waiting):
                yield waiting[made], made.result()
        except BaseException:
            for future in waiting:
                future.cancel()  # the other threads end after their current unit
            raise


def done_by_processes(
    units: Iterable[Unit], run: Run, count: int, tell: Callable[[str], None]
) -> Iterator[tuple[Unit, Any]]:
    """Each unit with its result, as soon as one of `count` forked processes has made it. Units are taken when needed.

    A process that dies, or has too little memory, is told, and its unit is made once more, with half as many processes.

    Raises:
        SystemRefusal: the same unit has ended two processes.
        Exception: a unit has raised it.
    """
    fresh, failed = iter(units), set[Unit]()
    waiting = deque(itertools.islice(fresh, 1))
    busy: dict[Any, tuple[_Worker, Unit]] = {}
    idle: list[_Worker] = []
    started: list[_Worker] = []  # all of which are ended with this function, that of a unit which raises too
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                if not idle:
                    idle.append(_Worker(run))
                    started.append(idle[-1])
                worker = idle.pop()
                if worker.starts(waiting[0]):
                    busy[worker.connection] = worker, waiting.popleft()
                    waiting.extend(itertools.islice(fresh, 0 if waiting else 1))
                else:  # it has been ended from outside, while it had nothing to do
                    worker.end()
            for connection in multiprocessing.connection.wait(list(busy)):
                worker, unit = busy.pop(connection)
                result = worker.result()
                if isinstance(result, _Ended):
                    if unit in failed:
                        raise SystemRefusal(f"{result} for the second time while it made {unit}. {result.advice}")
                    failed.add(unit)
                    waiting.appendleft(unit)
                    count = max(1, count // 2)
                    tell(f"{result} while it made {unit}; that is made once more, by {count} at a time.")
                    worker.end()
                else:
                    idle.append(worker)
                    yield unit, result
    finally:
        for worker in started:
            worker.end()


class _Ended:
    """A worker that has not come to the end of a unit."""

    def __init__(self, code: int | None, error: str = "") -> None:
        self.code, self.error = code, error

    def __str__(self) -> str:
        if self.error:
            return f"A worker had too little memory ({self.error})"
        if self.code is not None and self.code < 0:
            name = signal.Signals(-self.code).name if -self.code in set(signal.Signals) else str(-self.code)
            of_memory = ", as the system does where memory runs out," if -self.code == signal.SIGKILL else ""
            return f"A worker was ended by {name}{of_memory}"
        return f"A worker ended with exit code {self.code}"

    @property
    def advice(self) -> str:
        if self.code == -signal.SIGBUS:
            return "A file could not be read, or a disk is full: the same command goes on once that is mended."
        return "The machine may have too little memory: free some, or take fewer workers. The same command goes on."


class _Worker:
    """A forked process that makes one unit at a time."""

    def __init__(self, run: Run) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, run, os.getpid()), daemon=True)
        self._process.start()
        other.close()

    def starts(self, unit: Unit) -> bool:
        """Give the worker a unit; returns whether it was there to take it."""
        try:
            self.connection.send(unit)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def result(self) -> Any:
        """The result of the unit, or `_Ended`. An exception that the unit has raised is raised here."""
        try:
            made, result = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return _Ended(self._process.exitcode)
        if made or isinstance(result, _Ended):
            return result
        error, text = pickle.loads(result)
        raise error from _InWorker(text)

    def end(self) -> None:
        """End the process, unless it has ended."""
        self._process.kill()
        self._process.join()
        self.connection.close()


class _InWorker(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


def _serve(connection: Any, run: Run, parent: int) -> None:
    """The life of a worker. It ends with the process that has started it, whatever ends that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    with one_thread():
        while True:
            unit = connection.recv()
            try:
                answer: tuple[bool, Any] = True, run(unit)
            except BaseException as error:
                answer = False, _Ended(None, str(error)) if is_out_of_memory(error) else _portable(error)
            connection.send(answer)


def _portable(error: BaseException) -> bytes:
    """An exception and its traceback, pickled; one that cannot be pickled as a RuntimeError with its text."""
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps((error, text))
        pickle.loads(packed)
    except Exception:
        return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), text))
    return packed


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is too little memory. torch has no exception of its own for that of the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = ("DefaultCPUAllocator", "Cannot allocate memory")  # by its allocator, and where it maps a file
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


@contextmanager
def one_thread() -> Iterator[None]:
    """A context in which every library computes with one thread.

    A sum that is split over threads rounds otherwise with another number of them. And threads that wait for each other
    spin, which beside other work makes a solver many times slower than one thread alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)
