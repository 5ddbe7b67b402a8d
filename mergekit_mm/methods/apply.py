"""What every task-vector method shares: its declaration to mergekit, and the steps around its mathematics.

A merge goes one way: inputs -> task vectors -> delta -> base + scaling * delta -> cast. A method is the second arrow,
for one matrix; `TaskVectorMethod` makes of it the delta of a tensor of any rank, and the whole way for mergekit.

Parameters of every method: `scaling` multiplies the delta, and may be `auto` (see `scaling`). `svc` re-scales the
singular values of a matrix's delta by the experts' responses (see `numerics.calibration`), with `svc_alpha` as the
least response that is counted. `own_delta`, a parameter of each input, is the share of its own delta that is added to
the result.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import torch
from mergekit.merge_methods import BasePolicy, InputContract, MergeMethod, PerNonBase, TensorGroup, merge_method
from torch import Tensor

from mergekit_mm.errors import MergeError
from mergekit_mm.methods.scaling import automatic_scaling
from mergekit_mm.numerics.calibration import calibrated, require_alpha
from mergekit_mm.numerics.task_vector import TaskVector, mean_delta, stacked, weighted_sum, working_dtype

OWN_DELTA = "own_delta"  # the parameter of each input, for all methods: a share of its own delta, added to the result

AUTO: Literal["auto"] = "auto"
Scaling = float | Literal["auto"]
_OF_EVERY_METHOD = ("scaling", "svc", "svc_alpha")


@dataclass(frozen=True, eq=False)
class TaskVectorMethod:
    """A merge method written on task vectors, and the form in which mergekit runs it on tensors.

    Made by `task_vector_method`, which says what the fields mean. Parameters of every method are not among those of a
    solver: they change what comes out, for every method alike. Parameters that are left out have their defaults.
    """

    host: MergeMethod
    _solver: Callable[..., TaskVector]
    _keeps_factors: bool | Callable[..., bool]
    _validator: Callable[..., object] | None
    needs_factors: bool = False

    @property
    def name(self) -> str:
        name: str = self.host.spec.name
        return name

    @property
    def solver(self) -> Callable[..., TaskVector]:
        """The function of the method's author."""
        return self._solver

    def keeps_factors(self, parameters: Mapping[str, Any]) -> bool:
        """Whether factored task vectors give a factored result under these parameters; those of every method too."""
        declared = self._keeps_factors
        return declared if isinstance(declared, bool) else declared(**self._completed(parameters))

    def validate(
        self, *, scaling: Scaling = 1.0, svc: bool = False, svc_alpha: float | None = None, **parameters: Any
    ) -> None:
        """Check values of the parameters, without solving anything.

        A method that declares no `validate` accepts everything here, and refuses values when it is run.

        Raises:
            MergeError: naming the method, the parameter, the rule and the value.
        """
        if scaling != AUTO and not math.isfinite(scaling):
            raise MergeError(f"{self.name}: scaling must be finite; got {scaling}")
        with self._values_refused({"svc_alpha": svc_alpha}):
            require_alpha(svc_alpha)
        if self._validator is not None:
            with self._values_refused(parameters):
                self._validator(**self._completed(parameters))

    def solve(
        self,
        task_vectors: Sequence[TaskVector],
        *,
        svc: bool = False,
        svc_alpha: float | None = None,
        **parameters: Any,
    ) -> TaskVector:
        """The merged delta (out, in) of one matrix from the task vectors of at least one expert.

        Raises:
            MergeError: a value that the method refuses.
        """
        self.validate(svc_alpha=svc_alpha, **parameters)
        merged = self._solved(task_vectors, parameters)
        return calibrated(merged, task_vectors, svc_alpha) if svc and is_finite(merged) else merged

    def _solved(self, task_vectors: Sequence[TaskVector], parameters: Mapping[str, Any]) -> TaskVector:
        if self._validator is not None:  # every ValueError from here on is a bug
            return self._solver(task_vectors, **parameters)
        with self._values_refused(parameters):
            return self._solver(task_vectors, **parameters)

    def delta(
        self, task_vectors: Sequence[TaskVector], label: str, *, as_vector: bool = False, **parameters: Any
    ) -> TaskVector:
        """The merged delta of one tensor of any rank, without `scaling` and without the base.

        Matrices are solved. A tensor of three axes is a stack of matrices (the experts of a mixture-of-experts layer),
        each solved by itself; the stack is factored if all its solutions are. Vectors, scalars and tensors of four or
        more axes get the mean of the deltas.

        task_vectors: of finite values, all of one shape. label: what the tensor is called in an error.
        as_vector: take the mean whatever the rank, for tensors that are no matrices, such as kernels of convolutions.

        Raises:
            MergeError: a value that the method refuses, or a delta that is not finite.
        """
        shape = task_vectors[0].shape
        dtype = working_dtype(*(part.dtype for task_vector in task_vectors for part in task_vector.parts))
        with torch.no_grad():
            if 0 in shape:
                return TaskVector.of(torch.zeros(shape, dtype=dtype, device=task_vectors[0].device))
            if len(shape) == 2 and not as_vector:
                return self._finite_solution(task_vectors, label, parameters)
            if len(shape) == 3 and not as_vector:
                matrices = zip(*(task_vector.matrices() for task_vector in task_vectors), strict=True)
                solved = (self._finite_solution(matrix, label, parameters) for matrix in matrices)
                return stacked(solved, shape[0], dtype)
            mean = mean_delta(task_vectors)
        if not is_finite(mean):
            raise MergeError(f"Merging {label} gives NaN or Inf: the deltas leave the range of {mean.dtype}")
        return TaskVector.of(mean)

    def automatic_scaling(self, delta: TaskVector, task_vectors: Sequence[TaskVector]) -> float:
        """What `scaling: auto` is for a delta that `delta` made of these task vectors."""
        return automatic_scaling(self.name, delta, task_vectors)

    def merge(
        self, base: Tensor, task_vectors: Sequence[TaskVector], label: str, *, scaling: Scaling = 1.0, **parameters: Any
    ) -> Tensor:
        """base + scaling * delta in the base's dtype; see `delta` and `add_delta`.

        A scaling of 0 returns the base bit for bit.

        Raises:
            MergeError: as `validate` and `delta`.
        """
        self.validate(scaling=scaling, **parameters)
        if scaling == 0.0 or base.numel() == 0:
            return base.clone()
        delta = self.delta(task_vectors, label, **parameters)
        return add_delta(base, delta, self.automatic_scaling(delta, task_vectors) if scaling == AUTO else scaling)

    def merge_group(
        self, group: TensorGroup, own_delta: Mapping[Hashable, float], scaling: Scaling = 1.0, **parameters: Any
    ) -> Tensor:
        """The merge of one tensor as mergekit asks for it: the tensors of all inputs, one of which is the base.

        own_delta: the factor with which the delta of each input that is not the base is added to the result.

        Raises:
            MergeError: no base, or an input that is not finite; and as `merge`.
        """
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
        task_vectors = [TaskVector.between(entry.tensor, base) for entry in group.non_base]
        shares = [own_delta[entry.id] for entry in group.non_base]
        if not any(shares):
            return self.merge(base, task_vectors, label, scaling=scaling, **parameters)
        self.validate(scaling=scaling, **parameters)
        delta = self.delta(task_vectors, label, **parameters)
        if 0 in delta.shape:
            return base.clone()
        factor = self.automatic_scaling(delta, task_vectors) if scaling == AUTO else scaling
        return add_delta(base, weighted_sum([delta, *task_vectors], [factor, *shares]), 1.0)

    def _finite_solution(
        self, task_vectors: Sequence[TaskVector], label: str, parameters: Mapping[str, Any]
    ) -> TaskVector:
        merged = self.solve(task_vectors, **parameters)
        if not is_finite(merged):
            raise MergeError(
                f"Merging {label} diverged: the merged delta holds NaN or Inf. "
                "Lower learning_rate, momentum or iterations"
            )
        return merged

    @property
    def _defaults(self) -> dict[str, Any]:
        _, *parameters = inspect.signature(self._solver).parameters.values()
        return {parameter.name: parameter.default for parameter in parameters}

    def _completed(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters of the solver, by name."""
        given = {name: value for name, value in parameters.items() if name not in _OF_EVERY_METHOD}
        return {**self._defaults, **given}

    @contextmanager
    def _values_refused(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Raise MergeError for a ValueError, by which a method says that a value of a parameter will not do.

        Where all values are the method's defaults, it cannot mean them: such an error is a bug, and is passed on.
        """
        try:
            yield
        except MergeError:
            raise
        except ValueError as error:
            defaults = self._defaults
            if all(value == defaults.get(name) for name, value in parameters.items()):
                raise
            raise MergeError(f"{self.name}: {error}") from error


def task_vector_method(
    name: str,
    pretty_name: str,
    reference_url: str,
    keeps_factors: bool | Callable[..., bool] = False,
    validate: Callable[..., object] | None = None,
    needs_factors: bool = False,
) -> Callable[[Callable[..., TaskVector]], TaskVectorMethod]:
    """Declare `solve(task_vectors, **parameters)` as a merge method; its signature becomes the YAML parameters.

    solve: gets the task vectors of one matrix, (out, in) each, and returns the merged one.
    keeps_factors: whether factored task vectors give a factored result, where a language model that keeps a part for
    each medium (`composition: damc`) can then keep factors too. If that depends on the parameters, a function that
    takes all of them by name and returns a bool.
    needs_factors: whether every task vector of a matrix has to be factored, all of one rank but for those of rank 0; a
    merge of other inputs is then refused before anything is merged.
    validate: takes all parameters by name, and raises ValueError for a value that will not do. Without it, values are
    refused only when `solve` raises ValueError on the first matrix of a merge.
    """

    def declare(solve: Callable[..., TaskVector]) -> TaskVectorMethod:
        def kernel(
            group: TensorGroup,
            scaling: Scaling = 1.0,
            svc: bool = False,
            svc_alpha: float | None = None,
            own_delta: PerNonBase[float] = 0.0,
            **parameters: Any,
        ) -> Tensor:
            return method.merge_group(group, own_delta, scaling, svc=svc, svc_alpha=svc_alpha, **parameters)

        # mergekit reads a method's parameters from the signature of its kernel
        *before, _ = inspect.signature(kernel).parameters.values()
        own = list(inspect.signature(solve).parameters.values())[1:]
        vars(kernel)["__signature__"] = inspect.Signature([*before, *own])
        kernel.__annotations__ = {
            **get_type_hints(solve, include_extras=True),
            "group": TensorGroup,
            "scaling": Scaling,
            "svc": bool,
            "svc_alpha": float | None,
            "own_delta": PerNonBase[float],
            "return": Tensor,
        }
        kernel.__doc__ = solve.__doc__
        contract = InputContract(base=BasePolicy.REQUIRED, min_non_base=1)
        host = merge_method(kernel, name=name, pretty_name=pretty_name, reference_url=reference_url, contract=contract)
        method = TaskVectorMethod(host, solve, keeps_factors, validate, needs_factors)
        return method

    return declare


def add_delta(base: Tensor, delta: TaskVector, scaling: float) -> Tensor:
    """base + scaling * delta, computed in float32 or wider and cast once to the base's dtype.

    A stack is widened one matrix at a time.
    """
    if base.ndim == 3:
        merged = torch.empty(base.shape, dtype=base.dtype, device=base.device)
        for into, matrix, own in zip(merged, base, delta.matrices(), strict=True):
            into.copy_(add_delta(matrix, own, scaling))
        return merged
    with torch.no_grad():
        return delta.added_to(base.to(working_dtype(base.dtype)), scaling).to(base.dtype)


def is_finite(value: Tensor | TaskVector) -> bool:
    """Whether a value holds neither NaN nor Inf. No copy is made of it.

    Both survive in a sum, which is the faster pass. A sum can overflow by itself too; both survive in the extremes.
    """
    if isinstance(value, TaskVector):
        return all(is_finite(part) for part in value.parts)
    if value.numel() == 0 or math.isfinite(float(value.detach().sum())):
        return True
    low, high = torch.aminmax(value.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))
