"""The directions that coefficients are for: of each matrix the experts' deltas and the merged delta, kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mergekit.options import MergeOptions
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergekit_mm.execution.values import values
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.plan.merge_plan import MergePlan
from mergekit_mm.tasks.compile import Compiler


class Basis:
    """The directions of one matrix, in a file that is read anew for each use: one of them at a time is in memory."""

    def __init__(self, file: Path, count: int) -> None:
        self.file, self.count = file, count

    @property
    def scaling(self) -> float:
        """The factor of the merge method's delta in the last direction; 1 if there is no merged delta."""
        with safe_open(str(self.file), framework="pt") as stored:
            return float(stored.get_tensor("scaling")) if "scaling" in stored.keys() else 1.0

    def inner_products(self, gradient: Tensor) -> Tensor:
        """<gradient, direction> for each direction, in float32; the gradient (out, in) is that of the matrix."""
        wide = gradient.float()
        return torch.stack([_inner(wide, self._direction(n).to(wide.device)) for n in range(self.count)])

    def combined(self, coefficients: Tensor) -> Tensor:
        """The matrix for these coefficients, computed in float32, on their device."""
        with safe_open(str(self.file), framework="pt") as stored:
            total = stored.get_tensor("base").to(coefficients.device).float()
        for number, share in enumerate(coefficients.tolist()):
            if share:
                total = self._direction(number).to(coefficients.device).added_to(total, share)
        return total

    def _direction(self, number: int) -> TaskVector:
        with safe_open(str(self.file), framework="pt") as stored:
            if str(number) in stored.keys():
                return TaskVector.of(stored.get_tensor(str(number)))
            return TaskVector.low_rank(stored.get_tensor(f"{number}.left"), stored.get_tensor(f"{number}.right"))


def _inner(gradient: Tensor, direction: TaskVector) -> Tensor:
    """<G, L R> = <L^T G, R>: factors are not multiplied out."""
    if direction.right is None:
        return (gradient * direction.left.float()).sum()
    return ((direction.left.T @ gradient) * direction.right).sum()


def store_bases(
    plan: MergePlan, names: Sequence[str], directory: Path, dtype: str, options: MergeOptions, merged: bool
) -> dict[str, Basis]:
    """The bases of some planned matrices, in files that are made if they are not there yet.

    names: in memory. dtype: in which dense directions are stored. merged: whether the merged delta, times its scaling,
    is the last direction after the experts' deltas.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: directory / f"{name}.safetensors" for name in names}
    compiler = Compiler(plan, options)
    missing = {
        name: compiler.directions(plan[name], dtype, merged) for name, file in files.items() if not file.is_file()
    }
    for name, tensors in values(compiler, missing):
        unfinished = files[name].with_suffix(".unfinished")
        save_file(tensors, unfinished)
        os.replace(unfinished, files[name])
    return {name: Basis(file, len(plan[name].experts) + merged) for name, file in files.items()}


def bytes_of_bases(plan: MergePlan, names: Sequence[str], itemsize: int, merged: bool) -> int:
    """How much disk the bases take at most: adapters stay factors, which takes less.

    itemsize: of a number of a dense direction, in bytes.
    """
    total = 0
    for name in names:
        tensor = plan[name]
        numbers = tensor.info.shape[0] * tensor.info.shape[1]
        dense = sum(not plan.inputs.adapts(model, tensor.inputs[model]) for model in tensor.experts)
        total += numbers * (tensor.info.dtype.itemsize + itemsize * (dense + merged))
    return total
