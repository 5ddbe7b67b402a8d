"""mergekit's element-wise methods on adapters, in the joint core of the adapters instead of the weights."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task

from mergekit_mm.numerics.core_space import core_space
from mergekit_mm.numerics.shared_bases import shared_core
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.tasks.inputs_check import is_kept
from mergekit_mm.tasks.merging import MergeTensors
from mergekit_mm.tasks.step import Step


class MergeInCore(Step[TaskVector]):
    """The merged delta of one matrix as factors, found by a method of mergekit on the cores of adapters over zero.

    Raises:
        MergeError: when run, for NaN or infinite values in an input or the result, or if the method refuses the values.
    """

    tensors: Task  # gives the task vector of each expert
    merging: MergeTensors  # what is done with the cores; it is not run as a task
    base: ModelReference
    experts: tuple[ModelReference, ...]
    shared_rank: int | None = None  # of the bases on which the adapters are projected in the place of all

    def arguments(self) -> dict[str, Task]:
        return {"tensors": self.tensors}

    def uses_accelerator(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return self.merging.output_weight.name

    @property
    def method(self) -> str:
        return self.merging.method_name

    def execute(self, tensors: dict[ModelReference, TaskVector], **_kwargs: object) -> TaskVector:
        is_kept(tensors, self.experts, self.base, self.name)  # refuses NaN
        with torch.no_grad():
            deltas = [tensors[model] for model in self.experts]
            shared = None if self.shared_rank is None else shared_core(deltas, self.shared_rank)
            joint = shared or core_space(deltas)
            shape = (joint.left.shape[1], joint.right.shape[0])
            cores = {m: core.dense(torch.float64) for m, core in zip(self.experts, joint.cores, strict=True)}
            cores[self.base] = torch.zeros(shape, dtype=torch.float64, device=joint.left.device)
            merged = self.merging.execute(cores) if all(shape) else cores[self.base]
            assert merged is not None
            return joint.expand(TaskVector.of(merged.to(joint.left)))
