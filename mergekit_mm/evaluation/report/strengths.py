"""Merges at several strengths: models whose names end in `scaling_<number>`, as `mergekit-mm sweep` writes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mergekit_mm.evaluation.report.table import Row, Table

_STRENGTH = re.compile(r"^(?P<merge>.*?)[-_/.]?scaling[-_=](?P<number>\d+(?:\.\d+)?)$")


@dataclass(frozen=True, eq=False)
class Series:
    """The strengths of one merge with their rows in the table, from the lowest strength on; there are at least two."""

    name: str
    points: Sequence[tuple[float, Row]]


def series(table: Table) -> list[Series]:
    """All merges of the table of which there are several strengths."""
    found: dict[str, list[tuple[float, Row]]] = {}
    for row in table.rows:
        if match := _STRENGTH.match(row.participant.model.name):
            found.setdefault(match["merge"], []).append((float(match["number"]), row))
    several = {name: sorted(points, key=lambda each: each[0]) for name, points in found.items() if len(points) > 1}
    short = {name: name.rstrip("/").split("/")[-1] or "scaling" for name in several}
    names = list(short.values())
    return [Series(name if names.count(short[name]) > 1 else short[name], several[name]) for name in several]
