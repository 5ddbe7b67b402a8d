"""Dots with intervals, lines with bands, and heat maps: SVG whose every mark tells its value to pointer and keyboard.

A chart is one stop of the tab key; within it the arrow keys go from mark to mark. Shapes and dashes differ as well as
colours, which are those of the style sheet, so that charts follow light and dark mode and can be told apart in grey.
Below each chart its values are a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mergekit_mm.pages.markup import render, tag
from mergekit_mm.pages.scales import LEVELS, Scale, as_text, fitted, levels, shortened, width_of
from mergekit_mm.pages.tables import Cell, Column, table

KINDS = 6  # shapes and colours of marks: k0 to k5 in the style sheet
_LINE = 22  # pixels from one row of dots to the next
_NAME = 22  # characters of a row's name
_PLOT = 150  # pixels that the dots of a panel have
_CHART = (300, 190)  # pixels of a panel of lines
_SERIES = 18  # characters of a line's name
_SHAPES = (
    "M-4 -4H4V4H-4Z",
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "M0 -5L5 4H-5Z",
    "M0 5L5 -4H-5Z",
    "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
)


@dataclass(frozen=True)
class Dot:
    """A value, perhaps with its interval. hollow: drawn without its inside, as of less interest."""

    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class DotRow:
    """What has a dot in each panel. kind: of its mark, below `KINDS`. key: shared with the row of a table."""

    name: str
    kind: int = 1
    key: str = ""


@dataclass(frozen=True)
class DotPanel:
    """A dot for each row, on a scale of its own. reference: a value at which a dotted line stands.

    key: shared with the column of a table.
    """

    heading: str
    dots: Sequence[Dot | None]
    reference: float | None = None
    key: str = ""


@dataclass(frozen=True)
class Point:
    """A point of a line, perhaps with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points from left to right under one name. kind: of its marks and dashes, below `KINDS`."""

    name: str
    points: Sequence[Point]
    kind: int = 1


@dataclass(frozen=True)
class LinePanel:
    """Lines on common axes. references: names of values at which dotted lines stand. key: as of `DotPanel`."""

    heading: str
    lines: Sequence[Line]
    references: Sequence[tuple[str, float]] = ()
    key: str = ""


def dots(
    identity: str,
    caption: str,
    rows: Sequence[DotRow],
    panels: Sequence[DotPanel],
    legend: Sequence[tuple[int, str]] = (),
    form: str = ".1f",
) -> Markup:
    """A panel of dots for each of `panels`, the rows on a common vertical axis.

    legend: kinds of marks and what they mean. form: of numbers, as of `format`.
    """
    drawn = [_dot_panel(rows, each, form) for each in panels]
    columns = [Column(""), *(Column(each.heading, numeric=True) for each in panels)]
    cells: list[list[Cell | str]] = [[row.name] for row in rows]
    for panel in panels:
        for line, dot in zip(cells, panel.dots, strict=True):
            line.append(Cell("–", "") if dot is None else Cell(_told(dot, form), dot.value))
    values = table(f"{identity}-values", caption, columns, cells, tools=False)
    return _figure(identity, caption, drawn, values, [(_legend_mark(kind), name) for kind, name in legend])


def _dot_panel(rows: Sequence[DotRow], panel: DotPanel, form: str) -> Markup:
    left = width_of(shortened(max((row.name for row in rows), key=len), _NAME)) + 10
    right, top = left + _PLOT, 26.0
    bottom = top + _LINE * len(rows)
    ends = [each for dot in panel.dots if dot for each in (dot.value, dot.low, dot.high) if each is not None]
    scale = fitted(ends if panel.reference is None else [*ends, panel.reference], left, right)
    parts = [tag("text", shortened(panel.heading, 32), x=2, y=14, class_="title")]
    for value in scale.ticks(4):
        at = scale(value)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid"))
        parts.append(tag("text", as_text(value), x=at, y=bottom + 15, class_="tick middle"))
    if panel.reference is not None:
        at = scale(panel.reference)
        parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="reference"))
    for number, (row, dot) in enumerate(zip(rows, panel.dots, strict=True)):
        y = top + _LINE * (number + 0.5)
        name = tag("text", shortened(row.name, _NAME), x=left - 8, y=y + 4, class_="tick end")
        inside = [name, tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid")]
        if dot is not None:
            inside.append(_dot(scale, y, row, panel, dot, form, number))
        parts.append(tag("g", inside, data_row=row.key or None))
    return _svg(right + 14, bottom + 22, parts, panel.heading, panel.key)


def _dot(scale: Scale, y: float, row: DotRow, panel: DotPanel, dot: Dot, form: str, number: int) -> Markup:
    parts = [tag("title", f"{row.name}, {panel.heading}: {_told(dot, form)}")]
    if dot.low is not None and dot.high is not None:
        parts.append(tag("line", x1=scale(dot.low), x2=scale(dot.high), y1=y, y2=y, class_="interval"))
    parts.append(_shape(row.kind, scale(dot.value), y, dot.hollow))
    return tag("g", parts, class_=f"mark k{row.kind}", data_r=number)


def _told(dot: Dot | Point, form: str) -> str:
    value = dot.value if isinstance(dot, Dot) else dot.y
    interval = (
        "" if dot.low is None or dot.high is None else f" ({as_text(dot.low, form)} to {as_text(dot.high, form)})"
    )
    return as_text(value, form) + interval


def lines(
    identity: str, caption: str, x_name: str, panels: Sequence[LinePanel], form: str = ".1f", x_form: str = ".4g"
) -> Markup:
    """A panel of lines for each of `panels`, with bands for intervals and a mark for each point."""
    drawn = [_line_panel(each, x_name, form, x_form) for each in panels]
    named = {line.name: line.kind for panel in panels for line in panel.lines}
    rows: list[list[Cell | str | float]] = [
        [panel.heading, line.name, Cell(as_text(point.x, x_form), point.x), Cell(_told(point, form), point.y)]
        for panel in panels
        for line in panel.lines
        for point in line.points
    ]
    rows += [
        [panel.heading, name, "", Cell(as_text(at, form), at)] for panel in panels for name, at in panel.references
    ]
    columns = [Column("chart"), Column("line"), Column(x_name, numeric=True), Column("value", numeric=True)]
    values = table(f"{identity}-values", caption, columns, rows, tools=False)
    return _figure(identity, caption, drawn, values, [(_legend_mark(kind), name) for name, kind in named.items()])


def _line_panel(panel: LinePanel, x_name: str, form: str, x_form: str) -> Markup:
    points = [point for line in panel.lines for point in line.points]
    ends = [each for point in points for each in (point.y, point.low, point.high) if each is not None]
    width, height = _CHART
    left, top = 46.0, 26.0
    across = fitted((point.x for point in points), left, left + width)
    upward = fitted([*ends, *(at for _, at in panel.references)], top + height, top)
    parts = [tag("text", shortened(panel.heading, 50), x=2, y=14, class_="title")]
    for value in upward.ticks(6):
        y = upward(value)
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", as_text(value), x=left - 6, y=y + 4, class_="tick end"))
    for value in across.ticks(7):
        parts.append(tag("text", as_text(value), x=across(value), y=top + height + 15, class_="tick middle"))
    parts.append(tag("text", x_name, x=left + width / 2, y=top + height + 32, class_="tick middle"))
    for number, (name, at) in enumerate(panel.references):
        y, ends_there = upward(at), number % 2 == 1  # names at both ends in turn, as two values may be close
        told = tag("title", f"{name}, {panel.heading}: {as_text(at, form)}")
        rule = tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="reference")
        place = {"x": left + width, "class_": "tick end"} if ends_there else {"x": left + 2, "class_": "tick"}
        label = tag("text", shortened(name, _SERIES), y=y - 4, **place)
        parts.append(tag("g", [told, rule, label], class_="mark"))
    for number, line in enumerate(panel.lines):
        parts += _line(line, number, panel.heading, x_name, across, upward, form, x_form)
    return _svg(left + width + 12, top + height + 40, parts, panel.heading, panel.key)


def _line(
    line: Line, number: int, heading: str, x_name: str, across: Scale, upward: Scale, form: str, x_form: str
) -> list[Markup]:
    parts = []
    banded = [
        (across(p.x), upward(p.low), upward(p.high)) for p in line.points if p.low is not None and p.high is not None
    ]
    if len(banded) > 1:
        edge = [f"{x:.1f},{low:.1f}" for x, low, _ in banded] + [f"{x:.1f},{high:.1f}" for x, _, high in banded[::-1]]
        parts.append(tag("polygon", points=" ".join(edge), class_=f"band k{line.kind}"))
    path = " ".join(f"{across(point.x):.1f},{upward(point.y):.1f}" for point in line.points)
    parts.append(tag("polyline", points=path, class_=f"line k{line.kind}"))
    for at, point in enumerate(line.points):
        x, y = across(point.x), upward(point.y)
        place = f"{x_name} {as_text(point.x, x_form)}"
        inside = [tag("title", f"{line.name}, {heading}, {place}: {_told(point, form)}"), _shape(line.kind, x, y)]
        if point.low is not None and point.high is not None:
            low, high = upward(point.low), upward(point.high)
            inside.insert(1, tag("line", x1=x, x2=x, y1=low, y2=high, class_="interval"))
        parts.append(tag("g", inside, class_=f"mark k{line.kind}", data_r=number, data_c=at))
    return parts


def heat_map(
    identity: str,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    centre: float | None = None,
    form: str = ".3g",
    notes: Sequence[Sequence[str]] | None = None,
) -> Markup:
    """A cell for each row and column, coloured by its value; cells that are wide enough have it printed too.

    values: a row of numbers for each of `rows`; None is an empty cell. centre: a value that means nothing, such as 0 of
    differences; colours and a stroke tell the two sides of it apart. notes: what a cell tells beside its value.
    """
    printed = [["" if each is None else as_text(each, form) for each in row] for row in values]
    few = len(columns) <= 24
    widest = max((width_of(text) for row in printed for text in row), default=0.0)
    width, height = (max(widest + 12, 34), 26) if few else (14, 18)
    wide = max((width_of(each) for each in columns), default=0)
    apart = 1 if few or wide > 3 * width else math.ceil((wide + 8) / width)  # short names: every so manieth is written
    slanted = wide > width * (1.4 if few else 3)
    left = width_of(shortened(max(rows, key=len, default=""), 34)) + 12
    longest = width_of(shortened(max(columns, key=len, default=""), 28))
    top = longest * 0.75 + 16 if slanted else 24.0
    kind = "q" if centre is None else "d"
    parts: list[Markup] = [
        _column_name(name, left + width * (at + 0.5), top - 8, slanted)
        for at, name in enumerate(columns)
        if at % apart == 0
    ]
    for r, (row, name, found) in enumerate(zip(values, rows, levels(values, centre), strict=True)):
        y = top + height * r
        parts.append(tag("text", shortened(name, 34), x=left - 8, y=y + height / 2 + 4, class_="tick end"))
        for c, (value, level) in enumerate(zip(row, found, strict=True)):
            if value is None or level is None:
                continue
            x = left + width * c
            note = notes[r][c] if notes else ""
            told = f"{name}, {columns[c]}: {printed[r][c]}{f' ({note})' if note else ''}"
            inside = [tag("title", told), tag("rect", x=x, y=y, width=width - 1, height=height - 1)]
            if centre is not None and value < centre and not few:
                inside.append(tag("line", x1=x + 3, x2=x + width - 4, y1=y + height - 4, y2=y + 3, class_="negative"))
            if few:
                inside.append(tag("text", printed[r][c], x=x + width / 2, y=y + height / 2 + 4, class_="middle"))
            parts.append(tag("g", inside, class_=f"mark cell {kind}{level}", data_r=r, data_c=c))
    overhang = longest * 0.75 if slanted else 0
    drawing = _svg(left + width * len(columns) + overhang + 10, top + height * len(rows) + 6, parts, caption)
    cells: list[list[Cell | str]] = [
        [name, *(Cell("–", "") if each is None else Cell(text, each) for each, text in zip(row, texts, strict=True))]
        for name, row, texts in zip(rows, values, printed, strict=True)
    ]
    headings = [Column(""), *(Column(each, numeric=True) for each in columns)]
    body = table(f"{identity}-values", caption, headings, cells, tools=False)
    return _figure(identity, caption, [drawing], body, _scale_of_colours(values, centre, form, kind), "wide")


def _column_name(name: str, x: float, y: float, slanted: bool) -> Markup:
    text = shortened(name, 28)
    if not slanted:
        return tag("text", text, x=x, y=y, class_="tick middle")
    return tag("text", text, x=x, y=y, class_="tick", transform=f"rotate(-48 {x:.1f} {y:.1f})")


def _scale_of_colours(
    values: Sequence[Sequence[float | None]], centre: float | None, form: str, kind: str
) -> list[tuple[Markup, str]]:
    """The legend of a heat map: its lowest, middle and highest colour with their values."""
    found = [each for row in values for each in row if each is not None and math.isfinite(each)]
    if not found:
        return []
    reach = 0.0 if centre is None else max(abs(each - centre) for each in found)
    low, high = (min(found), max(found)) if centre is None else (centre - reach, centre + reach)
    steps = [0] if high == low else [0, LEVELS // 2, LEVELS - 1]
    return [(_swatch(f"{kind}{at}"), as_text(low + (high - low) * at / (LEVELS - 1), form)) for at in steps]


def _swatch(level: str) -> Markup:
    square = tag("g", tag("rect", x=1, y=1, width=13, height=13), class_=f"cell {level}")
    return tag("svg", square, viewBox="0 0 15 15", width=15, height=15, aria_hidden="true")


def _legend_mark(kind: int) -> Markup:
    return tag(
        "svg", _shape(kind, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true", class_=f"k{kind}"
    )


def _shape(kind: int, x: float, y: float, hollow: bool = False) -> Markup:
    place = f"translate({x:.1f} {y:.1f})"
    return tag("path", d=_SHAPES[kind], transform=place, class_="shape hollow" if hollow else "shape")


def _svg(width: float, height: float, parts: Sequence[Markup], label: str, key: str = "") -> Markup:
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": round(width), "height": round(height)}
    told = f"{label}. Arrow keys go from value to value."
    return tag("svg", parts, **size, tabindex=0, role="group", aria_label=told, class_="chart", data_column=key or None)


def _figure(
    identity: str,
    caption: str,
    panels: Sequence[Markup],
    values: Markup,
    legend: Sequence[tuple[Markup, str]],
    arrangement: str = "panels",
) -> Markup:
    return render(
        "figure.html",
        identity=identity,
        caption=caption,
        panels=panels,
        values=values,
        legend=legend,
        arrangement=arrangement,
    )
