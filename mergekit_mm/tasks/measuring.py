"""Looking at the experts' task vectors, tensor by tensor, without making anything of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.tasks.inputs_check import is_kept
from mergekit_mm.tasks.step import Step


class MeasureDeltas(Step[Any]):
    """What `measure` makes of the base's tensor and of the experts' task vectors over it; those are not kept.

    None for a tensor that has no task vectors: it is empty, holds no floating numbers, or infinite bounds that all
    inputs share.

    Raises:
        MergeError: when run, for NaN or infinite values in an input.
    """

    base: Task  # gives the base's tensor
    tensors: Task  # gives a tensor or a task vector of each expert
    experts: tuple[ModelReference, ...]
    base_model: ModelReference
    name: str
    measure: Callable[[torch.Tensor, Sequence[TaskVector]], Any]

    def arguments(self) -> dict[str, Task]:
        return {"base": self.base, "tensors": self.tensors}

    def uses_accelerator(self) -> bool:
        return True

    def execute(
        self, base: torch.Tensor, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object
    ) -> Any:
        given = {self.base_model: base, **{model: tensors[model] for model in self.experts}}
        if is_kept(given, list(given), self.base_model, self.name):
            return None
        found = (given[model] for model in self.experts)
        deltas = [each if isinstance(each, TaskVector) else TaskVector.between(each, base) for each in found]
        with torch.no_grad():
            return self.measure(base, deltas)
