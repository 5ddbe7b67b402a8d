"""Products of the benchmark's stages, made once: the settings that affect a product are part of its folder's name."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_RECORD = "product.json"  # in each folder: what the product was made from
_MADE = "made"  # in the record: what it took; the key does not depend on it
_UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Product:
    """A folder that `make` fills.

    version: of the code that makes it; whoever changes what the code makes raises it. settings: all else that the
    product depends on, as JSON. needs: the products that it is made from. brief: whether the record has only the keys
    of these, for what is made from many products that need many in turn.
    """

    name: str
    version: str
    settings: Mapping[str, Any]
    make: Callable[[Path], None]
    needs: tuple[Product, ...] = ()
    brief: bool = False

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the product depends on, with the products that it needs."""
        needs = {each.name: each.key if self.brief else each.record for each in self.needs}
        return json.loads(json.dumps({"version": self.version, "settings": self.settings, "needs": needs}))

    @cached_property
    def key(self) -> str:
        """Changes with the record."""
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:12]

    def folder(self, out: Path) -> Path:
        """Where the finished product is."""
        return out / f"{self.name}.{self.key}"

    def build(self, out: Path) -> Path:
        """Make the product unless its folder is there, and print one line that says which.

        It is made in a folder with another name. An interrupted run leaves it behind, and `make` finds what is in it.
        """
        folder = self.folder(out)
        if folder.exists():
            print(f"{self.name}: kept, {folder}", flush=True)
            return folder
        unfinished = folder.with_name(folder.name + _UNFINISHED)
        print(f"{self.name}: {self._reason(out, unfinished)}", flush=True)
        started, used = time.monotonic(), cpu_time()
        unfinished.mkdir(parents=True, exist_ok=True)
        self.make(unfinished)
        wall, cpu = time.monotonic() - started, cpu_time() - used
        took = {"seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
        (unfinished / _RECORD).write_text(json.dumps({**self.record, _MADE: took}, indent=2) + "\n")
        unfinished.rename(folder)
        print(f"{self.name}: made in {wall:.0f} s, {folder}", flush=True)
        return folder

    def cpu_seconds(self, out: Path) -> float | None:
        """What the finished product took, with its child processes; of one that was interrupted, the last attempt.

        None: it does not exist, or is from before this was recorded.
        """
        record = self.folder(out) / _RECORD
        made = json.loads(record.read_text()).get(_MADE) if record.exists() else None
        return made["cpu_seconds"] if made else None

    def _reason(self, out: Path, unfinished: Path) -> str:
        if unfinished.exists():
            return "was interrupted, is started again"
        records = sorted(out.glob(f"{self.name}.*/{_RECORD}"), key=lambda path: path.stat().st_mtime)
        if not records:
            return "new"
        old = json.loads(records[-1].read_text())
        old.pop(_MADE, None)
        changed = "; ".join(_differences(old, self.record))
        return f"made anew, as {changed}. The one with the old settings stays in {records[-1].parent}"


def cpu_time() -> float:
    """Seconds of CPU of this process and of its children that have ended: other work on the machine adds little."""
    return sum(os.times()[:4])


def is_finished(folder: Path) -> bool:
    """Whether a product's folder is that of a finished one."""
    return folder.suffix != _UNFINISHED


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two records differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {json.dumps(old)} and is {json.dumps(new)}"
