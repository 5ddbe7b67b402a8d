"""The table as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mergekit_mm.evaluation.report.results import Score
from mergekit_mm.evaluation.report.table import DECIMALS, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMAL_95 = 1.959964  # half the width of a 95 % interval in standard errors


@dataclass(frozen=True)
class TextColumn:
    """A column of text: heading, one cell a row, their numbers, and the rows that are the best merges of it.

    numbers: None where there is none; a column of names has none at all.
    """

    heading: str
    cells: list[str]
    numbers: list[float | None]
    best: frozenset[int] = frozenset()
    is_name: bool = False


def as_text(table: Table, notes: Sequence[str]) -> str:
    """Aligned columns, a blank line between roles, notes beneath; the best merges of a column have a star."""
    columns = text_columns(table)
    printed = []
    for each in columns:
        blank = " " if each.best else ""
        cells = [
            each.heading + blank,
            *(cell + ("*" if at in each.best else blank) for at, cell in enumerate(each.cells)),
        ]
        width = max(map(len, cells))
        printed.append([cell.ljust(width) if each.is_name else cell.rjust(width) for cell in cells])
    head, *body = ["  ".join(line) for line in zip(*printed, strict=True)]
    roles = [row.participant.role for row in table.rows]
    lines = [head.rstrip(), "-" * len(head)]
    for at, line in enumerate(body):
        lines += [""] if at and roles[at] is not roles[at - 1] else []
        lines.append(line.rstrip())
    star = ["* the best merge of the column."] if any(each.best for each in columns) else []
    return "\n".join([*lines, "", *legend(table), *star, *notes])


def as_markdown(table: Table, notes: Sequence[str]) -> str:
    """A pipe table, the best merges of a column in bold, and a list of notes."""
    columns = text_columns(table)
    cells = [
        [_escaped(each.heading), "---" if each.is_name else "---:"]
        + [f"**{cell}**" if at in each.best else _escaped(cell) for at, cell in enumerate(each.cells)]
        for each in columns
    ]
    lines = [f"| {' | '.join(line)} |" for line in zip(*cells, strict=True)]
    bold = ["Bold: the best merge of the column."] if any(each.best for each in columns) else []
    return "\n".join([*lines, "", *(f"- {_escaped(note)}" for note in [*legend(table), *bold, *notes])])


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
        names = [row.participant.label, row.participant.model.name, row.participant.role.value]
        writer.writerow([*names, *("" if number is None else f"{number:.10g}" for number in numbers)])
    return text.getvalue().rstrip("\n")


def write_files(directory: Path, table: Table, notes: Sequence[str], figure: Figure | None) -> None:
    """Write report.md and report.csv, and report.png if there is a figure."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.md").write_text(as_markdown(table, notes) + "\n", encoding="utf-8")
    (directory / "report.csv").write_text(as_csv(table) + "\n", encoding="utf-8")
    if figure:
        figure.savefig(directory / "report.png")


def text_columns(table: Table) -> list[TextColumn]:
    """Role and model, the scores, their mean, and what the roles allow to be compared."""
    columns = [_names("model", [row.participant.label for row in table.rows])]
    roles = [row.participant.role.value for row in table.rows]
    if any(roles):
        columns.insert(0, _names("role", roles))

    def scores(heading: str, cells: Sequence[Score | None], higher_is_better: bool = True) -> None:
        best = frozenset(table.best_merges(cells, higher_is_better))
        values = [cell.value if cell else None for cell in cells]
        columns.append(TextColumn(heading, list(map(cell_text, cells)), values, best))

    def numbers(heading: str, value: Callable[[Row], float | None], sign: str = "") -> None:
        found = [value(row) for row in table.rows]
        texts = ["-" if n is None else f"{n:{sign}.{DECIMALS}f}" for n in found]
        columns.append(TextColumn(heading, texts, found))

    for at, each in enumerate(table.columns):
        scores(each.header, [row.cells[at] for row in table.rows], each.higher_is_better)
    if table.has_mean:
        scores("mean", [row.mean for row in table.rows])
    if table.base and table.mean_of:
        numbers("vs base", lambda row: row.gain_over_base, "+")
    if table.best_expert:
        numbers("vs expert", lambda row: row.gain_over_expert, "+")
    if table.column_experts:
        numbers("normalised", lambda row: row.normalised)
    return columns


def _names(heading: str, names: list[str]) -> TextColumn:
    return TextColumn(heading, names, [None] * len(names), is_name=True)


def cell_text(cell: Score | None) -> str:
    """A score with its interval, a dash if there is none."""
    if cell is None:
        return "-"
    interval = "" if cell.stderr is None else f" ± {NORMAL_95 * cell.stderr:.{DECIMALS}f}"
    return f"{cell.value:.{DECIMALS}f}{interval}"


def legend(table: Table) -> list[str]:
    """What the numbers of the table are, and what their intervals."""
    parts = ["Percent"] if any(column.percent for column in table.columns) else []
    if any(cell and cell.stderr is not None for row in table.rows for cell in (*row.cells, row.mean)):
        parts.append("± 1.96 standard errors of the files (of the mean: columns taken as independent)")
    return [f"{'; '.join(parts)}."] if parts else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
