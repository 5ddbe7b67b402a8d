"""Merge methods beyond mergekit's own: one file each, listed once in `catalogue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_mm.methods.apply import TaskVectorMethod

_added: list[TaskVectorMethod] = []


def add(method: TaskVectorMethod) -> None:
    """Make a method from outside this package known to mergekit, and treated as those of this package are.

    Raises:
        ValueError: mergekit has a method of that name already.
    """
    mergekit.merge_methods.register(method.host)
    _added.append(method)


def catalogue() -> tuple[TaskVectorMethod, ...]:
    """Every method of this package, not yet registered, and those that were added.

    Importing the package's own waits until they are asked for.
    """
    from mergekit_mm.methods.aswudi import aswudi
    from mergekit_mm.methods.iso_c import iso_c
    from mergekit_mm.methods.iso_cts import iso_cts
    from mergekit_mm.methods.optmerge import optmerge
    from mergekit_mm.methods.swudi import swudi
    from mergekit_mm.methods.tsv import tsv
    from mergekit_mm.methods.wudi import wudi

    return (optmerge, wudi, swudi, aswudi, tsv, iso_c, iso_cts, *_added)


def is_own_method(name: str) -> bool:
    """Whether a merge method is of this package, or was added to it."""
    return any(method.name == name for method in catalogue())


def method_named(name: str) -> TaskVectorMethod:
    """The method of the catalogue with this name.

    Raises:
        KeyError: it is none of the catalogue.
    """
    return {method.name: method for method in catalogue()}[name]


# The host before any method, and after `catalogue`: importing it makes the start-up hook ask for the catalogue, which
# would fail if a method's own import of the host were the first one and that method only half imported.
import mergekit.merge_methods  # noqa: E402
