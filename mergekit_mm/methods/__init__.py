"""Merge methods beyond mergekit's own: one file each with equation, source and deviations, listed in `catalogue`.

optmerge, wudi, swudi, aswudi, tsv, iso_c, iso_cts, dc_merge, robust_merge   the methods
apply       how a method is declared, and the steps around its mathematics
scaling     `scaling: auto`, and its constant for each method
costs       about how much arithmetic a tensor takes
reference   slow, plain restatements of the published computations, which the tests compare the methods with

The room imports numerics, errors, and mergekit's public `merge_methods`. It knows nothing of files, models or plans.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mergekit_mm.methods.apply import TaskVectorMethod

_added: list[TaskVectorMethod] = []


def add(method: TaskVectorMethod) -> None:
    """Make a method from outside this package known to mergekit, and treat it as those of this package are treated.

    Raises:
        ValueError: mergekit has a method of that name already.
    """
    mergekit.merge_methods.register(method.host)
    _added.append(method)


def catalogue() -> tuple[TaskVectorMethod, ...]:
    """Every method of this package, and those that were added. The former are imported here, and not registered yet."""
    from mergekit_mm.methods.aswudi import aswudi
    from mergekit_mm.methods.dc_merge import dc_merge
    from mergekit_mm.methods.iso_c import iso_c
    from mergekit_mm.methods.iso_cts import iso_cts
    from mergekit_mm.methods.optmerge import optmerge
    from mergekit_mm.methods.robust_merge import robust_merge
    from mergekit_mm.methods.swudi import swudi
    from mergekit_mm.methods.tsv import tsv
    from mergekit_mm.methods.wudi import wudi

    return (optmerge, wudi, swudi, aswudi, tsv, iso_c, iso_cts, dc_merge, robust_merge, *_added)


def is_own_method(name: str) -> bool:
    """Whether a merge method belongs to this package, or was added to it."""
    return any(method.name == name for method in catalogue())


def method_named(name: str) -> TaskVectorMethod:
    """The method of the catalogue with this name.

    Raises:
        KeyError: the catalogue has none of that name.
    """
    return {method.name: method for method in catalogue()}[name]


# mergekit is imported before any method, and after `catalogue` is defined: its import makes the start-up hook ask for
# the catalogue. If a method's own import of mergekit were the first one, the hook would find that method half imported.
import mergekit.merge_methods  # noqa: E402
