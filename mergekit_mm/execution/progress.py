"""What a merge tells while it runs: lines and bars for people, or one JSON object a line for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from mergekit_mm import console

if TYPE_CHECKING:
    from tqdm import tqdm

_EVERY = 1.0  # seconds between two events of one bar


@dataclass
class Bar:
    """How far some work is: things that are done, and bytes of them where `nbytes` is not 0."""

    what: str
    total: int
    done: int
    unit: str
    nbytes: int
    bytes_done: int
    shown: tqdm[Any] | None  # None for events
    _start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._before, self._bytes_before, self._told = self.done, self.bytes_done, self._start

    def update(self, things: int, nbytes: int = 0) -> None:
        """Count some more things that are done, and bytes."""
        self.done += things
        self.bytes_done += nbytes
        if self.shown is None:
            if time.monotonic() - self._told >= _EVERY:
                self.tell()
        elif self.nbytes:
            self.shown.set_postfix_str(f"{self.done} of {self.total} {self.unit}", refresh=False)
            self.shown.update(nbytes)
        else:
            self.shown.update(things)

    def tell(self) -> None:
        """Write an event. What was there before this run does not count for the speed."""
        self._told = time.monotonic()
        seconds = self._told - self._start
        event: dict[str, Any] = {"event": "progress", "what": self.what}
        event |= {"done": self.done, "total": self.total, "unit": self.unit, "seconds": round(seconds, 3)}
        new, left = self.done - self._before, self.total - self.done
        if self.nbytes:
            new, left = self.bytes_done - self._bytes_before, self.nbytes - self.bytes_done
            speed = round(new / seconds) if seconds else 0
            event |= {"bytes": self.bytes_done, "total_bytes": self.nbytes, "bytes_per_second": speed}
        _write({**event, "seconds_left": round(left * seconds / new, 1) if new else None})


class Progress:
    """Tells how a merge goes, on stderr. What the events are is said in docs/running.md.

    quiet: lines and bars are left out. as_json: lines and bars become events, which `quiet` does not leave out.
    """

    def __init__(self, quiet: bool, as_json: bool = False) -> None:
        self._is_quiet, self._as_json = quiet, as_json
        self._tell = console.teller(quiet)

    def __call__(self, line: str) -> None:
        """Tell a line."""
        if self._as_json:
            _write({"event": "told", "text": line})
        else:
            self._tell(line)

    @contextmanager
    def bar(
        self, what: str, total: int, done: int = 0, *, unit: str = "tensors", nbytes: int = 0, bytes_done: int = 0
    ) -> Iterator[Bar]:
        """A bar for `total` things, some of which are done already; in bytes, if their number is given."""
        if self._as_json:
            bar = Bar(what, total, done, unit, nbytes, bytes_done, None)
            yield bar
            bar.tell()
            return
        sizes = {"total": nbytes, "initial": bytes_done, "unit": "B"} if nbytes else {"total": total, "initial": done}
        hidden = self._is_quiet or done == total
        with console.bar(**sizes, desc=what, unit_scale=bool(nbytes), disable=hidden) as shown:
            yield Bar(what, total, done, unit, nbytes, bytes_done, shown)


def _write(event: dict[str, Any]) -> None:
    click.echo(json.dumps(event, ensure_ascii=False), err=True)
