"""Merge methods beyond mergekit's own: one file each, listed once in `catalogue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_mm.methods.apply import TaskVectorMethod


def catalogue() -> tuple[TaskVectorMethod, ...]:
    """Every method of this package, not yet registered; importing them waits until they are asked for."""
    from mergekit_mm.methods.optmerge import optmerge

    return (optmerge,)


# The host before any method, and after `catalogue`: importing it makes the start-up hook ask for the catalogue, which
# would fail if a method's own import of the host were the first one and that method only half imported.
import mergekit.merge_methods  # noqa: E402, F401
