"""Iso-C (arXiv 2502.04959): the sum of the task vectors with its spectrum made flat.

Per matrix, with sum_i tau_i = U diag(sigma) V^T,

    merged = mean(sigma) U V^T

Deviation from the released code, deliberate: U, V and the mean are taken over the r directions in the numerical range
of the sum, not over all min(out, in). At full rank this is the published result. On adapters the released code gives
min(out, in) - r arbitrary null vectors the same weight as the data: 82% of the result's energy with five adapters of
rank 16, and other vectors in another precision. Taking the mean over r rather than over min(out, in) keeps what the
method keeps at full rank, the sum of the singular values. Vectors get the mean of the deltas; the released code has an
error, a mean or a sum there, depending on the script.

`iso_c` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require_tolerance
from mergekit_mm.numerics.polar import ROUNDING, polar
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core, sum_of_deltas


@task_vector_method(
    name="iso_c",
    pretty_name="Iso-C",
    reference_url="https://arxiv.org/abs/2502.04959",
    keeps_factors=True,
    validate=require_tolerance,
)
def iso_c(task_vectors: Sequence[TaskVector], rank_tolerance: float = ROUNDING) -> TaskVector:
    """The Iso-C merge of one matrix's task vectors; from factors it is found in their joint core and stays factored.

    rank_tolerance: singular values of the sum below this share of its largest are rounding (16-bit checkpoints: 1e-2
    or more).
    """
    return in_joint_core(task_vectors, lambda deltas: _merge(deltas, rank_tolerance))


def _merge(task_vectors: Sequence[TaskVector], tolerance: float) -> Tensor | None:
    isometry, sigma = polar(sum_of_deltas(task_vectors), tolerance)
    return isometry.mul_(sigma.mean()) if len(sigma) else None
