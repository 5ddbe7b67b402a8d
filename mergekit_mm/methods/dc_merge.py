"""DC-Merge (arXiv 2603.06242): task vectors of smoothed spectra, merged entry by entry in a basis that they share.

Per matrix, with (U_i, S_i, V_i) the k leading singular triplets of task vector i, k = int(min(out, in) / N),

    P = polar([U_1 ... U_N]),   Q = polar([V_1 ... V_N]),   M_i = P^T U_i S_i V_i^T Q,

    merged = P mask(TIES(M_1, ..., M_N)) Q^T ,

where S_i has been replaced by its mean (`smoothing: mean`). TIES keeps the largest entries of each |M_i|, elects the
sign of their sum, and takes the mean of the entries that have it; the mask keeps the N diagonal blocks of k x k, in
which an expert meets itself.

Source: the released code of https://github.com/Tobeginwith/DC-Merge, which leaves the spectra of full fine-tunes as
they are (`smoothing: none`). On LLaVA's adapters it merges B A and loads the result with an alpha/r of 2, in the place
of the adapters' own; here that is in the task vectors. Deviations from it, all deliberate:
  - k_i = min(k, rank of tau_i), for adapters and full fine-tunes alike. The released code has the adapter's rank there;
  - TIES keeps a tenth of the entries, as in the paper. The released 0.1 % is less than one entry for each direction
    where few adapters of small rank meet; `density: 0.001` is that;
  - entries as large as the smallest that is kept, to rounding, are kept too, as smoothed spectra are full of ties; and
    entries that are rounding have no part in a mean, nor have sums that are, whose sign would be drawn;
  - polar factors are zero where the experts' singular vectors coincide (see `tsv`);
  - the released code's straight line as a smoothed spectrum is left out.

`dc_merge` in `reference.py` restates the published computation plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mergekit_mm.methods.apply import task_vector_method
from mergekit_mm.numerics.checks import require, require_tolerance
from mergekit_mm.numerics.polar import COINCIDING, ROUNDING, leading_triplets, polar
from mergekit_mm.numerics.rank_rules import fraction_rank
from mergekit_mm.numerics.task_vector import TaskVector, in_joint_core
from mergekit_mm.numerics.trimming import trimmed_

Smoothing = Literal["mean", "none"]


def _validate(rank_fraction: float | None, density: float, rank_tolerance: float, **_: object) -> None:
    require(rank_fraction is None or 0 < rank_fraction <= 1, "rank_fraction", "in (0, 1]", rank_fraction)
    require(0 < density <= 1, "density", "in (0, 1]", density)
    require_tolerance(rank_tolerance)


@task_vector_method(
    name="dc_merge",
    pretty_name="DC-Merge",
    reference_url="https://arxiv.org/abs/2603.06242",
    keeps_factors=True,
    validate=_validate,
)
def dc_merge(
    task_vectors: Sequence[TaskVector],
    smoothing: Smoothing = "mean",
    density: float = 0.1,
    rank_fraction: float | None = None,
    rank_tolerance: float = ROUNDING,
) -> TaskVector:
    """The DC-Merge of one matrix's task vectors; from factors it is found in their joint core and stays factored.

    smoothing: singular values of an expert replaced by their mean, or left as they are. density: the share of the
    entries of each M_i that TIES keeps. rank_fraction: the share of min(out, in) that each expert keeps, rounded down;
    1 / N by default. rank_tolerance: singular values of a task vector below this share of its largest are rounding
    (16-bit checkpoints: 1e-2 or more).
    """
    size = min(task_vectors[0].shape)
    rank = size // len(task_vectors) if rank_fraction is None else fraction_rank(rank_fraction, size)
    return in_joint_core(task_vectors, lambda deltas: _merge(deltas, max(1, rank), smoothing, density, rank_tolerance))


def _merge(
    task_vectors: Sequence[TaskVector], rank: int, smoothing: Smoothing, density: float, tolerance: float
) -> Tensor | None:
    parts = [leading_triplets(t.dense(torch.float64), rank, tolerance) for t in task_vectors]
    widths = [len(part.s) for part in parts if len(part.s)]
    if not widths:
        return None
    p, _ = polar(torch.cat([part.u for part in parts], dim=1), COINCIDING)
    q, _ = polar(torch.cat([part.v for part in parts], dim=1), COINCIDING)
    kept: list[list[Tensor]] = [[] for _ in widths]  # of each diagonal block, the entries of all experts
    for u, s, v in parts:
        if len(s):
            spectrum = s.mean() if smoothing == "mean" else s
            for of_block, block in zip(
                kept, _blocks(trimmed_((p.T @ u * spectrum) @ (v.T @ q), density), widths), strict=True
            ):
                of_block.append(block)
    return p @ torch.block_diag(*map(_disjoint_mean, kept)) @ q.T


def _blocks(entries: Tensor, widths: Sequence[int]) -> list[Tensor]:
    """Copies of the diagonal blocks of these widths."""
    stops = torch.tensor(widths).cumsum(0).tolist()
    return [
        entries[stop - width : stop, stop - width : stop].clone() for width, stop in zip(widths, stops, strict=True)
    ]


def _disjoint_mean(several: Sequence[Tensor]) -> Tensor:
    """TIES's mean of the entries that have the sign of their sum; 0 where they cancel to rounding."""
    together = torch.stack(list(several))
    total, size = together.sum(0), together.abs().sum(0)
    agreeing = [each * ((each * total > 0) & (total.abs() > ROUNDING * size)) for each in several]
    count = torch.stack([each != 0 for each in agreeing]).sum(0)
    return torch.stack(agreeing).sum(0) / count.clamp_min(1)
