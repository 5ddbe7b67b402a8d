"""How a merge is carried out: what a user may choose that changes no byte of the result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mergekit_mm.errors import MergeError

# For mergekit's own commands, which lack the options.
WORKERS, RESTART, PROGRESS = "MERGEKIT_MM_WORKERS", "MERGEKIT_MM_RESTART", "MERGEKIT_MM_PROGRESS"
RAY = "MERGEKIT_MM_RAY"
WAYS = ("text", "json")  # to tell how a merge goes


@dataclass(frozen=True)
class Settings:
    """How a merge is carried out.

    workers: processes that make tensors at the same time; None to choose by cores, memory and work. restart: whether
    what an interrupted run of the same merge has left is thrown away. progress: how it is told, one of `WAYS`. ray:
    the address of the Ray cluster that merges, None for this machine. keeps: whether what is done stays after an
    interruption, which is of no use where the output's own directory does not.
    """

    workers: int | None = None
    restart: bool = False
    progress: str = "text"
    ray: str | None = None
    keeps: bool = True


def from_environment(
    workers: int | None = None, restart: bool = False, progress: str | None = None, ray: str | None = None
) -> Settings:
    """The settings of a command, with what its options leave open from the environment.

    Raises:
        MergeError: a variable has a value without a meaning.
    """
    if workers is None and (value := os.environ.get(WORKERS, "")):
        if not value.isdecimal() or int(value) < 1:
            raise MergeError(f"{WORKERS}={value} is not a number of processes, which is 1 or more.")
        workers = int(value)
    told = progress or os.environ.get(PROGRESS) or WAYS[0]
    if told not in WAYS:
        raise MergeError(f"{PROGRESS}={told} is none of the ways to tell progress, which are {' and '.join(WAYS)}.")
    afresh = restart or os.environ.get(RESTART, "0") not in ("", "0")
    return Settings(workers, afresh, told, ray or os.environ.get(RAY) or None)


@contextmanager
def in_environment(settings: Settings) -> Iterator[None]:
    """A context in which `from_environment` gives these settings, for a merge that a command of mergekit runs."""
    before = {name: os.environ.get(name) for name in (WORKERS, RESTART, PROGRESS, RAY)}
    os.environ |= {RESTART: "1" if settings.restart else "0", PROGRESS: settings.progress}
    if settings.workers is not None:
        os.environ[WORKERS] = str(settings.workers)
    if settings.ray is not None:
        os.environ[RAY] = settings.ray
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
