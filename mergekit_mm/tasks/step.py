"""The base class of tasks that work on the results of other tasks for one output tensor."""

from __future__ import annotations

from typing import Generic, TypeVar

from mergekit.graph import Task

T = TypeVar("T")


class Step(Task[T], Generic[T]):
    """A task with the group label of its first argument: mergekit runs a group together, which bounds memory."""

    def group_label(self) -> str | None:
        label: str | None = next(iter(self.arguments().values())).group_label()
        return label
