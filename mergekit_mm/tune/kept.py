"""The values of candidates on disk, so that no question is asked twice, and an interrupted run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergekit_mm.tune.scores import Value


class Kept:
    """A file for each candidate, with the values of each set of questions by the set's digest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, candidate: str, sets: Mapping[str, str]) -> dict[str, dict[int, Value | None]]:
        """What is known of a candidate (by its digest). sets: name -> digest of the sets that are asked for."""
        stored = self._stored(candidate)
        found: dict[str, dict[int, Value | None]] = {}
        for name, digest in sets.items():
            own: Mapping[str, Sequence[float] | None] = stored.get(digest, {})
            found[name] = {int(at): None if pair is None else (pair[0], pair[1]) for at, pair in own.items()}
        return found

    def add(
        self, candidate: str, sets: Mapping[str, str], values: Mapping[str, Mapping[int, Value | None]]
    ) -> dict[str, dict[int, Value | None]]:
        """Keep new values of a candidate; returns all that is known of it now."""
        stored = self._stored(candidate)
        for name, own in values.items():
            stored.setdefault(sets[name], {}).update({str(at): pair for at, pair in own.items()})
        self._directory.mkdir(parents=True, exist_ok=True)
        unfinished = self._file(candidate).with_suffix(".unfinished")
        unfinished.write_text(json.dumps(stored), encoding="utf-8")
        os.replace(unfinished, self._file(candidate))
        return self.read(candidate, sets)

    def _file(self, candidate: str) -> Path:
        return self._directory / f"{candidate}.json"

    def _stored(self, candidate: str) -> dict[str, dict[str, Value | None]]:
        file = self._file(candidate)
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
