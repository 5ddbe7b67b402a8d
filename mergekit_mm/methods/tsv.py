"""TSV-Merging (arXiv 2412.00081): the experts' leading singular vectors, made orthogonal to each other.

Per matrix, with (U_i, S_i, V_i) the k leading singular triplets of task vector i, k = int(min(out, in) / N),

    merged = polar([U_1 ... U_N]) diag(S_1 ... S_N) polar([V_1 ... V_N])^T

where polar(X) is the nearest matrix with orthonormal columns. Deviations from the released code, all deliberate:
  - it is this method: two of the released scripts apply it to one excluded tensor only and average all others;
  - k_i = min(k, rank of tau_i). On adapters k exceeds the rank; the released code then takes arbitrary null vectors
    into the polar factors, and the results of two precisions differ by 84%;
  - polar factors are zero where the experts' singular vectors coincide, as they have no direction of their own there:
    N equal experts give that expert's leading part;
  - where there are more experts than rows or columns (k = 0) every expert keeps one direction instead of none.

`tsv` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.eigen import gram
from mergekit_mm.numerics.polar import COINCIDING, ROUNDING, inverse_root_, leading_triplets
from mergekit_mm.numerics.rank_rules import fraction_rank
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core


def _validate(rank_fraction: float | None, rank_tolerance: float) -> None:
    require(rank_fraction is None or 0 < rank_fraction <= 1, "rank_fraction", "in (0, 1]", rank_fraction)
    require_tolerance(rank_tolerance)


@task_vector_method(
    name="tsv",
    pretty_name="TSV-Merging",
    reference_url="https://arxiv.org/abs/2412.00081",
    keeps_factors=True,
    validate=_validate,
)
def tsv(
    task_vectors: Sequence[TaskVector], rank_fraction: float | None = None, rank_tolerance: float = ROUNDING
) -> TaskVector:
    """The TSV merge of one matrix's task vectors; from factors it is found in their joint core and stays factored.

    rank_fraction: the share of min(out, in) that each expert keeps, rounded down; 1 / N by default. rank_tolerance:
    singular values of a task vector below this share of its largest are rounding (16-bit checkpoints: 1e-2 or more).
    """
    size = min(task_vectors[0].shape)
    rank = size // len(task_vectors) if rank_fraction is None else fraction_rank(rank_fraction, size)
    return in_joint_core(task_vectors, lambda deltas: _merge(deltas, max(1, rank), rank_tolerance))


def _merge(task_vectors: Sequence[TaskVector], rank: int, tolerance: float) -> Tensor | None:
    parts = [leading_triplets(t.dense(torch.float64), rank, tolerance) for t in task_vectors]
    s = torch.cat([p.s for p in parts])
    if not len(s):
        return None
    near, far = torch.cat([p.u for p in parts], dim=1), torch.cat([p.v for p in parts], dim=1)
    del parts  # they are as large as near and far
    tall = near.shape[0] > far.shape[0]
    if tall:
        near, far = far, near
    # The products on the smaller side come first.
    near = (near @ inverse_root_(gram(near.T), COINCIDING)[0]).mul_(s)
    near = near @ inverse_root_(gram(far.T), COINCIDING)[0]
    return far @ near.T if tall else near @ far.T
