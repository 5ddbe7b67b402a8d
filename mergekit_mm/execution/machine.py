"""What there is to work with: cores and memory, as far as this process may use them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mergekit_mm.execution.units import UNIT_SECONDS, Unit

PER_PROCESS = 1 << 28  # bytes that a worker needs besides the tensors that it makes
_SHARE = 0.8  # of the free memory; the rest is left to the system and to what it keeps of files


def can_fork() -> bool:
    """Whether workers can be had: by fork, which is safe beside the libraries that are in use on Linux alone."""
    import multiprocessing

    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def cores() -> int:
    """The cores that this process may use, by its affinity and by the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdecimal() and period.strip().isdecimal():
        count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def free_memory() -> int | None:
    """The bytes of memory that can still be used: by the machine, the container and this process's own limit.

    None if nothing of that is known.
    """
    found = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        found.append(int(limit) - int(used) + _reclaimable())
    if sys.platform == "linux":
        import resource

        limit_of_data, in_use = (
            resource.getrlimit(resource.RLIMIT_DATA)[0],
            re.search(r"VmData:\s+(\d+)", _read("/proc/self/status")),
        )
        if limit_of_data != resource.RLIM_INFINITY and in_use:
            found.append(max(0, limit_of_data - int(in_use[1]) * 1024))
    return min(found, default=None)


def _reclaimable() -> int:
    """The bytes of files that the container's memory holds, and that the kernel drops where there is need."""
    lines = (line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
    return sum(int(line[1]) for line in lines if len(line) == 2 and line[0] in ("active_file", "inactive_file"))


def choose_workers(units: Sequence[Unit], held: int) -> tuple[int, str]:
    """The number of workers for some work, and the reason for it in words; empty where there is little to do.

    held: bytes that each worker holds besides, as of pickled inputs, which are read whole.
    """
    by_cores, by_work = cores(), max(1, round(sum(unit.work for unit in units) / UNIT_SECONDS))
    needed = max((unit.memory for unit in units), default=0) + held + PER_PROCESS
    free = free_memory()
    by_memory = by_cores if free is None else max(1, int(free * _SHARE / needed))
    count = min(by_cores, by_work, by_memory)
    if count == by_work < min(by_cores, by_memory):
        return count, ""
    if count == by_memory < by_cores:
        return count, f"each needs {needed / 1e9:.2g} GB of the {(free or 0) / 1e9:.2g} GB of memory that are free"
    return count, f"of {by_cores} core{'s' * (by_cores > 1)}; each needs {needed / 1e9:.2g} GB of memory"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
