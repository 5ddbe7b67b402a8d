"""The figures of accuracies: ranking, strength, cost, and what experts gain and lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.style import ACCENT, BODY, DARK, LIGHT, MIDDLE, SMALL, figure, names_at_right, plain


def ranking(board: Board) -> Figure:
    """Methods by accuracy: means with intervals beside the references, and the ranks that cannot be ruled out."""
    ranks = board.ranks(board.main())
    order = sorted(ranks, key=lambda each: board.mean(each).value, reverse=True)
    made, grid = figure(0.21 * len(order) + 1.15, columns=2, sharey=True, width_ratios=(3, 2))
    left, right = grid[0]
    _references(left, board)
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
    plain(left, "", "mean accuracy in %; dot: strength chosen on validation, square: published")
    plain(right, "", "rank among these; bar: ranks not ruled out")
    right.set_xlim(0.5, len(order) + 0.5)
    right.locator_params(axis="x", integer=True)
    for axes in (left, right):
        axes.grid(axis="y", color=LIGHT, linewidth=0.6)
        axes.set_axisbelow(True)
    return made


def strength(validation: Board, board: Board) -> Figure:
    """A panel for each method: its accuracy on validation questions by strength, before those of all others."""
    curves = {each.name: _curve(validation, each.name) for each in board.main()}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    columns = 4
    rows = -(-len(curves) // columns)
    made, grid = figure(1.25 * rows + 0.5, rows, columns, sharex=True, sharey=True)
    for at, axes in enumerate(grid.flat):
        axes.set_visible(at < len(curves))
    for axes, (name, curve) in zip(grid.flat, curves.items(), strict=False):
        for other in curves.values():
            axes.plot(*_points(validation, other), color=LIGHT, linewidth=0.8)
        x, y = _points(validation, curve)
        spread = 100 * np.array([[validation.mean(each).low, validation.mean(each).high] for each in curve])
        axes.fill_between(x, spread[:, 0], spread[:, 1], color=MIDDLE, alpha=0.3, linewidth=0)
        axes.plot(x, y, "o-", color=DARK, markersize=2.5, linewidth=1.2)
        chosen = board.one("merge", name, "chosen")
        for value in sorted(set(board.strengths(chosen))) if chosen else []:
            axes.plot(value, np.interp(value, x, y), "D", color=ACCENT, markersize=5.5, markeredgecolor=DARK)
        plain(axes, name)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
    made.supxlabel(
        "strength; diamond: chosen, of each run; grey: the other methods; band: 95 % interval", fontsize=SMALL
    )
    made.supylabel("mean accuracy on validation questions in %", fontsize=SMALL)
    return made


def cost(boards: Sequence[Board]) -> Figure:
    """A panel for each way of training: mean accuracy against the seconds of a merge."""
    made, grid = figure(3.3, columns=len(boards))
    for axes, board in zip(grid[0], boards, strict=True):
        labels = []
        for model in board.main():
            if (seconds := board.seconds(model)) is None:
                continue
            mean = 100 * np.array(_three(board.mean(model)))
            axes.errorbar(seconds, mean[0], yerr=_both_sides(mean), fmt="o", color=DARK, markersize=3.5, elinewidth=0.5)
            labels.append((seconds, mean[0], model.name))
        axes.set_xscale("log")
        plain(axes, board.way, "seconds of the merge, start and writing included", "mean accuracy in %")
        _plain_log(axes, [label[0] for label in labels])
        made.draw_without_rendering()
        names_at_right(axes, labels)
    return made


def gains(boards: Sequence[Board]) -> Figure:
    """A panel for each way of training: what experts and mixture gain and lose on each column against the base."""
    rows = max(len(board.of("expert")) for board in boards) + 1
    made, grid = figure(0.3 * rows + 1.3, columns=len(boards))
    for axes, board in zip(grid[0], boards, strict=True):
        models = [*board.of("expert"), *board.of("mixture")]
        base = board.one("base")
        found = [[board.difference(each, base, column) for column in board.columns] for each in models if base]
        values = 100 * np.array([[each.value for each in row] for row in found])
        limit = np.abs(values).max()
        axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for at, row in enumerate(found):
            for to, each in enumerate(row):
                clear = each.sign != 0
                colour = "white" if abs(values[at, to]) > 0.62 * limit else "black"
                text = f"{values[at, to]:+.0f}".replace("-", "−")
                weight = "bold" if clear else "normal"
                axes.text(to, at, text, ha="center", va="center", fontsize=SMALL, color=colour, fontweight=weight)
        labels = [each.label.removeprefix("expert ").removesuffix(" training") for each in models]
        axes.set_yticks(range(len(models)), labels, fontsize=SMALL)
        axes.set_xticks(range(len(board.columns)), board.columns, fontsize=SMALL, rotation=30, ha="right")
        axes.tick_params(length=0)
        axes.set_title(board.way, fontsize=BODY, loc="left")
    made.supxlabel("points above or below the base; bold: the interval excludes zero", fontsize=SMALL)
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
    known = sorted((board.mean(model).value, name, line) for model, name, line in shown if model)
    for at, (value, name, line) in enumerate(known):
        axes.axvline(100 * value, color=MIDDLE, linewidth=1, linestyle=line)
        place = (100 * value, 1.02 + 0.0 * at)
        axes.annotate(name, place, xycoords=("data", "axes fraction"), ha="center", fontsize=SMALL, color=DARK)


def _curve(validation: Board, name: str) -> list[Model]:
    found = [each for each in validation.of("merge", name, "grid") if each.strength]
    return sorted(found, key=lambda each: each.strength or 0.0)


def _points(validation: Board, curve: Sequence[Model]) -> tuple[list[float], list[float]]:
    return [each.strength or 0.0 for each in curve], [100 * validation.mean(each).value for each in curve]


def _three(interval: object) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high  # type: ignore[attr-defined]


def _both_sides(three: np.ndarray) -> list[list[float]]:
    return [[max(three[0] - three[1], 0)], [max(three[2] - three[0], 0)]]


def _plain_log(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out."""
    low, high = min(values) / 1.3, max(values) * 1.3
    ticks = [m * 10.0**e for e in range(-2, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
