"""Replace a function of a host by one that calls it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Make `owner.name(...)` call `around(original, ...)`, once however often this is called for it.

    owner: a module or a class, whose method gets `self` after `original`. The wrapper keeps name, documentation and
    signature of the original, and has the attribute `__mergekit_mm__`.
    """
    original = getattr(owner, name)
    if getattr(original, "__mergekit_mm__", False):
        return

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        return around(original, *arguments, **options)

    vars(wrapper)["__mergekit_mm__"] = True
    setattr(owner, name, wrapper)


def bound(function: Callable[..., Any], *arguments: Any, **options: Any) -> inspect.BoundArguments:
    """The arguments of a call by the names of the host's own signature, defaults included.

    A parameter that a later version of the host adds is passed on like the others.
    """
    found = inspect.signature(function).bind(*arguments, **options)
    found.apply_defaults()
    return found
