"""Dots with intervals and lines with bands: SVG whose every mark tells its value to pointer and keyboard.

A chart is one stop of the tab key; within it the arrow keys go from mark to mark. Shapes and dashes differ as well as
colours, which are those of the style sheet, so that charts follow light and dark mode and can be told apart in grey.
Below each chart its values are a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mergekit_mm.pages.figures import drawing, figure, legend_mark, movable_rows, shape
from mergekit_mm.pages.markup import tag
from mergekit_mm.pages.scales import Scale, as_text, fitted, shortened, width_of
from mergekit_mm.pages.tables import Cell, Column, table

_LINE = 22  # pixels from one row of dots to the next
_NAME = 22  # characters of a row's name
_PLOT = 150  # pixels that the dots of a panel have
_CHART = (300, 190)  # pixels of a panel of lines
_SERIES = 18  # characters of a line's name
_LABEL = 16  # pixels that the name of a dotted line takes above it
_BOLDER = 1.12  # width of a title over that of a label


@dataclass(frozen=True)
class Dot:
    """A value, perhaps with its interval. hollow: drawn without its inside, as of less interest."""

    value: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class DotRow:
    """What has a dot in each panel. kind: of its mark, from 0 to 5. key: shared with the row of a table."""

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
    """Points from left to right under one name. kind: of its marks and dashes, from 0 to 5."""

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
    columns = [Column(""), *(Column(each.heading, numeric=True, key=each.key) for each in panels)]
    cells: list[list[Cell | str]] = [[row.name] for row in rows]
    for panel in panels:
        for line, dot in zip(cells, panel.dots, strict=True):
            line.append(Cell("–", "") if dot is None else Cell(_told(dot, form), dot.value))
    values = table(f"{identity}-values", caption, columns, cells, [row.key for row in rows], tools=False)
    return figure(identity, caption, drawn, values, [(legend_mark(kind), name) for kind, name in legend])


def _dot_panel(rows: Sequence[DotRow], panel: DotPanel, form: str) -> Markup:
    left = width_of(shortened(max((row.name for row in rows), key=len), _NAME)) + 10
    right, top = left + _PLOT, 26.0
    bottom = top + _LINE * len(rows)
    ends = [each for dot in panel.dots if dot for each in (dot.value, dot.low, dot.high) if each is not None]
    scale = fitted(ends if panel.reference is None else [*ends, panel.reference], left, right)
    ticks = [(scale(value), as_text(value)) for value in scale.ticks(4)]
    upright = [tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="grid") for at, _ in ticks]
    if panel.reference is not None:
        at = scale(panel.reference)
        upright.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="reference"))
    drawn = []
    for row, dot in zip(rows, panel.dots, strict=True):
        name = tag("text", shortened(row.name, _NAME), x=left - 8, y=4, class_="tick end")
        inside = [name, tag("line", x1=left, x2=right, y1=0, y2=0, class_="grid")]
        drawn.append((row.key, inside if dot is None else [*inside, _dot(scale, row, panel, dot, form)]))
    foot = [tag("text", text, x=at, y=15, class_="tick middle") for at, text in ticks]
    title = shortened(panel.heading, 32)
    parts = [tag("text", title, x=2, y=14, class_="title"), *movable_rows(drawn, top, _LINE, upright, foot)]
    width = max(right + 14, _BOLDER * width_of(title) + 4)
    return drawing(width, bottom + 22, parts, panel.heading, panel.key)


def _dot(scale: Scale, row: DotRow, panel: DotPanel, dot: Dot, form: str) -> Markup:
    parts = [tag("title", f"{row.name}, {panel.heading}: {_told(dot, form)}")]
    if dot.low is not None and dot.high is not None:
        parts.append(tag("line", x1=scale(dot.low), x2=scale(dot.high), y1=0, y2=0, class_="interval"))
    parts.append(shape(row.kind, scale(dot.value), 0, dot.hollow))
    return tag("g", parts, class_=f"mark k{row.kind}")


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
    return figure(identity, caption, drawn, values, [(legend_mark(kind), name) for name, kind in named.items()])


def _line_panel(panel: LinePanel, x_name: str, form: str, x_form: str) -> Markup:
    points = [point for line in panel.lines for point in line.points]
    ends = [each for point in points for each in (point.y, point.low, point.high) if each is not None]
    width, height = _CHART
    left, top = 46.0, 26.0
    across = fitted((point.x for point in points), left, left + width)
    upward = fitted([*ends, *(at for _, at in panel.references)], top + height, top)
    parts = [tag("text", shortened(panel.heading, 44), x=2, y=14, class_="title")]
    for value in upward.ticks(6):
        y = upward(value)
        parts.append(tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", as_text(value), x=left - 6, y=y + 4, class_="tick end"))
    for value in across.ticks(7, whole=all(float(point.x).is_integer() for point in points)):
        parts.append(tag("text", as_text(value), x=across(value), y=top + height + 15, class_="tick middle"))
    parts.append(tag("text", x_name, x=left + width / 2, y=top + height + 32, class_="tick middle"))
    for number, (name, at) in enumerate(panel.references):
        y, ends_there = upward(at), number % 2 == 1  # names at both ends in turn, as two values may be close
        told = tag("title", f"{name}, {panel.heading}: {as_text(at, form)}")
        rule = tag("line", x1=left, x2=left + width, y1=y, y2=y, class_="reference")
        is_beneath = any(0 < y - upward(other) < _LABEL for _, other in panel.references)
        label = tag(
            "text",
            shortened(name, _SERIES),
            x=left + width if ends_there else left + 2,
            y=y + 13 if is_beneath else y - 4,
            class_="tick on-lines end" if ends_there else "tick on-lines",
        )
        parts.append(tag("g", [told, rule, label], class_="mark"))
    for number, line in enumerate(panel.lines):
        parts += _line(line, number, panel.heading, x_name, across, upward, form, x_form)
    return drawing(left + width + 12, top + height + 40, parts, panel.heading, panel.key)


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
        inside = [tag("title", f"{line.name}, {heading}, {place}: {_told(point, form)}"), shape(line.kind, x, y)]
        if point.low is not None and point.high is not None:
            low, high = upward(point.low), upward(point.high)
            inside.insert(1, tag("line", x1=x, x2=x, y1=low, y2=high, class_="interval"))
        parts.append(tag("g", inside, class_=f"mark k{line.kind}", data_r=number, data_c=at))
    return parts
