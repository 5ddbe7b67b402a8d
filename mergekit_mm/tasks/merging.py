"""A merge method over the tensors of one output."""

from __future__ import annotations

import logging
import zlib

import torch
from mergekit import merge_methods
from mergekit.common import ModelReference
from mergekit.graph import Task
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

from mergekit_mm.errors import MergeError, refused_by
from mergekit_mm.methods import method_named
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.numerics.task_vector import TaskVector, working_dtype
from mergekit_mm.tasks.drawing import OwnStream

LOG = logging.getLogger(__name__)

# the modules of mergekit whose methods refuse values with an error of their own
_REFUSING = ("mergekit.merge_methods.multislerp", "mergekit.sparsify")
# mergekit's methods that draw random numbers, arcee_fusion only for tensors of more than a million values
DRAWING = ("arcee_fusion", "dare_linear", "dare_ties", "della", "della_linear")


class MergeTensors(ExecuteMergeMethodTask):
    """Run a merge method on one tensor, after the cases in which arithmetic would do harm.

    A method that draws (DARE, DELLA) draws from a stream of each tensor's own, so that its result depends on the seed,
    the tensor's name and its inputs, not on paths, the order of the work, the sharding or what else is merged.
    mergekit's own such methods run on the CPU whatever the device of the merge is. The numbers are drawn there anyway,
    and the few sums that remain would round, and break ties, in another way on a GPU.
    """

    gather_tensors: Task  # mergekit's own collectors of tensors, or ours
    seed: int = 0

    def uses_accelerator(self) -> bool:
        return self.method_name not in DRAWING and super().uses_accelerator()

    def execute(
        self, tensors: dict[ModelReference, torch.Tensor | TaskVector], **_kwargs: object
    ) -> torch.Tensor | None:
        if self.method_name in DRAWING:  # the inputs may be stored on a GPU
            tensors = {model: tensor.to("cpu") for model, tensor in tensors.items()}
        kept_model = self.base_model if self.base_model in self.model_order else self.model_order[0]
        kept, name = tensors[kept_model], self.output_weight.name
        assert isinstance(kept, torch.Tensor)
        plain = [t for model in self.model_order if isinstance(t := tensors[model], torch.Tensor)]
        if kept.numel() == 0:
            return kept
        if not all(t.is_floating_point() for t in plain):
            if any(t.dtype != kept.dtype or not torch.equal(t, kept) for t in plain):
                LOG.warning("Buffer %s (%s) differs between the inputs; %s's is kept.", name, kept.dtype, kept_model)
            return kept
        broken = [str(model) for model in self.model_order if not is_finite(tensors[model])]
        if broken:
            # an infinite bound that all share is meant; anything else would spread through the arithmetic
            if len(plain) == len(tensors) and all(t.shape == kept.shape and torch.equal(t, kept) for t in plain):
                return kept
            raise MergeError(
                f"Tensor {name} holds NaN or infinite values in {', '.join(broken)}. Merging it would spread "
                "them: repair or leave out that input, or keep the tensor at the base by its role's policy."
            )
        with self._stream(tensors):
            merged = self._merged(tensors)
        if merged is not None and merged.dtype.itemsize < 4 and not is_finite(merged):
            # small constants of some methods vanish in 16 bits, and sums of squares overflow there
            widened = {model: t.float() if isinstance(t, torch.Tensor) else t for model, t in tensors.items()}
            with self._stream(widened):
                wide = self._merged(widened)
            merged = merged if wide is None else wide.to(merged.dtype)
        if merged is not None:
            require_finite(merged, name, self.method_name)
        return merged

    def try_out(self, shape: tuple[int, ...]) -> None:
        """Run the method on small tensors of such a shape: what it refuses should be known before the merge is run.

        Raises:
            MergeError: it fails, or gives NaN or Inf, with these parameters on tensors of such a shape.
        """
        small = [min(length, 8) for length in shape]
        generator = torch.Generator().manual_seed(0)
        tensors = {model: torch.rand(small, generator=generator) + 1.0 for model in self.model_order}
        try:
            self.execute(dict(tensors))
        except MergeError:
            raise
        except Exception as error:
            if not is_of_mergekit(self.method_name):  # a mistake in a method of somebody else's is one to be seen
                raise
            raise MergeError(
                f"{self.method_name} cannot merge {self.output_weight.name}, of shape {shape}: {error}. Look at its "
                "parameters, or keep the tensor as in the base by its role's policy."
            ) from error

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor | None:
        # mergekit's own refusals of values, such as weights under which all vectors cancel
        with refused_by(*_REFUSING, about=f"{self.method_name} cannot merge {self.output_weight.name}: "):
            merged: torch.Tensor | None = super().execute(tensors)
        return merged

    def _stream(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> OwnStream:
        """By seed, name and the first values of each input: experts merged one by one get masks of their own."""
        state = zlib.crc32(f"{self.seed} {self.output_weight.name}".encode())
        for model in self.model_order:
            value = tensors.get(model)  # a sum of adapters is made without their base
            if value is None:
                continue
            tensor = value.left if isinstance(value, TaskVector) else value
            first = tensor.reshape(-1)[:256].to("cpu", torch.float32).contiguous()
            state = zlib.crc32(first.numpy().tobytes(), state)
        return OwnStream(state)


class MergeTaskVectors(MergeTensors):
    """Run one of the plugin's methods, in float32 or wider; adapters stay the factors they are."""

    as_vector: bool = False  # a kernel of a convolution is no stack of matrices

    def _merged(self, tensors: dict[ModelReference, torch.Tensor | TaskVector]) -> torch.Tensor:
        method = method_named(self.method_name)
        base = tensors[self.base_model]
        assert isinstance(base, torch.Tensor)
        shape = base.shape
        base = base.to(working_dtype(base.dtype))
        task_vectors = [
            t if isinstance(t, TaskVector) else TaskVector(t, base=base)
            for model in self.model_order
            if model != self.base_model and (t := tensors[model]) is not None
        ]
        if self.as_vector:
            base = base.reshape(-1)
            task_vectors = [TaskVector(t.dense(base.dtype).reshape(-1)) for t in task_vectors]
        label = f"tensor {self.output_weight.name!r}"
        return method.merge(base, task_vectors, label, **dict(self.parameters.items())).reshape(shape)


def is_of_mergekit(method: str) -> bool:
    """Whether a merge method comes with mergekit itself."""
    found = merge_methods.get(method)
    written = getattr(found, "implementation", type(found))  # a decorated function, or a class
    return str(written.__module__).startswith("mergekit.")


def require_finite(merged: torch.Tensor, name: str, method: str) -> None:
    """MergeError for NaN or Inf that a merge has made of finite inputs."""
    if not is_finite(merged):
        raise MergeError(
            f"Merging tensor {name} by {method} gives NaN or Inf in {merged.dtype}: look at the weights, or merge in a "
            "wider `dtype`."
        )
