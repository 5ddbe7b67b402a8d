"""Names in messages: a few of them, and how many more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def some(names: Iterable[str]) -> str:
    """Up to three names, for a sentence."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def indented(lines: Sequence[str], indent: str, most: int = 6) -> str:
    """Up to `most` lines of their own, each after a line break."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n{indent}{line}" for line in [*lines[:most], *more])
