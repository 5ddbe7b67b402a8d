"""Charts: real tables drawn by matplotlib as columns, bars, points and pies, with questions as in ChartQA."""

from __future__ import annotations

import io
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from examples.minibench.rows import SIDE, Region, Row
from examples.minibench.tables import series, tables

_DPI = 100
_TEXT = 5.5  # points: 7.6 pixels
COLORS = {
    "red": "#d62728", "blue": "#1f5fd0", "green": "#2ca02c", "orange": "#ff9d1e", "purple": "#8e44ad",
    "gray": "#808080",
}  # fmt: skip
# What questions call the thing that stands for a value, by type of chart.
MARKS = {"column": "bar", "bar": "bar", "line": "point", "pie": "slice"}
HIGHEST = 5  # value, and end of the axis
_FEWEST, _MOST = 3, 5  # marks of a chart


@dataclass(frozen=True)
class Chart:
    """What a chart shows: a value for each colour, from 1 to `HIGHEST`. type: a key of `MARKS`."""

    type: str
    values: dict[str, int]

    @property
    def mark(self) -> str:
        return MARKS[self.type]


def generate(split: str, seed: int) -> Iterator[Row]:
    """All questions about each chart, but only some that compare two marks. See `rows.Generator`."""
    rng = random.Random(f"chart {split} {seed}")
    while True:
        table = rng.choice(tables(split))
        chosen = values_in_unit(rng, rng.choice(series(table)))
        if chosen is not None:
            colors = rng.sample(list(COLORS), len(chosen))
            chart = Chart(rng.choice(list(MARKS)), dict(zip(colors, chosen, strict=True)))
            picture, regions = draw(rng, chart)
            for kind, question, answer in ask(rng, chart):
                yield Row(picture, kind, question, answer, (f"table {table}",), regions)


def values_in_unit(rng: random.Random, values: list[float]) -> list[int] | None:
    """Three to five values of a column, in a round unit in which they are rounded to 1 to `HIGHEST`.

    They all differ after rounding. None if fewer than three of the values that are drawn do so.
    """
    drawn = rng.sample(values, min(len(values), 12))
    power = 10.0 ** math.floor(math.log10(drawn[0]))
    unit = next(each * power for each in (0.1, 0.2, 0.5, 1.0, 2.0) if drawn[0] <= HIGHEST * each * power)
    found = list(dict.fromkeys(round(value / unit) for value in drawn if 1 <= round(value / unit) <= HIGHEST))
    return found[: rng.randint(_FEWEST, _MOST)] if len(found) >= _FEWEST else None


def ask(rng: random.Random, chart: Chart) -> list[tuple[str, str, str]]:
    """The kind, the question and the answer of what can be asked about a chart."""
    values, mark = chart.values, chart.mark
    by_value = sorted(values, key=lambda color: values[color])
    low, high = by_value[0], by_value[-1]
    asked = [
        ("count", f"How many {mark}s are there?", str(len(values))),
        ("extremum", f"What color is the largest {mark}?", high),
        ("extremum", f"What color is the smallest {mark}?", low),
    ]
    for one, other in rng.sample(list(itertools.permutations(values, 2)), 2):
        larger = "yes" if values[one] > values[other] else "no"
        asked.append(("comparison", f"Is the {one} {mark} larger than the {other} {mark}?", larger))
    if chart.type != "pie":  # a slice shows a share only
        asked += [("value", f"What is the value of the {color} {mark}?", str(values[color])) for color in values]
        question = f"What is the difference between the largest and the smallest {mark}?"
        asked.append(("difference", question, str(values[high] - values[low])))
    return asked


def draw(rng: random.Random, chart: Chart) -> tuple[Image.Image, tuple[Region, ...]]:
    """The chart as a picture of `SIDE` x `SIDE` pixels, and where its marks are."""
    figure = Figure(figsize=(SIDE / _DPI,) * 2, dpi=_DPI, facecolor=rng.choice(["white", "#f4f4f4", "#fffbe8"]))
    FigureCanvasAgg(figure)
    boxes = _pie(rng, figure, chart) if chart.type == "pie" else _axes(rng, figure, chart)
    data = io.BytesIO()
    figure.savefig(data, format="rgba")
    picture = Image.frombuffer("RGBA", (SIDE, SIDE), data.getvalue()).convert("RGB")
    return picture, tuple(Region(color, *place) for color, place in zip(chart.values, boxes, strict=True))


def _pie(rng: random.Random, figure: Figure, chart: Chart) -> list[Any]:
    """Draw slices. Returns the box of each, and points on it in three distances from the middle."""
    axes = figure.add_axes((0.06, 0.06, 0.88, 0.88))
    slices, _ = axes.pie(
        list(chart.values.values()),
        colors=[COLORS[color] for color in chart.values],
        startangle=rng.randint(0, 359),
        wedgeprops={"linewidth": 0.8, "edgecolor": rng.choice(["white", "#303030"])},
    )
    places = []
    for each in slices:
        corners = [_pixel(point) for point in axes.transData.transform(each.get_path().vertices)]
        angles = [math.radians(each.theta1 + (each.theta2 - each.theta1) * (at + 0.5) / 12) for at in range(12)]
        inner = [(radius * math.cos(a), radius * math.sin(a)) for a in angles for radius in (0.3, 0.55, 0.8)]
        points = tuple(_pixel(point) for point in axes.transData.transform(inner))
        across, down = zip(*corners, strict=True)
        places.append(((min(across), min(down), max(across), max(down)), points))
    return places


def _axes(rng: random.Random, figure: Figure, chart: Chart) -> list[Any]:
    """Draw columns, bars or points over an axis from 0 to `HIGHEST`. Returns the box of each, and its points."""
    lying = chart.type == "bar"
    axes = figure.add_axes((0.06, 0.13, 0.9, 0.83) if lying else (0.13, 0.06, 0.83, 0.9))
    axis, unused = (axes.xaxis, axes.yaxis) if lying else (axes.yaxis, axes.xaxis)
    unused.set_visible(False)
    axes.tick_params(labelsize=_TEXT, length=1.5, pad=1.5, width=0.5)
    for side, spine in axes.spines.items():
        spine.set_linewidth(0.5)
        spine.set_visible(side in ("left", "bottom"))
    (axes.set_xlim if lying else axes.set_ylim)(0, HIGHEST + 0.3)
    axis.set_ticks(range(HIGHEST + 1))
    if rng.random() < 0.7:
        axis.grid(True, linewidth=0.4)
        axes.set_axisbelow(True)
    places, values = list(range(len(chart.values))), list(chart.values.values())
    colors = [COLORS[color] for color in chart.values]
    wide = rng.uniform(0.6, 0.85)
    (axes.set_ylim if lying else axes.set_xlim)(-0.6, len(values) - 0.4)
    if chart.type == "line":
        axes.plot(places, values, color="#404040", linewidth=0.8, zorder=1)
        axes.scatter(places, values, s=42, c=colors, zorder=2)
        middles = [_pixel(point) for point in axes.transData.transform(list(zip(places, values, strict=True)))]
        return [((x - 5, y - 5, x + 5, y + 5), ((x, y),)) for x, y in middles]
    (axes.barh if lying else axes.bar)(places, values, wide, color=colors)
    boxes = []
    for place, value in zip(places, values, strict=True):
        ends = [(0, place - wide / 2), (value, place + wide / 2)]
        (left, bottom), (right, top) = axes.transData.transform(ends if lying else [end[::-1] for end in ends])
        (x, y), (far, low) = _pixel((left, top)), _pixel((right, bottom))
        boxes.append(((x, y, far, low), ()))
    return boxes


def _pixel(point: Any) -> tuple[int, int]:
    """A point of matplotlib, whose vertical axis goes up, in pixels of the picture."""
    return round(float(point[0])), round(SIDE - float(point[1]))
