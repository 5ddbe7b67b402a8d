"""Heat maps: SVG whose every cell tells its value to pointer and keyboard, with the values as a table beneath."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from mergekit_mm.pages.figures import drawing, figure, movable_rows, swatch
from mergekit_mm.pages.markup import tag
from mergekit_mm.pages.scales import LEVELS, as_text, levels, shortened, width_of
from mergekit_mm.pages.tables import Cell, Column, table

_FEW = 24  # columns whose cells have their numbers printed
_ROW_NAME, _COLUMN_NAME = 34, 28  # characters


def heat_map(
    identity: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    centre: float | None = None,
    form: str = ".3g",
    notes: Sequence[Sequence[str]] | None = None,
    keys: Sequence[str] = (),
) -> Markup:
    """A cell for each row and column, coloured by its value; cells that are wide enough have it printed too.

    values: a row of numbers for each of `rows`; None is an empty cell. centre: a value that means nothing, such as 0 of
    differences; colours and a stroke tell the two sides of it apart. notes: what a cell tells beside its value.
    keys: of the rows, shared with the rows of a table.
    """
    printed = [["" if each is None else as_text(each, form) for each in row] for row in values]
    grid = _Grid(rows, columns, printed)
    found = levels(values, centre)
    kind = "q" if centre is None else "d"
    keyed = keys or [""] * len(rows)
    drawn: list[tuple[str, list[Markup]]] = []
    for r, row in enumerate(rows):
        cells = [grid.row_name(r)]
        for c, (column, value, level) in enumerate(zip(columns, values[r], found[r], strict=True)):
            if value is None or level is None:
                continue
            note = f" ({notes[r][c]})" if notes and notes[r][c] else ""
            inside = [
                tag("title", f"{row}, {column}: {printed[r][c]}{note}"),
                *grid.cell(c, printed[r][c], centre is not None and value < centre),
            ]
            cells.append(tag("g", inside, class_=f"mark cell {kind}{level}", data_r=r, data_c=c))
        drawn.append((keyed[r], cells))
    legend = _scale_of_colours(values, centre, form, kind)
    return figure(
        identity,
        caption,
        [grid.drawn(drawn, caption)],
        _table(identity, caption, rows, columns, values, printed, keys),
        legend,
        "wide",
    )


def _table(
    identity: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    printed: Sequence[Sequence[str]],
    keys: Sequence[str],
) -> Markup:
    cells: list[list[Cell | str]] = [
        [name, *(Cell("–", "") if each is None else Cell(text, each) for each, text in zip(row, texts, strict=True))]
        for name, row, texts in zip(rows, values, printed, strict=True)
    ]
    headings = [Column(""), *(Column(each, numeric=True) for each in columns)]
    return table(f"{identity}-values", caption, headings, cells, keys, tools=False)


class _Grid:
    """Where the cells and names of a heat map are.

    Up to `_FEW` columns have cells that are wide enough for their numbers. Where there are more, names that are short,
    such as numbers of layers, are written at every so manieth column; long names are slanted.
    """

    def __init__(self, rows: Sequence[str], columns: Sequence[str], printed: Sequence[Sequence[str]]) -> None:
        self._rows = [shortened(name, _ROW_NAME) for name in rows]
        self._columns = [shortened(name, _COLUMN_NAME) for name in columns]
        self._few = len(columns) <= _FEW
        widest = max((width_of(text) for row in printed for text in row), default=0.0)
        self._width = max(widest + 12, 34.0) if self._few else 14.0
        self._height = 26 if self._few else 18
        longest = max(map(width_of, self._columns), default=0.0)
        self._slanted = longest > self._width * (1.05 if self._few else 3)
        self._apart = 1 if self._few or self._slanted else math.ceil((longest + 8) / self._width)
        self._rise = longest * 0.75 if self._slanted else 0.0  # of slanted names, upward and to the right
        self._left = max(map(width_of, self._rows), default=0.0) + 12
        self._top = self._rise + (16 if self._slanted else 24)

    def column_names(self) -> Iterator[Markup]:
        for at in range(0, len(self._columns), self._apart):
            x, y = self._left + self._width * (at + 0.5), self._top - 8
            turned = {"class_": "tick", "transform": f"rotate(-48 {x:.1f} {y:.1f})"}
            yield tag("text", self._columns[at], x=x, y=y, **(turned if self._slanted else {"class_": "tick middle"}))

    def row_name(self, row: int) -> Markup:
        return tag("text", self._rows[row], x=self._left - 8, y=4, class_="tick end")

    def cell(self, column: int, text: str, is_below: bool) -> Iterator[Markup]:
        """A cell with its number, or, where that has no room, with a stroke in print if it is below the centre."""
        x, y = self._left + self._width * column, -self._height / 2
        right, bottom = x + self._width - 1, y + self._height - 1
        yield tag("rect", x=x, y=y, width=self._width - 1, height=self._height - 1)
        if self._few:
            yield tag("text", text, x=x + self._width / 2, y=y + self._height / 2 + 4, class_="middle")
        elif is_below:
            yield tag("line", x1=x + 3, x2=right - 3, y1=bottom - 3, y2=y + 3, class_="negative")

    def drawn(self, rows: Sequence[tuple[str, Sequence[Markup]]], label: str) -> Markup:
        parts = [*self.column_names(), *movable_rows(rows, self._top, self._height)]
        width = self._left + self._width * len(self._columns) + self._rise + 10
        return drawing(width, self._top + self._height * len(self._rows) + 6, parts, label)


def _scale_of_colours(
    values: Sequence[Sequence[float | None]], centre: float | None, form: str, kind: str
) -> list[tuple[Markup, str]]:
    """The legend of a heat map: its lowest, middle and highest colour with their values."""
    found = [each for row in values for each in row if each is not None and math.isfinite(each)]
    if not found:
        return []
    reach = 0.0 if centre is None else max(abs(each - centre) for each in found)
    low, high = (min(found), max(found)) if centre is None else (centre - reach, centre + reach)
    alone = 0 if centre is None else LEVELS // 2
    steps = [alone] if high == low else [0, LEVELS // 2, LEVELS - 1]
    return [(swatch(f"{kind}{at}"), as_text(low + (high - low) * at / (LEVELS - 1), form)) for at in steps]
