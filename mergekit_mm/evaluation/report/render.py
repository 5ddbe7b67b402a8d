"""The table as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_mm.evaluation.report.results import Score
from mergekit_mm.evaluation.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMAL_95 = 1.959964  # half the width of a 95 % interval in standard errors


@dataclass(frozen=True)
class Style:
    """How numbers are written."""

    decimals: int = 1
    intervals: bool = True


@dataclass(frozen=True)
class _Written:
    """A column as written: a heading, a text a row, and which rows are the best merges of it."""

    heading: str
    texts: list[str]
    best: set[int] = field(default_factory=set)


def as_text(table: Table, notes: Sequence[str], style: Style) -> str:
    """Aligned columns, a blank line between roles, the notes beneath; the best merges of a column have a star."""
    numbers = _written(table, style)
    columns = [[text.ljust(max(map(len, column))) for text in column] for column in _names(table)]
    for each in numbers:
        mark = " " if each.best else ""
        marked = [text + ("*" if at in each.best else mark) for at, text in enumerate(each.texts)]
        width = max(map(len, [each.heading + mark, *marked]))
        columns.append([text.rjust(width) for text in [each.heading + mark, *marked]])
    head, *body = ["  ".join(line) for line in zip(*columns, strict=True)]
    roles = [row.participant.role for row in table.rows]
    lines = [head.rstrip(), "-" * len(head)]
    for at, line in enumerate(body):
        lines += [""] if at and roles[at] is not roles[at - 1] else []
        lines.append(line.rstrip())
    star = ["* the best merge of the column."] if any(each.best for each in numbers) else []
    return "\n".join([*lines, "", *_legend(table, style), *star, *notes])


def as_markdown(table: Table, notes: Sequence[str], style: Style) -> str:
    """A pipe table, the best merges of a column in bold, and a list of notes."""
    names = [[_escaped(text) for text in column] for column in _names(table)]
    numbers = _written(table, style)
    lines = ["| " + " | ".join([*(column[0] for column in names), *(_escaped(f.heading) for f in numbers)]) + " |"]
    lines.append("|" + "---|" * len(names) + "---:|" * len(numbers))
    for at in range(len(table.rows)):
        cells = [f"**{each.texts[at]}**" if at in each.best else each.texts[at] for each in numbers]
        lines.append("| " + " | ".join([*(column[at + 1] for column in names), *cells]) + " |")
    bold = ["Bold: the best merge of the column."] if any(each.best for each in numbers) else []
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in [*_legend(table, style), *bold, *notes])])


def as_csv(table: Table) -> str:
    """One line a model, all digits, standard errors in columns of their own; empty where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = [heading for column in table.columns for heading in (column.header, f"{column.header} stderr")]
    gains = ["gain over base", "gain over best expert", "normalised"]
    writer.writerow(["model", "name", "role", *headings, "mean", "mean stderr", *gains])
    for row in table.rows:
        cells = (*row.cells, row.mean)
        scores = [number for cell in cells for number in ((cell.value, cell.stderr) if cell else (None, None))]
        numbers = [*scores, row.gain_over_base, row.gain_over_expert, row.normalised]
        who = row.participant
        writer.writerow(
            [who.label, who.model.name, who.role.value, *("" if n is None else f"{n:.10g}" for n in numbers)]
        )
    return text.getvalue().rstrip("\n")


def write_files(directory: Path, table: Table, notes: Sequence[str], style: Style, figure: Figure | None) -> None:
    """report.md, report.csv and, of a figure, report.png."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(as_markdown(table, notes, style) + "\n", encoding="utf-8")
    (directory / "report.csv").write_text(as_csv(table) + "\n", encoding="utf-8")
    if figure:
        figure.savefig(directory / "report.png")


def _names(table: Table) -> list[list[str]]:
    """The columns on the left: the model, and its role if roles are known."""
    roles = [row.participant.role.value for row in table.rows]
    labels = [["model", *(row.participant.label for row in table.rows)]]
    return [["role", *roles], *labels] if any(roles) else labels


def _written(table: Table, style: Style) -> list[_Written]:
    def column(heading: str, cells: Sequence[Score | None], higher: bool = True) -> _Written:
        return _Written(
            heading, [_cell(cell, style) for cell in cells], table.best_merges(cells, higher, style.decimals)
        )

    def plain(heading: str, numbers: Sequence[float | None], sign: str = "") -> _Written:
        return _Written(heading, ["-" if n is None else f"{n:{sign}.{style.decimals}f}" for n in numbers])

    numbers = [
        column(each.header, [row.cells[at] for row in table.rows], each.higher_is_better)
        for at, each in enumerate(table.columns)
    ]
    if table.has_mean:
        numbers.append(column("mean", [row.mean for row in table.rows]))
    if table.base and table.mean_of:
        numbers.append(plain("vs base", [row.gain_over_base for row in table.rows], "+"))
    if table.best_expert:
        numbers.append(plain("vs expert", [row.gain_over_expert for row in table.rows], "+"))
    if table.column_experts:
        numbers.append(plain("normalised", [row.normalised for row in table.rows]))
    return numbers


def _cell(cell: Score | None, style: Style) -> str:
    if cell is None:
        return "-"
    interval = style.intervals and cell.stderr is not None
    return f"{cell.value:.{style.decimals}f}" + (
        f" ± {NORMAL_95 * (cell.stderr or 0):.{style.decimals}f}" if interval else ""
    )


def _legend(table: Table, style: Style) -> list[str]:
    percent = ["Percent"] if any(column.percent for column in table.columns) else []
    cells = [cell for row in table.rows for cell in (*row.cells, row.mean) if cell]
    known = style.intervals and any(cell.stderr is not None for cell in cells)
    interval = ["± 1.96 standard errors of the files (of the mean: columns taken as independent)"] if known else []
    text = "; ".join(percent + interval)
    return [f"{text}."] if text else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
