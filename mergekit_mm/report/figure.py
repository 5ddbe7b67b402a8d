"""The table as a figure: a panel of dots for each column, models on the common vertical axis.

Dots on a common scale are what people compare best (Cleveland and McGill, 1984). The radar charts of the papers have no
room for intervals, and the area of a model depends on the order of the axes. Here each model's name stands beside its
line, so that no colour must be looked up; roles differ in colour (Okabe and Ito's, safe for colour-blind readers) and
in shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mergekit_mm.report.render import NORMAL_95
from mergekit_mm.report.results import ReportError, Score
from mergekit_mm.report.roles import Role
from mergekit_mm.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS_PER_LINE = 12
_MARKS = {  # colour, marker
    Role.BASE: ("#000000", "s"),
    Role.EXPERT: ("#0072B2", "o"),
    Role.MERGE: ("#D55E00", "D"),
    Role.REFERENCE: ("#CC79A7", "^"),
    Role.UNKNOWN: ("#0072B2", "o"),
}


def draw(table: Table, intervals: bool = True) -> Figure:
    """A matplotlib figure without any global state. ReportError: matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ReportError(
            "the figure needs matplotlib: pip install 'mergekit-mm[plots]', or leave it out by --no-figure"
        ) from error

    panels = [
        (column.header, [row.cells[at] for row in table.rows], column.higher_is_better)
        for at, column in enumerate(table.columns)
    ]
    if len(table.mean_of) > 1:
        panels.append(("mean", [row.mean for row in table.rows], True))
    per_line = min(len(panels), _PANELS_PER_LINE)
    lines = math.ceil(len(panels) / per_line)
    longest = max(len(row.participant.label) for row in table.rows)
    names, panel, line = 0.085 * longest + 0.2, 1.15 if per_line > 4 else 2.2, 0.24 * len(table.rows) + 0.75
    figure = Figure(figsize=(names + panel * per_line + 0.2, line * lines + 0.6), dpi=150, layout="constrained")
    grid = figure.subplots(lines, per_line, sharey=True, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at < len(panels):
            _panel(axes, table, *panels[at], intervals)
        else:
            axes.set_visible(False)
    roles = [role for role in Role if role.value and any(row.participant.role is role for row in table.rows)]
    if roles:
        handles = [
            grid[0][0].plot([], [], _MARKS[role][1], color=_MARKS[role][0], label=role.value)[0] for role in roles
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    told = ["percent" if all(column.percent for column in table.columns) else "score", "each panel has its own scale"]
    told += ["dotted: the base"] if table.base else []
    told += ["filled: the best merge"] if len(table.merges) > 1 else []
    told += (
        ["bars: 95 % intervals"] if intervals and any(c and c.stderr for _, cells, _ in panels for c in cells) else []
    )
    figure.supxlabel("; ".join(told), fontsize=9)
    return figure


def _panel(axes: Axes, table: Table, title: str, cells: list[Score | None], higher: bool, intervals: bool) -> None:
    merges = [
        cell.value for cell, row in zip(cells, table.rows, strict=True) if cell and row.participant.role is Role.MERGE
    ]
    best = (max if higher else min)(merges, default=None)
    for at, (row, cell) in enumerate(zip(table.rows, cells, strict=True)):
        if cell is None:
            continue
        colour, marker = _MARKS[row.participant.role]
        width = NORMAL_95 * cell.stderr if intervals and cell.stderr is not None else None
        hollow = row.participant.role is Role.MERGE and cell.value != best
        axes.errorbar(
            cell.value,
            at,
            xerr=width,
            fmt=marker,
            color=colour,
            markersize=5,
            elinewidth=1,
            markerfacecolor="white" if hollow else colour,
        )
        if row.participant is table.base:
            axes.axvline(cell.value, color=colour, linewidth=0.8, linestyle=":")
    axes.set_title(
        f"{title}" + ("" if higher else " (lower is better)"),
        fontsize=9,
        fontweight="bold" if title == "mean" else None,
    )
    axes.set_yticks(range(len(table.rows)), [row.participant.label for row in table.rows], fontsize=9)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
