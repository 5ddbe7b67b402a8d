"""What every task-vector method shares: its declaration to mergekit, and the steps around its mathematics."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from mergekit.merge_methods import BasePolicy, InputContract, MergeMethod, TensorGroup, merge_method
from torch import Tensor

from mergekit_mm.errors import MergeError
from mergekit_mm.methods.checks import require
from mergekit_mm.numerics.deltas import mean_delta, working_dtype
from mergekit_mm.numerics.task_vector import TaskVector

Solver = Callable[[Sequence[TaskVector]], TaskVector]


@dataclass(frozen=True, eq=False)
class TaskVectorMethod:
    """A merge method written on task vectors, and the form in which mergekit runs it on tensors.

    solve: (task vectors of one matrix, **parameters) -> merged task vector. `scaling` is not among its parameters: it
    multiplies what comes out, for every method alike.
    """

    host: MergeMethod
    solve: Callable[..., TaskVector]

    @property
    def name(self) -> str:
        name: str = self.host.spec.name
        return name

    def check(self, *, scaling: float = 1.0, **parameters: Any) -> None:
        """MergeError for values that the method would refuse in the middle of a merge, found by a trial on one zero.

        A method of another package says so by a ValueError, as mergekit's own do. Where all values are its defaults, it
        cannot mean them: such an error is a bug, and is passed on.
        """
        require(math.isfinite(scaling), self.name, "scaling", "finite", scaling)
        try:
            self.solve([TaskVector(torch.zeros(1, 1))], **parameters)
        except MergeError:
            raise
        except ValueError as error:
            if self._are_defaults(parameters):
                raise
            raise MergeError(f"{self.name}: {error}") from error

    def _are_defaults(self, parameters: Mapping[str, Any]) -> bool:
        defaults = {name: known.default for name, known in inspect.signature(self.solve).parameters.items()}
        return all(value == defaults.get(name) for name, value in parameters.items())

    def merge(
        self, base: Tensor, task_vectors: Sequence[TaskVector], label: str, *, scaling: float = 1.0, **parameters: Any
    ) -> Tensor:
        """base + scaling * solve(task vectors), for task vectors in any form; see `merge_task_vectors`."""
        return merge_task_vectors(base, task_vectors, scaling, lambda v: self.solve(v, **parameters), label)


def task_vector_method(name: str, pretty_name: str, reference_url: str) -> Callable[..., TaskVectorMethod]:
    """Declare `solve(task_vectors, **parameters)` as a merge method; its signature becomes the YAML parameters."""

    def declare(solve: Callable[..., TaskVector]) -> TaskVectorMethod:
        def kernel(group: TensorGroup, scaling: float = 1.0, **parameters: Any) -> Tensor:
            return _merge_group(group, scaling, lambda task_vectors: solve(task_vectors, **parameters))

        # mergekit reads a method's parameters from the signature of its kernel
        before = list(inspect.signature(kernel).parameters.values())[:2]
        own = list(inspect.signature(solve).parameters.values())[1:]
        kernel.__signature__ = inspect.Signature([*before, *own])  # type: ignore[attr-defined]
        kernel.__annotations__ = {
            **get_type_hints(solve, include_extras=True),
            "group": TensorGroup,
            "scaling": float,
            "return": Tensor,
        }
        kernel.__doc__ = solve.__doc__
        contract = InputContract(base=BasePolicy.REQUIRED, min_non_base=1)
        host = merge_method(kernel, name=name, pretty_name=pretty_name, reference_url=reference_url, contract=contract)
        return TaskVectorMethod(host, solve)

    return declare


def merge_task_vectors(
    base: Tensor, task_vectors: Sequence[TaskVector], scaling: float, solve: Solver, label: str
) -> Tensor:
    """base + scaling * solve(task vectors), computed in float32 or wider and cast once to the base's dtype.

    Matrices go to `solve`; a 3-D tensor is a stack of matrices (the experts of a mixture-of-experts layer), each solved
    by itself; vectors, scalars and tensors of four or more axes get the mean of the deltas. A scaling of 0 returns the
    base bit for bit. The inputs must be finite; MergeError, naming the tensor, for a solution that is not.
    """
    if not math.isfinite(scaling):
        raise MergeError(f"scaling must be a finite number; got {scaling}")
    if scaling == 0.0 or base.numel() == 0:
        return base.clone()
    with torch.no_grad():
        if base.ndim == 2:
            return _matrix(base, task_vectors, scaling, solve, label)
        if base.ndim == 3:
            slices = zip(*(t.matrices() for t in task_vectors), strict=True)
            return torch.stack(
                [_matrix(b, experts, scaling, solve, label) for b, experts in zip(base, slices, strict=True)]
            )
        return _add(base, TaskVector(mean_delta(task_vectors)), scaling)


def _merge_group(group: TensorGroup, scaling: float, solve: Solver) -> Tensor:
    label = f"tensor {group.metadata.name!r}" if group.metadata.name else "an unnamed tensor"
    if group.base is None:
        raise MergeError(f"Merging {label} needs a base model: set base_model in the configuration")
    for entry in group.entries:
        if not is_finite(entry.tensor):
            raise MergeError(
                f"{label} of input {entry.id} holds NaN or Inf; a task vector cannot be taken. "
                "Repair that checkpoint, or leave it out of the merge"
            )
    base: Tensor = group.base.tensor
    task_vectors = [TaskVector(entry.tensor, base=base) for entry in group.non_base]
    return merge_task_vectors(base, task_vectors, scaling, solve, label)


def _matrix(base: Tensor, task_vectors: Sequence[TaskVector], scaling: float, solve: Solver, label: str) -> Tensor:
    merged = solve(task_vectors)
    if not is_finite(merged):
        raise MergeError(
            f"Merging {label} diverged: the merged delta holds NaN or Inf. Lower learning_rate, momentum or iterations"
        )
    return _add(base, merged, scaling)


def _add(base: Tensor, merged: TaskVector, scaling: float) -> Tensor:
    """One widening, one sum, one cast."""
    return merged.added_to(base.to(working_dtype(base.dtype)), scaling).to(base.dtype)


def is_finite(value: Tensor | TaskVector) -> bool:
    """One pass and no copy: NaN and Inf both survive in the extremes."""
    if isinstance(value, TaskVector):
        return all(is_finite(part) for part in (value.left, value.right, value.base) if part is not None)
    if value.numel() == 0:
        return True
    low, high = torch.aminmax(value.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))
