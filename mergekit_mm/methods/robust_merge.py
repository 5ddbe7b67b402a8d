"""RobustMerge (arXiv 2502.17159): the factors of adapters, trimmed, re-scaled direction by direction, and merged apart.

Per matrix, with B_i (out, r) and A_i (r, in) the factors of adapter i, and ^ for the largest `density` of the entries,

    s_ij = max(|| row j of A_i ||_1 / || row j of A^_i ||_1, the 0.8-quantile of these over the rows of A_i) ,

    A = 2 sum_i A^_i ,   B = 2 (sum_i B^_i diag(s_i)) diag(sum_i s_i)^-1 ,   merged = B A .

Directions that trimming shortens much, the weak ones, get the larger weight; four rows of five share one. It merges
factors and no products: row j of one adapter meets row j of the others, whatever they stand for, and the result depends
on how a delta was factored. Adapters that were trained from one initialisation of A are what it is for; it cannot merge
whole matrices.

Source: the released code of https://github.com/AuroraZengfh/RobustMerge, from which the quantile and the factors of two
are. Deviations, all deliberate:
  - a row of which nothing is kept gets the largest s_ij of its adapter, in the place of a division by zero; a row of
    zeros has no say;
  - an adapter's scaling is in B_i, so that adapters of different alpha are merged as they work;
  - `density` of the entries are kept, and ties with the smallest of them, to rounding; the released code keeps one
    more;
  - float64 inside. Adapters that do not change a matrix have no part in it;
  - matrices that were trained whole are refused, where the released code averages them: the policy of their role can;
  - of a weight that is stored turned, as embeddings are, the right factor is what training calls B.

`robust_merge` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.errors import MergeError
from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require
from mergekit_mm.numerics.task_vector import TaskVector
from mergekit_mm.numerics.trimming import trimmed_

_AMPLIFIED = 2.0  # by which both merged factors are multiplied
_COMMON = 0.8  # share of an adapter's rows that have one weight, the least one


def _validate(density: float) -> None:
    require(0 < density <= 1, "density", "in (0, 1]", density)


@task_vector_method(
    name="robust_merge",
    pretty_name="RobustMerge",
    reference_url="https://arxiv.org/abs/2502.17159",
    keeps_factors=True,
    needs_factors=True,
    validate=_validate,
)
def robust_merge(task_vectors: Sequence[TaskVector], density: float = 0.2) -> TaskVector:
    """The RobustMerge of one matrix's adapters; of their rank.

    density: the share of the entries of each A_i, and of each B_i, that is kept.

    Raises:
        MergeError: a task vector is no product of factors, or adapters of different ranks change the matrix.
    """
    pairs = [(t.left.double(), t.right.double()) for t in task_vectors if t.right is not None]
    if len(pairs) != len(task_vectors):
        raise MergeError("robust_merge merges the factors of adapters; a whole matrix has none")
    pairs = [(b, a) for b, a in pairs if b.any() and a.any()]
    if len({len(a) for _, a in pairs}) > 1:
        ranks = ", ".join(str(len(a)) for _, a in pairs)
        raise MergeError(f"robust_merge merges adapters of one rank, and these have {ranks}")
    if not pairs:
        rows, columns = task_vectors[0].shape
        zeros = torch.zeros(rows + columns, 0, dtype=torch.float64, device=task_vectors[0].device)
        return TaskVector.low_rank(zeros[:rows], zeros[rows:].T)
    kept = [trimmed_(a.clone(), density) for _, a in pairs]
    shares = [_shares(a, own) for (_, a), own in zip(pairs, kept, strict=True)]
    total = torch.stack(shares).sum(0)
    weighted = torch.stack([trimmed_(b.clone(), density) * s for (b, _), s in zip(pairs, shares, strict=True)]).sum(0)
    left = weighted / torch.where(total > 0, total, 1.0)
    return TaskVector.low_rank(_AMPLIFIED * left, _AMPLIFIED * torch.stack(kept).sum(0))


def _shares(a: Tensor, kept: Tensor) -> Tensor:
    """s_i (r,): how much each row of a factor (r, in), which is not zero, lost."""
    whole, left = a.abs().sum(1), kept.abs().sum(1)
    lost = torch.where(left > 0, whole / left, 0.0)
    lost = torch.where(left > 0, lost, lost.max())
    of_rows = lost[whole > 0].sort().values
    return torch.where(whole > 0, lost.clamp_min(of_rows[int(_COMMON * len(of_rows))]), 0.0)
