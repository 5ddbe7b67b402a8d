"""The figures of the merges: ranking, strength and cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.statistics import Interval
from examples.minibench.evidence.style import (
    ACCENT,
    BAND,
    DARK,
    LIGHT,
    MIDDLE,
    PALE,
    SMALL,
    figure,
    names_at_right,
    plain,
)


def ranking(board: Board) -> Figure:
    """Methods by accuracy: means with intervals beside the references, and the ranks that cannot be ruled out."""
    ranks = board.ranks(board.main())
    order = sorted(ranks, key=lambda each: board.mean(each).value, reverse=True)
    made, grid = figure(0.21 * len(order) + 1.4, columns=2, sharey=True, width_ratios=(3, 2))
    left, right = grid[0]
    for at, model in enumerate(order):
        mean = 100 * np.array(_three(board.mean(model)))
        if published := board.one("merge", model.name, "published"):
            value = 100 * board.mean(published).value
            left.plot(value, at, "s", color=MIDDLE, markerfacecolor="white", markersize=4)
        left.errorbar(mean[0], at, xerr=_both_sides(mean), fmt="o", color=DARK, markersize=4, elinewidth=1)
        right.plot([ranks[model].low, ranks[model].high], [at, at], color=MIDDLE, linewidth=4, solid_capstyle="butt")
        right.plot(ranks[model].value, at, "o", color=DARK, markersize=4)
    left.set_yticks(range(len(order)), [each.name for each in order])
    left.set_ylim(len(order) - 0.5, -0.5)
    plain(left, "", "mean accuracy in %")
    plain(right, "", "rank")
    told = "dot: strength chosen on validation questions, with the 95 % interval; square: published strength; "
    made.supxlabel(told + "bar: ranks not ruled out", fontsize=SMALL)
    _references(left, board)
    right.set_xlim(0.5, len(order) + 0.5)
    right.locator_params(axis="x", integer=True)
    for axes in (left, right):
        axes.grid(axis="y", color=LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)
    return made


def strength(validation: Board, board: Board) -> Figure:
    """A panel for each method: its accuracy on validation questions by strength, before those of all others."""
    curves, columns = curves_of(validation, board), 4
    rows = -(-len(curves) // columns)
    made, grid = figure(1.25 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    for at, axes in enumerate(grid.flat):
        axes.set_visible(at < len(curves))
    for axes, (name, curve) in zip(grid.flat, curves.items(), strict=False):
        for other in curves.values():
            axes.plot(*_points(validation, other), color=LIGHT, linewidth=0.7, zorder=1.5)
        x, y = _points(validation, curve)
        spread = 100 * np.array([[validation.mean(each).low, validation.mean(each).high] for each in curve])
        axes.fill_between(x, spread[:, 0], spread[:, 1], color=BAND, linewidth=0, zorder=1)
        axes.plot(x, y, "o-", color=DARK, markersize=2.5, linewidth=1.2)
        chosen, published = (board.one("merge", name, setting) for setting in ("chosen", "published"))
        for value in sorted(set(board.strengths(published))) if published else []:
            axes.axvline(value, color=MIDDLE, linewidth=0.9, linestyle=":")
        for value in sorted(set(board.strengths(chosen))) if chosen else []:
            axes.plot(value, np.interp(value, x, y), "D", color=ACCENT, markersize=5.5, markeredgecolor=DARK)
        plain(axes, name)
        axes.set_xscale("log")
        axes.set_xticks(x, _spaced(x))
        axes.minorticks_off()
    told = "strength; diamond: chosen, of each run; dotted: published; grey lines: other methods; band: 95 % interval"
    made.supxlabel(told, fontsize=SMALL)
    made.supylabel("validation: mean accuracy in %" if rows > 1 else "accuracy in %", fontsize=SMALL)
    return made


def cost(boards: Sequence[Board]) -> Figure:
    """A panel for each way of training: mean accuracy against the seconds of a merge."""
    made, grid = figure(3.3, columns=len(boards))
    drawn = []
    for axes, board in zip(grid[0], boards, strict=True):
        labels = []
        for model in board.main():
            if (seconds := board.seconds(model)) is None:
                continue
            mean = 100 * np.array(_three(board.mean(model)))
            axes.errorbar(
                seconds,
                mean[0],
                yerr=_both_sides(mean),
                fmt="o",
                color=DARK,
                ecolor=PALE,
                markersize=3.5,
                elinewidth=0.8,
            )
            labels.append((seconds, mean[0], model.name))
        axes.set_xscale("log")
        plain(axes, board.title, "", "mean accuracy in %" if axes is grid[0][0] else "")
        _plain_log(axes, [label[0] for label in labels])
        drawn.append((axes, labels))
    made.supxlabel("CPU seconds of the merge, reading and writing included; bars: 95 % intervals", fontsize=SMALL)
    made.draw_without_rendering()
    for axes, labels in drawn:
        names_at_right(axes, labels)
    return made


def _references(axes: Axes, board: Board) -> None:
    """Vertical lines for what a merge is to be compared with, named at their upper ends."""
    experts = board.of("expert")
    shown: list[tuple[Model | None, str, str]] = [
        (board.one("base"), "base", ":"),
        (max(experts, key=lambda each: board.mean(each).value) if experts else None, "best expert", "--"),
        (board.one("unmerged"), "unmerged", "-."),
        (board.one("mixture"), "mixture", "-"),
    ]
    known = sorted((100 * board.mean(model).value, name, line) for model, name, line in shown if model)
    low, high = axes.get_xlim()
    ends: list[float] = []  # the right end of the last name in each line of names
    for value, name, line in known:
        axes.axvline(value, color=MIDDLE, linewidth=1, linestyle=line)
        half = 0.011 * (high - low) * len(name)
        at = next((at for at, end in enumerate(ends) if end < value - half), len(ends))
        ends[at : at + 1] = [value + half]
        place = (value, 1.02 + 0.055 * at)
        axes.annotate(name, place, xycoords=("data", "axes fraction"), ha="center", fontsize=SMALL, color=DARK)


def curves_of(validation: Board, board: Board) -> dict[str, list[Model]]:
    """By method its merges on validation questions in the order of their strengths, if there are several."""
    found = {}
    for name in (each.name for each in board.main()):
        tried = [each for each in validation.of("merge", name, "grid") if each.strength]
        found[name] = sorted(tried, key=lambda each: each.strength or 0.0)
    return {name: curve for name, curve in found.items() if len(curve) > 1}


def _points(validation: Board, curve: Sequence[Model]) -> tuple[list[float], list[float]]:
    return [each.strength or 0.0 for each in curve], [100 * validation.mean(each).value for each in curve]


def _spaced(values: Sequence[float]) -> list[str]:
    """Tick labels on a logarithmic axis, empty where one would touch the last."""
    labels: list[str] = []
    last = 0.0
    for value in values:
        labels.append(f"{value:g}" if value > 1.47 * last else "")
        last = value if labels[-1] else last
    return labels


def _three(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _both_sides(three: np.ndarray) -> list[list[float]]:
    return [[max(three[0] - three[1], 0)], [max(three[2] - three[0], 0)]]


def _plain_log(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out."""
    low, high = min(values) / 1.3, max(values) * 1.3
    ticks = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
