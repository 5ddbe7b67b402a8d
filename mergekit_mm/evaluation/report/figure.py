"""The table as a figure: a panel of dots for each column, models on the common vertical axis.

People compare positions on a common scale most accurately (Cleveland and McGill, 1984). The radar charts of the papers
have no room for intervals, and the area of a model in them depends on the order of the axes. The name of each model
stands beside its line, so that no colour must be looked up; roles differ in colour (the palette of Okabe and Ito, which
colour-blind readers can tell apart) and in shape.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergekit_mm.evaluation.report.render import NORMAL_95
from mergekit_mm.evaluation.report.results import Score
from mergekit_mm.evaluation.report.roles import Role
from mergekit_mm.evaluation.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)
_Panel = tuple[str, list[Score | None], bool]  # heading, a score for each row, whether higher is better
_PANELS_PER_LINE = 12
_MARKS = {  # colour, marker
    Role.BASE: ("#000000", "s"),
    Role.EXPERT: ("#0072B2", "o"),
    Role.MERGE: ("#D55E00", "D"),
    Role.REFERENCE: ("#CC79A7", "^"),
    Role.UNKNOWN: ("#0072B2", "o"),
}


def draw(table: Table) -> Figure | None:
    """A matplotlib figure without any global state; None, with a warning, if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        LOG.warning("report.png is not drawn, as it needs matplotlib: pip install 'mergekit-mm[plots]'")
        return None

    panels: list[_Panel] = [
        (column.header, [row.cells[at] for row in table.rows], column.higher_is_better)
        for at, column in enumerate(table.columns)
    ]
    if table.has_mean:
        panels.append(("mean", [row.mean for row in table.rows], True))
    lines = math.ceil(len(panels) / _PANELS_PER_LINE)
    per_line = math.ceil(len(panels) / lines)
    longest = max(len(row.participant.label) for row in table.rows)
    title = max(len(heading) for heading, _, _ in panels)
    names, panel, line = 0.085 * longest + 0.2, max(1.15, 0.085 * title), 0.24 * len(table.rows) + 0.75  # inches
    figure = Figure(
        figsize=(max(names + panel * per_line + 0.2, 6.4), line * lines + 0.6), dpi=150, layout="constrained"
    )
    grid = figure.subplots(lines, per_line, sharey=True, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at < len(panels):
            _panel(axes, table, *panels[at])
        else:
            axes.set_visible(False)
    roles = [role for role in Role if role.value and any(row.participant.role is role for row in table.rows)]
    if roles:
        handles = [
            grid[0][0].plot([], [], _MARKS[role][1], color=_MARKS[role][0], label=role.value)[0] for role in roles
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    figure.supxlabel(_caption(table, panels), fontsize=9)
    return figure


def _caption(table: Table, panels: Sequence[_Panel]) -> str:
    parts = {
        "percent": all(column.percent for column in table.columns),
        "each panel has its own scale": len(panels) > 1,
        "dotted: the base": table.base is not None,
        "filled: the best merge": any(table.best_merges(cells) for _, cells, _ in panels),
        "bars: 95 % intervals": any(cell and cell.stderr for _, cells, _ in panels for cell in cells),
    }
    return "; ".join(part for part, holds in parts.items() if holds)


def _panel(axes: Axes, table: Table, title: str, cells: list[Score | None], higher: bool) -> None:
    best = table.best_merges(cells, higher)
    for at, (row, cell) in enumerate(zip(table.rows, cells, strict=True)):
        if cell is None:
            continue
        colour, marker = _MARKS[row.participant.role]
        width = None if cell.stderr is None else NORMAL_95 * cell.stderr
        hollow = bool(best) and row.participant.role is Role.MERGE and at not in best
        style: dict[str, Any] = {"fmt": marker, "color": colour, "markersize": 5, "elinewidth": 1}
        axes.errorbar(cell.value, at, xerr=width, markerfacecolor="white" if hollow else colour, **style)
        if row.participant is table.base:
            axes.axvline(cell.value, color=colour, linewidth=0.8, linestyle=":")
    heading = title if higher else f"{title} (lower is better)"
    axes.set_title(heading, fontsize=9, fontweight="bold" if title == "mean" else None)
    axes.set_yticks(range(len(table.rows)), [row.participant.label for row in table.rows], fontsize=9)
    axes.set_ylim(len(table.rows) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
