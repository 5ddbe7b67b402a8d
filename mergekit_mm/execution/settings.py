"""How a merge is carried out: what a user may choose that changes no byte of the result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mergekit_mm.errors import MergeError

WORKERS, RESTART = "MERGEKIT_MM_WORKERS", "MERGEKIT_MM_RESTART"  # for mergekit's own commands, which lack the options


@dataclass(frozen=True)
class Settings:
    """How a merge is carried out.

    workers: processes that make tensors at the same time; None to choose by cores, memory and work. restart: whether
    what an interrupted run of the same merge has left is thrown away.
    """

    workers: int | None = None
    restart: bool = False


def from_environment(workers: int | None = None, restart: bool = False) -> Settings:
    """The settings of a command, with what its options leave open from the environment.

    Raises:
        MergeError: a variable has a value without a meaning.
    """
    found = Settings(workers, restart or os.environ.get(RESTART, "0") not in ("", "0"))
    if workers is not None or not (value := os.environ.get(WORKERS, "")):
        return found
    if not value.isdecimal() or int(value) < 1:
        raise MergeError(f"{WORKERS}={value} is not a number of processes, which is 1 or more.")
    return replace(found, workers=int(value))


@contextmanager
def in_environment(settings: Settings) -> Iterator[None]:
    """A context in which `from_environment` gives these settings, for a merge that a command of mergekit runs."""
    before = {name: os.environ.get(name) for name in (WORKERS, RESTART)}
    os.environ[RESTART] = "1" if settings.restart else "0"
    if settings.workers is not None:
        os.environ[WORKERS] = str(settings.workers)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
