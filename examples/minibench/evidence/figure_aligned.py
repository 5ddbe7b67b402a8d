"""The figure of merges that learned from unlabelled samples: accuracy by the number of samples."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from examples.minibench.evidence.aligned import rows_of, start_of, usual
from examples.minibench.evidence.board import Board
from examples.minibench.evidence.style import BAND, DARK, MIDDLE, SMALL, figure, plain

_MARKS = ("o", "s", "^", "D", "v")


def by_samples(boards: Sequence[Board]) -> Figure:
    """A panel for each way of training: the rows by their samples for each expert, before the start and the mixture."""
    made, grid = figure(3.0, columns=len(boards), sharey=False)
    for axes, board in zip(grid[0], boards, strict=True):
        known = sorted({samples for row in rows_of(board) for samples in usual(board, row)})
        for at, row in enumerate(rows_of(board)):
            shift = 1 + 0.05 * at  # a little apart, as intervals would hide each other
            means = {shift * samples: board.mean(model) for samples, model in usual(board, row).items()}
            values = [100 * each.value for each in means.values()]
            ends = [[100 * (each.value - each.low) for each in means.values()]]
            ends.append([100 * (each.high - each.value) for each in means.values()])
            mark = _MARKS[at % len(_MARKS)]
            shown = {"color": DARK if at < 2 else MIDDLE, "markerfacecolor": "white" if at % 2 else None}
            axes.errorbar(list(means), values, yerr=ends, fmt=f"{mark}-", label=row, linewidth=1, markersize=4, **shown)
        if start := start_of(board):
            mean = board.mean(start)
            axes.axhspan(100 * mean.low, 100 * mean.high, color=BAND, zorder=0)
            axes.axhline(100 * mean.value, color=MIDDLE, linewidth=1, linestyle=":", label="start")
        if mixture := board.one("mixture"):
            axes.axhline(100 * board.mean(mixture).value, color=MIDDLE, linewidth=1, label="mixture training")
        axes.set_xscale("log")
        axes.set_xticks(known, [str(each) for each in known])
        axes.minorticks_off()
        plain(axes, board.title, "", "mean accuracy in %" if axes is grid[0][0] else "")
    grid[0][-1].legend(fontsize=SMALL, frameon=False, loc="best")
    made.supxlabel("unlabelled samples for each expert; bars and band: 95 % intervals", fontsize=SMALL)
    return made
