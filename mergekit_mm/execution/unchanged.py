"""The inputs of a merge stay what they were when it was planned; else what was made of them would be of two models."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergekit_mm.errors import SystemRefusal


class Unchanged:
    """Remembers size, time and place of files, and looks at them again whenever it is asked.

    Files are mapped into memory, where one that was cut short ends the process by a signal. To look before each unit
    makes that a matter of a moment, and costs less than a millisecond.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._states = {path: _state(path) for path in paths}

    def require(self) -> None:
        """Check that no file has changed.

        Raises:
            SystemRefusal: one has, or is gone; the message names it.
        """
        for path, before in self._states.items():
            if _state(path) != before:
                raise SystemRefusal(
                    f"The input {path} has changed since the merge was planned: merge again once it stays as it is."
                )


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino
