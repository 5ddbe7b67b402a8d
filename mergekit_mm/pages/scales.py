"""What charts share: ticks, numbers as text, widths of texts, levels of colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVELS = 9  # of colour, in the style sheet: q0 to q8, and d0 to d8 with d4 for nothing
_CHARACTER = 7.2  # width of a character in pixels, of the labels of charts in a wide typeface


def as_text(value: float, form: str = ".4g") -> str:
    """A number as a chart writes it: with a minus sign, and zero without any."""
    text = format(value, form)
    return text.lstrip("+-") if set(text) <= set("+-0.%") else text.replace("-", "−")


def width_of(text: str) -> float:
    """About how many pixels wide a label is."""
    return _CHARACTER * len(text)


def shortened(text: str, most: int) -> str:
    """The text with its middle left out if it is longer than `most` characters: names differ at both ends."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


@dataclass(frozen=True)
class Scale:
    """A linear map of the values from `low` to `high` onto the pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 4, whole: bool = False) -> list[float]:
        """Round numbers within the values, about so many, and rather fewer. whole: of things that are counted."""
        raw = (self.high - self.low) / max(about, 1)
        if whole:
            raw = max(raw, 1.0)
        power = 10 ** math.floor(math.log10(raw))
        multiples = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
        step = next(multiple * power for multiple in multiples if multiple * power >= raw * 0.999)
        first, last = math.ceil(round(self.low / step, 9)), math.floor(round(self.high / step, 9))
        return [round(at * step, 12) for at in range(first, last + 1)]


def fitted(values: Iterable[float], start: float, end: float, margin: float = 0.06) -> Scale:
    """A scale that holds all values, with a margin as a share of their range."""
    found = list(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Scale(low - room, high + room, start, end)


def levels(values: Sequence[Sequence[float | None]], centre: float | None) -> list[list[int | None]]:
    """The level of colour of each value; with a centre, levels below and above the middle one mean smaller and larger.

    The largest distance from the centre, or the range of the values, takes all levels. A value that is not finite has
    none.
    """
    finite = [each for row in values for each in row if each is not None and math.isfinite(each)]
    if centre is None:
        low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    else:
        reach = max((abs(each - centre) for each in finite), default=0.0)
        low, high = centre - reach, centre + reach

    def level(value: float | None) -> int | None:
        if value is None or not math.isfinite(value):
            return None
        if high == low:
            return 0 if centre is None else LEVELS // 2
        return min(max(round((value - low) / (high - low) * (LEVELS - 1)), 0), LEVELS - 1)

    return [[level(each) for each in row] for row in values]
