"""Merge methods of other packages, for as long as a test lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mergekit import merge_methods

import mergekit_mm.methods
from mergekit_mm.methods.apply import TaskVectorMethod


@contextmanager
def added(method: TaskVectorMethod) -> Iterator[str]:
    """A method of another package, known while the block runs."""
    mergekit_mm.methods.add(method)
    try:
        yield method.name
    finally:
        mergekit_mm.methods._added.remove(method)
        del merge_methods.registry._METHODS[method.name]
