"""The figure of a run: a panel for each method with its strengths, on one common scale of scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergekit_mm.tune.race import Entry, Outcome, by_variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)
_PANELS_PER_LINE = 4
_CHOSEN, _LAST, _OUT = "#D55E00", "#0072B2", "#999999"  # the palette of Okabe and Ito, and grey


def draw(outcome: Outcome, factor: float, title: str) -> Figure | None:
    """A matplotlib figure without any global state; None, with a warning, if matplotlib is not installed.

    factor: by which values are multiplied. title: what they are.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        LOG.warning("tune.png is not drawn, as it needs matplotlib: pip install 'mergekit-mm[plots]'")
        return None
    panels = by_variant(outcome.entries)
    per_line = min(len(panels), _PANELS_PER_LINE)
    lines = -(-len(panels) // per_line)
    figure = Figure(figsize=(max(2.1 * per_line + 0.6, 4.5), 2.2 * lines + 0.7), dpi=150, layout="constrained")
    grid = figure.subplots(lines, per_line, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (label, entries) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, outcome, label, entries, factor)
    for row in grid:
        row[0].set_ylabel(title, fontsize=9)
    caption = [
        "95 % intervals; orange: the chosen",
        "blue: in the last round too; grey: out before, after fewer questions",
    ]
    figure.supxlabel("\n".join(["strength", *caption]), fontsize=8)
    return figure


def _panel(axes: Axes, outcome: Outcome, label: str, entries: Sequence[Entry], factor: float) -> None:
    for at, entry in enumerate(entries):
        score, place = entry.score, at if entry.candidate.strength is None else entry.candidate.strength
        in_last = entry.rounds == len(outcome.race)
        colour = _CHOSEN if entry is outcome.chosen else _LAST if in_last else _OUT
        width = None if score.half_width is None else factor * score.half_width
        style: dict[str, Any] = {"fmt": "D" if entry is outcome.chosen else "o", "markersize": 4, "elinewidth": 1}
        axes.errorbar(place, factor * score.value, yerr=width, color=colour, **style)
    axes.set_xticks([entry.candidate.strength for entry in entries if entry.candidate.strength is not None])
    best = outcome.chosen.score.value
    axes.axhline(factor * best, color=_CHOSEN, linewidth=0.6, linestyle=":")
    axes.set_title(label.replace(":", "\n", 1), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.12)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
