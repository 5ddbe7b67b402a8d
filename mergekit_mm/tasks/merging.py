"""mergekit's own merge methods over the tensors of one output."""

from __future__ import annotations

import torch
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.errors import refused_by
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.methods.declarations import DRAWING, WEIGHTED_SUMS
from mergekit_mm.tasks.blocks import in_blocks
from mergekit_mm.tasks.drawing import stream_of
from mergekit_mm.tasks.inputs_check import is_kept, require_finite_result

# The modules of mergekit whose methods refuse values with an error of their own.
_REFUSING = ("mergekit.merge_methods.multislerp", "mergekit.sparsify")


class MergeTensors(ExecuteMergeMethodTask):
    """One tensor merged by a method of mergekit, unless it must be kept (`is_kept`).

    A method that draws random numbers (DARE, DELLA) draws from a stream of each tensor's own. Its result depends on the
    seed, the tensor's name and its inputs; not on paths, the order of the work, the sharding, or other tensors of
    the merge. Such methods of mergekit run on the CPU, whatever the device of the merge is: the numbers are drawn there
    anyway, and the few sums that remain would round, and break ties, differently on a GPU.

    Raises:
        MergeError: when run, for NaN or infinite values in an input or the result, or if the method refuses the values.
    """

    gather_tensors: (
        Task  # gives the tensors of all inputs; of mergekit's type for the tensors alone, or of this package
    )
    seed: int = 0

    def uses_accelerator(self) -> bool:
        return self.method_name not in DRAWING and super().uses_accelerator()

    def execute(self, tensors: dict[ModelReference, torch.Tensor], **_kwargs: object) -> torch.Tensor | None:
        if self.method_name in DRAWING:  # Inputs may come from a GPU.
            tensors = {model: tensor.to("cpu") for model, tensor in tensors.items()}
        kept_model = self.base_model if self.base_model in self.model_order else self.model_order[0]
        name = self.output_weight.name
        if is_kept(tensors, self.model_order, kept_model, name):
            return tensors[kept_model]
        merged = self._merged(tensors)
        if merged is None or is_finite(merged):
            return merged
        if merged.dtype.itemsize < 4:
            # Small constants of some methods vanish in 16 bits, and sums of squares overflow there.
            wide = self._merged({model: tensor.float() for model, tensor in tensors.items()})
            merged = merged if wide is None else wide.to(merged.dtype)
        require_finite_result(merged, name, self.method_name)
        return merged

    def _merged(self, tensors: dict[ModelReference, torch.Tensor]) -> torch.Tensor | None:
        """The method's result. mergekit refuses some values, such as weights under which all vectors cancel."""
        about = f"{self.method_name} cannot merge {self.output_weight.name}: "
        values = {model: tensors[model] for model in self.model_order}
        if self.method_name in WEIGHTED_SUMS:
            with refused_by(*_REFUSING, about=about):
                return in_blocks(super().execute, values)
        with refused_by(*_REFUSING, about=about), stream_of(self.seed, self.output_weight.name, [*values.values()]):
            merged: torch.Tensor | None = super().execute(tensors)
        return merged
