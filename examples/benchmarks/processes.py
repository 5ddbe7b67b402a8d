"""Time and memory of a command. Linux only, as memory is read from /proc."""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What a command took: wall and CPU seconds, and the peak of its anonymous memory in bytes.

    Anonymous memory is what a process allocates itself; file pages, which the kernel may drop, do not count.
    """

    wall: float
    cpu: float
    peak: int


def measured(command: list[str]) -> Usage:
    """Run a command and sample its memory. SystemExit, with what it wrote to stderr: it failed."""
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would stop the command
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:  # the process has just ended
                status = ""
            if match := re.search(r"RssAnon:\s+(\d+) kB", status):
                peak = max(peak, int(match[1]) * 1024)
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{errors.read()}\n{' '.join(command)} failed with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Usage(time.monotonic() - start, cpu, peak)
