"""mergekit's own merge methods over the tensors of one output."""

from __future__ import annotations

import torch
from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.methods.declarations import DRAWING
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
        if merged is not None and merged.dtype.itemsize < 4 and not is_finite(merged):
            # Small constants of some methods vanish in 16 bits, and sums of squares overflow there.
            wide = self._merged({model: tensor.float() for model, tensor in tensors.items()})
            merged = merged if wide is None else wide.to(merged.dtype)
        if merged is not None:
            require_finite_result(merged, name, self.method_name)
        return merged

    def _merged(self, tensors: dict[ModelReference, torch.Tensor]) -> torch.Tensor | None:
        """The method's result. mergekit refuses some values, such as weights under which all vectors cancel."""
        about = f"{self.method_name} cannot merge {self.output_weight.name}: "
        values = [tensors[model] for model in self.model_order]
        with refused_by(*_REFUSING, about=about), stream_of(self.seed, self.output_weight.name, values):
            merged: torch.Tensor | None = super().execute(tensors)
        return merged


def rehearse(task: MergeTensors, shape: tuple[int, ...]) -> None:
    """Run a merge on small tensors of a similar shape, so that a refusal by mergekit's method comes before the merge.

    mergekit's methods declare the values that a parameter may have, but not which values go together, nor which shapes
    they can merge.

    Raises:
        MergeError: the method fails, or gives NaN or Inf, with these parameters on tensors of such a shape.
    """
    small = [min(length, 8) for length in shape]
    generator = torch.Generator().manual_seed(0)
    tensors = {model: torch.rand(small, generator=generator) + 1.0 for model in task.model_order}
    try:
        task.execute(tensors)
    except MergeError:
        raise
    except Exception as error:
        if not _is_of_mergekit(task.method_name):  # A bug in another package's method must stay a traceback.
            raise
        raise MergeError(
            f"{task.method_name} cannot merge {task.output_weight.name}, of shape {shape}: {error}. Look at its "
            "parameters, or keep the tensor as in the base by its role's policy."
        ) from error


def _is_of_mergekit(method: str) -> bool:
    """Whether a merge method comes with mergekit itself."""
    registered = merge_methods.get(method)
    code = getattr(registered, "implementation", type(registered))  # a decorated function, or a class
    return str(code.__module__).startswith("mergekit.")
