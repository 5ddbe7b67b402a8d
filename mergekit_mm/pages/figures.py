"""What charts are made of: drawings, figures with a legend and a table, and the shapes of marks."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from mergekit_mm.pages.markup import render, tag

_SHAPES = (  # by kind; their colours are k0 to k5 of the style sheet
    "M-4 -4H4V4H-4Z",
    "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "M0 -5L5 4H-5Z",
    "M0 5L5 -4H-5Z",
    "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",
)


def legend_mark(kind: int) -> Markup:
    """The mark of a kind for a legend."""
    return tag(
        "svg", shape(kind, 8, 8), viewBox="0 0 16 16", width=16, height=16, aria_hidden="true", class_=f"k{kind}"
    )


def shape(kind: int, x: float, y: float, hollow: bool = False) -> Markup:
    """The mark of a kind in a place. hollow: without its inside."""
    place = f"translate({x:.1f} {y:.1f})"
    return tag("path", d=_SHAPES[kind], transform=place, class_="shape hollow" if hollow else "shape")


def drawing(width: float, height: float, parts: Sequence[Markup], label: str, key: str = "") -> Markup:
    """A drawing of so many pixels, which is one stop of the tab key. key: shared with the column of a table."""
    size = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "width": round(width), "height": round(height)}
    told = f"{label}. Arrow keys go from value to value."
    return tag("svg", parts, **size, tabindex=0, role="group", aria_label=told, class_="chart", data_column=key or None)


def movable_rows(
    rows: Sequence[tuple[str, Sequence[Markup]]],
    top: float,
    pitch: float,
    upright: Sequence[Markup] = (),
    foot: Sequence[Markup] = (),
) -> list[Markup]:
    """Rows of a drawing one below the other, which the script brings into the order of a table that shares their keys.

    rows: a key, or "", and the parts of each row, drawn about y = 0. top: where the first row begins, in pixels.
    pitch: of the rows. upright: lines from `top` to the last row. foot: what is beneath the rows, drawn from y = 0 on.
    """
    placed = [
        tag("g", parts, transform=f"translate(0 {top + pitch * (at + 0.5):.1f})", data_row=key or None)
        for at, (key, parts) in enumerate(rows)
    ]
    end = f"translate(0 {top + pitch * len(rows):.1f})"
    return [
        tag("g", upright, class_="upright"),
        tag("g", placed, class_="rows", data_top=top, data_pitch=pitch),
        tag("g", foot, class_="foot", transform=end),
    ]


def figure(
    identity: str,
    caption: str,
    panels: Sequence[Markup],
    values: Markup,
    legend: Sequence[tuple[Markup, str]],
    arrangement: str = "panels",
) -> Markup:
    """Drawings beneath a caption and a legend, with a table of their values that is folded.

    arrangement: `panels`, beside each other as there is room, or `wide`, in a box that scrolls.
    """
    return render(
        "figure.html",
        identity=identity,
        caption=caption,
        panels=panels,
        values=values,
        legend=legend,
        arrangement=arrangement,
    )


def swatch(level: str) -> Markup:
    """A square of a level of colour for a legend."""
    square = tag("g", tag("rect", x=1, y=1, width=13, height=13), class_=f"cell {level}")
    return tag("svg", square, viewBox="0 0 15 15", width=15, height=15, aria_hidden="true")
