"""Merges that are ended by a signal once their journal has come to a point, and what they leave.

They run in a fork of the test's process, which spares the imports. A merge method that takes its time makes it possible
to hit the point.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from added_methods import added
from end_to_end import checkpoint, experts, mergekit_yaml, run, with_method
from tqdm import tqdm

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.task_vector import TaskVector, weighted_sum

SHARDS = ("--out-shard-size", "20K")  # no unit is larger than an output file: so there are many
_DEADLINE = 60  # seconds


def slow_sum(task_vectors: Any) -> TaskVector:
    time.sleep(0.03)
    return weighted_sum(task_vectors, [0.5] * len(task_vectors))


@contextmanager
def slow_method() -> Iterator[str]:
    """A method that takes 0.03 s for each matrix."""
    with added(task_vector_method("slow_sum", "Slow sum", "")(slow_sum)) as name:
        yield name


def slow_merge(method: str, family: str = "llava", **more: Any) -> dict[str, Any]:
    """A merge of which the language model alone is merged, by the slow method."""
    return with_method(method, checkpoint(family), experts(family)[:2], **more)


def staging_of(out: Path) -> Path | None:
    """The directory in which an output is being made, if there is one."""
    name = f".{out.name}.unfinished"
    return next((path for path in (out / name, out.parent / name) if path.is_dir()), None)


def journal_of(out: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal of an unfinished output."""
    directory = staging_of(out)
    try:
        lines = (directory / "journal.jsonl").read_bytes().splitlines(keepends=True) if directory else []
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def made(out: Path) -> int:
    """How many tensors the journal of an unfinished output has."""
    return sum(len(entry.get("tensors", {})) for entry in journal_of(out))


def interrupted(
    work: Callable[[], Any], out: Path, point: Callable[[], bool], by: signal.Signals = signal.SIGKILL
) -> int:
    """Run `work` in a fork and send it a signal as soon as `point` is true; returns its exit code.

    It may have come to its end before.
    """
    process = _until(work, out, point)
    _signal(process, by)
    process.join(_DEADLINE)
    assert process.exitcode is not None
    return process.exitcode


@contextmanager
def held(work: Callable[[], Any], out: Path, point: Callable[[], bool]) -> Iterator[None]:
    """A context in which `work`, run in a fork, is stopped where `point` was true; at its end the work is killed."""
    process = _until(work, out, point)
    _signal(process, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(process, signal.SIGKILL)
        process.join(_DEADLINE)


def _until(work: Callable[[], Any], out: Path, point: Callable[[], bool]) -> BaseProcess:
    """A fork that runs `work`, which has come to the point, or to its end."""
    mergekit_yaml()
    process = multiprocessing.get_context("fork").Process(target=_quietly, args=(work,))
    process.start()
    end = time.monotonic() + _DEADLINE
    while process.is_alive() and not point():
        assert time.monotonic() < end, f"the point was not reached: {journal_of(out)[1:]}"
        time.sleep(0.002)
    return process


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, number)


def _quietly(work: Callable[[], Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    tqdm.set_lock(threading.RLock())  # the usual one is the test's as well, which would wait for it after a kill
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        work()


def after(work: Callable[[], Any], seconds: float) -> int:
    """Run `work` in a fork and kill it after a time, if it has not come to its end; returns its exit code."""
    end = time.monotonic() + seconds
    return interrupted(work, Path(os.devnull), lambda: time.monotonic() >= end)


def killed(config: Mapping[str, Any], *flags: str, out: Path, after: int) -> int:
    """`mergekit-yaml`, killed once so many tensors are in its journal; returns how many are."""
    code = interrupted(lambda: run(config, *flags, out=out), out, lambda: made(out) >= after)
    assert code == -signal.SIGKILL, "it has come to its end before"
    assert not (out / "config.json").exists() or staging_of(out)
    return made(out)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a directory by its path below it, but for the model card, which names the directory."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
