"""Lists of names, and sizes, as messages show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def some(names: Iterable[str]) -> str:
    """Up to three names and the number of the others, for a sentence."""
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def indented(lines: Sequence[str], indent: str, most: int = 6) -> str:
    """Up to `most` lines and the number of the others, each after a line break and an indent."""
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return "".join(f"\n{indent}{line}" for line in [*lines[:most], *more])


def size_of(nbytes: int) -> str:
    """A number of bytes in the unit that suits it: `740 B`, `40 kB`, `1.2 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes} B"
