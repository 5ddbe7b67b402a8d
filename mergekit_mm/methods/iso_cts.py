"""Iso-CTS (arXiv 2502.04959): a common subspace from the sum, task subspaces from what it leaves, one flat spectrum.

Per matrix, with (U_c, s_c, V_c) the c leading singular triplets of sum_i tau_i, and (U_i, s_i, V_i) the d leading ones
of the residual tau_i - U_c U_c^T tau_i,

    merged = mean(s_1, ..., s_N, s_c) polar([U_1 ... U_N U_c]) polar([V_1 ... V_N V_c])^T

The counts follow the released code: of r directions c_0 = int(common_fraction r) are common at first, the rest is
shared out evenly, t = N round((r - c_0) / N), c = r - t, d = int(t / N). Deviations from that code, all deliberate:
  - r is the numerical rank of the sum. At full rank that is min(out, in) as published; on adapters the released counts
    exceed the rank and most of what they keep is arbitrary null vectors (see `iso_c`);
  - an expert brings at most as many directions as its residual has, and polar factors are zero where directions
    coincide;
  - float64 inside; the released code fails on half precision.

`iso_cts` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.eigen import eigenpairs_, gram
from mergekit_mm.numerics.polar import (
    COINCIDING,
    ROUNDING,
    Triplets,
    inverse_root_,
    leading_range,
    leading_triplets,
    normalised_,
    numerical_rank,
    polar,
)
from mergekit_mm.numerics.rank_rules import fraction_rank
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core, sum_of_deltas


def _validate(common_fraction: float, rank_tolerance: float) -> None:
    require(0 <= common_fraction <= 1, "common_fraction", "in [0, 1]", common_fraction)
    require_tolerance(rank_tolerance)


@task_vector_method(
    name="iso_cts",
    pretty_name="Iso-CTS",
    reference_url="https://arxiv.org/abs/2502.04959",
    keeps_factors=True,
    validate=_validate,
)
def iso_cts(
    task_vectors: Sequence[TaskVector], common_fraction: float = 0.8, rank_tolerance: float = ROUNDING
) -> TaskVector:
    """The Iso-CTS merge of one matrix's task vectors; from factors it is found in their joint core and stays factored.

    common_fraction: the share of directions that come from the sum. rank_tolerance: singular values of the sum below
    this share of its largest, and of a residual below this share of its task vector's norm, are rounding (16-bit
    checkpoints: 1e-2 or more).
    """
    return in_joint_core(task_vectors, lambda deltas: _merge(deltas, common_fraction, rank_tolerance))


def counts(rank: int, experts: int, common_fraction: float) -> tuple[int, int]:
    """(c, d): how many of `rank` directions are common, and how many each expert adds."""
    shared_out = experts * round((rank - fraction_rank(common_fraction, rank)) / experts)
    common = max(0, rank - shared_out)
    return common, (rank - common) // experts


def _merge(task_vectors: Sequence[TaskVector], common_fraction: float, tolerance: float) -> Tensor | None:
    common, complement, each = _common_part(task_vectors, common_fraction, tolerance)
    tasks = [_own_part(t.dense(torch.float64), common.u, complement, each, tolerance) for t in task_vectors if each]
    s = torch.cat([*(p.s for p in tasks), common.s])
    if not len(s):
        return None
    own, _ = polar(torch.cat([common.u[:, :0], *(p.u for p in tasks)], dim=1), COINCIDING)
    u = torch.cat([own, common.u], dim=1)  # the polar factor of both, as residuals are orthogonal to U_c
    v = torch.cat([*(p.v for p in tasks), common.v], dim=1)
    del tasks, common, complement, own  # they are as large as u and v
    root, _ = inverse_root_(gram(v.T), COINCIDING)
    return (u @ root @ v.T).mul_(s.mean())


def _common_part(
    task_vectors: Sequence[TaskVector], common_fraction: float, tolerance: float
) -> tuple[Triplets, Tensor | None, int]:
    """The c leading triplets of the sum; a basis of what is orthogonal to their left vectors; and d.

    The basis (out, out - c) comes with the decomposition of a wide matrix. For a tall one it would be large: None.
    """
    total = sum_of_deltas(task_vectors)
    wide = total.shape[0] <= total.shape[1]
    values, near = eigenpairs_(gram(total if wide else total.T))
    count, each = counts(numerical_rank(values, tolerance), len(task_vectors), common_fraction)
    kept = near[:, :count]
    s, far = normalised_(total.T @ kept if wide else total @ kept)
    if wide:
        return Triplets(kept, s, far), near[:, count:], each
    return Triplets(far, s, kept), None, each


def _own_part(delta: Tensor, common: Tensor, complement: Tensor | None, count: int, tolerance: float) -> Triplets:
    """The `count` leading triplets of the residual delta - common common^T delta, which is never formed.

    common (out, c): orthonormal columns. complement: a basis of what is orthogonal to them, if it is known; the
    residual is then found in its few coordinates.
    """
    norm = float(delta.norm())
    if complement is not None:
        own = leading_triplets(complement.T @ delta, count, tolerance, norm)
        return own._replace(u=complement @ own.u)
    inside = common.T @ delta
    v = leading_range(gram(delta.T).sub_(gram(inside.T)), count, tolerance, norm)
    s, u = normalised_(delta @ v - common @ (inside @ v))
    return Triplets(u, s, v)
