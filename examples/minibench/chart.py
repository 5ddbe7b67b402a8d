"""Charts: real tables drawn by matplotlib as bars, lines and pies, with questions as in ChartQA."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from examples.minibench.rows import SIDE, Row
from examples.minibench.tables import series, tables

_DPI = 100
_TEXT = 5.5  # points: 7.6 pixels
COLORS = {
    "red": "#d62728", "blue": "#1f5fd0", "green": "#2ca02c", "orange": "#ff9d1e", "purple": "#8e44ad",
    "gray": "#808080",
}  # fmt: skip
_MARKS = {"column": "bar", "bar": "bar", "line": "point", "pie": "slice"}  # by type of chart, what stands for a value
_APART = 1.15  # factor at least between two values, so that the eye can tell which one is larger


@dataclass(frozen=True)
class Chart:
    """What a chart shows; `colors` has a name for each value, or is empty where the colours tell nothing."""

    type: str
    values: dict[str, float]
    colors: tuple[str, ...]
    printed: bool  # whether the values stand beside their marks; otherwise there is an axis

    @property
    def mark(self) -> str:
        return _MARKS[self.type]

    def legible(self, value: float) -> bool:
        """Whether a value can be read to within 5 %, which is hard on an axis if it is a small part of the highest."""
        return self.printed or value >= 0.5 * max(self.values.values())


def generate(split: str, seed: int) -> Iterator[Row]:
    """Up to four rows about each chart. See `rows.Generator`."""
    rng = random.Random(f"chart {split} {seed}")
    while True:
        table = rng.choice(tables(split))
        values = _some(rng, rng.choice(series(table)))
        if values is None:
            continue
        kind = rng.choice(list(_MARKS))
        colored = kind == "pie" or (kind != "line" and rng.random() < 0.7)
        colors = tuple(rng.sample(list(COLORS), len(values))) if colored else ()
        chart = Chart(kind, values, colors, kind == "pie" or rng.random() < 0.5)
        picture = draw(rng, chart)
        questions = ask(rng, chart)
        for name, question, answer in rng.sample(questions, min(4, len(questions))):
            yield Row(picture, name, question, answer, (f"table {table}",))


def _some(rng: random.Random, values: dict[str, float]) -> dict[str, float] | None:
    """Three to five of the values that can be shown in one chart and told apart; None if the draw has no such."""
    names = rng.sample(sorted(values), min(len(values), 12))
    chosen: dict[str, float] = {}
    wanted, top = rng.randint(3, 5), values[names[0]]
    for name in names:
        value = values[name]
        if 0.08 * top <= value <= top and all(_differ(value, other) for other in chosen.values()):
            chosen[name] = value
    return dict(list(chosen.items())[:wanted]) if len(chosen) >= wanted else None


def _differ(one: float, other: float) -> bool:
    return max(one, other) >= _APART * min(one, other)


def number(value: float) -> str:
    """A number as it stands in charts and answers, without the traces of binary fractions."""
    return f"{value:.6g}"


def ask(rng: random.Random, chart: Chart) -> list[tuple[str, str, str]]:
    """The kind, the question and the answer of everything that can be asked about a chart."""
    values, mark = chart.values, chart.mark
    by_value = sorted(values, key=lambda name: values[name])
    one, other = rng.sample(list(values), 2)
    larger = "yes" if values[one] > values[other] else "no"
    asked = [
        ("count", f"How many {mark}s are there?", str(len(values))),
        ("extremum", "Which has the highest value?", by_value[-1]),
        ("extremum", "Which has the lowest value?", by_value[0]),
        ("comparison", f"Is the value of {one} greater than that of {other}?", larger),
    ]
    highest, lowest = values[by_value[-1]], values[by_value[0]]
    asked.append(("value", "What is the highest value?", number(highest)))
    if chart.legible(highest - lowest):
        question = "What is the difference between the highest and the lowest value?"
        asked.append(("difference", question, number(highest - lowest)))
    if chart.legible(values[one]):
        asked.append(("value", f"What is the value of {one}?", number(values[one])))
    if chart.colors:
        color = dict(zip(values, chart.colors, strict=True))
        asked += [
            ("color", f"What color is the largest {mark}?", color[by_value[-1]]),
            ("color", f"What color is the smallest {mark}?", color[by_value[0]]),
            ("comparison", f"Is the {color[one]} {mark} larger than the {color[other]} {mark}?", larger),
        ]
        if chart.legible(values[one]):
            asked.append(("value", f"What is the value of the {color[one]} {mark}?", number(values[one])))
    return asked


def draw(rng: random.Random, chart: Chart) -> Image.Image:
    """The chart as a picture of `SIDE` x `SIDE` pixels."""
    figure = Figure(figsize=(SIDE / _DPI,) * 2, dpi=_DPI, facecolor=rng.choice(["white", "#f4f4f4", "#fffbe8"]))
    FigureCanvasAgg(figure)
    names, values = list(chart.values), list(chart.values.values())
    colors = [COLORS[name] for name in chart.colors] or COLORS[rng.choice(list(COLORS))]
    if chart.type == "pie":
        axes = figure.add_axes((0.2, 0.2, 0.6, 0.6))
        texts = {"labels": [f"{name}\n{number(chart.values[name])}" for name in names], "labeldistance": 1.15}
        axes.pie(values, colors=colors, startangle=rng.randint(0, 359), textprops={"fontsize": _TEXT}, **texts)
        return _shown(figure)
    wide = chart.type == "bar"
    axes = figure.add_axes((0.36, 0.1, 0.58, 0.86) if wide else (0.2, 0.38, 0.77, 0.55))
    axes.tick_params(labelsize=_TEXT, length=1.5, pad=1.5, width=0.5)
    for side, spine in axes.spines.items():
        spine.set_linewidth(0.5)
        spine.set_visible(side in ("left", "bottom"))
    if wide:
        axes.barh(names, values, color=colors, height=0.7)
    elif chart.type == "column":
        axes.bar(names, values, color=colors, width=0.7)
    else:
        axes.plot(names, values, color=colors, marker="o", markersize=3, linewidth=1)
    (axes.set_xlim if wide else axes.set_ylim)(0, 1.18 * max(values))
    if chart.printed:
        (axes.xaxis if wide else axes.yaxis).set_visible(False)
        for at, value in enumerate(values):
            place = {"ha": "left", "va": "center"} if wide else {"ha": "center", "va": "bottom"}
            point = (1.02 * value, at) if wide else (at, 1.03 * value)
            axes.text(*point, number(value), fontsize=_TEXT, **place)
    else:
        (axes.xaxis if wide else axes.yaxis).grid(True, linewidth=0.3)
        axes.set_axisbelow(True)
        (axes.xaxis if wide else axes.yaxis).get_major_locator().set_params(nbins=4)
    if not wide:
        axes.tick_params(axis="x", labelrotation=90)
    return _shown(figure)


def _shown(figure: Figure) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="rgba")
    return Image.frombuffer("RGBA", (SIDE, SIDE), data.getvalue()).convert("RGB")
