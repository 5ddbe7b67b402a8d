"""What the figures have in common: sizes, marks that differ in shape and in grey, names beside what they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.0  # inches; two columns of a paper
SMALL, BODY = 7.5, 8.5  # points
DARK, MIDDLE, PALE, LIGHT, BAND = "#222222", "#777777", "#A5A5A5", "#C5C5C5", "#E9E9E9"
ACCENT = "#D55E00"  # vermilion, from the palette of Okabe and Ito
Label = tuple[float, float, str]  # a place in the data, and its name


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure of full width and its axes (rows, columns), without any global state."""
    made = Figure(figsize=(WIDTH, height), dpi=200, layout="constrained")
    return made, made.subplots(rows, columns, squeeze=False, **options)


def plain(axes: Axes, title: str = "", across: str = "", up: str = "") -> None:
    """Few lines, legible numbers."""
    axes.set_title(title, fontsize=BODY, loc="left")
    axes.set_xlabel(across, fontsize=SMALL)
    axes.set_ylabel(up, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def names_at_right(axes: Axes, labels: Sequence[Label], size: float = SMALL) -> None:
    """Names in a column at the right, in the order of their places' heights, each with a thin line to its place.

    The names keep a distance of a line of text from each other, so that they cannot overlap.
    """
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # points
    gap = 1.25 * size * (high - low) / height
    order = sorted(labels, key=lambda label: label[1])
    wanted = [label[1] for label in order]
    places = _apart(wanted, gap, low, high)
    for (x, y, name), place in zip(order, places, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.06, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            arrowprops={"arrowstyle": "-", "color": MIDDLE, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )


def _apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places near the wanted ones, at least `gap` apart, within the ends where there is room."""
    clusters: list[list[float]] = []  # wanted places that touch, which are centred together
    for each in wanted:
        clusters.append([each])
        while (
            len(clusters) > 1 and _span(clusters[-2], gap, low, high)[1] + gap > _span(clusters[-1], gap, low, high)[0]
        ):
            last = clusters.pop()
            clusters[-1] += last
    return [_span(each, gap, low, high)[0] + gap * at for each in clusters for at in range(len(each))]


def _span(cluster: Sequence[float], gap: float, low: float, high: float) -> tuple[float, float]:
    """The first and the last place of a cluster."""
    length = gap * (len(cluster) - 1)
    first = min(max(sum(cluster) / len(cluster) - length / 2, low), max(high - length, low))
    return first, first + length


def save(made: Figure, folder: Path, name: str) -> str:
    """Write a PNG; returns its file name."""
    made.savefig(folder / f"{name}.png", metadata={"Software": None})
    return f"{name}.png"
