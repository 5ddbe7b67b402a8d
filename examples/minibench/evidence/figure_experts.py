"""The figures of the experts: what they gain and lose, and how their task vectors relate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.minibench.evidence.board import Board, Model
from examples.minibench.evidence.style import BODY, SMALL, figure
from examples.minibench.evidence.task_vectors import Relation
from examples.minibench.evidence.verdicts import signed


def gains(boards: Sequence[Board]) -> Figure:
    """A panel for each way of training: what experts and mixture gain and lose on each column against the base."""
    rows = max(len(board.of("expert")) for board in boards) + 1
    made, grid = figure(0.3 * rows + 1.3, columns=len(boards))
    for axes, board in zip(grid[0], boards, strict=True):
        models = [*board.of("expert"), *board.of("mixture")]
        base = board.one("base")
        found = [[board.difference(each, base, column) for column in board.columns] for each in models if base]
        values = 100 * np.array([[each.value for each in row] for row in found])
        limit = max(np.abs(values).max(), 1.0)  # less than a point is pale, whatever the others are
        axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for at, row in enumerate(found):
            for to, each in enumerate(row):
                clear = each.sign != 0
                colour = "white" if abs(values[at, to]) > 0.62 * limit else "black"
                text = signed(values[at, to], 0)
                weight = "bold" if clear else "normal"
                axes.text(to, at, text, ha="center", va="center", fontsize=SMALL, color=colour, fontweight=weight)
        labels = [each.label.removeprefix("expert ").removesuffix(" training") for each in models]
        axes.set_yticks(range(len(models)), labels, fontsize=SMALL)
        axes.set_xticks(range(len(board.columns)), board.columns, fontsize=SMALL, rotation=30, ha="right")
        axes.tick_params(length=0)
        axes.set_title(board.title, fontsize=BODY, loc="left")
    made.supxlabel("points above or below the base; bold: the interval excludes zero", fontsize=SMALL)
    return made


def task_vectors(board: Board, relations: Sequence[Relation]) -> Figure:
    """Three panels of the same pairs of experts of one way of training, and the drift of each beside its name."""
    experts = [each for each in board.of("expert") if any(each.name in pair.experts for pair in relations)]
    names = [each.name for each in experts]
    cosine, overlap, loss = (np.full((len(names), len(names)), np.nan) for _ in range(3))
    drift: dict[str, float] = {}
    for pair in relations:
        one, other = (names.index(each) for each in pair.experts)
        cosine[one, other] = cosine[other, one] = pair.cosine
        overlap[one, other] = overlap[other, one] = pair.overlap
        drift |= dict(zip(pair.experts, pair.drift, strict=True))
        loss[one, other] = loss[other, one] = mutual_loss(board, experts[one], experts[other])
    made, grid = figure(0.3 * len(names) + 1.35, columns=3)
    chance = float(np.mean([pair.chance for pair in relations]))
    rows = [f"{name} ({100 * drift[name]:.0f} %)" for name in names]
    _panel(grid[0][0], cosine, "cosine", rows, names, 2, np.nanmax(np.abs(cosine)))
    _panel(grid[0][1], overlap, f"overlap (by chance {chance:.2f})", [], names, None, 1.0)
    _panel(grid[0][2], loss, "points lost, mean of both", [], names, 1, np.nanmax(np.abs(loss)))
    made.supxlabel("in brackets: drift, the norm of the task vector over that of the base's weights", fontsize=SMALL)
    return made


def mutual_loss(board: Board, one: Model, other: Model) -> float:
    """What two experts lose on each other's column against the base, in points, the mean of both; gains are negative.

    NaN where there is no base or an expert has no column of its own.
    """
    base, first, second = board.one("base"), board.own(one), board.own(other)
    if not (base and first and second):
        return float("nan")
    changes = [board.difference(one, base, second).value, board.difference(other, base, first).value]
    return -100 * sum(changes) / 2


def _panel(
    axes: Axes,
    values: np.ndarray,
    title: str,
    rows: Sequence[str],
    names: Sequence[str],
    digits: int | None,
    limit: float,
) -> None:
    axes.imshow(np.abs(values), cmap="Greys", vmin=0, vmax=1.15 * max(limit, 1e-9), aspect="auto")
    for at, to in np.ndindex(*values.shape):
        if np.isfinite(values[at, to]):
            colour = "white" if abs(values[at, to]) > 0.65 * limit else "black"
            text = f"{values[at, to]:.2f}" if digits is None else signed(values[at, to], digits)
            axes.text(to, at, text, ha="center", va="center", fontsize=SMALL - 0.5, color=colour)
    axes.set_yticks(range(len(values)), rows if rows else [""] * len(values), fontsize=SMALL)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL, rotation=35, ha="right")
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=BODY, loc="left")
