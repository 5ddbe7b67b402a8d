"""Tasks that belong to one output tensor."""

from __future__ import annotations

from typing import Generic, TypeVar

from mergekit.graph import Task

T = TypeVar("T")


class Step(Task[T], Generic[T]):
    """A task in the group of the first that it needs: mergekit runs a group together, which bounds the memory."""

    def group_label(self) -> str | None:
        label: str | None = next(iter(self.arguments().values())).group_label()
        return label
