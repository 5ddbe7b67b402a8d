"""Tables that the reader sorts, filters, and chooses columns of; without a script they are plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mergekit_mm.pages.markup import render
from mergekit_mm.pages.scales import as_text


@dataclass(frozen=True)
class Column:
    """A column. numeric: sorted as numbers, the largest first, and aligned to the right. note: shown by a pointer.

    key: a name that panels of charts may share, so that they are shown and hidden with the column; by default none.
    shown: whether it is visible before the reader chooses.
    """

    heading: str
    numeric: bool = False
    note: str = ""
    key: str = ""
    shown: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell. order: what it is sorted by, if not its text; cells without a number come last in a numeric column."""

    text: str
    order: float | str | None = None
    strong: bool = False
    note: str = ""


def table(
    identity: str,
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | str | float | None]],
    keys: Sequence[str] = (),
    tools: bool = True,
) -> Markup:
    """A table as HTML. The first column names the rows.

    identity: of the element, unique in the page. rows: a cell each; a number is written with four digits, None as a
    dash. keys: of the rows, which rows of charts may share, so that they are in the order of the table, and gone where
    the filter takes them away.
    tools: whether it can be sorted and filtered.
    """
    named = [
        Column(each.heading, each.numeric, each.note, each.key or f"{identity}-{at}", each.shown)
        for at, each in enumerate(columns)
    ]
    filled = [list(zip(named, map(_cell, row), strict=True)) for row in rows]
    keyed = list(zip(keys or [""] * len(filled), filled, strict=True))
    return render("table.html", identity=identity, caption=caption, columns=named, rows=keyed, tools=tools)


def _cell(given: Cell | str | float | None) -> Cell:
    if isinstance(given, Cell):
        return given
    if given is None:
        return Cell("–", "")
    return Cell(given) if isinstance(given, str) else Cell(as_text(given), float(given))
