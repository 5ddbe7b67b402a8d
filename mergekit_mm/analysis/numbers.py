"""Numbers as tables, sentences and pages show them; what is not known is a dash."""

from __future__ import annotations

import math

UNKNOWN = "-"


def number(value: float | None) -> str:
    """Three digits, at most three decimals: `2.98`, `0.043`, `-0.007`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.3f}" if abs(value) < 0.1 else f"{value:#.3g}".removesuffix(".")
    return text.lstrip("-") if not float(text) else text


def short(value: float | None) -> str:
    """One decimal where it says something: `29.4`, `128`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def percent(share: float | None) -> str:
    """`12.2 %`, `0.26 %`, `353 %`; shares that are 0 or 1 to rounding have no decimals."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    if share < 1e-9 or share >= 0.9995:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if share >= 0.00995 else f"{100 * share:.2g} %"
