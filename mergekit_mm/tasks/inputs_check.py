"""Cases in which a merge must not compute: NaN or infinite values, and tensors that are no weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from mergekit.common import ModelReference

from mergekit_mm.errors import MergeError
from mergekit_mm.methods.apply import is_finite
from mergekit_mm.numerics.task_vector import TaskVector

LOG = logging.getLogger(__name__)


def is_kept(
    tensors: Mapping[ModelReference, torch.Tensor | TaskVector],
    order: Sequence[ModelReference],
    kept_model: ModelReference,
    name: str,
) -> bool:
    """Whether the tensor of `kept_model` is the result, as arithmetic on these tensors has no meaning.

    Empty tensors, buffers of integers, and tensors with infinite bounds that all inputs share are kept.

    order: the inputs of the merge, all of which are in `tensors`.

    Raises:
        MergeError: an input holds NaN or infinite values.
    """
    plain = [t for model in order if isinstance(t := tensors[model], torch.Tensor)]
    if not plain:
        _require_finite(tensors, order, name)
        return False
    kept = tensors[kept_model] if isinstance(tensors.get(kept_model), torch.Tensor) else plain[0]
    assert isinstance(kept, torch.Tensor)
    if kept.numel() == 0:
        return True
    if not all(t.is_floating_point() for t in plain):
        if any(t.dtype != kept.dtype or not torch.equal(t, kept) for t in plain):
            LOG.warning("Buffer %s (%s) differs between the inputs; %s's is kept.", name, kept.dtype, kept_model)
        return True
    if all(is_finite(tensors[model]) for model in order):
        return False
    if len(plain) == len(order) and all(t.shape == kept.shape and torch.equal(t, kept) for t in plain):
        return True
    _require_finite(tensors, order, name)
    return False


def _require_finite(
    tensors: Mapping[ModelReference, torch.Tensor | TaskVector], order: Sequence[ModelReference], name: str
) -> None:
    if broken := [str(model) for model in order if not is_finite(tensors[model])]:
        raise MergeError(
            f"Tensor {name} holds NaN or infinite values in {', '.join(broken)}. Merging it would spread "
            "them: repair or leave out that input, or keep the tensor at the base by its role's policy."
        )


def require_finite_result(merged: torch.Tensor, name: str, method: str) -> None:
    """MergeError for NaN or Inf that a merge has made of finite inputs."""
    if not is_finite(merged):
        raise MergeError(
            f"Merging tensor {name} by {method} gives NaN or Inf in {merged.dtype}: look at the weights, or merge in a "
            "wider `dtype`."
        )
